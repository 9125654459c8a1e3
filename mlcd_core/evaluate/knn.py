"""k-nearest-neighbour votes by cosine, in blocks, so that the N x M similarities are never held at once.

A neighbour votes for each of its classes with softmax(cosine / 0.07) over the k neighbours (Wu et al. 2018, used by
DINO and others): plain votes tie often at k = 20, and a tie would be decided by class id. The same bits come out on one
machine kind and thread count.

Order and softmax do not change when a constant is taken from a row's cosines, so the mean train row is subtracted
first. An untrained tower gives almost equal features, whose cosines differ by less than float32 resolves near 1: with
a mean feature of norm .9999998, plain float32 cosines cost such a baseline ten points.

Shapes: N train rows, M test rows, D dims, C classes, k neighbours, B rows of a block.
"""

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 0.07
# 16 MiB of float32 similarities: when all rows are equal, every pair is a candidate and takes about ten times that
_BLOCK_VALUES = 4 * 2**20


def knn_votes(
    train_ND: NDArray[np.float64],
    test_MD: NDArray[np.float64],
    classes_NC: NDArray[np.bool_],
    *,
    num_neighbors: int,
) -> NDArray[np.float32]:
    """Weight of the votes for each class, in [0, 1], per test row; k is at most N, lower train rows win ties.

    Rows are unit vectors (zero rows are allowed).
    """
    centred_ND = (train_ND - train_ND.mean(axis=0)).astype(np.float32)
    test_MD = test_MD.astype(np.float32)
    k = min(num_neighbors, len(train_ND))
    num_classes = classes_NC.shape[1]
    votes_MC = np.empty((len(test_MD), num_classes), dtype=np.float32)
    block_rows = max(1, _BLOCK_VALUES // max(len(train_ND), k * num_classes))
    for start in range(0, len(test_MD), block_rows):
        rows = slice(start, start + block_rows)
        score_BN = test_MD[rows] @ centred_ND.T
        neighbors_Bk = _largest(score_BN, k)
        score_Bk = np.take_along_axis(score_BN, neighbors_Bk, axis=1)
        weight_Bk = np.exp((score_Bk - score_Bk[:, :1]) / TEMPERATURE)
        weight_Bk /= weight_Bk.sum(axis=1, keepdims=True)
        votes_MC[rows] = np.einsum("bk,bkc->bc", weight_Bk, classes_NC[neighbors_Bk])
    return votes_MC


def _largest(values_BN: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Columns of the k largest values of each row, largest first, the lower column on ties."""
    # partition alone picks any of the values that tie for the last place: take all of them, then order by column
    last_B1 = np.partition(values_BN, -k, axis=1)[:, -k, None]
    rows, columns = np.nonzero(values_BN >= last_B1)
    order = np.lexsort((columns, -values_BN[rows, columns], rows))
    starts = np.searchsorted(rows, np.arange(len(values_BN)))
    largest_Bk: NDArray[np.int64] = columns[order][starts[:, None] + np.arange(k)]
    return largest_Bk
