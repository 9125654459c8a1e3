"""Shards are found in name order and known by their content, on a disk as on S3; what is none is refused or kept."""

import os
from pathlib import Path

import pytest

from mlcd_core.dataset import data_digest, find_shards
from mlcd_core.digest_memo import DigestMemo
from mlcd_core.errors import DataError, StoreError
from tests.unit.dataset.places import LocalPlace, Place, parquet_bytes

ROWS = {"key": ["a", "b", "c"], "jpg": [b"1", b"2", b"3"]}
SHARD = parquet_bytes(ROWS)


def test_file_folder_and_pattern_name_the_same_shards_in_name_order(place: Place, memo: Path) -> None:
    for name in ("b.parquet", "a.parquet", "note.txt", "deeper/c.parquet"):
        place.put(name, SHARD)
    by_folder = find_shards(place.address, memo=memo)
    assert [shard.uri for shard in by_folder] == [f"{place.address}/a.parquet", f"{place.address}/b.parquet"]
    assert [(shard.rows, shard.row_groups, shard.bytes) for shard in by_folder] == [(3, (2, 1), len(SHARD))] * 2
    assert find_shards(f"{place.address}/", memo=memo) == by_folder
    assert find_shards(f"{place.address}/*.parquet", memo=memo) == by_folder
    assert find_shards(f"{place.address}/[ab].par*", memo=memo) == by_folder
    assert find_shards(f"{place.address}/a.parquet", memo=memo) == by_folder[:1]
    assert [shard.uri for shard in find_shards(f"{place.address}/*/*", memo=memo)] == [
        f"{place.address}/deeper/c.parquet"
    ]


def test_a_file_may_have_any_name(place: Place, memo: Path) -> None:
    uri = place.put("shard-00001", SHARD)
    assert [shard.uri for shard in find_shards(uri, memo=memo)] == [uri]


def test_moved_data_is_the_same_data_and_a_changed_byte_is_not(place: Place, memo: Path) -> None:
    before = data_digest(find_shards(place.put("here/x.parquet", SHARD), memo=memo))
    assert data_digest(find_shards(place.put("there/y.parquet", SHARD), memo=memo)) == before
    changed = parquet_bytes({**ROWS, "jpg": [b"1", b"2", b"4"]})
    assert data_digest(find_shards(place.put("there/y.parquet", changed), memo=memo)) != before


def test_what_was_read_is_remembered_outside_the_data(tmp_path: Path, memo: Path) -> None:
    path = Path(LocalPlace(str(tmp_path)).put("x.parquet", SHARD))
    [first] = find_shards(str(path), memo=memo)
    info = path.stat()
    path.write_bytes(b"z" * len(SHARD))
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert find_shards(str(path), memo=memo) == (first,)  # same path, size and time: not read again


def test_nothing_found_says_what_lies_beside(tmp_path: Path, memo: Path) -> None:
    LocalPlace(str(tmp_path)).put("shards/train.parquet", SHARD)
    with pytest.raises(DataError, match=r"no shards found.*beside it: train.parquet.*--data"):
        find_shards(str(tmp_path / "shards" / "test-*.parquet"), memo=memo)
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        find_shards(str(tmp_path / "nowhere" / "*.parquet"), memo=memo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no shards found: expected .* in the folder"):
        find_shards(str(tmp_path / "empty"), memo=memo)


@pytest.mark.parametrize("data", [b"", b"PAR1 this is no parquet file", SHARD[:-9], b"<html>" * 30_000])
def test_a_file_that_is_not_whole_parquet_is_named_or_kept_without_rows(place: Place, memo: Path, data: bytes) -> None:
    place.put("a.parquet", SHARD)
    uri = place.put("b.parquet", data)
    place.put("c.parquet", SHARD)
    for _ in range(2):  # read, then remembered
        with pytest.raises(DataError, match=r"b\.parquet is not a whole Parquet file: .*write it again"):
            find_shards(place.address, memo=memo)
        good, bad, _ = find_shards(place.address, memo=memo, unreadable="keep")
        assert (good.rows, good.error) == (3, "")
        assert (bad.uri, bad.rows, bad.row_groups, bad.bytes) == (uri, 0, (), len(data))
        assert bad.error
        assert len({good.digest, bad.digest}) == 2


def test_a_shard_without_rows_is_no_bad_shard(place: Place, memo: Path) -> None:
    uri = place.put("a.parquet", parquet_bytes({"key": [], "jpg": []}))
    [shard] = find_shards(uri, memo=memo)
    assert (shard.rows, shard.error) == (0, "")


def test_digests_got_before_a_bad_shard_are_remembered(tmp_path: Path, memo: Path) -> None:
    here = LocalPlace(str(tmp_path))
    path = Path(here.put("a.parquet", SHARD))
    here.put("b.parquet", b"no Parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        find_shards(str(tmp_path), memo=memo)
    with DigestMemo(memo) as known:
        assert known.get(str(path), len(SHARD), str(path.stat().st_mtime_ns)) is not None


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file whose reads fail, whoever asks")
def test_a_disk_that_does_not_answer_is_no_bad_shard(tmp_path: Path, memo: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("/proc/self/mem")
    with pytest.raises(StoreError, match="cannot be read"):
        find_shards(str(tmp_path / "a.parquet"), memo=memo, unreadable="keep")
