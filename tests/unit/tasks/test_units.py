"""The Ray Data side of a unit, without Ray: what travels back is a small status, also for errors and for deaths."""

import json
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import silent
from mlcd_core.store import UnitTask
from mlcd_core.tables import label_schema
from tasks.evaluate import _label_matrix
from tasks.unit_marks import MOST_DEATHS, UnitMarks
from tasks.units import _UnitCaller, gpu_share, run_units
from tasks.worker_log import Send

UNIT = "u" * 64
GIVEN = {"index": 3, "unit": UNIT, "attempt": 1, "reads": {"rows": 5}}


class Counter:
    """A unit worker that says what it read."""

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> int:
        assert task == UnitTask(3, UNIT, 1)
        return self.factor * int(reads["rows"])


class Forgiving(Counter):
    """A unit worker that can give a unit up, and says more than its rows."""

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        return {"rows": super().__call__(task, reads), "device": "cpu"}

    def give_up(self, task: UnitTask, reads: Mapping[str, Any]) -> dict[str, Any]:
        return {"rows": 0, "gave_up": task.unit}


class CannotStart:
    """A unit worker whose settings are wrong."""

    def __init__(self) -> None:
        raise ConfigError("set embed.image_size=224")


class CannotRead:
    """A unit worker whose shard is damaged."""

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> int:
        raise DataError("row group 1 cannot be read")


class Dies(BaseException):
    """In the place of the process."""


class Deadly:
    """A unit worker of whose work the process dies."""

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> int:
        raise Dies


class DeadlyStart:
    """A unit worker of whose start the process dies."""

    def __init__(self) -> None:
        raise Dies


class Process:
    """A process that does units; another one with the same marks is what Ray starts after it died."""

    def __init__(self, worker: type, marks: UnitMarks) -> None:
        self._caller = _UnitCaller(worker, {}, marks, lambda: "actor", self._listen)

    def does(self, **changes: Any) -> dict[str, Any]:
        batch = pa.table({"task": [json.dumps({**GIVEN, **changes})]})
        said = self._caller(batch)
        self.log: list[dict[str, Any]] = json.loads(said["log"][0].as_py())
        outcome: dict[str, Any] = json.loads(said["outcome"][0].as_py())
        return outcome

    def _listen(self, who: str, send: Send) -> None:
        assert who == f"worker {os.getpid()}"
        self.logs = send


@pytest.fixture
def marks() -> UnitMarks:
    return UnitMarks()


def after_deaths(worker: type, marks: UnitMarks, deaths: int) -> Process:
    for _ in range(deaths):
        with pytest.raises(Dies):
            Process(worker, marks).does()
    return Process(worker, marks)


@pytest.mark.parametrize(("worker", "values"), [(Counter, {"rows": 10}), (Forgiving, {"rows": 10, "device": "cpu"})])
def test_a_unit_returns_its_rows_and_what_else_it_says(worker: type, values: object, marks: UnitMarks) -> None:
    assert Process(worker, marks).does() == {"unit": UNIT, "values": values, "kind": "", "error": ""}


@pytest.mark.parametrize(
    ("worker", "kind", "text"),
    [(CannotStart, "ConfigError", "set embed.image_size=224"), (CannotRead, "DataError", "row group 1 cannot be read")],
)
def test_errors_for_people_travel_as_text_also_those_of_the_start(
    worker: type, kind: str, text: str, marks: UnitMarks
) -> None:
    assert Process(worker, marks).does() == {"unit": UNIT, "values": {}, "kind": kind, "error": text}


def test_a_unit_that_ended_is_not_done_again_when_its_call_is_repeated(marks: UnitMarks) -> None:
    said = Process(Counter, marks).does()
    assert Process(CannotRead, marks).does() == said


def test_what_a_worker_logs_travels_once_with_the_next_unit(marks: UnitMarks) -> None:
    process = Process(Counter, marks)
    process.does()
    assert process.log == []
    process.logs({"text": "slow"})
    process.logs({"text": "slower"})
    said = process.does()
    assert said["values"] == {"rows": 10}
    assert process.log == [{"text": "slow"}, {"text": "slower"}]
    process.does()
    assert process.log == []


def test_a_unit_gets_three_chances(marks: UnitMarks) -> None:
    assert MOST_DEATHS == 3
    after_deaths(Deadly, marks, 2)
    assert Process(Counter, marks).does()["values"] == {"rows": 10}


def test_a_unit_of_which_the_process_died_three_times_is_given_up(marks: UnitMarks) -> None:
    after_deaths(Deadly, marks, 3)
    assert Process(Forgiving, marks).does()["values"] == {"rows": 0, "gave_up": UNIT}


def test_where_nothing_can_be_given_up_it_ends_the_stage(marks: UnitMarks) -> None:
    outcome = after_deaths(Deadly, marks, 3).does()
    assert outcome["kind"] == "StageFailedError"
    assert "died 3 times" in outcome["error"]
    assert UNIT in outcome["error"]


def test_a_worker_that_cannot_start_ends_the_stage_and_blames_no_unit(marks: UnitMarks) -> None:
    outcome = after_deaths(DeadlyStart, marks, 3).does()
    assert outcome["kind"] == "StageFailedError"
    assert "while it started" in outcome["error"]
    assert marks.look(UNIT).deaths == 0


@pytest.mark.parametrize(
    ("workers", "num_gpus", "share"),
    [(1, 0, 0), (2, 0.5, 0), (1, 1, 1), (2, 4, 1), (4, 4, 1), (2, 1, 0.5), (3, 1, 0.3333), (5, 2, 0.3333)],
)
def test_workers_share_the_gpus(workers: int, num_gpus: float, share: float) -> None:
    assert gpu_share(workers, num_gpus) == share


def test_nothing_pending_needs_no_ray() -> None:
    run_units(Counter, {"factor": 1}, [], [], workers=2, report=silent)


def test_labels_of_an_empty_part_keep_their_width() -> None:
    assert _label_matrix(pa.Table.from_pylist([], schema=label_schema(5))).shape == (0, 5)
