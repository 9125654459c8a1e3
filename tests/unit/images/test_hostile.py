"""A hundred and more files that no one should trust: each gets its status, in a second, in little memory."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlcd_core.images.decode import decode_images
from mlcd_core.tables import RowStatus
from tests.unit.images import hostile_worker
from tests.unit.images.hostile import MAX_PIXELS, HostileFile, corpus

REPO = Path(__file__).parents[3]
IMAGE_SIZE = 224
MOST_SECONDS, MOST_MB = 1.0, 300


@dataclass(frozen=True)
class Outcome:
    """What a process of its own found for one file. ``peak_mb``: of the process so far, above its start."""

    file: HostileFile
    status: RowStatus
    cpu_s: float
    peak_mb: float


@pytest.fixture(scope="module")
def files() -> list[HostileFile]:
    return corpus()


@pytest.fixture(scope="module", params=["exact", "fast"])
def outcomes(
    request: pytest.FixtureRequest, files: list[HostileFile], tmp_path_factory: pytest.TempPathFactory
) -> list[Outcome]:
    """The whole corpus, decoded by one fresh process, which must come to its end."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = [folder / str(number) for number in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file.data)
    ran = subprocess.run(
        [sys.executable, hostile_worker.__file__, str(IMAGE_SIZE), str(MAX_PIXELS), request.param],
        input=json.dumps([str(path) for path in paths]),
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"the decoding process ended with {ran.returncode}: {ran.stderr}"
    found = json.loads(ran.stdout)
    return [Outcome(file, RowStatus(row[0]), row[1], row[2]) for file, row in zip(files, found, strict=True)]


def test_each_file_has_its_status(outcomes: list[Outcome]) -> None:
    assert len(outcomes) >= 60
    wrong = [outcome for outcome in outcomes if outcome.status != outcome.file.status]
    assert not wrong, table(wrong)


def test_no_file_takes_a_second(outcomes: list[Outcome]) -> None:
    """Of CPU time: what else runs on the machine does not count."""
    slow = [outcome for outcome in outcomes if outcome.cpu_s > MOST_SECONDS]
    assert not slow, table(slow)


def test_all_files_together_stay_within_300_mb(outcomes: list[Outcome]) -> None:
    assert outcomes[-1].peak_mb <= MOST_MB, table(outcomes)


def test_the_memory_that_is_measured_is_that_of_the_decoder(outcomes: list[Outcome]) -> None:
    """The largest images that are allowed need 100 MB at least in either mode."""
    assert outcomes[0].peak_mb < 10
    assert outcomes[-1].peak_mb > 100, table(outcomes)


def test_bad_files_leave_good_neighbours_in_a_batch_alone(files: list[HostileFile]) -> None:
    small = [file for file in files if len(file.data) < 30_000 and file.status != RowStatus.OK]
    good = next(file for file in files if file.name == "jpeg-progressive").data
    alone = decode_images([good], image_size=16, max_pixels=MAX_PIXELS).pixels_BCHW[0]
    mixed = [data for file in small for data in (file.data, good)]
    decoded = decode_images(mixed, image_size=16, max_pixels=MAX_PIXELS)
    assert not decoded.pixels_BCHW[::2].any()
    assert (decoded.pixels_BCHW[1::2] == alone).all()
    assert decoded.status_B.tolist() == [status for file in small for status in (file.status, RowStatus.OK)]


def table(outcomes: list[Outcome]) -> str:
    rows = [
        f"{o.file.name:32} {len(o.file.data):10,} B  {o.status.name:16} expected {o.file.status.name:16} "
        f"{o.cpu_s:6.2f} s  peak {o.peak_mb:5.0f} MB"
        for o in outcomes
    ]
    return "\n".join(["", *rows])
