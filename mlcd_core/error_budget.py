"""How many rows may be without an embedding before embed fails instead of sealing.

Two shares are watched: of all rows, and of the rows of one shard. A row of a unit that could not be done at all (its
shard cannot be read, or its decoder kills the worker) counts in the first: it is lost whatever the reason. It does not
count in the second, which asks how good the images are that were read. A shard whose footer cannot be read has no known
number of rows; it counts as the mean of the others.

Counts only grow and the totals are known from the footers, so a share that is too high now is too high at the end: the
ledger can be asked at any time, and says "over" only when it is certain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlcd_core.errors import StageFailedError

USABLE = "ok"
WORST_SHOWN = 5


@dataclass(frozen=True)
class ErrorBudget:
    """The shares that are accepted: of all rows, and of the rows of one shard that were read."""

    max_bad_share: float
    max_bad_share_shard: float


@dataclass(frozen=True)
class ShardRows:
    """What is known of a shard before its images are read; ``rows`` is None when its footer cannot be read."""

    source: str
    rows: int | None


@dataclass
class _Tally:
    """Rows of one shard so far. read: bad rows among those read; failed: rows of units that could not be done."""

    counts: dict[str, int] = field(default_factory=dict)
    read: int = 0
    failed: int = 0


class RowLedger:
    """Counts rows by shard and status, and says when the budget is spent."""

    def __init__(self, shards: Sequence[ShardRows], budget: ErrorBudget) -> None:
        self._shards = shards
        self._budget = budget
        known = [shard.rows for shard in shards if shard.rows is not None]
        self._unknown = len(shards) - len(known)
        # without any shard that can be read, each stands for one row: the share is 1 whatever the number
        self._mean_rows = sum(known) / len(known) if known else 1.0
        self._all_rows = sum(known) + self._unknown * self._mean_rows
        self._bad_rows = self._unknown * self._mean_rows
        self._tallies = [_Tally() for _ in shards]
        self._spent: set[int] = set()

    def add(self, shard: int, counts: Mapping[str, int], *, failed: bool) -> None:
        """Count the rows of one unit of a shard, given by its position; failed: the unit could not be done at all."""
        tally = self._tallies[shard]
        for status, rows in counts.items():
            tally.counts[status] = tally.counts.get(status, 0) + rows
        bad = sum(rows for status, rows in counts.items() if status != USABLE)
        self._bad_rows += bad
        if failed:
            tally.failed += bad
        else:
            tally.read += bad
        if self._share_of(shard) > self._budget.max_bad_share_shard:
            self._spent.add(shard)

    @property
    def bad_share(self) -> float:
        """Share of all rows that are known to have no embedding."""
        return self._bad_rows / self._all_rows if self._all_rows else 0.0

    def check(self) -> None:
        """Raise StageFailedError when the budget is spent, whatever is still to come; names the worst shards."""
        budget = self._budget
        if self.bad_share > budget.max_bad_share:
            raise StageFailedError(
                f"{self._bad_rows:,.0f} of {self._all_rows:,.0f} rows ({self.bad_share:.1%}) have no embedding; "
                f"accepted are {budget.max_bad_share:.1%}; the worst shards: {self._worst(range(len(self._shards)))}; "
                + self._fix("max_bad_share", self.bad_share)
            )
        if self._spent:
            share = max(map(self._share_of, self._spent))
            raise StageFailedError(
                f"in {len(self._spent):,} of {len(self._shards):,} shards more than {budget.max_bad_share_shard:.1%} "
                f"of the rows that were read have no embedding: {self._worst(self._spent)}; "
                + self._fix("max_bad_share_shard", share)
            )

    def _share_of(self, shard: int) -> float:
        """Bad rows among the rows of a shard that were or will be read."""
        tally = self._tallies[shard]
        readable = (self._shards[shard].rows or 0) - tally.failed
        return tally.read / readable if readable > 0 else 0.0

    def _worst(self, shards: "Sequence[int] | set[int] | range") -> str:
        worst = sorted(shards, key=lambda shard: (-self._bad_of(shard), shard))
        bad = [shard for shard in worst if self._bad_of(shard)]
        more = f" and {len(bad) - WORST_SHOWN:,} more" if len(bad) > WORST_SHOWN else ""
        return ", ".join(map(self._described, bad[:WORST_SHOWN])) + more

    def _bad_of(self, shard: int) -> float:
        tally, rows = self._tallies[shard], self._shards[shard].rows
        return self._mean_rows if rows is None else tally.read + tally.failed

    def _described(self, shard: int) -> str:
        tally, known = self._tallies[shard], self._shards[shard]
        if known.rows is None:
            return f"{known.source} (unreadable)"
        bad = ", ".join(f"{rows:,} {status}" for status, rows in tally.counts.items() if status != USABLE and rows)
        return f"{known.source} ({bad} of {known.rows:,})"

    @staticmethod
    def _fix(key: str, share: float) -> str:
        enough = min(1.0, math.ceil(share * 100) / 100)
        return (
            "look at one with mlcd inspect shard, redo units that failed as a whole with mlcd retry-failed, "
            f"or accept them with --set embed.{key}={enough:g} (finished units are kept)"
        )
