"""Lines of the log name their stage, once."""

import logging
from typing import get_args

import pytest

from mlcd_core.specs import StageName
from tasks.reporting import stage_report


@pytest.mark.parametrize(
    ("stage", "event", "line"),
    [
        ("embed", "unit", "embed unit: done 1"),
        ("cluster", "cluster.part", "cluster part: done 1"),
        ("train", "train_start", "train start: done 1"),
    ],
)
def test_a_line_names_its_stage(stage: StageName, event: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mlcd"), stage_report(stage) as report:
        report(event, {"done": 1})
    assert caplog.messages == [line]


@pytest.mark.parametrize("stage", get_args(StageName))
def test_lines_of_workers_name_the_worker_too_and_all_are_shown(
    stage: StageName, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mlcd"), stage_report(stage) as report:
        for rank in range(3):
            report("log", {"who": f"rank {rank}", "level": logging.WARNING, "text": "50 % of S3 is slow"})
    assert caplog.messages == [f"{stage} rank {rank}: 50 % of S3 is slow" for rank in range(3)]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}
