"""``mlcd pack`` as a person runs it: real processes, killed at any time, on disk and on S3."""

import io
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from mlcd_core.dataset import ShardReader, find_shards
from mlcd_core.store import open_files
from tests.integration.harness import BIN, Finished, write_id_of
from tests.servers import make_bucket, s3_environment, s3_server
from tests.unit.pack.harness import picture, write, write_tar

ROWS_PER_SHARD = 40
END_S = 180


def words(source: Path, to: Path | str, *more: str) -> list[str]:
    return [str(BIN / "mlcd"), "pack", str(source), "--to", str(to), "--rows-per-shard", str(ROWS_PER_SHARD), *more]


def pack(source: Path, to: Path | str, *more: str) -> Finished:
    done = subprocess.run(words(source, to, "--json", *more), capture_output=True, text=True, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def start(source: Path, to: Path, *more: str) -> "subprocess.Popen[bytes]":
    silent = subprocess.DEVNULL
    return subprocess.Popen(words(source, to, *more), stdout=silent, stderr=silent, start_new_session=True)


def await_receipt(child: "subprocess.Popen[bytes]", to: Path, num_before: int) -> list[psutil.Process]:
    """The processes of a pack that has made one shard more."""
    deadline = time.monotonic() + END_S
    while len(list(to.glob(".pack/units/*.json"))) <= num_before:
        assert child.poll() is None, f"the pack ended with {child.returncode}"
        assert time.monotonic() < deadline, "no shard in time"
        time.sleep(0.005)
    return psutil.Process(child.pid).children(recursive=True)


def results(to: Path) -> dict[str, bytes]:
    """All that a person reads."""
    return {path.name: path.read_bytes() for path in to.iterdir() if path.is_file()}


def write_ids(to: Path) -> dict[str, str]:
    return {path.name: write_id_of(path) for path in to.glob(".pack/units/*.json")}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder whose resize takes longer than a kill, with an odd name and a bad file."""
    smooth = Image.open(io.BytesIO(picture(0))).resize((480, 360), Image.Resampling.BICUBIC)
    sink = io.BytesIO()
    smooth.save(sink, "JPEG")
    files = {f"c{i % 3}/{i:04d}.jpg": sink.getvalue() + str(i).encode() for i in range(600)}
    return write(tmp_path_factory.mktemp("photos"), {**files, "c1/ü b.jpg": b"no image"})


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pack by one worker that nobody disturbed."""
    to = tmp_path_factory.mktemp("undisturbed") / "out"
    done = pack(photos, to, "--resize", "64", "--workers", "1")
    assert done.code == 0, done.stderr
    assert done.summary | {"seconds": 0, "images_per_s": 0, "bytes": 0} == {
        "to": str(to),
        "kind": "imagefolder",
        "shards": 16,
        "packed": 16,
        "images": 601,
        "failed": 0,
        "failures": [],
        "resized": 600,
        "not_resized": 1,
        "unlabelled": 0,
        "bytes": 0,
        "seconds": 0,
        "images_per_s": 0,
        "ignored": {},
        "columns": ["key", "image", "status", "error_message", "label", "class_name"],
        "next": f"mlcd run --data '{to}/*.parquet' --label-column label",
    }
    return to


def test_killed_at_any_time_it_goes_on_and_ends_with_the_same_bytes(
    photos: Path, undisturbed: Path, tmp_path: Path
) -> None:
    draw = random.Random(5)
    to = tmp_path / "out"
    kept: dict[str, str] = {}
    for _ in range(3):
        child = start(photos, to, "--resize", "64", "--workers", "2")
        workers = await_receipt(child, to, len(kept))
        time.sleep(draw.uniform(0, 0.15))
        child.kill()  # the command alone: its workers have to notice
        child.wait()
        _, alive = psutil.wait_procs(workers, timeout=END_S)
        assert alive == []
        assert not (to / "pack.json").exists()
        now = write_ids(to)
        assert kept.items() <= now.items()
        kept = now
    assert 0 < len(kept) < 16
    done = pack(photos, to, "--resize", "64", "--workers", "2")
    assert done.summary["packed"] == 16 - len(kept)
    assert kept.items() <= write_ids(to).items()
    assert results(to) == results(undisturbed)
    assert not [path for path in to.rglob("*") if path.name.startswith(".tmp-")]


def test_the_shards_are_read_back_in_order(photos: Path, undisturbed: Path, tmp_path: Path) -> None:
    shards = find_shards(str(undisturbed), memo=tmp_path / "memo.sqlite")
    groups = [group for shard in shards for group in ShardReader(shard, label_column="label")]
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.jpg"))
    assert [key for group in groups for key in group.keys] == [name.removesuffix(".jpg") for name in names]
    assert [label for group in groups for label in group.labels or []] == [int(name[1]) for name in names]


def test_sigterm_ends_it_and_its_workers_at_once(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    child = start(photos, to, "--resize", "64", "--workers", "2")
    workers = await_receipt(child, to, 0)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=END_S) == 143
    assert psutil.wait_procs(workers, timeout=END_S)[1] == []


def test_a_worker_that_dies_is_an_error_that_names_its_shard(photos: Path, tmp_path: Path) -> None:
    to = tmp_path / "out"
    command = words(photos, to, "--resize", "64", "--workers", "1")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        await_receipt(child, to, 0)  # type: ignore[arg-type]
        [worker] = [p for p in psutil.Process(child.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        worker.kill()
        _, said = child.communicate(timeout=END_S)
    assert child.returncode == 1
    assert "WorkerLostError: the worker that packed images-000" in said
    assert "died (signal 9); run again, finished shards are kept" in said
    assert "a shard that dies again can be packed without --resize" in said


def test_a_tar_that_was_cut_is_packed_as_far_as_it_goes_and_named(tmp_path: Path) -> None:
    source, to = tmp_path / "in", tmp_path / "out"
    members = [(f"{i:03d}.{suffix}", b"x" * 600) for i in range(100) for suffix in ("jpg", "txt")]
    write_tar(source / "a.tar", members)
    cut = write_tar(source / "b.tar", members)
    os.truncate(cut, 1536 * 2 * 70 + 700)
    done = pack(source, to)
    assert done.code == 1
    assert "b.tar: the file ends inside a member at byte 215,040, after 70 samples" in done.stderr
    assert "run again with --replace, or take it as it is with --allow-broken" in done.stderr
    assert not (to / "pack.json").exists()
    done = pack(source, to, "--allow-broken")
    assert (done.code, done.summary["packed"], done.summary["images"]) == (0, 0, 170)
    assert json.loads((to / "pack.json").read_bytes())["broken"][0]["samples"] == 70
    write_tar(source / "b.tar", members)
    done = pack(source, to, "--replace", "--workers", "2")
    assert (done.code, done.summary["packed"], done.summary["images"]) == (0, 3, 200)  # of 40 samples, 3 of each tar
    assert json.loads((to / "pack.json").read_bytes())["broken"] == []


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server() as endpoint:
        make_bucket(endpoint, "packs")
        for name, value in s3_environment(endpoint).items():
            monkeypatch.setenv(name, value)
        yield "s3://packs"


def test_on_s3_it_is_the_same_pack(photos: Path, undisturbed: Path, bucket: str) -> None:
    to = f"{bucket}/photos"
    done = pack(photos, to, "--resize", "64", "--workers", "2")
    assert done.code == 0, done.stderr
    files = open_files(to)
    assert {info.path: files.read(info.path) for info in files.list("") if "/" not in info.path} == results(undisturbed)
    again = pack(photos, to, "--resize", "64", "--workers", "2")
    assert (again.code, again.summary["packed"]) == (0, 0)
