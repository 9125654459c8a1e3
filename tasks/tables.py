"""The evaluation table, as the terminal and the artifact show it."""

from collections.abc import Mapping
from typing import Any

MEASURES = {"knn": "kNN", "linear_probe": "linear probe", "multilabel_map": "multi-label mAP"}


def metrics_table(scores: Mapping[str, Mapping[str, float | None]]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Header and rows: one row per embedder, one column per measure, a dash where a measure does not apply."""
    rows = [
        (name, *("-" if row[measure] is None else f"{row[measure]:.3f}" for measure in MEASURES))
        for name, row in scores.items()
    ]
    return ["features", *MEASURES.values()], rows
