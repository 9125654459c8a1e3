"""What is done and what is not: a pack goes on, is exact, and never mixes with another."""

import json
import os
from pathlib import Path

import pytest

from mlcd_core.errors import ConfigError, CorruptRecordError, DataError
from mlcd_core.pack import PackLedger
from mlcd_core.store import LocalFiles
from tests.unit.pack.harness import pack_here, plan_here, rows_of, shard_names, write, write_tar


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "in", {f"{i}.jpg": str(i).encode() for i in range(7)})


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "out"


def state(to: Path) -> dict[str, tuple[bytes, int]]:
    """Content and modification time of every file."""
    return {
        str(path.relative_to(to)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in to.rglob("*")
        if path.is_file()
    }


def test_a_pack_that_is_whole_is_left_as_it_is(source: Path, to: Path) -> None:
    assert pack_here([source], to, rows_per_shard=3) == ["images-00000", "images-00001", "images-00002"]
    before = state(to)
    assert pack_here([source], to, rows_per_shard=3) == []
    assert state(to) == before


def test_the_end_is_pack_json_with_every_shard(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=4)
    whole = json.loads((to / "pack.json").read_bytes())
    assert (whole["images"], whole["failed"], whole["kind"]) == (7, 0, "folder")
    assert [shard[:3] for shard in whole["shards"]] == [
        [name, rows, (to / name).stat().st_size] for name, rows in zip(shard_names(to), (4, 3), strict=True)
    ]


def test_sources_that_moved_are_the_same_sources(source: Path, to: Path) -> None:
    pack_here([source], to)
    moved = source.rename(source.parent / "elsewhere")
    assert pack_here([moved], to) == []


def test_a_shard_without_receipt_or_file_is_made_again_alone(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=3)
    before = state(to)
    (to / "images-00001.parquet").unlink()
    (to / "images-00002.parquet").write_bytes(b"short")
    assert pack_here([source], to, rows_per_shard=3) == ["images-00001", "images-00002"]
    after = state(to)
    assert {name: data for name, (data, _) in after.items() if "units" not in name} == {
        name: data for name, (data, _) in before.items() if "units" not in name
    }
    assert after["images-00000.parquet"] == before["images-00000.parquet"]


def test_a_pack_under_way_has_no_pack_json(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=3)
    (to / "images-00001.parquet").unlink()
    PackLedger(LocalFiles(to)).pending(plan_here([source], to, rows_per_shard=3))
    assert not (to / "pack.json").exists()


@pytest.mark.parametrize("change", ["file", "size", "time", "gone"])
def test_changed_sources_are_refused_and_named(source: Path, to: Path, change: str) -> None:
    pack_here([source], to, rows_per_shard=3)
    before = state(to)
    if change == "file":
        (source / "4b.jpg").write_bytes(b"new")
    elif change == "size":
        (source / "4.jpg").write_bytes(b"longer")
    elif change == "time":
        os.utime(source / "4.jpg", ns=(1, 1))
    else:
        (source / "4.jpg").unlink()
    with pytest.raises(ConfigError, match=r"a pack of other files, from images-00001 \(3\) on.*--replace, which keeps"):
        pack_here([source], to, rows_per_shard=3)
    assert state(to) == before


def test_other_options_are_refused_and_named(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=3)
    with pytest.raises(ConfigError, match="other options: rows_per_shard was 3, is 2"):
        pack_here([source], to, rows_per_shard=2)
    with pytest.raises(ConfigError, match="of the kind folder, these sources are of the kind webdataset"):
        pack_here([write_tar(source.parent / "x.tar", [("1.jpg", b"1")])], to)


def test_replace_makes_only_what_changed_and_removes_what_is_left_over(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=2)
    before = state(to)
    for name in ("3.jpg", "4.jpg", "5.jpg", "6.jpg"):
        (source / name).unlink()
    assert pack_here([source], to, rows_per_shard=2, changed="replace") == ["images-00001"]
    assert shard_names(to) == ["images-00000.parquet", "images-00001.parquet"]
    assert [row["key"] for row in rows_of(to)] == ["0", "1", "2"]
    assert state(to)["images-00000.parquet"] == before["images-00000.parquet"]
    assert len(list((to / ".pack" / "units").iterdir())) == 2


def test_a_change_and_its_undoing_do_not_bring_old_proof_back(source: Path, to: Path) -> None:
    pack_here([source], to)
    info = (source / "4.jpg").stat()
    (source / "4.jpg").write_bytes(b"X")  # as long as before, so that a size would not tell
    pack_here([source], to, changed="replace")
    (source / "4.jpg").write_bytes(b"4")
    os.utime(source / "4.jpg", ns=(info.st_atime_ns, info.st_mtime_ns))
    assert pack_here([source], to, changed="replace") == ["images-00000"]
    assert [row["image"] for row in rows_of(to)] == [str(i).encode() for i in range(7)]


def test_a_replacement_that_was_killed_goes_on(source: Path, to: Path) -> None:
    pack_here([source], to, rows_per_shard=2)
    (source / "6.jpg").unlink()
    (source / "5.jpg").unlink()
    plan = plan_here([source], to, rows_per_shard=2)
    PackLedger(LocalFiles(to)).begin(plan, changed="replace")
    assert not (to / "pack.json").exists()
    assert shard_names(to) == ["images-00000.parquet", "images-00001.parquet"]
    assert pack_here([source], to, rows_per_shard=2) == ["images-00002"]
    assert [row["key"] for row in rows_of(to)] == ["0", "1", "2", "3", "4"]


def test_rows_that_failed_are_kept_until_asked(source: Path, to: Path) -> None:
    (source / "5.jpg").unlink()
    (source / "5.jpg").symlink_to(source / "nowhere")
    assert len(pack_here([source], to, rows_per_shard=3)) == 3
    assert pack_here([source], to, rows_per_shard=3) == []
    assert pack_here([source], to, rows_per_shard=3, failed="retry") == ["images-00001"]


def test_a_target_with_other_parquet_files_is_refused(source: Path, to: Path) -> None:
    write(to, {"images-00000.parquet": b"somebody's"})
    with pytest.raises(DataError, match=r"did not make: images-00000\.parquet.*a folder of its own"):
        pack_here([source], to)
    (to / "images-00000.parquet").unlink()
    pack_here([source], to)
    write(to, {"more.parquet": b"", "sub/other.parquet": b""})
    with pytest.raises(DataError, match=r"did not make: more\.parquet;"):
        pack_here([source], to)


def test_a_plan_that_is_no_plan_is_named(source: Path, to: Path) -> None:
    write(to, {".pack/plan.json": b"{"})
    with pytest.raises(CorruptRecordError, match=r"plan\.json is not a plan"):
        pack_here([source], to)


def test_a_plan_of_tars_is_taken_from_the_record(tmp_path: Path, to: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / "in" / f"{name}.tar", [(f"{i % 3}.jpg", b"x") for i in range(5)])
    first = plan_here([tmp_path / "in"], to, rows_per_shard=2)
    PackLedger(LocalFiles(to)).begin(first, changed="refuse")
    again = plan_here([tmp_path / "in"], to, rows_per_shard=2)
    assert again == first
    # a record that says less shows that it is what was read, and not the tars
    record = json.loads((to / ".pack" / "plan.json").read_bytes())
    assert len(record["units"]) == 6
    record["units"] = record["units"][:1]
    (to / ".pack" / "plan.json").write_text(json.dumps(record))
    assert len(plan_here([tmp_path / "in"], to, rows_per_shard=2).units) == 1
