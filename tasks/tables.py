"""Results in words and tables, as the terminal and the artifacts show them."""

from collections.abc import Mapping
from typing import Any

from mlcd_core.store import Manifest

MEASURES = {"knn": "kNN", "linear_probe": "linear probe", "multilabel_map": "multi-label mAP"}


def metrics_table(scores: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and rows: one row per embedder, one column per measure, a dash where a measure does not apply."""
    rows = [
        (name, *("-" if row[measure] is None else f"{row[measure]:.3f}" for measure in MEASURES))
        for name, row in scores.items()
    ]
    return ["features", *MEASURES.values()], rows


def stage_note(manifest: Manifest) -> str:
    """One line on what a committed stage made."""
    metrics = manifest.metrics
    if manifest.stage == "embed":
        bad = {name: count for name, count in metrics["status"].items() if name != "ok"}
        return ", ".join(f"{count:,} {name}" for name, count in bad.items()) or "every row usable"
    if manifest.stage == "cluster":
        return f"objective {metrics['objective'][-1]:.4f} after {metrics['iterations']} iterations"
    if manifest.stage == "label":
        return f"labels of {metrics['num_centroids']:,} clusters"
    if manifest.stage == "train":
        first, last = metrics["curve"][0], metrics["curve"][-1]
        return f"loss {first['loss']:.3f} at step {first['step']:,}, {last['loss']:.3f} at step {last['step']:,}"
    return f"{metrics['test_rows']:,} test rows" if metrics["scores"] else "cluster evidence only"
