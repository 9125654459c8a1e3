import numpy as np
import pytest
import torch

from mlcd_core.errors import DataError
from mlcd_core.kmeans import ArrayPoints
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
    assert points.row_ids_N.tolist() == list(range(100, 120))


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
    assert ArrayPoints(np.zeros((0, 4), np.float32)).points_ND.shape == (0, 4)
