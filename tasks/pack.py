"""Packs image folders or tars to shards: list, plan, make what is missing on worker processes, prove the whole.

Everything that decides a byte is in ``mlcd_core.pack``; here are only processes, order and progress. Killed at any
time, the same call goes on; finished shards are not read again.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import Report, silent
from mlcd_core.pack import (
    Changed,
    Failed,
    FoundFile,
    KindOption,
    OnRows,
    PackLedger,
    PackOptions,
    PackPlan,
    PackUnit,
    Sources,
    TarIndex,
    find_sources,
    index_tar,
    pack_unit,
    plan_folder,
    plan_tars,
    recorded_tar_plan,
)
from mlcd_core.store import Receipt, open_files
from tasks.pack_workers import Done, Rows, Workers

Broken = Literal["refuse", "accept"]

REPORT_S = 5.0
SHOWN_FAILURES = 5


@dataclass(frozen=True)
class PackRequest:
    """What to pack, where to, and how; the settings of images and shards are those of ``PackOptions``.

    sources: folders, tars or patterns. to: a local folder or ``s3://bucket/prefix``. num_workers: 0 is one per core.
    changed: what to do where the target holds another pack. failed: of rows that could not be read. broken: whether
    tars that end early are an error once all that could be read is packed.
    """

    sources: tuple[str, ...]
    to: str
    kind: KindOption = "auto"
    rows_per_shard: int = PackOptions.rows_per_shard
    max_shard_bytes: int = PackOptions.max_shard_bytes
    resize: int = PackOptions.resize
    quality: int = PackOptions.quality
    num_workers: int = 0
    changed: Changed = "refuse"
    failed: Failed = "keep"
    broken: Broken = "refuse"

    def options(self) -> PackOptions:
        """The settings that decide bytes. Raises ConfigError for values that cannot be meant."""
        return PackOptions(self.kind, self.rows_per_shard, self.max_shard_bytes, self.resize, self.quality)


@dataclass(frozen=True)
class PackSummary:
    """What a pack has made. ``packed`` of the ``shards`` were made by this call, in ``seconds``.

    failed: rows without an image, ``failures`` names some. unlabelled: rows without a label, of packs that have them.
    ignored: suffix -> files that were not packed.
    """

    to: str
    kind: str
    shards: int
    packed: int
    images: int
    failed: int
    failures: tuple[str, ...]
    resized: int
    not_resized: int
    unlabelled: int | None
    bytes: int
    seconds: float
    images_per_s: float
    ignored: dict[str, int]
    columns: tuple[str, ...]


def pack(request: PackRequest, report: Report = silent) -> PackSummary:
    """Make the shards of ``request.sources`` under ``request.to``.

    Raises ConfigError and DataError for sources and targets that cannot be meant or read, StoreError where the target
    cannot be written, and after all was packed DataError for tars that end early.
    """
    start_s = time.monotonic()
    options = request.options()
    _check_workers(request.num_workers)
    ledger = PackLedger(open_files(request.to))
    sources = find_sources(request.sources, request.kind)
    report("pack_sources", {"kind": sources.kind, "why": sources.why})
    with Workers(request.num_workers or len(os.sched_getaffinity(0))) as workers:
        plan = _plan(sources, ledger, options, workers, report)
        if not plan.units:
            raise DataError(f"{sources.why} hold no samples{_broken_text(plan)}; expected members such as 0001.jpg")
        ledger.begin(plan, changed=request.changed)
        pending = ledger.pending(plan, failed=request.failed)
        _make(pending, plan, request.to, workers, report)
    receipts = [ledger.receipt(unit) for unit in plan.units]
    if plan.broken and request.broken == "refuse":
        raise DataError(
            f"all that could be read is packed in {request.to}, but not all could{_broken_text(plan)}; replace the "
            "tars and run again with --replace, or take it as it is with --allow-broken"
        )
    ledger.finish(plan, receipts)
    return _summary(request.to, plan, pending, receipts, time.monotonic() - start_s)


def _check_workers(num_workers: int) -> None:
    if num_workers < 0:
        raise ConfigError(f"--workers is {num_workers}; expected 1 or more, or 0 for one per core")


def _plan(sources: Sources, ledger: PackLedger, options: PackOptions, workers: Workers, report: Report) -> PackPlan:
    if sources.kind != "webdataset":
        return plan_folder(sources, options)
    record = ledger.recorded()
    known = recorded_tar_plan(record, sources, options) if record is not None else None
    return known or plan_tars(sources, _indexes(sources.files, options, workers, report), options)


def _indexes(tars: Sequence[FoundFile], options: PackOptions, workers: Workers, report: Report) -> list[TarIndex]:
    jobs = [partial(_index, tar, options) for tar in tars]
    indexes: dict[int, TarIndex] = {}
    clock = _Every(REPORT_S)
    for event in workers.run(jobs, lambda index: tars[index].path, tick_s=REPORT_S):
        if isinstance(event, Done):
            indexes[event.index] = event.result
        if clock.is_due():
            report("pack_indexing", {"done": len(indexes), "tars": len(tars)})
    return [indexes[index] for index in range(len(tars))]


def _make(pending: Sequence[PackUnit], plan: PackPlan, to: str, workers: Workers, report: Report) -> None:
    jobs = [partial(_pack, unit, plan.columns, plan.options, to) for unit in pending]
    progress = _Progress(plan, pending)
    clock = _Every(REPORT_S)
    for event in workers.run(jobs, lambda index: pending[index].name, tick_s=REPORT_S):
        if isinstance(event, Rows):
            progress.new_rows += event.rows
        elif isinstance(event, Done):
            progress.new_shards += 1
        if clock.is_due():
            report("packing", progress.values())


def _index(tar: FoundFile, options: PackOptions, *, on_rows: OnRows) -> TarIndex:
    """A worker's job: the index of one tar."""
    del on_rows  # no row is read
    return index_tar(tar, options)


def _pack(unit: PackUnit, columns: tuple[str, ...], options: PackOptions, to: str, *, on_rows: OnRows) -> Receipt:
    """A worker's job: one shard. The target is opened there, since connections do not travel."""
    return pack_unit(unit, columns, options, open_files(to), on_rows=on_rows)


class _Every:
    """True once in a while."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._due_s = time.monotonic() + interval_s

    def is_due(self) -> bool:
        if time.monotonic() < self._due_s:
            return False
        self._due_s = time.monotonic() + self._interval_s
        return True


class _Progress:
    """How far a pack is, and how fast this call is."""

    def __init__(self, plan: PackPlan, pending: Sequence[PackUnit]) -> None:
        self._start_s = time.monotonic()
        self._shards, self._rows = len(plan.units), plan.rows
        self._shards_before = len(plan.units) - len(pending)
        self._rows_before = plan.rows - sum(unit.rows for unit in pending)
        self.new_shards = 0
        self.new_rows = 0

    def values(self) -> dict[str, float | int | None]:
        rows = self._rows_before + self.new_rows
        images_per_s = self.new_rows / max(time.monotonic() - self._start_s, 1e-9)
        return {
            "shards_done": self._shards_before + self.new_shards,
            "shards": self._shards,
            "images_done": rows,
            "images": self._rows,
            "images_per_s": images_per_s,
            "eta_s": (self._rows - rows) / images_per_s if self.new_rows else None,
        }


def _summary(
    to: str, plan: PackPlan, pending: Sequence[PackUnit], receipts: Sequence[Receipt], seconds: float
) -> PackSummary:
    parts = [part for receipt in receipts for part in receipt.parts]
    failures = (failure for receipt in receipts for failure in receipt.state["failures"])
    return PackSummary(
        to=to,
        kind=plan.kind,
        shards=len(parts),
        packed=len(pending),
        images=plan.rows,
        failed=sum(part.rows - part.usable for part in parts),
        failures=tuple(_first(failures, SHOWN_FAILURES)),
        resized=sum(part.counts.get("resized", 0) for part in parts),
        not_resized=sum(part.counts.get("not_resized", 0) for part in parts),
        unlabelled=sum(part.counts.get("unlabelled", 0) for part in parts) if "label" in plan.columns else None,
        bytes=sum(part.bytes for part in parts),
        seconds=round(seconds, 3),
        images_per_s=round(sum(unit.rows for unit in pending) / seconds, 1),
        ignored=plan.ignored,
        columns=("key", "image", "status", "error_message", *plan.columns),
    )


def _first(items: Iterator[str], most: int) -> Iterator[str]:
    return (item for item, _ in zip(items, range(most), strict=False))


def _broken_text(plan: PackPlan) -> str:
    shown = "; ".join(str(tar) for tar in plan.broken[:SHOWN_FAILURES])
    more = f" and {len(plan.broken) - SHOWN_FAILURES:,} more" if plan.broken[SHOWN_FAILURES:] else ""
    return f": {shown}{more}" if plan.broken else ""
