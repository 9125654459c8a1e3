"""Core events as lines in the flow run's log, at most every few seconds.

Progress is best effort: a Prefect server that does not answer must never fail a stage. Prefect is imported where it is
used: ``mlcd plan`` reads the stages' modules too, and the import takes two seconds. A job on a cluster runs without it.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from mlcd_core.events import Report, Value
from mlcd_core.specs import StageName
from tasks.worker_log import LOG_EVENT

LOG_EVERY_S = 5.0
GONE_S = 60.0
# what a line shows of an event with many values; the manifest keeps them all
SHOWN = {
    "train_step": ("step", "epoch", "loss", "positive_cosine", "negative_cosine", "images_per_s", "data_wait_share"),
    "cluster.iteration": ("iteration", "objective", "changed_share", "splits"),
    "unit": (
        "done",
        "total",
        "rows_per_s",
        "eta_s",
        "device",
        "storage_share",
        "decode_share",
        "model_share",
    ),
}


@dataclass
class Server:
    """The Prefect server as this process knows it. gone_until: a time of the monotonic clock."""

    gone_until: float = 0.0


SERVER = Server()


@contextmanager
def stage_report(stage: StageName) -> Iterator[Report]:
    """A reporter that logs the first event of a kind, then one every few seconds, and always the last.

    What a worker logs is a line each. All name their stage, for V2 of the UI does not show which task a line is of.
    """
    logger = stage_logger()
    last_time: dict[str, float] = {}
    held: dict[str, str] = {}

    def report(event: str, values: Mapping[str, Value]) -> None:
        if event == LOG_EVENT:
            logger.log(int(values["level"] or 0), "%s %s: %s", stage, values["who"], values["text"])
            return
        shown = [key for key in SHOWN.get(event, values) if values.get(key) is not None]
        head = event if event.startswith(stage) else f"{stage} {event}"
        line = (
            head.replace(".", " ").replace("_", " ") + ": " + ", ".join(f"{key} {_spell(values[key])}" for key in shown)
        )
        now = time.monotonic()
        if now - last_time.get(event, -LOG_EVERY_S) >= LOG_EVERY_S:
            last_time[event] = now
            held.pop(event, None)
            logger.info(line)
        else:
            held[event] = line

    yield report
    for line in held.values():
        logger.info(line)


def stage_logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The task run's logger, or a plain one outside a run."""
    if not _may_be_in_a_run():
        return logging.getLogger("mlcd")
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("mlcd")


def running_task() -> str:
    """The name of the task of the current run; "" outside one."""
    if not _may_be_in_a_run():
        return ""
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    return context.task.name if context else ""


def show_best_effort(what: str, show: Callable[[], None]) -> None:
    """Show something in Prefect's UI, unless the server did not take the last thing less than a minute ago.

    Its client asks a server that is gone for a minute before it gives up: a run that lost its server goes on without.
    """
    import httpx
    from prefect.exceptions import PrefectException

    if time.monotonic() < SERVER.gone_until:
        return
    try:
        show()
    except (httpx.HTTPError, PrefectException) as error:
        SERVER.gone_until = time.monotonic() + GONE_S
        stage_logger().warning("%s is not shown in Prefect, nor is anything else for %.0f s: %s", what, GONE_S, error)


def _may_be_in_a_run() -> bool:
    """Whether this process has imported Prefect, as every flow has before it runs."""
    return "prefect" in sys.modules


def _spell(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
