"""The probe tells a store that keeps its promises from one that does not, and leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlcd_core.store import Files, LocalFiles, open_files, probe_store
from mlcd_core.store.files import FileInfo
from tests.s3.faults import Fault
from tests.s3.proxy import FaultProxy


def levels(files: Files) -> dict[str, str]:
    return {finding.check: finding.level for finding in probe_store(files).findings}


def test_a_sound_store_is_found_sound_and_left_as_it_was(files: Files, address: str) -> None:
    files.put("own/object", b"stays")
    ticks = iter(range(100))
    probe = probe_store(files, clock=lambda: next(ticks) / 1000)
    assert (probe.address, probe.usable) == (address, True)
    assert {finding.check: finding.level for finding in probe.findings} == dict.fromkeys(
        ("read", "list", "create", "race", "delete"), "ok"
    )
    assert (probe.put_ms, probe.get_ms) == (pytest.approx(1), pytest.approx(1))
    assert files.list("") == [FileInfo("own/object", 5)]


def test_on_disk_no_folder_stays_either(tmp_path: Path) -> None:
    probe_store(LocalFiles(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_ignores_the_condition_is_told(s3_address: str, proxy: FaultProxy) -> None:
    proxy.inject(Fault("no condition", "PUT"))
    probe = probe_store(open_files(s3_address))
    found = {finding.check: finding for finding in probe.findings}
    assert {check for check, finding in found.items() if finding.level != "ok"} == {"create", "race"}
    assert "If-None-Match" in found["create"].text
    assert open_files(s3_address).list("") == []


def test_a_store_that_cannot_be_used_is_one_finding_with_its_reason(s3_address: str) -> None:
    probe = probe_store(open_files("s3://nowhere/root"))
    assert not probe.usable
    [finding] = probe.findings
    assert "no bucket 'nowhere'" in finding.text
    assert (probe.put_ms, probe.get_ms) == (None, None)


class Changed(LocalFiles):
    """A folder with one operation that is not what it should be."""

    def __init__(self, root: Path, **operations: Callable[..., object]) -> None:
        super().__init__(root)
        self.__dict__.update(operations)


def test_a_store_that_lists_late_is_refused(tmp_path: Path) -> None:
    assert levels(Changed(tmp_path, list=lambda prefix: []))["list"] == "error"


def test_a_store_that_reads_what_was_is_refused(tmp_path: Path) -> None:
    first: dict[str, bytes] = {}
    stale = Changed(tmp_path, read=lambda path: first.setdefault(path, LocalFiles(tmp_path).read(path) or b""))
    assert levels(stale)["read"] == "error"


def test_a_store_that_keeps_what_was_deleted_is_told(tmp_path: Path) -> None:
    assert levels(Changed(tmp_path, delete=lambda path: None))["delete"] == "warning"
