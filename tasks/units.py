"""Runs the pending units of a stage on a pool of Ray Data actors; each actor commits its own units.

Only small rows travel: a task in, a status out. Nothing is read back from Ray: the receipts say what is done.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from mlcd_core import errors
from mlcd_core.events import Report
from mlcd_core.store import UnitTask


def run_units(
    worker: type,
    arguments: Mapping[str, Any],
    pending: Sequence[UnitTask],
    rows: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    report: Report,
) -> None:
    """Map ``worker(**arguments)`` over the pending units.

    worker: a class called with ``(task: UnitTask, row)`` that commits the unit and returns its number of rows.
    rows: what each pending unit reads, in the order of ``pending``. A MlcdError raised by a unit is raised here.
    """
    if not pending:
        return
    import ray

    tasks = [{**vars(task), "reads": dict(reads)} for task, reads in zip(pending, rows, strict=True)]
    dataset = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _UnitCaller,
        fn_constructor_args=(worker, dict(arguments)),
        batch_size=1,
        batch_format="numpy",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers, len(tasks))),
    )
    for done, status in enumerate(dataset.iter_rows(), start=1):
        if status["error"]:
            raise getattr(errors, status["kind"], errors.StageFailedError)(status["error"])
        report("unit", {"done": done, "total": len(tasks), "rows": int(status["rows"])})


class _UnitCaller:
    """The Ray Data side of a unit worker: one unit per batch, expected errors as a status instead of a traceback."""

    def __init__(self, worker: type, arguments: dict[str, Any]) -> None:
        # built at the first unit, where its errors travel as a status: an actor that fails to start is only restarted
        self._build = cache(lambda: worker(**arguments))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        task = UnitTask(int(batch["index"][0]), str(batch["unit"][0]), int(batch["attempt"][0]))
        try:
            outcome = {"rows": self._build()(task, batch["reads"][0]), "kind": "", "error": ""}
        except errors.MlcdError as error:
            outcome = {"rows": 0, "kind": type(error).__name__, "error": str(error)}
        return {key: [value] for key, value in outcome.items()}
