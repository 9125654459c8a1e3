"""LAION-400M on 80 GPUs, on paper: python benchmarks/paper_plan.py

Asks `mlcd plan --preset paper` for its estimate, and writes it with the preset's settings as
docs/laion-400m-on-paper.md. Nothing is measured here: the figures are the plan's arithmetic, and the page says so.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.estimate_text import duration_text, size_text
from mlcd_core.config import load_config

PAGE = Path(__file__).parents[1] / "docs" / "laion-400m-on-paper.md"
PRESET = "paper"


def paper_estimate() -> dict[str, Any]:
    """What the command says, in a process of its own."""
    command = [str(Path(sys.executable).parent / "mlcd"), "plan", "--preset", PRESET, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    estimate: dict[str, Any] = json.loads(done.stdout)["estimate"]
    return estimate


def page(estimate: Mapping[str, Any]) -> str:
    """The page in markdown."""
    return (
        "\n".join([*_opening(estimate), *_settings(), *_costs(estimate), *_memory(estimate), *_time(estimate)]) + "\n"
    )


def _opening(e: Mapping[str, Any]) -> Iterator[str]:
    yield "# LAION-400M on 80 GPUs, on paper"
    yield ""
    yield "**Nothing on this page was run.** It is the arithmetic of `mlcd plan --preset paper`, written by"
    yield "`python benchmarks/paper_plan.py`, and a test compares the two. What was measured is in"
    yield "[benchmarks/](benchmarks/)."
    yield ""
    yield f"The [paper](https://arxiv.org/abs/2407.17331) clusters {e['num_rows']:,} images into"
    yield f"{e['num_centroids']:,} classes and trains on 80 GPUs. The plan covers what this project adds to an encoder:"
    yield "clustering and labels, with what they read and write. The two towers, the one that embeds and the one that"
    yield "is trained, cost what they cost in any framework, and are not in it."


def _settings() -> Iterator[str]:
    config = load_config(PRESET, environment={}, overrides={})
    yield from ("", "## What is planned", "", "| setting | value |", "|---|---|")
    for section, names in {
        "embed": ("architecture", "pretrained", "image_size", "workers"),
        "cluster": ("num_centroids", "iterations", "recipe", "workers"),
        "label": ("num_labels", "workers"),
        "train": ("tower", "num_positive", "negative_ratio", "batch_size", "lanes", "epochs", "workers"),
    }.items():
        for name in names:
            value = getattr(getattr(config, section), name)
            yield f"| `{section}.{name}` | {f'{value:,}' if isinstance(value, int) else value} |"


def _costs(e: Mapping[str, Any]) -> Iterator[str]:
    counted = f"2 x {e['num_rows']:,} rows x {e['num_centroids']:,} centroids x {e['dim']} dims"
    times = e["iterations"] + 1
    yield from ("", "## Operations and bytes", "", "| what | how much | how it is counted |", "|---|---|---|")
    yield f"| an iteration of k-means | {e['iteration_flop']:.3g} operations | {counted} |"
    yield f"| {e['iterations']} iterations and the labels | {e['total_flop']:.3g} operations | the same {times} times |"
    yield f"| vectors | {size_text(e['rows_bytes'])} | float16 |"
    yield f"| centroids | {size_text(e['centroids_bytes'])} | float32, on every worker |"
    yield f"| sums of a worker | {size_text(e['sums_bytes'])} | float64 |"
    yield f"| embeddings in the store | {size_text(e['embeddings_disk_bytes'])} | row, key, status, vector |"
    yield f"| labels in the store | {size_text(e['labels_disk_bytes'])} | row, key, {e['num_labels']} ids and cosines |"
    yield f"| links of cluster in the store | {size_text(e['links_disk_bytes'])} | the newest two |"


def _memory(e: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Memory", "")
    yield f"Of one of {e['workers']} workers, with its share of the rows:"
    for memory in e["worker_memory"]:
        yield from ("", f"| in {memory['where']} | {size_text(memory['total_bytes'])} |", "|---|---|")
        for name, size in memory["items"].items():
            yield f"| {name} | {size_text(size)} |"


def _time(e: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Time", "")
    yield "Operations over 60 % of the peak that the vendor publishes for 16-bit products; two CPU cores count as 0.1"
    yield "TFLOP/s. Reading, writing, starting and waiting come on top."
    yield from ("", "| devices | an iteration | everything |", "|---|---|---|")
    for device in e["devices"]:
        hours = duration_text(3600 * device["total_h"])
        yield f"| {device['count']} x {device['kind']} | {duration_text(device['iteration_s'])} | {hours} |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(paper_estimate()), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
