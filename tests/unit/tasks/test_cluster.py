"""What the cluster stage decides before Ray starts, and what it records afterwards."""

import pytest

from mlcd_core.config import ClusterSettings
from mlcd_core.errors import ConfigError
from mlcd_core.store import Manifest
from tasks.artifacts import stage_markdown
from tasks.cluster import _check_memory, _measured, _seen_metrics


def seen(iteration: int, **values: float | None) -> dict[str, float | int | None]:
    made = {"changed_share": 0.1, "exhaustive_rows": 5, "recall": None, "rows": 1000, "used_rows": 1000, "seconds": 2.0}
    return {"iteration": iteration, **made, **values}


def test_a_plan_that_does_not_fit_in_memory_is_refused_with_its_numbers() -> None:
    with pytest.raises(ConfigError, match=r"clustering needs [\d.]+ GB .*centroids [\d.]+ GB.*cluster.num_centroids"):
        _check_memory(ClusterSettings(), "/r", usable=10**6, num_centroids=10**9, dim=768)
    _check_memory(ClusterSettings(), "/r", usable=6000, num_centroids=200, dim=128)
    with pytest.raises(ConfigError, match=r"grouped centroids [\d.]+ GB"):
        _check_memory(ClusterSettings(recipe="fast"), "/r", usable=10**6, num_centroids=10**9, dim=768)
    with pytest.raises(ConfigError, match=r", rows 1536.00 GB"):
        _check_memory(ClusterSettings(), "s3://b/r", usable=10**9, num_centroids=200, dim=768)


def test_values_that_a_stop_made_unknown_are_none() -> None:
    iterations = {2: seen(2, changed_share=None), 3: seen(3, exhaustive_rows=5, used_rows=50, recall=0.75)}
    assert _seen_metrics(iterations, 3) == {
        "changed_share": [None, None, 0.1],
        "certified_share": [None, 0.995, None],
        "recall": [None, None, 0.75],
    }


def test_speed_counts_the_rows_that_were_summed_in_the_time_that_was_seen() -> None:
    iterations = {
        1: seen(1, rows=1000, seconds=3.0),
        2: seen(2, rows=500, seconds=2.0),
        3: seen(3, rows=1500, seconds=1.0, recall=0.9),
    }
    assert _measured(iterations, num_centroids=20, dim=8) == {
        "dim": 8,
        "iteration_seconds": [3.0, 2.0, 1.0],
        "rows_per_s": 500.0,
        "flop_per_s": 2 * 300.0 * 20 * 8,
    }


def test_artifact_shows_the_quality_of_a_clustering() -> None:
    metrics = {
        "objective": [0.5, 0.25],
        "changed_share": [None, 0.125],
        "certified_share": [None, 1.0],
        "recall": [0.75, None],
        "splits": [3, 0],
        "size_quantiles": dict(zip(("1 %", "25 %", "75 %", "99 %", "max", "median", "min"), range(7), strict=True)),
        "sizes": [[2, 3], [30, 1]],
        "imbalance": 1.25,
        "identical_rows": 12,
        "identical_of": 1500,
    }
    manifest = Manifest("cluster", "s", "i", {}, 1, "d", 4, 4, (), metrics, {"rows_per_s": 1234.5, "flop_per_s": 2.5e9})
    text = stage_markdown({"result": "ran", "units_run": 1, "seconds": 1.0, "uri": ""}, manifest)
    for line in (
        "| clusters | 4 |",
        "| objective, mean of 1 - cos | 0.2500 |",
        "| rows per cluster (min, 1 %, 25 %, median, 75 %, 99 %, max) | 6, 0, 1, 5, 2, 3, 4 |",
        "| imbalance, K sum(n^2) / N^2 | 1.250 |",
        "| rows whose embedding another row has too | 12, from 1,500 rows looked at |",
        "| rows settled by the bound, worst iteration | 100.0000% |",
        "| probed rows with their exact centroid, worst iteration | 75.00% |",
        "| rows per second | 1,234 |",
        "| 1 | 0.500000 | - | 3 | - | 75.000% |",
        "| 2 | 0.250000 | 12.500% | 0 | 100.000% | - |",
    ):
        assert line in text
    assert text.count("data:image/png;base64,") == 2
