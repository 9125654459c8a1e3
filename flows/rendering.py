"""What the command prints: plain aligned tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from flows.costs_text import costs_text
from flows.estimate_text import estimate_text
from flows.why_text import why_words
from tasks.tables import metrics_table

Record = Mapping[str, Any]


def run_text(summary: Mapping[str, Any], *, root: str, demo: bool) -> str:
    """The end of ``mlcd run``: what ran, what came out, where it lies, what to try next."""
    blocks = [_stage_table(summary["stages"])]
    failed = [stage for stage in summary["stages"] if stage["result"] == "failed"]
    if failed:
        blocks.append(f"{failed[0]['stage']} failed: {failed[0]['error']}")
    else:
        blocks.append(_scores_text(summary["rounds"]))
    blocks.append(_clusters_text(summary["clusters"]))
    blocks.append(f"everything lies in {root}")
    if demo and not failed:
        blocks.append(_next_steps(root))
    return "\n\n".join(block for block in blocks if block)


def plan_text(plans: Sequence[Record], estimate: Record | None) -> str:
    """The tables of ``mlcd plan``: the stages, where there is data, and the cost of clustering."""
    rows = [
        (
            p["stage"],
            p["plan"],
            _or_dash(p["units_missing"]),
            _or_dash(p["units_total"]),
            p["spec"][:12],
            p["note"] or why_words(p),
        )
        for p in plans
    ]
    header = ["stage", "plan", "missing", "units", "spec", ""]
    table = aligned(*_by_round(plans, header, rows)) if rows else ""
    estimated = estimate_text(estimate) if estimate else ""
    return "\n\n".join(block for block in (table, costs_text(plans), estimated) if block)


def status_text(stages: Sequence[Record]) -> str:
    """The table of ``mlcd status``."""
    rows = [
        (
            s["stage"],
            s["state"],
            f"{s['units_done']}/{s['units_total']}",
            (s["manifest_digest"] or "-")[:12],
            s["uri"],
            _status_note(s),
        )
        for s in stages
    ]
    return aligned(["stage", "state", "units", "digest", "where", ""], rows)


def _status_note(status: Record) -> str:
    holder = status["holder"]
    if holder:
        return f"by {holder['run']} on {holder['host']}, process {holder['pid']}, since {holder['since']}"
    return f"pinned to {status['pin']}" if status["pin"] else ""


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
    return aligned(*_by_round(stages, ["stage", "result", "rows", "usable", "time", "", "where"], rows))


def _by_round(
    stages: Sequence[Record], header: Sequence[Any], rows: Sequence[Sequence[Any]]
) -> tuple[Sequence[Any], Sequence[Sequence[Any]]]:
    """Header and rows, with the round of each in front where there are several."""
    if stages[-1]["round"] == 1:
        return header, rows
    return ["round", *header], [(stage["round"], *row) for stage, row in zip(stages, rows, strict=True)]


def _scores_text(rounds: Sequence[Record]) -> str:
    tables = [(done, *metrics_table(done["metrics"])) for done in rounds if done["metrics"]]
    if not tables:
        return ""
    stages = [done for done, _, rows in tables for _ in rows]
    scores = aligned(*_by_round(stages, tables[0][1], [row for _, _, rows in tables for row in rows]))
    return scores if len(rounds) == 1 else f"{scores}\n(source of a later round: the tower trained in the round before)"


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
