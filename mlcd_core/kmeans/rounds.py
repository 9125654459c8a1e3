"""One assignment of all rows: the exact sum of each cluster's rows, taken in rounds whose ends can be saved.

In a round every rank assigns and sums blocks until its time is over or it has none left. The rounds' sums are added up
on the first rank, which may save them; an iteration that is over within the time is one round. Which rank took a block,
and in which round, changes no bit (``exact``). Shapes: K centroids, D dims, B blocks or rows of a tile.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from mlcd_core.kmeans.assign import TILE_ROWS
from mlcd_core.kmeans.look import HashShare, Look
from mlcd_core.kmeans.partial import PartialSums, Tally
from mlcd_core.kmeans.points import Block, Points
from mlcd_core.kmeans.ranks import Ranks
from mlcd_core.kmeans.state import CentroidState

SUMMED_ROWS = 1024


@dataclass
class RowSummer:
    """One rank's rows, and the cluster that each got last.

    The first sum leaves out the blocks ``done_B`` (bool, by block number, known to all ranks), whose sums the first
    rank has in ``begun``. A round ends after ``round_seconds`` by ``clock``, with at least one block; ``before_block``
    is called before each, and what it raises ends the sum.
    """

    points: Points
    ranks: Ranks
    done_B: Tensor
    begun: PartialSums | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tile_rows: int = TILE_ROWS
    round_seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    before_block: Callable[[], None] = lambda: None
    labels: dict[int, Tensor] = field(default_factory=dict)
    labelled: HashShare | None = None

    @property
    def num_rows_begun(self) -> int:
        """Rows that the next sum begins with."""
        return 0 if self.begun is None else self.begun.tally.rows

    def sum(
        self, state: CentroidState, look: Look, save: Callable[[PartialSums], None] | None = None
    ) -> PartialSums | None:
        """Assign the rows of ``look`` to the state's centroids; the sums, on the first rank only.

        ``save`` is called there between two rounds.
        """
        if look.sample != self.labelled:
            self.labels.clear()
        self.labelled = look.sample
        pending = deque(block for block in self.points.blocks if not self.done_B[block.number])
        # nobody else holds these sums: they are as big as memory allows
        total, self.begun, self.done_B = self.begun, None, torch.zeros_like(self.done_B)
        while True:
            own = self._sum_round(pending, look, PartialSums.start(state, len(self.done_B), self.device))
            num_left = int(self.ranks.sum(torch.tensor(len(pending))))
            own = _sum_on_first(own, self.ranks)
            if self.ranks.is_first:
                total = own if total is None else _joined(total, own)
            del own
            if num_left == 0:
                return total
            if total is not None and save is not None:
                save(total)

    def _sum_round(self, pending: deque[Block], look: Look, own: PartialSums) -> PartialSums:
        ends = self.clock() + self.round_seconds
        tally = own.tally
        while pending:
            self.before_block()
            block = pending.popleft()
            tally += self._sum_block(block, look, own)
            own.done_B[block.number] = True
            if self.clock() >= ends:
                break
        return replace(own, tally=tally)

    def _sum_block(self, block: Block, look: Look, own: PartialSums) -> Tally:
        read = look.rows_of(block)
        labels_N = torch.empty(read.num_rows, dtype=torch.int32, device=self.device)
        weights_N = None if read.weights_N is None else read.weights_N.to(self.device)
        num_exhaustive = 0
        for rows, tile_BD in read.tiles(self.tile_rows):
            rows_BD = tile_BD.to(self.device)
            found = look.find(rows_BD)
            labels_N[rows] = found.ids_B
            weights_B = None if weights_N is None else weights_N[rows]
            _add_rows(own.sums_KD, found.ids_B, rows_BD, weights_B)
            num_exhaustive += found.num_exhaustive
        if weights_N is None:
            own.counts_K.add_(torch.bincount(labels_N, minlength=len(own.counts_K)))
        else:
            own.counts_K.index_add_(0, labels_N, weights_N)
        before_N = self.labels.get(block.number)
        self.labels[block.number] = labels_N
        probed, equal = look.probe.count(block, labels_N) if look.probe is not None else (0, 0)
        unknown = read.weight if before_N is None else 0
        changed = 0 if before_N is None else _weight(labels_N != before_N, weights_N)
        return Tally(read.weight, changed, unknown, num_exhaustive, probed, equal)


def _add_rows(sums_KD: Tensor, ids_B: Tensor, rows_BD: Tensor, weights_B: Tensor | None) -> None:
    # float64 copies of so many rows stay in the cache; fresh pages for those of a tile took three times as long
    for start in range(0, len(rows_BD), SUMMED_ROWS):
        part = slice(start, start + SUMMED_ROWS)
        values_CD = rows_BD[part].double()
        if weights_B is not None:
            values_CD *= weights_B[part, None]
        sums_KD.index_add_(0, ids_B[part], values_CD)


def _weight(mask_N: Tensor, weights_N: Tensor | None) -> int:
    return int(mask_N.sum() if weights_N is None else weights_N[mask_N].sum())


def _sum_on_first(own: PartialSums, ranks: Ranks) -> PartialSums:
    """The round's sums of all ranks on the first, in its memory; of no meaning on the others."""
    return replace(
        own,
        done_B=ranks.sum_on_first(own.done_B.int()).bool(),
        sums_KD=ranks.sum_on_first(own.sums_KD).cpu(),
        counts_K=ranks.sum_on_first(own.counts_K).cpu(),
        tally=Tally(*ranks.sum_on_first(torch.tensor(list(vars(own.tally).values()))).tolist()),
    )


def _joined(total: PartialSums, more: PartialSums) -> PartialSums:
    # added to the new sums in place: those of ``total`` may still be in somebody's hands
    return replace(
        total,
        done_B=total.done_B | more.done_B,
        sums_KD=more.sums_KD.add_(total.sums_KD),
        counts_K=more.counts_K + total.counts_K,
        tally=total.tally + more.tally,
    )
