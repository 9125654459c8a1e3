"""What ``mlcd inspect`` prints."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.rendering import aligned

Record = Mapping[str, Any]


def shard_text(report: Record) -> str:
    """A shard: its rows, its units, its bad keys, and what to do next."""
    so_far = (
        "" if report["sealed"] else f" (so far: {report['units_done']} of {report['units_total']} units of the run)"
    )
    blocks = [
        f"{report['shard']}: {report['rows']:,} rows{so_far}\n{_counts(report['status'])}",
        _units(report["units"]),
    ]
    if report["bad"]:
        rows = [(bad["row"], bad["key"], bad["status"]) for bad in report["bad"]]
        blocks.append(f"first bad rows\n{aligned(['row', 'key', 'status'], rows)}")
    return "\n\n".join([*blocks, f"next: {report['next']}"])


def image_text(report: Record) -> str:
    """An image: every row with its key, the clusters of each, and what to do next."""
    found = report["found"]
    more = f", of which the first {len(found)} are shown" if report["more"] else ""
    head = f"{report['key']}: {'more than ' if more else ''}{len(found)} of {report['rows_searched']:,} rows{more}"
    return "\n\n".join([head, *map(_row, found), f"next: {report['next']}"])


def _units(units: Sequence[Record]) -> str:
    phases = list(dict.fromkeys(phase for unit in units for phase in unit["seconds"]))
    header = ["unit", "rows", "attempt", "device", *(f"{phase} s" for phase in phases), "status"]
    rows = [
        (
            unit["unit"],
            f"{unit['first_row']:,} to {unit['first_row'] + unit['rows'] - 1:,}" if unit["rows"] else "none",
            unit["attempt"],
            unit["device"] or "-",
            *(f"{unit['seconds'].get(phase, 0):.2f}" for phase in phases),
            _counts(unit["status"]),
        )
        for unit in units
    ]
    return aligned(header, rows)


def _row(row: Record) -> str:
    use = "usable" if row["usable"] else "not used by cluster, label and train"
    lines = [
        f"row {row['row']:,} of {row['shard']}",
        f"  status   {row['status']}: {use}",
        f"  unit     {row['unit']}, attempt {row['attempt']}, on {row['device'] or 'an unknown device'}",
    ]
    if row["labels"] is None:
        lines.append("  labels   none yet")
    elif row["labels"]:
        table = [(label["cluster"], f"{label['cosine']:.3f}", _size(label["cluster_rows"])) for label in row["labels"]]
        lines += [f"  {line}" for line in aligned(["cluster", "cosine", "rows"], table).splitlines()]
    return "\n".join(lines)


def _counts(status: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in status.items()) or "no rows"


def _size(rows: int | None) -> str:
    return "-" if rows is None else f"{rows:,}"
