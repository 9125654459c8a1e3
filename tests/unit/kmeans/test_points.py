import numpy as np
import pytest
import torch

from mlcd_core.errors import DataError
from mlcd_core.kmeans import ArrayPoints
from mlcd_core.kmeans.points import Block, Piece, RowIds
from tests.unit.kmeans import oracle


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 8, 33])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_normalised_in_float64_and_rounded_once(dim, dtype):
    rows_ND = oracle.blobs(50, dim, 4, seed=dim).astype(dtype)
    assert np.array_equal(ArrayPoints(rows_ND).points_ND.numpy(), oracle.normalised_rows(rows_ND))


def test_torch_and_numpy_rows_give_the_same_points():
    rows_ND = oracle.blobs(20, 5, 4, seed=0)
    assert torch.equal(ArrayPoints(rows_ND).points_ND, ArrayPoints(torch.from_numpy(rows_ND)).points_ND)


def test_float16_unit_rows_are_kept_bit_for_bit_and_others_normalised():
    unit_ND = oracle.normalised_rows(oracle.blobs(200, 16, 4, seed=1))
    assert torch.equal(ArrayPoints(unit_ND).points_ND, torch.from_numpy(unit_ND))
    mixed_ND = unit_ND.copy()
    mixed_ND[3] = 2 * unit_ND[3]
    points_ND = ArrayPoints(mixed_ND).points_ND.numpy()
    assert np.array_equal(np.delete(points_ND, 3, axis=0), np.delete(unit_ND, 3, axis=0))
    assert np.array_equal(points_ND[3:4], oracle.normalised_rows(mixed_ND[3:4]))


def test_unit_rows_are_taken_without_a_copy_even_from_read_only_memory():
    unit_ND = oracle.normalised_rows(oracle.blobs(20, 16, 4, seed=1))
    unit_ND.flags.writeable = False
    points = ArrayPoints.from_unit_rows(unit_ND, first_row=100)
    assert points.points_ND.data_ptr() == unit_ND.ctypes.data
    assert [block.row_ids().tolist() for block in points.blocks] == [list(range(100, 120))]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_row_without_a_direction_is_named(value, dtype):
    rows_ND = oracle.blobs(20, 4, 4, seed=1).astype(dtype)
    rows_ND[7] = 0.0
    rows_ND[7, 2] = value
    with pytest.raises(DataError, match="row 1007 "):
        ArrayPoints(rows_ND, first_row=1000)


def test_unit_constructor_names_a_row_that_is_not_unit():
    unit_ND = oracle.normalised_rows(oracle.blobs(20, 16, 4, seed=1))
    with pytest.raises(DataError, match=r"row 0 is torch.float32"):
        ArrayPoints.from_unit_rows(unit_ND.astype(np.float32))
    unit_ND[5] *= np.float16(1.01)
    with pytest.raises(DataError, match=r"row 25 .* length 1.0"):
        ArrayPoints.from_unit_rows(unit_ND, row_ids=np.arange(20, 40))


@pytest.mark.parametrize("rows", [np.zeros(3, np.float32), np.zeros((3, 2), np.int64), np.zeros((3, 0), np.float32)])
def test_other_shapes_and_dtypes_are_refused(rows):
    with pytest.raises(DataError, match="expected"):
        ArrayPoints(rows)


def test_no_rows_are_fine():
    points = ArrayPoints(np.zeros((0, 4), np.float32))
    assert points.points_ND.shape == (0, 4)
    assert (points.blocks, points.num_rows, points.dim) == ((), 0, 4)


@pytest.mark.parametrize("row_ids", [None, np.arange(70, 47, -1)])
def test_blocks_are_fixed_runs_of_rows_with_their_ids(row_ids):
    unit_ND = oracle.normalised_rows(oracle.blobs(23, 5, 4, seed=1))
    points = ArrayPoints(unit_ND, first_row=100, row_ids=row_ids, first_block=3, block_rows=10)
    assert [(block.number, block.num_rows, block.dim) for block in points.blocks] == [(3, 10, 5), (4, 10, 5), (5, 3, 5)]
    expected_ids = np.arange(100, 123) if row_ids is None else row_ids
    assert torch.cat([block.row_ids() for block in points.blocks]).tolist() == expected_ids.tolist()
    for block, start in zip(points.blocks, (0, 10, 20), strict=True):
        for rows, tile_BD in block.tiles(4):
            assert len(tile_BD) == rows.stop - rows.start <= 4
            assert np.array_equal(tile_BD.numpy(), unit_ND[start + rows.start : start + rows.stop])
        assert rows.stop == block.num_rows


def test_tiles_of_points_run_through_all_blocks_without_a_copy():
    unit_ND = oracle.normalised_rows(oracle.blobs(23, 5, 4, seed=1))
    points = ArrayPoints(unit_ND, block_rows=10)
    tiles = list(points.tiles(7))
    assert [(rows.start, rows.stop) for rows, _ in tiles] == [(0, 7), (7, 10), (10, 17), (17, 20), (20, 23)]
    row_bytes = 2 * 5
    for rows, tile_BD in tiles:
        assert tile_BD.data_ptr() == points.points_ND.data_ptr() + rows.start * row_bytes


def test_unusable_rows_are_left_out_of_tiles_and_ids():
    unit_ND = torch.from_numpy(oracle.normalised_rows(oracle.blobs(9, 5, 4, seed=1)))
    status = torch.tensor([0, 3, 0, 0, 7, 7, 0, 0, 1], dtype=torch.int8)
    pieces = [Piece(unit_ND[a:b], RowIds(50 + a), status[a:b]) for a, b in ((0, 4), (4, 6), (6, 9))]
    block = Block.of(2, pieces)
    assert block.num_rows == 5
    assert block.row_ids().tolist() == [50, 52, 53, 56, 57]
    tiles = list(block.tiles(2))
    assert [(rows.start, rows.stop) for rows, _ in tiles] == [(0, 2), (2, 3), (3, 5)]
    assert torch.equal(torch.cat([tile_BD for _, tile_BD in tiles]), unit_ND[[0, 2, 3, 6, 7]])


def test_blocks_that_fit_the_budget_move_to_the_device_whole():
    unit_ND = oracle.normalised_rows(oracle.blobs(25, 5, 4, seed=1))
    points = ArrayPoints(unit_ND, first_row=7, block_rows=10)
    block_bytes = 10 * 5 * 2
    moved = points.to(torch.device("cpu"), budget_bytes=2 * block_bytes)
    assert [block.resident_ND is not None for block in moved.blocks] == [True, True, False]
    for before, after in zip(points.blocks, moved.blocks, strict=True):
        assert (after.number, after.num_rows) == (before.number, before.num_rows)
        assert torch.equal(after.row_ids(), before.row_ids())
    assert torch.equal(torch.cat([tile_BD for _, tile_BD in moved.tiles(4)]), points.points_ND)
