"""Results in words and tables, as the terminal and the artifacts show them."""

from collections.abc import Mapping
from typing import Any

from mlcd_core.store import Manifest

MEASURES = {"knn": "kNN", "linear_probe": "linear probe", "multilabel_map": "multi-label mAP"}

MOST_FAILED_SHOWN, MOST_FAILED_NAMED = 20, 3

SIZE_QUANTILES = ("min", "1 %", "25 %", "median", "75 %", "99 %", "max")


def metrics_table(scores: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and rows: one row per embedder, one column per measure, a dash where a measure does not apply."""
    rows = [
        (name, *("-" if row[measure] is None else f"{row[measure]:.3f}" for measure in MEASURES))
        for name, row in scores.items()
    ]
    return ["features", *MEASURES.values()], rows


def cluster_table(manifest: Manifest) -> list[tuple[str, str]]:
    """What there is to know of a clustering: sizes, copies, how many rows the fast search settled, and its speed."""
    metrics, notes = manifest.metrics, manifest.provenance
    quantiles = {name: metrics["size_quantiles"][name] for name in SIZE_QUANTILES}
    identical, of = metrics["identical_rows"], metrics["identical_of"]
    certified = [share for share in metrics["certified_share"] if share is not None]
    recall = [share for share in metrics["recall"] if share is not None]
    return [
        ("clusters", f"{manifest.rows:,}"),
        ("objective, mean of 1 - cos", f"{metrics['objective'][-1]:.4f}"),
        (f"rows per cluster ({', '.join(quantiles)})", ", ".join(f"{size:,}" for size in quantiles.values())),
        ("imbalance, K sum(n^2) / N^2", f"{metrics['imbalance']:.3f}"),
        ("rows whose embedding another row has too", f"{identical:,}, from {of:,} rows looked at"),
        ("rows settled by the bound, worst iteration", f"{min(certified):.4%}" if certified else "-"),
        *([("probed rows with their exact centroid, worst iteration", f"{min(recall):.2%}")] if recall else []),
        ("rows per second", f"{notes['rows_per_s']:,.0f}"),
        ("operations per second", f"{notes['flop_per_s']:.3g}"),
    ]


def iterations_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and rows: one row per iteration of k-means, a dash where a stop made a value unknown."""
    names = ("objective", "changed_share", "splits", "certified_share", "recall")
    rows = [
        (iteration, f"{objective:.6f}", _percent(changed), splits, _percent(certified), _percent(recall))
        for iteration, (objective, changed, splits, certified, recall) in enumerate(
            zip(*(metrics[name] for name in names), strict=True), start=1
        )
    ]
    header = ["iteration", "objective", "rows that changed cluster", "empties split", "settled by the bound", "recall"]
    return header, rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.3%}"


def failed_units_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and rows: the units that could not be embedded, the first of them where there are many."""
    failed = metrics["failed_units"]
    rows: list[tuple[Any, ...]] = [(unit["status"], unit["source"], f"{unit['rows']:,}") for unit in failed]
    more = [("...", f"{len(rows) - MOST_FAILED_SHOWN:,} more", "")] if len(rows) > MOST_FAILED_SHOWN else []
    return ["failed unit", "of", "rows"], rows[:MOST_FAILED_SHOWN] + more


def _embed_note(metrics: Mapping[str, Any]) -> str:
    """Rows without an embedding by reason; units that failed as a whole by their name."""
    failed = metrics["failed_units"]
    reasons = {unit["status"] for unit in failed}
    bad = [f"{rows:,} {name}" for name, rows in metrics["status"].items() if name != "ok" and name not in reasons]
    for reason in sorted(reasons):
        sources = [unit["source"] for unit in failed if unit["status"] == reason]
        named = ", ".join(sources[:MOST_FAILED_NAMED]) + (", ..." if len(sources) > MOST_FAILED_NAMED else "")
        bad.append(f"{len(sources):,} {'unit' if len(sources) == 1 else 'units'} {reason}: {named}")
    return ", ".join(bad) or "every row usable"


def stage_note(manifest: Manifest) -> str:
    """One line on what a committed stage made."""
    metrics = manifest.metrics
    if manifest.stage == "embed":
        return _embed_note(metrics)
    if manifest.stage == "cluster":
        return f"objective {metrics['objective'][-1]:.4f} after {metrics['iterations']} iterations"
    if manifest.stage == "label":
        return f"labels of {metrics['num_centroids']:,} clusters"
    if manifest.stage == "train":
        first, last = metrics["curve"][0], metrics["curve"][-1]
        return f"loss {first['loss']:.3f} at step {first['step']:,}, {last['loss']:.3f} at step {last['step']:,}"
    return f"{metrics['test_rows']:,} test rows" if metrics["scores"] else "cluster evidence only"
