"""The local folder's own ways: temporary files, what a kill leaves, and what an operating system refuses."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlcd_core.errors import StoreError
from mlcd_core.store import LocalFiles


def test_what_cannot_be_read_is_an_error_and_not_absent(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    (tmp_path / "folder").mkdir()
    for read in (files.read, files.map):
        with pytest.raises(StoreError, match="cannot read"):
            read("folder")


def test_listing_names_no_temporary(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    files.put("s/a", b"whole")
    (tmp_path / "s" / ".tmp-left-by-a-kill").write_bytes(b"half")
    assert [info.path for info in files.list("s")] == ["s/a"]


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
