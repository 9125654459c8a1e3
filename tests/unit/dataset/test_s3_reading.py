"""Shards on S3: few and big requests, nothing read twice, the same rows as from a disk, no mixture of two objects."""

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.dataset import ShardReader, find_shards, object_file, object_source, spans_of
from mlcd_core.dataset.footer import joined_ranges, read_footer
from mlcd_core.dataset.object_file import ObjectFile
from mlcd_core.errors import DataError, StoreError
from mlcd_core.objects import Connection, Limits, ObjectInfo, Objects, Retries
from tests.s3.proxy import FaultProxy
from tests.unit.dataset.places import LocalPlace, S3Place, parquet_bytes

NUM_ROWS, GROUP_ROWS = 60, 4


def big_table(seed: int = 0, other_bytes: int = 100) -> pa.Table:
    """Rows of 10 KB images between columns that nobody asks for."""
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "exif": [random.bytes(other_bytes) for _ in range(NUM_ROWS)],
            "key": [f"{row:05d}" for row in range(NUM_ROWS)],
            "other": [random.bytes(other_bytes) for _ in range(NUM_ROWS)],
            "image": [{"bytes": random.bytes(10_000), "path": f"{row}.jpg"} for row in range(NUM_ROWS)],
            "label": list(range(NUM_ROWS)),
        }
    )


def big_shard(seed: int = 0, other_bytes: int = 100) -> bytes:
    return parquet_bytes(big_table(seed, other_bytes), GROUP_ROWS, compression="none")


def test_a_span_takes_two_gets_and_gives_the_rows_of_a_disk(
    s3: S3Place, proxy: FaultProxy, tmp_path: Path, memo: Path
) -> None:
    data = big_shard()
    [local] = find_shards(LocalPlace(str(tmp_path)).put("x.parquet", data), memo=memo)
    [shard] = find_shards(s3.put("x.parquet", data), memo=memo)
    assert (shard.rows, shard.row_groups) == (local.rows, local.row_groups)
    for span, same_span in zip(spans_of([shard], 20), spans_of([local], 20), strict=True):
        proxy.inject()
        rows = list(ShardReader(shard, label_column="label").read_span(span))
        assert (proxy.count("GET"), len(proxy.requests)) == (2, 2)
        assert rows == list(ShardReader(local, label_column="label").read_span(same_span))


@pytest.fixture
def counted(s3: S3Place, monkeypatch: pytest.MonkeyPatch) -> "CountedObjects":
    objects = CountedObjects(Connection(Limits()), Retries())
    monkeypatch.setattr(object_source, "open_objects", lambda: objects)
    return objects


class CountedObjects(Objects):
    """Counts the bytes that come."""

    num_bytes = 0

    def get(self, uri: str, *, start: int | None = None, end: int | None = None, etag: str = "") -> bytes | None:
        data = super().get(uri, start=start, end=end, etag=etag)
        self.num_bytes += len(data or b"")
        return data


def test_other_columns_that_are_large_are_not_fetched(
    s3: S3Place, counted: CountedObjects, memo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "GAP_BYTES", 10_000)
    data = big_shard(other_bytes=9_000)
    [shard] = find_shards(s3.put("x.parquet", data), memo=memo)
    images = [image for rows in ShardReader(shard) for image in rows.images]
    assert images == [row["bytes"] for row in big_table(other_bytes=9_000)["image"].to_pylist()]
    assert counted.num_bytes < 10_000 * NUM_ROWS + object_file.TAIL_BYTES + 50_000 < len(data) / 2


def test_labels_alone_fetch_no_image(
    s3: S3Place, counted: CountedObjects, memo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_source, "GAP_BYTES", 10_000)
    [shard] = find_shards(s3.put("x.parquet", big_shard()), memo=memo)
    labels = ShardReader(shard, label_column="label").read_labels(range(NUM_ROWS // GROUP_ROWS))
    assert [label for group in labels for label in group] == list(range(NUM_ROWS))
    assert counted.num_bytes < object_file.TAIL_BYTES + 10_000


def test_a_row_group_alone_is_one_get_and_the_footer_is_read_once(s3: S3Place, proxy: FaultProxy, memo: Path) -> None:
    [shard] = find_shards(s3.put("x.parquet", big_shard()), memo=memo)
    proxy.inject()
    reader = ShardReader(shard)
    assert proxy.count("GET") == 1
    for number, group in enumerate((3, 0, 7), start=1):
        assert reader.read(group).first_row == group * GROUP_ROWS
        assert proxy.count("GET") == 1 + number


def test_what_is_more_than_a_request_may_bring_is_fetched_in_pieces(
    s3: S3Place, proxy: FaultProxy, memo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (object_file, object_source):
        monkeypatch.setattr(module, "REQUEST_BYTES", 100_000)  # two row groups of 40 KB and a bit
    [shard] = find_shards(s3.put("x.parquet", big_shard()), memo=memo)
    expected = [row["bytes"] for row in big_table()["image"].to_pylist()]
    proxy.inject()
    assert [image for rows in ShardReader(shard) for image in rows.images] == expected
    assert 6 <= proxy.count("GET") <= 9
    for module in (object_file, object_source):
        monkeypatch.setattr(module, "REQUEST_BYTES", 15_000)  # less than a row group
    assert [image for rows in ShardReader(shard) for image in rows.images] == expected


def test_a_footer_larger_than_the_end_that_is_fetched_takes_one_get_more(
    s3: S3Place, proxy: FaultProxy, memo: Path
) -> None:
    columns = {"jpg": [b"x"] * 400, **{f"column_{i}": ["y"] * 400 for i in range(20)}}
    uri = s3.put("x.parquet", parquet_bytes(columns, row_group_size=2))
    proxy.inject()
    [shard] = find_shards(uri, memo=memo)
    assert (shard.rows, shard.row_groups) == (400, (2,) * 200)
    assert proxy.count("GET") == 2
    assert len(list(ShardReader(shard))) == 200


def test_a_plan_reads_one_end_of_each_new_object_and_of_known_ones_nothing(
    s3: S3Place, proxy: FaultProxy, memo: Path
) -> None:
    for number in range(20):
        s3.put(f"{number:03d}.parquet", parquet_bytes({"jpg": [b"%d" % number]}))
    proxy.inject()
    shards = find_shards(s3.address, memo=memo)
    assert [Path(shard.uri).stem for shard in shards] == [f"{number:03d}" for number in range(20)]
    assert (proxy.count("LIST"), proxy.count("GET"), len(proxy.requests)) == (1, 20, 21)
    s3.put("020.parquet", parquet_bytes({"jpg": [b"new"]}))
    for new in (1, 0):
        proxy.inject()
        assert find_shards(s3.address, memo=memo)[:20] == shards
        assert (proxy.count("LIST"), proxy.count("GET"), len(proxy.requests)) == (1, new, 1 + new)


def test_an_object_replaced_while_it_is_read_is_refused(s3: S3Place, memo: Path) -> None:
    [shard] = find_shards(s3.put("x.parquet", big_shard()), memo=memo)
    reader = ShardReader(shard)
    reader.read(0)
    other = big_shard(seed=1)
    assert len(other) == shard.bytes
    s3.put("x.parquet", other)
    with pytest.raises(DataError, match=r"the shard .*x\.parquet was replaced or removed"):
        reader.read(1)
    s3.put("x.parquet", other[: len(other) // 2])
    with pytest.raises(DataError, match=r"the shard .*x\.parquet was replaced or removed"):
        ShardReader(shard)


def test_nothing_found_says_what_lies_there(s3: S3Place, memo: Path) -> None:
    s3.put("deeper/train.parquet", big_shard())
    with pytest.raises(DataError, match=r"no shards found.*below s3://\S+ lies deeper/train\.parquet; .*--data"):
        find_shards(s3.address, memo=memo)
    with pytest.raises(DataError, match=r"objects that match s3://\S+test-\*; below .* lies deeper/train"):
        find_shards(f"{s3.address}/test-*", memo=memo)
    with pytest.raises(DataError, match="lies nothing"):
        find_shards(f"{s3.address}/nowhere", memo=memo)


def test_a_bucket_that_does_not_exist_is_an_error_of_storage(s3: S3Place, memo: Path) -> None:
    with pytest.raises(StoreError, match="no bucket 'other'"):
        find_shards("s3://other/data", memo=memo)


def test_storage_that_fails_within_a_footer_makes_no_bad_shard() -> None:
    columns = {f"column_{i}": ["y"] * 400 for i in range(20)}
    data = parquet_bytes(columns, row_group_size=2)
    for failure in (StoreError("no answer"), DataError("gone")):
        file = ObjectFile(FailsAfterTheEnd(data, failure), ObjectInfo("s3://bucket/key", len(data), "tag"))  # type: ignore[arg-type]
        with pytest.raises(type(failure), match=str(failure)):
            read_footer(file)
    assert read_footer(io.BytesIO(data)).row_groups == (2,) * 200


class FailsAfterTheEnd:
    """An object whose end can be read, and nothing before it."""

    def __init__(self, data: bytes, failure: Exception) -> None:
        self.data, self.failure = data, failure

    def get(self, uri: str, *, start: int, end: int, etag: str) -> bytes:
        if end < len(self.data):
            raise self.failure
        return self.data[start:end]


class InMemory:
    """One object; remembers what is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[range] = []

    def get(self, uri: str, *, start: int, end: int, etag: str) -> bytes:
        self.asked.append(range(start, end))
        return self.data[start:end]


@settings(deadline=None)
@given(
    size=st.integers(0, 300),
    ranges=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted), max_size=5),
    reads=st.lists(st.tuples(st.integers(0, 320), st.integers(-1, 320)), min_size=1, max_size=10),
)
def test_a_file_of_ranges_reads_like_the_whole_and_asks_for_nothing_that_it_holds(
    size: int, ranges: list[list[int]], reads: list[tuple[int, int]]
) -> None:
    data = (bytes(range(256)) * 2)[:size]
    wanted = joined_ranges(((min(start, size), min(stop, size)) for start, stop in ranges), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(object_file, "TAIL_BYTES", 40)
        patch.setattr(object_file, "REQUEST_BYTES", 70)
        objects, whole = InMemory(data), io.BytesIO(data)
        file = ObjectFile(objects, ObjectInfo("s3://bucket/key", size, "tag"))  # type: ignore[arg-type]
        file.hold(wanted)
        held = {byte for asked in objects.asked for byte in asked}
        assert len(held) == sum(map(len, objects.asked)), "nothing is fetched twice"
        assert max(map(len, objects.asked), default=0) <= 70
        for position, length in reads:
            asked_before = len(objects.asked)
            assert file.seek(position) == whole.seek(position)
            expected = whole.read(length)
            assert bytes(file.read(length)) == expected
            if held >= set(range(position, position + len(expected))):
                assert len(objects.asked) == asked_before


@settings(deadline=None)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)).map(lambda r: (r[0], r[0] + r[1]))),
    gap_bytes=st.integers(0, 8),
)
def test_joined_ranges_cover_the_wanted_bytes_and_gaps_that_are_small(
    ranges: list[tuple[int, int]], gap_bytes: int
) -> None:
    joined = joined_ranges(ranges, gap_bytes)
    wanted = {byte for start, stop in ranges for byte in range(start, stop)}
    covered = [byte for start, stop in joined for byte in range(start, stop)]
    assert len(covered) == len(set(covered))
    assert set(covered) >= wanted
    assert all(later[0] - earlier[1] > gap_bytes for earlier, later in pairwise(joined))
    for byte in set(covered) - wanted:
        before = max(other for other in wanted if other < byte)
        after = min(other for other in wanted if other > byte)
        assert after - before - 1 <= gap_bytes
