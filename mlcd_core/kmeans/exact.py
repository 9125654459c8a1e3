"""The arithmetic that makes k-means a mathematical function: no result depends on the order of operations.

- Rows are float16 and at most 1 + 2^-10 long, so each element is a multiple of 2^-24 below 2: a float64 sum of up to
  2^28 rows needs at most 53 bits and is exact in any order.
- Centroids are rounded to multiples of 2^-24 (exact in float32), so each product of row and centroid is a multiple of
  2^-48 and every partial sum of a dot stays below 2: a float64 dot is exact in any order, with or without FMA.
- Norms are a fixed tree of element-wise float64 products and sums, then sqrt and divide, all rounded correctly as IEEE
  754 asks: the same on every machine, which a dot or a norm call is not.

Shapes: N rows, K centroids, D dims.
"""

import numpy as np
import torch
from torch import Tensor

GRID_STEP = 2.0**-24
MAX_CLUSTER_ROWS = 2**28
UNIT_TOLERANCE = 2.0**-10  # one unit in the last place of a float16 just above 1

_CHUNK_ROWS = 4096  # float64 products are made of so many rows at a time


def tree_sum(values_ND: Tensor) -> Tensor:
    """Sum of each float64 row [N], by a halving tree over D: bit-equal on every machine."""
    while values_ND.shape[1] > 1:
        half = (values_ND.shape[1] + 1) // 2
        left_ND, right_ND = values_ND[:, :half], values_ND[:, half:]
        values_ND = left_ND.clone()
        values_ND[:, : right_ND.shape[1]] += right_ND
    return values_ND[:, 0]


def norms(rows_ND: Tensor) -> Tensor:
    """Lengths of the float64 rows, bit-equal on every machine."""
    squares_N = tree_sum(rows_ND * rows_ND)
    # Tensor.sqrt is off by one bit for 1.4 % of float64 values on the CPU (torch 2.15); numpy's is correctly rounded
    return torch.from_numpy(np.sqrt(squares_N.numpy()))


def mean_distance(sums_KD: Tensor, centroids_KD: Tensor, num_rows: int) -> float:
    """The objective, mean of 1 - cos over all rows, from the exact float64 sums of each centroid's rows.

    The cosines of a cluster add up to the dot of its sum and its centroid, so no row is read again. Trees of
    element-wise products make it bit-equal on every machine; it is within 1e-14 of the exact mean.
    """
    chunks = zip(torch.split(sums_KD, _CHUNK_ROWS), torch.split(centroids_KD, _CHUNK_ROWS), strict=True)
    cosines_K = torch.cat([tree_sum(sums_CD * centroids_CD.double()) for sums_CD, centroids_CD in chunks])
    return 1 - float(tree_sum(cosines_K[None, :])) / num_rows


def unit_rows_on_grid(directions_KD: Tensor) -> Tensor:
    """Float32 unit rows along the float64 directions (none of them zero), rounded to multiples of 2^-24."""
    unit_KD = directions_KD / norms(directions_KD)[:, None]
    return (torch.round(unit_KD / GRID_STEP) * GRID_STEP).float()


def are_unit_rows_on_grid(rows_KD: Tensor) -> bool:
    """Whether the rows are what ``unit_rows_on_grid`` gives, so that they may be used as they are."""
    steps_KD = rows_KD.double() / GRID_STEP
    # rounding moves each element by at most half a step, so the norm by at most sqrt(D) / 2 steps
    slack = GRID_STEP * rows_KD.shape[1] ** 0.5
    return bool((steps_KD == torch.round(steps_KD)).all() and ((norms(rows_KD.double()) - 1).abs() <= slack).all())


def to_float16(values: Tensor) -> Tensor:
    """Round float64 to float16 once; ``Tensor.half`` goes through float32 and rounds twice."""
    return torch.from_numpy(values.numpy().astype(np.float16))
