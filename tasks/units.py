"""Runs the pending units of a stage on a pool of Ray Data actors; each actor commits its own units.

Only small rows travel: a task in, a status out. Nothing is read back from Ray: the receipts say what is done. A unit
that kills its process again and again is given up, and the others go on.
"""

import json
import math
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mlcd_core import errors
from mlcd_core.events import Report
from mlcd_core.runtimes import Device
from mlcd_core.store import UnitTask
from tasks.unit_marks import MOST_DEATHS, Marks, Turns, start_marks
from tasks.worker_log import LOG_EVENT, Send, send_log

Values = Mapping[str, Any]


def run_units(
    worker: type,
    arguments: Mapping[str, Any],
    pending: Sequence[UnitTask],
    rows: Sequence[Mapping[str, Any]],
    *,
    workers: int,
    report: Report,
    in_flight: int = 1,
    device: Device = "cpu",
    on_unit: Callable[[UnitTask, Values], None] | None = None,
) -> None:
    """Map ``worker(**arguments)`` over the pending units.

    worker: a class called with ``(task: UnitTask, row)``, in ``in_flight`` threads of a process at a time, that commits
    the unit and returns its number of rows, or JSON values that hold ``rows``. Where it has ``give_up``, that is called
    with the same for a unit with which the process died three times; else such a unit ends the stage.
    rows: what each pending unit reads, as JSON values with its number of ``rows``, in the order of ``pending``.
    device: where the workers compute; where that is not the CPU, each gets its share of Ray's GPUs.
    on_unit: hears what each unit returned; what it raises ends the work.
    A MlcdError raised by a unit is raised here.
    """
    if not pending:
        return
    # not at the top: workers load this module, and need no Prefect
    from tasks.progress_bar import stage_bar
    from tasks.unit_progress import UnitProgress

    todo = {task.unit: task for task in pending}
    num_rows = sum(int(row["rows"]) for row in rows)
    progress = UnitProgress(report, num_units=len(pending), num_rows=num_rows, bar=stage_bar())
    with _outcomes(worker, arguments, pending, rows, workers, in_flight, device) as outcomes:
        for outcome, log in outcomes:
            for line in log:
                report(LOG_EVENT, line)
            if outcome["error"]:
                raise getattr(errors, outcome["kind"], errors.StageFailedError)(outcome["error"])
            progress(outcome["values"])
            if on_unit is not None:
                on_unit(todo[outcome["unit"]], outcome["values"])


@contextmanager
def _outcomes(
    worker: type,
    arguments: Mapping[str, Any],
    pending: Sequence[UnitTask],
    rows: Sequence[Mapping[str, Any]],
    workers: int,
    in_flight: int,
    device: Device,
) -> Iterator[Iterator[tuple[dict[str, Any], list[Values]]]]:
    """What the units say and their workers log, as units end; on exit nothing is left of the pool."""
    import ray

    marks = start_marks()
    # as text: Ray Data would make one Arrow type of what all units read
    tasks = [{"task": json.dumps({**vars(task), "reads": reads})} for task, reads in zip(pending, rows, strict=True)]
    # one unit a block, or what a unit says would wait for all others of its block, its error too
    blocks = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        _UnitCaller,
        fn_constructor_args=(worker, dict(arguments), marks, _actor_id, send_log),
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        num_gpus=gpu_share(workers, ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0,
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, len(tasks)),
            max_concurrent_calls_per_actor=in_flight,
            # one more waits in the actor: the driver looks only ten times a second who is free
            max_tasks_in_flight_per_actor=in_flight + 1,
            enable_true_multi_threading=in_flight > 1,
        ),
    )
    batches = iter(blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
    try:
        yield (
            (json.loads(outcome), json.loads(log))
            for batch in batches
            for outcome, log in zip(batch["outcome"].to_pylist(), batch["log"].to_pylist(), strict=True)
        )
    finally:
        batches.close()
        ray.kill(marks.actor)


def gpu_share(workers: int, num_gpus: float) -> float:
    """What part of a GPU each worker gets, so that all have the same and all find room; 0 where there is none."""
    if num_gpus < 1:
        return 0.0
    sharing = math.ceil(workers / int(num_gpus))
    return math.floor(10_000 / sharing) / 10_000  # Ray counts in ten-thousandths


def _actor_id() -> str:
    """Of the actor that this process is, the same after it died and was started again."""
    import ray

    return str(ray.get_runtime_context().get_actor_id())


class _UnitCaller:
    """The Ray Data side of a unit worker: one unit per batch, expected errors as a status instead of a traceback."""

    def __init__(
        self,
        worker: type,
        arguments: Mapping[str, Any],
        marks: Marks,
        actor_id: Callable[[], str],
        send_log: Callable[[str, Send], None],
    ) -> None:
        self._build: Callable[[], Any] = lambda: worker(**arguments)
        self._marks = marks
        self._actor_id = actor_id
        self._turns = Turns()
        self._building = threading.Lock()
        self._worker: Any = None
        self._log: deque[Values] = deque()
        send_log(f"worker {os.getpid()}", self._log.append)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        [given] = batch["task"].to_pylist()
        outcome = self._outcome(json.loads(given))
        log: list[Values] = []
        with suppress(IndexError):  # another thread of this process takes lines too
            while True:
                log.append(self._log.popleft())
        return pa.table({"outcome": [outcome], "log": [json.dumps(log)]})

    def _outcome(self, given: dict[str, Any]) -> str:
        task = UnitTask(given["index"], given["unit"], given["attempt"])
        mark = self._marks.look(task.unit)
        if mark.outcome:
            return mark.outcome
        if mark.deaths >= MOST_DEATHS:
            outcome = _said(task, lambda: self._give_up(task, given["reads"], mark.deaths))
        else:
            with self._turns.alone() if mark.deaths else self._turns.shared():
                outcome = _said(task, lambda: self._do(task, given["reads"]))
        self._marks.end(task.unit, outcome)
        return outcome

    def _do(self, task: UnitTask, reads: Values) -> int | Values:
        # built here, where errors travel as a status: an actor that fails to start is only started again
        worker = self._started()
        self._marks.begin(task.unit)
        made: int | Values = worker(task, reads)
        return made

    def _give_up(self, task: UnitTask, reads: Values, deaths: int) -> int | Values:
        worker = self._started()
        if not hasattr(worker, "give_up"):
            raise errors.StageFailedError(
                f"a worker process died {deaths} times while it did unit {task.unit} ({reads}); expected it to end: "
                "look for memory that ran out, or a broken installation, and run again; finished units are kept"
            )
        made: int | Values = worker.give_up(task, reads)
        return made

    def _started(self) -> Any:
        """The worker of this process. Raises StageFailedError when the process dies of starting it."""
        with self._building:
            if self._worker is None:
                start = f"start of {self._actor_id()}"
                if self._marks.look(start).deaths >= MOST_DEATHS:
                    raise errors.StageFailedError(
                        f"a worker process died {MOST_DEATHS} times while it started; expected it to load its model: "
                        "look for memory that ran out, try fewer workers, and run again; finished units are kept"
                    )
                self._marks.begin(start)
                try:
                    self._worker = self._build()
                except Exception:
                    self._marks.end(start, "")  # an error is no death
                    raise
                self._marks.end(start, "")
            return self._worker


def _said(task: UnitTask, work: Callable[[], int | Values]) -> str:
    """What the driver gets to know of a unit."""
    try:
        made = work()
        values, kind, error = {"rows": made} if isinstance(made, int) else dict(made), "", ""
    except errors.MlcdError as failure:
        values, kind, error = {}, type(failure).__name__, str(failure)
    return json.dumps({"unit": task.unit, "values": values, "kind": kind, "error": error})
