"""LAION-400M on 80 GPUs, on paper: python benchmarks/paper_plan.py

Asks `mlcd plan --preset paper` for its estimate, and writes it with the preset's settings as
docs/laion-400m-on-paper.md. Nothing is measured here: the figures are the plan's arithmetic, and the page says so.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flows.estimate_text import device_text, hours_text
from mlcd_core.config import load_config
from tasks.spelling import duration_text, size_text

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
    parts = (_opening, _costs, _towers, _memory, _time)
    opening, *figures = [list(part(estimate)) for part in parts]
    return "\n".join([*opening, *_settings(), *itertools.chain(*figures)]) + "\n"


def _opening(e: Mapping[str, Any]) -> Iterator[str]:
    yield "# LAION-400M on 80 GPUs, on paper"
    yield ""
    yield "**Nothing on this page was run.** It is the arithmetic of `mlcd plan --preset paper`, written by"
    yield "`python benchmarks/paper_plan.py`, and a test compares the two. What was measured is in"
    yield "[benchmarks/](benchmarks/)."
    yield ""
    yield f"The [paper](https://arxiv.org/abs/2407.17331) clusters {e['num_rows']:,} images into"
    yield f"{e['num_centroids']:,} classes and trains on 80 GPUs. The plan covers clustering and labels, with what they"
    yield "read and write, and the operations of the two towers: the one that embeds and the one that is trained."


def _settings() -> Iterator[str]:
    config = load_config(PRESET, environment={}, overrides={})
    yield from ("", "## What is planned", "", "| setting | value |", "|---|---|")
    for section, names in {
        "embed": ("architecture", "pretrained", "image_size", "precision", "workers"),
        "cluster": ("num_centroids", "iterations", "recipe", "workers"),
        "label": ("num_labels", "workers"),
        "train": ("tower", "precision", "num_positive", "negative_ratio", "batch_size", "lanes", "epochs", "workers"),
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


def _towers(e: Mapping[str, Any]) -> Iterator[str]:
    yield from (
        "",
        "## Towers",
        "",
        "| stage | tower | images | operations an image | in all |",
        "|---|---|---|---|---|",
    )
    for t in e["towers"]:
        name = f"`{t['tower']}`, {t['parameters'] / 1e6:.1f} M parameters"
        yield f"| {t['stage']} | {name} | {t['images']:,} | {t['image_flop']:.3g} | {t['total_flop']:.3g} |"
    yield ""
    yield "Counted on towers without memory. Training is a forward and a backward pass of twice as many, in every"
    yield "epoch, and in the head 8 for each sampled class and dimension."


def _memory(e: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Memory", "")
    yield f"Of one of {e['workers']} workers that cluster, with its share of the rows:"
    for memory in e["worker_memory"]:
        yield from _memory_table(memory)
    for t in e["towers"]:
        if t["worker_memory"]:
            yield from ("", f"Of one of {t['workers']} workers of the stage {t['stage']}:")
            yield from _memory_table(t["worker_memory"])


def _memory_table(memory: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"| in {memory['where']} | {size_text(memory['total_bytes'])} |", "|---|---|")
    for name, size in memory["items"].items():
        yield f"| {name} | {size_text(size)} |"


def _time(e: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Time", "")
    yield "Operations over 60 % of the peak that the vendor publishes for 16-bit products, of the towers over 40 %, the"
    yield "most that is published of CLIP training (NeMo, on A100); the LAION-400M runs of open_clip made 11 to 13 %."
    yield "Two CPU cores count as 0.1 TFLOP/s; a V100 has no bfloat16. Reading, decoding, writing, starting and waiting"
    yield "come on top."
    stages = [t["stage"] for t in e["towers"]]
    columns = ["devices", "an iteration", "iterations and labels", *stages]
    yield from ("", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")
    for device, *towers in zip(e["devices"], *(t["devices"] for t in e["towers"]), strict=True):
        hours = " | ".join(hours_text(each["total_h"]) for each in (device, *towers))
        yield f"| {device_text(device)} | {duration_text(device['iteration_s'])} | {hours} |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(paper_estimate()), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
