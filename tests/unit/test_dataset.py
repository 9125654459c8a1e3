"""Input shards: found and identified by content, read in the shapes people have, refused with the fix."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.dataset import ShardReader, data_digest, find_shards
from mlcd_core.digest_memo import DigestMemo
from mlcd_core.errors import DataError, LabelDataError, StoreError


def write(path: Path, columns: dict[str, Any], row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / "memo" / "digests.sqlite"


ROWS = {"key": ["a", "b", "c"], "jpg": [b"1", b"2", b"3"]}


def test_file_folder_and_pattern_name_the_same_shards_in_name_order(tmp_path: Path, memo: Path) -> None:
    for name in ("b", "a"):
        write(tmp_path / "data" / f"{name}.parquet", ROWS)
    by_folder = find_shards(str(tmp_path / "data"), memo=memo)
    assert [Path(shard.uri).name for shard in by_folder] == ["a.parquet", "b.parquet"]
    assert find_shards(str(tmp_path / "data" / "*.parquet"), memo=memo) == by_folder
    assert find_shards(str(tmp_path / "data" / "a.parquet"), memo=memo) == by_folder[:1]
    assert [shard.rows for shard in by_folder] == [3, 3]


def test_moved_data_is_the_same_data_and_a_changed_byte_is_not(tmp_path: Path, memo: Path) -> None:
    path = write(tmp_path / "here" / "x.parquet", ROWS)
    before = data_digest(find_shards(str(path), memo=memo))
    (tmp_path / "there").mkdir()
    moved = path.rename(tmp_path / "there" / "y.parquet")
    assert data_digest(find_shards(str(moved), memo=memo)) == before
    write(moved, {**ROWS, "jpg": [b"1", b"2", b"4"]})
    assert data_digest(find_shards(str(moved), memo=memo)) != before


def test_digest_is_remembered_outside_the_data(tmp_path: Path, memo: Path) -> None:
    path = write(tmp_path / "x.parquet", ROWS)
    [first] = find_shards(str(path), memo=memo)
    data, info = path.read_bytes(), path.stat()
    path.write_bytes(b"z" * len(data))
    import os

    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert find_shards(str(path), memo=memo) == (first,)  # same path, size and time: not read again


def test_digests_got_before_a_bad_shard_are_remembered(tmp_path: Path, memo: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    with pytest.raises(DataError, match=r"b\.parquet"):
        find_shards(str(tmp_path), memo=memo)
    with DigestMemo(memo) as digests:
        assert digests.get(str(path), path.stat().st_size, str(path.stat().st_mtime_ns)) is not None


def test_memo_that_cannot_be_used_is_named(tmp_path: Path, memo: Path) -> None:
    memo.parent.mkdir()
    memo.write_bytes(b"this is not a database, it is a text of some length " * 40)
    with pytest.raises(StoreError, match=r"digests\.sqlite cannot be used.*XDG_CACHE_HOME"):
        find_shards(str(write(tmp_path / "a.parquet", ROWS)), memo=memo)


@pytest.mark.parametrize(
    ("columns", "image_column"),
    [
        ({"jpg": [b"1", b"2", b"3"]}, "auto"),
        ({"webp": [b"1", b"2", b"3"], "other": [b"x"] * 3}, "auto"),
        ({"image": [{"bytes": b"1", "path": "p"}, {"bytes": b"2", "path": None}, {"bytes": b"3", "path": ""}]}, "auto"),
        ({"pixels": [b"1", b"2", b"3"]}, "pixels"),
    ],
)
def test_images_are_read_in_order_from_the_usual_columns(
    tmp_path: Path, memo: Path, columns: dict[str, Any], image_column: str
) -> None:
    [shard] = find_shards(str(write(tmp_path / "x.parquet", columns)), memo=memo)
    reader = ShardReader(shard, image_column=image_column)
    assert reader.row_group_rows == (2, 1)
    rows = list(reader)
    assert [image for group in rows for image in group.images] == [b"1", b"2", b"3"]
    assert [group.first_row for group in rows] == [0, 2]
    keys = [key for group in rows for key in group.keys]
    assert keys == [f"{shard.digest[:12]}-{row:06d}" for row in range(3)]


def test_failed_downloads_are_marked_and_null_keys_are_made(tmp_path: Path, memo: Path) -> None:
    columns = {
        "jpg": [b"1", None, None],
        "status": ["success", "failed_to_download", "success"],
        "key": ["k", "l", None],
    }
    [shard] = find_shards(str(write(tmp_path / "x.parquet", columns, row_group_size=9)), memo=memo)
    [rows] = ShardReader(shard)
    assert rows.upstream_failed == [False, True, False]
    assert rows.images == [b"1", None, None]
    assert rows.keys == ["k", "l", f"{shard.digest[:12]}-000002"]


def test_labels_are_ints_or_lists_of_ints(tmp_path: Path, memo: Path) -> None:
    columns = {**ROWS, "label": [3, 1, 2], "labels": [[1, 2], [], [5]], "name": ["x", "y", "z"]}
    [shard] = find_shards(str(write(tmp_path / "x.parquet", columns, row_group_size=9)), memo=memo)
    [rows] = ShardReader(shard, label_column="label")
    assert rows.labels == [3, 1, 2]
    [rows] = ShardReader(shard, label_column="labels")
    assert rows.labels == [[1, 2], [], [5]]
    with pytest.raises(LabelDataError, match="holds string; expected an int"):
        ShardReader(shard, label_column="name")
    with pytest.raises(LabelDataError, match=r"no label column 'class'.*label \(int64\).*--label-column"):
        ShardReader(shard, label_column="class")


def test_nothing_found_says_what_lies_beside(tmp_path: Path, memo: Path) -> None:
    write(tmp_path / "shards" / "train.parquet", ROWS)
    with pytest.raises(DataError, match=r"no shards found.*beside it: train.parquet.*--data"):
        find_shards(str(tmp_path / "shards" / "test-*.parquet"), memo=memo)
    with pytest.raises(DataError, match=r"the folder .*nowhere does not exist"):
        find_shards(str(tmp_path / "nowhere" / "*.parquet"), memo=memo)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no shards found: expected .* in the folder"):
        find_shards(str(tmp_path / "empty"), memo=memo)


def test_no_image_column_lists_the_columns_and_suggests_the_likely_one(tmp_path: Path, memo: Path) -> None:
    [shard] = find_shards(str(write(tmp_path / "x.parquet", {"id": [1], "picture": [b"1"]})), memo=memo)
    with pytest.raises(DataError, match=r"id \(int64\), picture \(binary\); try --set embed.image_column=picture"):
        ShardReader(shard)
    with pytest.raises(DataError, match="no image column 'jpg'"):
        ShardReader(shard, image_column="jpg")
    [shard] = find_shards(str(write(tmp_path / "y.parquet", {"id": [1]})), memo=memo)
    with pytest.raises(DataError, match="no column holds bytes"):
        ShardReader(shard)


def test_corrupt_parquet_is_named(tmp_path: Path, memo: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 this is no parquet file")
    with pytest.raises(DataError, match=r"x\.parquet is not a whole Parquet file.*write it again"):
        find_shards(str(path), memo=memo)


def test_damaged_pages_are_named_with_their_row_group(tmp_path: Path, memo: Path) -> None:
    columns = {"jpg": [bytes([i]) * 2000 for i in range(4)]}
    path = write(tmp_path / "x.parquet", columns, row_group_size=2)
    data = bytearray(path.read_bytes())
    metadata = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = metadata.dictionary_page_offset or metadata.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    [shard] = find_shards(str(path), memo=memo)
    reader = ShardReader(shard)
    assert len(reader.read(0).images) == 2
    with pytest.raises(DataError, match=r"row group 1 of .*x\.parquet cannot be read"):
        reader.read(1)
