"""How one iteration looks at the rows: which of them it reads, and what finds the centroids nearest to them.

Rows are chosen by the hash of their global id, block by block when they are read: the same rows for any number of
ranks, and no list of them is kept. Shapes: N usable rows of a block, B rows of a tile, D dims.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlcd_core.hashing import splitmix64
from mlcd_core.kmeans.assign import Assigner
from mlcd_core.kmeans.points import Block, Piece, Points
from mlcd_core.kmeans.ranks import Ranks

_NUM_HASHES = 2**63


@dataclass(frozen=True)
class Found:
    """The nearest centroid of each row, int32 ``ids_B``; ``num_exhaustive`` rows took a pass over all centroids."""

    ids_B: Tensor
    num_exhaustive: int = 0


Find = Callable[[Tensor], Found]


def exact_find(assigner: Assigner) -> Find:
    """The exact nearest of all centroids."""
    return lambda points_BD: Found(*assigner.ids(points_BD))


@dataclass(frozen=True)
class HashShare:
    """The rows with splitmix64(seed, global row id) below a bound."""

    seed: int
    below: int

    @classmethod
    def of_about(cls, num_chosen: int, num_rows: int, seed: int) -> "HashShare":
        """A share that holds about so many of the rows, all of them when there are no more."""
        return cls(seed, _NUM_HASHES * min(num_chosen, num_rows) // num_rows)

    def doubled(self) -> "HashShare":
        """Twice as big."""
        return replace(self, below=2 * self.below)

    def mask(self, block: Block) -> Tensor:
        """Bool [N] over the block's usable rows."""
        hashes_N = splitmix64(self.seed, block.row_ids())
        # the bound of all rows is no int64
        return hashes_N < self.below if self.below < _NUM_HASHES else torch.ones_like(hashes_N, dtype=torch.bool)

    def count(self, points: Points, ranks: Ranks) -> int:
        """How many rows of all ranks it holds."""
        own = sum(int(self.mask(block).sum()) for block in points.blocks)
        return int(ranks.sum(torch.tensor(own)))


@dataclass(frozen=True)
class Probe:
    """Compares what an iteration finds for a share of the rows with the exact answer."""

    rows: HashShare
    find: Find

    def count(self, block: Block, labels_N: Tensor) -> tuple[int, int]:
        """(rows compared, rows whose label is the exact one)."""
        mask_N = self.rows.mask(block)
        probed = chosen(block, mask_N)
        labels_P = labels_N[mask_N.to(labels_N.device)]
        equal = sum(
            int((self.find(tile_BD.to(labels_N.device)).ids_B == labels_P[rows]).sum())
            for rows, tile_BD in probed.tiles(max(1, probed.num_rows))
        )
        return probed.num_rows, equal


@dataclass(frozen=True)
class Look:
    """An iteration reads ``num_rows`` rows of all ranks: those in ``sample``, or all."""

    num_rows: int
    find: Find
    sample: HashShare | None = None
    probe: Probe | None = None

    def rows_of(self, block: Block) -> Block:
        """The rows of the block that are read."""
        return block if self.sample is None else chosen(block, self.sample.mask(block))


def chosen(block: Block, mask_N: Tensor) -> Block:
    """The block with those of its usable rows alone (bool), still where they lie; a copy when it is on a device."""
    assert block.weights_N is None, "rows with weights are not sampled"
    counts = [piece.num_usable() for piece in block.pieces]
    pieces = tuple(
        _chosen(piece, mask_P) for piece, mask_P in zip(block.pieces, torch.split(mask_N, counts), strict=True)
    )
    resident_ND = block.resident_ND
    if resident_ND is not None:
        resident_ND = resident_ND[mask_N.to(resident_ND.device)]
    return replace(block, num_rows=int(mask_N.sum()), pieces=pieces, resident_ND=resident_ND)


def _chosen(piece: Piece, mask_P: Tensor) -> Piece:
    status_N = torch.ones(len(piece.rows_ND), dtype=torch.int8)
    if piece.status_N is None:
        status_N[mask_P] = 0
    else:
        status_N[(piece.status_N == 0).nonzero()[mask_P, 0]] = 0
    return replace(piece, status_N=status_N)
