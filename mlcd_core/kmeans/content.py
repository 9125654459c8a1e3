"""Which rows have the same content: a 64-bit hash of a row's numbers, and the first row of each content.

Equal numbers are the same content, so -0 and 0 are. Shapes: N rows, D dims, P rows in some order.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mlcd_core.hashing import splitmix64

_HASH_ELEMENTS = 2**18  # hashed at once; 2 MiB of words stay in the cache


def content_hashes(rows_ND: Tensor) -> Tensor:
    """Non-negative int64 [N]: equal for float16 rows of equal numbers, else different but for one pair in 2^63."""
    chunk_rows = max(1, _HASH_ELEMENTS // rows_ND.shape[1])
    return torch.cat([_hashes(rows_CD) for rows_CD in torch.split(rows_ND, chunk_rows)])


def first_of_each(rows_ND: Tensor, hashes_N: Tensor, order_P: Tensor) -> Tensor:
    """Ascending positions in ``order_P`` of the first row of each content among the float16 rows it names.

    ``hashes_N`` only find what to compare: rows whose hashes are equal by chance are told apart.
    """
    hashes_P, positions_P = hashes_N[order_P].sort(stable=True)
    repeats = hashes_P[1:] == hashes_P[:-1]
    rows_P = order_P[positions_P]
    if not torch.equal(rows_ND[rows_P[1:][repeats]], rows_ND[rows_P[:-1][repeats]]):
        return _first_of_each_by_bytes(rows_ND[order_P])
    is_first = torch.cat([torch.ones(len(hashes_P[:1]), dtype=torch.bool), ~repeats])
    return positions_P[is_first].sort().values


def _hashes(rows_CD: Tensor) -> Tensor:
    # adding 0 makes -0 and 0 equal bits; four float16 numbers are one word
    words_CW = pad(rows_CD + 0.0, (0, -rows_CD.shape[1] % 4)).view(torch.int64)
    places_W = torch.arange(words_CW.shape[1], device=words_CW.device)
    return splitmix64(splitmix64(places_W, words_CW).sum(dim=1))


def _first_of_each_by_bytes(rows_PD: Tensor) -> Tensor:
    content_P = (rows_PD + 0.0).numpy().view(np.dtype((np.void, 2 * rows_PD.shape[1]))).reshape(-1)
    return torch.from_numpy(np.sort(np.unique(content_P, return_index=True)[1]))
