"""Embedding parts as mapped blocks: the rows that were stored, for any number of workers, without taking memory."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.embedded_points import BlockRange, block_ranges, mapped_points
from mlcd_core.errors import CorruptRecordError, DataError
from mlcd_core.identity import sha256_hex
from mlcd_core.images.embed_shard import embedding_table, ipc_bytes
from mlcd_core.kmeans import ArrayPoints
from mlcd_core.kmeans.identical import count_identical_rows
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.start import first_distinct_rows
from mlcd_core.store import LocalFiles, Part
from mlcd_core.tables import BLOCK_ROWS
from tests.unit.kmeans import oracle

DIM = 4


def part_of(rows, name="part", **fields):
    return Part(name=name, path=f"data/{name}", rows=rows, usable=rows, bytes=0, sha256="", **fields)


def commit(files, name, points_ND, status_N, offset, first_row=0):
    """Write an embedding part as embed does; its rows with a status hold zeros, and count from ``first_row`` on."""
    points_ND = np.where(status_N[:, None] == 0, points_ND, np.float16(0))
    rows = np.arange(first_row, first_row + len(points_ND))
    data = ipc_bytes(embedding_table(rows, [f"{name}-{row}" for row in rows], status_N, points_ND))
    files.put(f"data/{name}", data)
    usable = int((status_N == 0).sum())
    return Part(name, f"data/{name}", len(points_ND), usable, len(data), sha256_hex(data), offset=offset)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """(files, parts, rows, ids): a part of two blocks with bad rows, one without rows, one of bad rows, a small one."""
    files = LocalFiles(tmp_path_factory.mktemp("root"))
    random = np.random.default_rng(0)
    parts, kept, ids, offset = [], [], [], 0
    for name, num_rows, bad_share in [
        ("big", BLOCK_ROWS + 20_000, 0.01),
        ("none", 0, 0),
        ("bad", 50, 1),
        ("few", 30, 0),
    ]:
        points_ND = oracle.normalised_rows(random.standard_normal((num_rows, DIM)))
        status_N = np.where(random.random(num_rows) < bad_share, 5, 0).astype(np.int8)
        parts.append(commit(files, name, points_ND, status_N, offset))
        kept.append(points_ND[status_N == 0])
        ids.append(offset + np.flatnonzero(status_N == 0))
        offset += num_rows
    return files, parts, np.concatenate(kept), np.concatenate(ids)


def test_blocks_number_the_rows_of_all_parts():
    parts = [part_of(BLOCK_ROWS), part_of(0), part_of(2 * BLOCK_ROWS + 1), part_of(7)]
    assert block_ranges(parts) == [
        BlockRange(0, 0, 0, BLOCK_ROWS),
        BlockRange(1, 2, 0, BLOCK_ROWS),
        BlockRange(2, 2, BLOCK_ROWS, 2 * BLOCK_ROWS),
        BlockRange(3, 2, 2 * BLOCK_ROWS, 2 * BLOCK_ROWS + 1),
        BlockRange(4, 3, 0, 7),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5 * BLOCK_ROWS), max_size=6))
def test_blocks_cover_every_row_once_in_order(part_rows):
    ranges = block_ranges([part_of(rows) for rows in part_rows])
    assert [block.number for block in ranges] == list(range(len(ranges)))
    for index, rows in enumerate(part_rows):
        own = [block for block in ranges if block.part == index]
        assert [block.start for block in own] == list(range(0, rows, BLOCK_ROWS))
        assert [block.stop for block in own] == [*[block.start for block in own[1:]], rows][: len(own)]


def test_mapped_rows_are_the_stored_usable_rows_with_their_global_ids(committed):
    files, parts, rows_ND, row_ids = committed
    points = mapped_points(files, parts, rank=0, world=1)
    assert [block.number for block in points.blocks] == [0, 1, 2, 3]
    assert points.blocks[2].num_rows == 0
    assert (points.num_rows, points.dim) == (len(rows_ND), DIM)
    assert np.array_equal(torch.cat([tile for _, tile in points.tiles(1000)]).numpy(), rows_ND)
    assert torch.cat([block.row_ids() for block in points.blocks]).tolist() == row_ids.tolist()


def test_parts_of_one_shard_count_through(tmp_path):
    """Two shards: one of three parts, whose rows count inside the shard, and one of two after it."""
    files, random = LocalFiles(tmp_path), np.random.default_rng(0)
    points_ND = oracle.normalised_rows(random.standard_normal((BLOCK_ROWS + 500, DIM)))
    status_N = np.where(random.random(len(points_ND)) < 0.1, 5, 0).astype(np.int8)
    parts, offset = [], 0
    for part_rows in [(40, BLOCK_ROWS + 60, 100), (250, 50)]:
        first_row = 0
        for num_rows in part_rows:
            own = slice(offset, offset + num_rows)
            name = f"part-{len(parts)}"
            parts.append(commit(files, name, points_ND[own], status_N[own], offset, first_row))
            first_row, offset = first_row + num_rows, offset + num_rows
    assert offset == len(points_ND)
    points = mapped_points(files, parts, rank=0, world=1)
    assert torch.cat([block.row_ids() for block in points.blocks]).tolist() == np.flatnonzero(status_N == 0).tolist()
    assert np.array_equal(torch.cat([tile for _, tile in points.tiles(999)]).numpy(), points_ND[status_N == 0])


@pytest.mark.parametrize("world", [2, 3, 6])
def test_workers_share_the_blocks_in_turn(committed, world):
    files, parts, *_ = committed
    whole = mapped_points(files, parts, rank=0, world=1)
    shares = [mapped_points(files, parts, rank=rank, world=world) for rank in range(world)]
    for rank, points in enumerate(shares):
        assert [block.number for block in points.blocks] == list(range(4))[rank::world]
        assert points.dim == DIM
        for block in points.blocks:
            expected = whole.blocks[block.number]
            assert torch.equal(block.row_ids(), expected.row_ids())
            tiles = zip(block.tiles(5000), expected.tiles(5000), strict=True)
            assert all(mine[0] == theirs[0] and torch.equal(mine[1], theirs[1]) for mine, theirs in tiles)
    assert sum(points.num_rows for points in shares) == whole.num_rows


def test_mapped_rows_start_k_means_as_rows_in_memory_do(committed):
    files, parts, rows_ND, row_ids = committed
    mapped, alone = mapped_points(files, parts, rank=0, world=1), Ranks(None)
    held = ArrayPoints(rows_ND, row_ids=row_ids)
    assert torch.equal(first_distinct_rows(mapped, 500, 3, alone), first_distinct_rows(held, 500, 3, alone))
    assert count_identical_rows(mapped, alone) == count_identical_rows(held, alone)


def test_a_changed_file_is_an_error(committed, tmp_path):
    _, _, rows_ND, _ = committed
    files = LocalFiles(tmp_path)
    part = commit(files, "small", rows_ND[:100], np.zeros(100, np.int8), 0)
    data = bytearray((tmp_path / "data" / "small").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "data" / "small").write_bytes(data)
    with pytest.raises(CorruptRecordError, match="sha256"):
        mapped_points(files, [part], rank=0, world=1)
    (tmp_path / "data" / "small").unlink()
    with pytest.raises(CorruptRecordError, match="is gone"):
        mapped_points(files, [part], rank=0, world=1)


def test_a_record_of_other_rows_is_an_error(committed):
    files, parts, *_ = committed
    wrong = Part(**{**vars(parts[3]), "rows": 31})
    with pytest.raises(CorruptRecordError, match=r"holds 30 rows; expected 31"):
        mapped_points(files, [wrong], rank=0, world=1)


def test_a_stored_row_that_is_not_unit_is_named(committed, tmp_path):
    _, _, rows_ND, _ = committed
    points_ND = rows_ND[:100].copy()
    points_ND[7] *= np.float16(1.5)
    part = commit(LocalFiles(tmp_path), "small", points_ND, np.zeros(100, np.int8), offset=1000)
    with pytest.raises(DataError, match="row 1007 "):
        mapped_points(LocalFiles(tmp_path), [part], rank=0, world=1)


MEASURE = """
import sys, threading
from pathlib import Path
from mlcd_core.embedded_points import mapped_points
from mlcd_core.kmeans.identical import count_identical_rows
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.start import first_distinct_rows
from mlcd_core.store import LocalFiles, Part

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

def watch():
    while not done.wait(0.002):
        seen.append(anonymous())

copies, part = int(sys.argv[2]), Part(**eval(sys.argv[3]))
parts = [Part(**{**vars(part), "offset": copy * part.rows}) for copy in range(copies)]
done, seen, baseline = threading.Event(), [], anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
points = mapped_points(LocalFiles(sys.argv[1]), parts, rank=0, world=1)
first_distinct_rows(points, 1000, 0, Ranks(None))
identical = count_identical_rows(points, Ranks(None))
total = sum(int(tile_BD.shape[0]) for _, tile_BD in points.tiles(4096))
done.set()
watcher.join()
print(total, identical.identical, max(seen) - baseline)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc")
def test_rows_larger_than_the_memory_allowed_are_read_from_the_files(tmp_path):
    copies, num_rows, dim = 5, 200_000, 128
    random = np.random.default_rng(0)
    points_ND = oracle.normalised_rows(random.standard_normal((num_rows, dim), dtype=np.float32))
    status_N = (np.arange(num_rows) % 1000 == 3).astype(np.int8)
    part = commit(LocalFiles(tmp_path), "large", points_ND, status_N, 0)
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path), str(copies), repr(vars(part))]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    rows_read, identical, growth = (int(number) for number in printed.stdout.split())
    assert rows_read == copies * part.usable
    assert identical == rows_read
    assert copies * points_ND.nbytes > 250e6
    assert growth < 100e6
