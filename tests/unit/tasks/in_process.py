"""``run_units`` without Ray, for tests of what the units do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlcd_core.store import UnitTask


def in_this_process(
    worker: type,
    arguments: Mapping[str, Any],
    pending: Sequence[UnitTask],
    rows: Sequence[Mapping[str, Any]],
    *,
    on_unit: Callable[[UnitTask, Mapping[str, Any]], None],
    **_: Any,
) -> None:
    """``run_units`` for one worker that is this process."""
    embedder = worker(**arguments)
    for task, reads in zip(pending, rows, strict=True):
        on_unit(task, embedder(task, reads))


def last_unit_first(
    worker: type,
    arguments: Mapping[str, Any],
    pending: Sequence[UnitTask],
    rows: Sequence[Mapping[str, Any]],
    **options: Any,
) -> None:
    """The same in another order."""
    in_this_process(worker, arguments, pending[::-1], rows[::-1], **options)
