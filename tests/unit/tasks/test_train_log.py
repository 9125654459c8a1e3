"""The log of a training: every record as a JSON line and as TensorBoard scalars, also after a resume."""

import json
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tasks.train_log import train_log


def log_steps(folder: Path, steps: range, *, times: Iterator[int], loss: float) -> None:
    with train_log(folder, "abc", now=lambda: next(times)) as log:
        log("train_attempt", {"world_size": 2})
        log("train_start", {"first_step": steps.start - 1, "num_steps": 9})
        for step in steps:
            log("train_step", {"step": step, "loss": loss * step})


def test_steps_repeated_after_a_resume_are_there_once_for_a_reader_that_takes_the_last(tmp_path: Path) -> None:
    folder, times = tmp_path / "logs", count(100)
    log_steps(folder, range(1, 7), times=times, loss=1.0)
    log_steps(folder, range(4, 10), times=times, loss=0.5)
    records = [json.loads(line) for line in (folder / "abc.jsonl").read_text().splitlines()]
    assert [record["time"] for record in records] == sorted(record["time"] for record in records)
    assert records[1] == {"time": records[1]["time"], "event": "train_start", "first_step": 0, "num_steps": 9}
    last = {record["step"]: record["loss"] for record in records if record["event"] == "train_step"}
    expected = {step: step * (1.0 if step < 4 else 0.5) for step in range(1, 10)}
    assert last == expected
    events = EventAccumulator(str(folder / "abc")).Reload()
    assert {scalar.step: scalar.value for scalar in events.Scalars("train/loss")} == expected


def test_a_stage_that_does_not_train_writes_nothing(tmp_path: Path) -> None:
    with train_log(tmp_path / "logs", "abc"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_ends_the_log_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "logs").write_text("a file")
    log_steps(tmp_path / "logs", range(1, 4), times=count(), loss=1.0)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot be written" in caplog.text
