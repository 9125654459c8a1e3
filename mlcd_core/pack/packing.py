"""Makes one shard: read, resize if asked, write, prove. The work of a worker, without any process."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mlcd_core.errors import DataError
from mlcd_core.identity import sha256_hex
from mlcd_core.pack.folder import folder_rows
from mlcd_core.pack.ledger import PackLedger
from mlcd_core.pack.options import PackOptions
from mlcd_core.pack.plan import FolderRows, PackUnit
from mlcd_core.pack.table import Row, parquet_bytes
from mlcd_core.pack.webdataset import tar_rows
from mlcd_core.store import Files, Part, Receipt

SHOWN_FAILURES = 5
# often enough to be seen, and for a worker to notice that nobody listens any more
REPORTED_ROWS = 64


# called while a shard is made, with the rows read since the last call
OnRows = Callable[[int], None]


@dataclass
class _Counted:
    """What happened to the rows of a shard."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def pack_unit(
    unit: PackUnit, columns: tuple[str, ...], options: PackOptions, files: Files, *, on_rows: OnRows
) -> Receipt:
    """Write the shard, then its receipt, and return the receipt that stands.

    Raises DataError when the sources are not those of the plan any more, StoreError when the target cannot be written.
    """
    counted = _Counted()
    rows_read = _counting(_rows(unit, options, counted), counted, on_rows, has_labels="label" in columns)
    data = parquet_bytes(rows_read, columns)
    counts = counted.counts
    if counts["rows"] != unit.rows:
        raise DataError(
            f"{unit.name} should have {unit.rows:,} images from {unit.first_key} on and got {counts['rows']:,}; "
            "the sources changed: leave them at rest and run again with --replace"
        )
    files.put(unit.path, data)
    rows = counts.pop("rows")
    part = Part(unit.name, unit.path, rows, rows - counts["failed"], len(data), sha256_hex(data), dict(+counts))
    return PackLedger(files).commit(unit, part, failures=counted.failures)


def _rows(unit: PackUnit, options: PackOptions, counted: _Counted) -> Iterator[Row]:
    rows = folder_rows(unit.reads) if isinstance(unit.reads, FolderRows) else tar_rows(unit.reads)
    if not options.resize:
        yield from rows
        return
    from mlcd_core.pack.resize import resized

    for row in rows:
        if row.image is None:
            yield row
            continue
        smaller = resized(row.image, short_side=options.resize, quality=options.quality)
        counted.counts[smaller.outcome] += 1
        yield row._replace(image=smaller.data)


def _counting(rows: Iterator[Row], counted: _Counted, on_rows: OnRows, *, has_labels: bool) -> Iterator[Row]:
    for row in rows:
        counted.counts["rows"] += 1
        if row.status != "success":
            counted.counts["failed"] += 1
            if len(counted.failures) < SHOWN_FAILURES:
                counted.failures.append(f"{row.key}: {row.error_message}")
        if has_labels and row.label is None:
            counted.counts["unlabelled"] += 1
        if counted.counts["rows"] % REPORTED_ROWS == 0:
            on_rows(REPORTED_ROWS)
        yield row
    on_rows(counted.counts["rows"] % REPORTED_ROWS)
