"""Shards are read in the shapes people have, from a disk as from S3, and refused with the fix."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlcd_core.dataset import ShardReader, Span, find_shards, spans_of
from mlcd_core.errors import DataError, LabelDataError
from tests.unit.dataset.places import Place, parquet_bytes


@pytest.fixture
def read(place: Place, memo: Path) -> "Reads":
    return Reads(place, memo)


class Reads:
    """Writes a shard and opens it."""

    def __init__(self, place: Place, memo: Path) -> None:
        self.place, self.memo = place, memo

    def __call__(self, columns: dict[str, Any] | pa.Table, row_group_size: int = 2, **settings: Any) -> ShardReader:
        return self.bytes(parquet_bytes(columns, row_group_size), **settings)

    def bytes(self, data: bytes, **settings: Any) -> ShardReader:
        [shard] = find_shards(self.place.put("x.parquet", data), memo=self.memo)
        return ShardReader(shard, **settings)


def struct_of(rows: list[dict[str, Any] | None]) -> pa.Array:
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


@pytest.mark.parametrize(
    ("columns", "image_column"),
    [
        ({"jpg": [b"1", b"2", b"3"]}, "auto"),
        ({"webp": [b"1", b"2", b"3"], "other": [b"x"] * 3}, "auto"),
        ({"image": [{"bytes": b"1", "path": "p"}, {"bytes": b"2", "path": None}, {"bytes": b"3", "path": ""}]}, "auto"),
        ({"image": pa.array([b"1", b"2", b"3"], pa.large_binary())}, "auto"),
        ({"pixels": [b"1", b"2", b"3"]}, "pixels"),
        ({"my.pixels": [b"1", b"2", b"3"]}, "my.pixels"),
    ],
)
def test_images_are_read_in_order_from_the_usual_columns(
    read: Reads, columns: dict[str, Any], image_column: str
) -> None:
    reader = read(columns, image_column=image_column)
    assert reader.row_group_rows == (2, 1)
    rows = list(reader)
    assert [image for group in rows for image in group.images] == [b"1", b"2", b"3"]
    assert [group.first_row for group in rows] == [0, 2]
    keys = [key for group in rows for key in group.keys]
    assert keys == [f"{reader.shard.digest[:12]}-{row:06d}" for row in range(3)]
    assert [group.captions for group in rows] == [None, None]


def test_spans_give_their_own_rows_and_row_groups_can_be_read_alone(read: Reads) -> None:
    images = [bytes([row]) * 50 for row in range(9)]
    reader = read({"jpg": images})
    found = [(span.first_row, list(reader.read_span(span))) for span in spans_of([reader.shard], 4)]
    assert [first_row for first_row, _ in found] == [0, 4, 8]
    assert [[group.first_row for group in groups] for _, groups in found] == [[0, 2], [4, 6], [8]]
    assert [image for _, groups in found for group in groups for image in group.images] == images
    assert reader.read(3).images == images[6:8]
    assert reader.read(0).images == images[:2]


def test_a_shard_without_rows_is_read_as_nothing(read: Reads) -> None:
    reader = read({"jpg": pa.array([], pa.binary())})
    [span] = spans_of([reader.shard], 4)
    assert [row for group in reader.read_span(span) for row in group.images] == []


def test_failed_downloads_are_marked_and_null_keys_are_made(read: Reads) -> None:
    columns = {
        "jpg": [b"1", None, None],
        "status": ["success", "failed_to_download", "success"],
        "key": ["k", "l", None],
    }
    reader = read(columns, row_group_size=9)
    [rows] = reader
    assert rows.upstream_failed == [False, True, False]
    assert rows.images == [b"1", None, None]
    assert rows.keys == ["k", "l", f"{reader.shard.digest[:12]}-000002"]


def test_rows_of_hugging_face_without_bytes_are_rows_without_an_image(read: Reads) -> None:
    images = struct_of([{"bytes": b"1", "path": "a"}, {"bytes": None, "path": "b"}, None])
    [rows] = read({"image": images}, row_group_size=9)
    assert rows.images == [b"1", None, None]


def test_hugging_face_images_that_are_paths_alone_are_refused(read: Reads) -> None:
    paths = struct_of([{"bytes": None, "path": "a.jpg"}] * 3)
    with pytest.raises(DataError, match=r"images of .*x\.parquet are paths alone, image\.bytes is null.*mlcd pack"):
        read({"image": paths})
    [rows] = read({"image": struct_of([None] * 3)}, row_group_size=9)  # no image at all, and no path that tells more
    assert rows.images == [None] * 3


def test_labels_are_ints_or_lists_of_ints_and_can_be_read_alone(read: Reads) -> None:
    columns = {"jpg": [b"1", b"2", b"3"], "label": [3, None, 2], "labels": [[1, 2], [], [5]], "name": ["x", "y", "z"]}
    reader = read(columns, label_column="label")
    assert [label for rows in reader for label in rows.labels or []] == [3, None, 2]
    assert list(reader.read_labels([0, 1])) == [[3, None], [2]]
    [rows] = read(columns, label_column="labels", row_group_size=9)
    assert rows.labels == [[1, 2], [], [5]]
    with pytest.raises(LabelDataError, match="holds string; expected an int"):
        read(columns, label_column="name")
    with pytest.raises(LabelDataError, match=r"no label column 'class'.*label \(int64\).*--label-column"):
        read(columns, label_column="class")


def test_captions_are_read_when_they_are_asked_for(read: Reads) -> None:
    columns = {"jpg": [b"1", b"2", b"3"], "caption": ["a", None, ""], "number": [1, 2, 3]}
    reader = read(columns, caption_column="caption")
    assert [group.captions for group in reader] == [["a", None], [""]]
    for wrong in ("text", "number"):
        with pytest.raises(
            DataError, match=rf"no caption column '{wrong}' of strings.*caption \(string\).*feature=image"
        ):
            read(columns, caption_column=wrong)


def test_no_image_column_lists_the_columns_and_suggests_the_likely_one(read: Reads) -> None:
    columns = {"id": [1], "picture": [b"1"]}
    with pytest.raises(DataError, match=r"id \(int64\), picture \(binary\); try --set embed.image_column=picture"):
        read(columns)
    with pytest.raises(DataError, match="no image column 'jpg'"):
        read(columns, image_column="jpg")
    with pytest.raises(DataError, match="no column holds bytes"):
        read({"id": [1], "image": [{"bytes": 3}]})


def test_an_extension_type_is_refused_with_its_name(read: Reads) -> None:
    tensors = pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), [2]), pa.array([[1, 2], [3, 4]], pa.list_(pa.uint8(), 2))
    )
    with pytest.raises(DataError, match=r"image \(extension<arrow\.fixed_shape_tensor.*no column holds bytes"):
        read(pa.table({"image": tensors}))


def test_damaged_pages_are_named_with_their_row_group(read: Reads) -> None:
    data = bytearray(parquet_bytes({"jpg": [bytes([i]) * 2000 for i in range(4)]}))
    column = pq.ParquetFile(pa.BufferReader(bytes(data))).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = b"\xff" * 40
    reader = read.bytes(bytes(data))
    assert len(reader.read(0).images) == 2
    with pytest.raises(DataError, match=r"row group 1 of .*x\.parquet cannot be read"):
        reader.read(1)


def test_keys_that_are_no_text_are_named_with_their_row_group(read: Reads) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff\xfe", b"ok"], pa.binary()).buffers())
    with pytest.raises(DataError, match=r"row group 0 of .*x\.parquet cannot be read: .*utf-8"):
        next(iter(read({"jpg": [b"1", b"2"], "key": broken})))


def test_a_shard_that_could_not_be_read_says_why_again(read: Reads) -> None:
    [shard] = find_shards(read.place.put("x.parquet", b"no Parquet"), memo=read.memo, unreadable="keep")
    with pytest.raises(DataError, match=r"x\.parquet is not a whole Parquet file: .+; write it again"):
        ShardReader(shard)
    assert spans_of([shard], 10) == (Span(shard, 0, 0, 0, 0),)


def test_a_shard_that_has_become_another_is_refused(read: Reads) -> None:
    shard = read({"jpg": [b"1", b"2", b"3"]}).shard
    read.place.put("x.parquet", parquet_bytes({"jpg": [b"1", b"2"]}))
    with pytest.raises(DataError, match=r"x\.parquet was replaced"):
        list(ShardReader(shard))


def test_a_shard_that_is_gone_is_named(read: Reads, tmp_path: Path) -> None:
    shard = read({"jpg": [b"1"]}).shard
    elsewhere = shard.__class__(**{**vars(shard), "uri": shard.uri.replace("x.parquet", "y.parquet")})
    with pytest.raises(DataError, match=r"the shard .*y\.parquet (is gone|was replaced or removed)"):
        ShardReader(elsewhere)
