"""Local storage: objects appear whole or not at all, and a created name is never created again."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlcd_core.errors import StoreError
from mlcd_core.store import LocalFiles


def test_absent_is_none_and_unreadable_is_an_error(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    assert files.read("a/b") is None
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        files.read("folder")


def test_mapped_object_is_its_bytes_and_absent_is_none(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    assert files.map("a/b") is None
    files.put("a/b", b"content")
    mapped = files.map("a/b")
    assert mapped.to_pybytes() == b"content"
    assert not mapped.is_mutable
    files.delete("a/b")
    assert mapped.to_pybytes() == b"content"
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="cannot read"):
        files.map("folder")


def test_put_replaces_and_create_does_not(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.put("x/data", b"one")
    files.put("x/data", b"two")
    assert files.read("x/data") == b"two"
    assert files.create("x/once", b"first")
    assert not files.create("x/once", b"second")
    assert files.read("x/once") == b"first"


def test_listing_names_every_object_with_its_size_and_no_temporary(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.put("s/b", b"22")
    files.put("s/a/c", b"333")
    (tmp_path / "s" / ".tmp-left-by-a-kill").write_bytes(b"half")
    assert [(info.path, info.bytes) for info in files.list("s")] == [("s/a/c", 3), ("s/b", 2)]
    assert files.list("nowhere") == []


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*taken.*--root"):
        files.put("taken", b"data")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["taken"]


def test_sweep_removes_what_a_dead_writer_left_and_nothing_of_a_living_one(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.put("s/data", b"whole")
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    left = tmp_path / "s" / f".tmp-{socket.gethostname()}-{dead.pid}-abc"
    living = tmp_path / "s" / f".tmp-{socket.gethostname()}-{os.getpid()}-abc"
    elsewhere = tmp_path / "s" / f".tmp-another-host-{dead.pid}-abc"
    for temporary in (left, living, elsewhere):
        temporary.write_bytes(b"half")
    files.sweep("s")
    assert sorted(tmp_path.rglob(".tmp-*")) == sorted([living, elsewhere])
    assert files.read("s/data") == b"whole"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_root_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="writable"):
        LocalFiles(tmp_path).put("a/b", b"x")


def test_root_that_is_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot write"):
        LocalFiles(tmp_path / "root").put("a/b", b"x")


def _race(root: str, me: int, start: "multiprocessing.synchronize.Barrier", wins: "multiprocessing.Queue[int]") -> None:
    files = LocalFiles(root)
    for name in range(50):
        start.wait()
        if files.create(f"units/{name}", str(me).encode()):
            wins.put(name)


def test_one_winner_per_name_when_processes_race(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, wins = context.Barrier(3), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), me, start, wins)) for me in range(3)]
    for racer in racers:
        racer.start()
    won = sorted(wins.get(timeout=60) for _ in range(50))
    for racer in racers:
        racer.join(timeout=60)
    assert won == list(range(50))
    assert wins.empty()
