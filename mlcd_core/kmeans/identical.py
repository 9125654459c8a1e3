"""How many embeddings are the same as another one, counted in bounded memory.

Copies of an image, and images that the embedder cannot tell apart, give equal rows; they pull centroids to themselves
and all get the same labels. Rows are counted by the hash of their content. Above ``SAMPLE_ROWS`` rows only the contents
in a share of the hash range are counted and the count is scaled up: all copies of a content are in or out together, so
the estimate is unbiased, and it is the same number for any number of ranks. Shapes: N rows, R ranks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from mlcd_core.kmeans.content import content_hashes
from mlcd_core.kmeans.points import Points
from mlcd_core.kmeans.ranks import Ranks

SAMPLE_ROWS = 2**20
_TILE_ROWS = 8192
_HASH_BITS = 63


@dataclass(frozen=True)
class IdenticalRows:
    """``identical`` usable rows equal another one; an estimate from ``sampled`` rows when those are not all rows."""

    identical: int
    sampled: int


@dataclass(frozen=True)
class _Counts:
    """Rows per content: ascending hashes, and how many rows have each."""

    hashes: Tensor
    rows: Tensor

    @classmethod
    def none(cls) -> "_Counts":
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))

    def plus_each(self, hashes: list[Tensor]) -> "_Counts":
        """With one row more per hash."""
        more = torch.cat([self.hashes[:0], *hashes])
        return self.plus(more, torch.ones_like(more))

    def plus(self, hashes: Tensor, rows: Tensor) -> "_Counts":
        """With ``rows`` more of each of these hashes."""
        found, place = torch.unique(torch.cat([self.hashes, hashes]), return_inverse=True)
        return _Counts(found, torch.zeros_like(found).index_add_(0, place, torch.cat([self.rows, rows])))


def count_identical_rows(points: Points, ranks: Ranks, *, sample_rows: int = SAMPLE_ROWS) -> IdenticalRows:
    """Count over all ranks; exact up to ``sample_rows`` rows, else from about so many or half of them."""
    num_rows = int(ranks.sum(torch.tensor(points.num_rows)))
    share_bits = max(0, (num_rows - 1) // sample_rows).bit_length()
    counts = _gathered(_own_counts(points, share_bits), ranks)
    return IdenticalRows(
        identical=int(counts.rows[counts.rows > 1].sum()) << share_bits,
        sampled=int(counts.rows.sum()),
    )


def _own_counts(points: Points, share_bits: int) -> _Counts:
    counts, waiting, num_waiting = _Counts.none(), [], 0
    for block in points.blocks:
        for _, tile_BD in block.tiles(_TILE_ROWS):
            hashes = content_hashes(tile_BD).cpu()
            waiting.append(hashes[hashes >> (_HASH_BITS - share_bits) == 0])
            num_waiting += len(waiting[-1])
            # merging each tile on its own would sort all counts once per tile
            if num_waiting > _TILE_ROWS + len(counts.hashes):
                counts, waiting, num_waiting = counts.plus_each(waiting), [], 0
    return counts.plus_each(waiting)


def _gathered(own: _Counts, ranks: Ranks) -> _Counts:
    # the ranks' tensors must have one shape to be gathered; a hash is never negative
    longest = max(int(length) for length in ranks.gather(torch.tensor(len(own.hashes))))
    padding = (0, longest - len(own.hashes))
    hashes = torch.cat(ranks.gather(pad(own.hashes, padding, value=-1)))
    rows = torch.cat(ranks.gather(pad(own.rows, padding)))
    return _Counts.none().plus(hashes[hashes >= 0], rows[hashes >= 0])
