"""What became of every row of embed: counts by status, the units that failed, and whether the error budget is spent."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlcd_core.dataset import Shard, Span
from mlcd_core.error_budget import ErrorBudget, RowLedger, ShardRows
from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.store import Receipt
from mlcd_core.store.folder import FAILED_STATUSES
from mlcd_core.tables import RowStatus


class EmbedLedger:
    """Books the units of one run of embed as they end; ``spans`` and ``units`` go together."""

    def __init__(
        self, shards: Sequence[Shard], spans: Sequence[Span], units: Sequence[str], runtime: EmbedRuntime
    ) -> None:
        budget = ErrorBudget(runtime.max_bad_share, runtime.max_bad_share_shard)
        rows = [ShardRows(shard.uri, None if shard.error else shard.rows) for shard in shards]
        self._ledger = RowLedger(rows, budget)
        self._spans = spans
        self._shards_of: dict[str, list[int]] = {}
        for unit, shard in zip(units, _shard_numbers(spans), strict=True):
            # the same bytes under two names are one unit, and rows of two shards
            self._shards_of.setdefault(unit, []).append(shard)
        self._booked: set[str] = set()

    def book(self, unit: str, counts: Mapping[str, int]) -> None:
        """Count a unit, once. Raises StageFailedError as soon as the budget is spent for certain."""
        if unit not in self._booked:
            self._booked.add(unit)
            for shard in self._shards_of[unit]:
                self._ledger.add(shard, counts, failed=failed_status(counts) is not None)
        self.check()

    def check(self) -> None:
        """Raise StageFailedError when the budget is spent; so are shards that are known to be unreadable."""
        self._ledger.check()


def failed_status(counts: Mapping[str, int]) -> str | None:
    """Why a unit with these counts could not be done; None when it was."""
    return next((status for status in counts if status in FAILED_STATUSES), None)


def embed_metrics(spans: Sequence[Span], receipts: Sequence[Receipt]) -> dict[str, Any]:
    """Of the manifest: rows per status, the units that failed, and how far fast decoding is from exact."""
    counts = [receipt.parts[0].counts for receipt in receipts]
    totals = {status.name.lower(): sum(c.get(status.name.lower(), 0) for c in counts) for status in RowStatus}
    failed = [
        {"source": span.shard.uri, "rows": span.rows, "status": status}
        for span, unit_counts in zip(spans, counts, strict=True)
        if (status := failed_status(unit_counts)) is not None
    ]
    metrics: dict[str, Any] = {
        "status": {status: rows for status, rows in totals.items() if rows},
        "failed_units": failed,
    }
    samples = [receipt.provenance.get("fast_decode_psnr") for receipt in receipts]
    seen = [sample for sample in samples if sample is not None and sample["mean_db"] is not None]
    return metrics | ({"fast_decode_psnr": _joined(seen)} if seen else {})


def embed_notes(spans: Sequence[Span], receipts: Iterable[Receipt]) -> dict[str, Any]:
    """Of the manifest's provenance: what rows each unit is of, and on what they were embedded."""
    devices = {receipt.provenance.get("device") for receipt in receipts}
    return {
        "sources": [[span.shard.uri, span.first_row, span.rows] for span in spans],
        "devices": sorted(device for device in devices if device),
    }


def _shard_numbers(spans: Sequence[Span]) -> list[int]:
    """The position of each span's shard: a span that begins at row 0 begins the next one."""
    numbers: list[int] = []
    for span in spans:
        before = numbers[-1] if numbers else -1
        numbers.append(before + (span.first_row == 0))
    return numbers


def _joined(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    images = sum(sample["images"] for sample in samples)
    return {
        "images": images,
        "mean_db": sum(sample["images"] * sample["mean_db"] for sample in samples) / images,
        "worst_db": min(sample["worst_db"] for sample in samples),
    }
