"""``mlcd retry-failed``: a run that also makes the units again that died or could not be read."""

from functools import partial
from typing import TYPE_CHECKING

from flows.run_command import add_run_options, run

if TYPE_CHECKING:
    from flows.options import Commands


def add_parser(commands: "Commands") -> None:
    """Add ``retry-failed``, with every option of ``run``."""
    retry = commands.add_parser(
        "retry-failed",
        help="run, and make the units again that died or could not be read",
        description="The same as mlcd run with the same options, and besides: every unit of embed with rows whose "
        "status is worker_died (its worker died three times) or unreadable (its shard could not be read) is made again "
        "as its next attempt. Bad images of shards that were read stay what they are: they would give the same status. "
        "When the new result is equal, every stage below stays cached; with nothing to redo it is mlcd run.",
    )
    add_run_options(retry)
    retry.set_defaults(command=partial(run, retry_failed=True))
