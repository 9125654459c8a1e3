"""What the command prints: plain aligned tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.estimate_text import estimate_text
from tasks.tables import metrics_table

Record = Mapping[str, Any]


def run_text(summary: Mapping[str, Any], *, root: str, demo: bool) -> str:
    """The end of ``mlcd run``: what ran, what came out, where it lies, what to try next."""
    blocks = [_stage_table(summary["stages"])]
    failed = [stage for stage in summary["stages"] if stage["result"] == "failed"]
    if failed:
        blocks.append(f"{failed[0]['stage']} failed: {failed[0]['error']}")
    elif summary["metrics"]:
        header, rows = metrics_table(summary["metrics"])
        blocks.append(aligned(header, rows))
    blocks.append(_clusters_text(summary["clusters"]))
    blocks.append(f"everything lies in {root}")
    if demo and not failed:
        blocks.append(_next_steps(root))
    return "\n\n".join(block for block in blocks if block)


def plan_text(plans: Sequence[Record], estimate: Record) -> str:
    """The tables of ``mlcd plan``: the stages, where there is data, and the cost of clustering."""
    rows = [
        (p["stage"], p["plan"], _or_dash(p["units_missing"]), _or_dash(p["units_total"]), p["spec"][:12], p["note"])
        for p in plans
    ]
    table = aligned(["stage", "plan", "missing", "units", "spec", ""], rows) if rows else ""
    return "\n\n".join(block for block in (table, estimate_text(estimate)) if block)


def status_text(stages: Sequence[Record]) -> str:
    """The table of ``mlcd status``."""
    rows = [
        (
            s["stage"],
            s["state"],
            f"{s['units_done']}/{s['units_total']}",
            (s["manifest_digest"] or "-")[:12],
            s["uri"],
            f"pinned to {s['pin']}" if s["pin"] else "",
        )
        for s in stages
    ]
    return aligned(["stage", "state", "units", "digest", "where", ""], rows)


def aligned(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """Columns padded to their widest cell."""
    table = [[str(cell) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in table]
    return "\n".join("  ".join(line).rstrip() for line in padded)


def _stage_table(stages: Sequence[Record]) -> str:
    rows = [
        (s["stage"], s["result"], _rows(s["rows"]), _rows(s["usable"]), f"{s['seconds']:.1f} s", s["note"], s["uri"])
        for s in stages
    ]
    return aligned(["stage", "result", "rows", "usable", "time", "", "where"], rows)


def _or_dash(count: int | None) -> str:
    return "-" if count is None else f"{count:,}"


def _rows(count: int | None) -> str:
    return f"{count:,}" if count else "-"


def _clusters_text(clusters: Record | None) -> str:
    if not clusters or not clusters["agreement"]:
        return ""
    return (
        f"clusters: purity {clusters['agreement']['purity']:.3f}, "
        f"random features with the same cluster sizes: {clusters['chance']['purity']:.3f}"
    )


def _next_steps(root: str) -> str:
    return "\n".join(
        [
            "try next:",
            f"  mlcd demo --root {root}                          # again: every stage is cached",
            f"  mlcd demo --root {root} --set train.loss=softmax --set train.num_positive=1",
            "                                          # single label, on the same clusters",
            f"  mlcd status --root {root}",
            "  mlcd run --data 'shards/*.parquet' --root DIR    # your own images",
        ]
    )
