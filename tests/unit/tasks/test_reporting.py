"""Lines of the log name their stage, once."""

import logging

import pytest

from tasks import reporting


@pytest.mark.parametrize(
    ("stage", "event", "line"),
    [
        ("embed", "unit", "embed unit: done 1"),
        ("cluster", "cluster.part", "cluster part: done 1"),
        ("train", "train_start", "train start: done 1"),
        ("", "unit", "unit: done 1"),
    ],
)
def test_a_line_names_its_stage(
    stage: str, event: str, line: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reporting, "running_task", lambda: stage)
    with caplog.at_level(logging.INFO, logger="mlcd"), reporting.prefect_report() as report:
        report(event, {"done": 1})
    assert caplog.messages == [line]
