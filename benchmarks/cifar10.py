"""The laptop preset, unchanged, on all of CIFAR-10: python benchmarks/cifar10.py --cifar10 DIR [--root DIR]

DIR holds train-*.parquet and test-*.parquet with the columns jpg and label. Runs `mlcd run` once for the preset's
loss and once with single labels on the same clusters, and writes docs/benchmarks/cifar10.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe_machine
from measure_run import measured

REPO = Path(__file__).parents[1]
PAGE = REPO / "docs" / "benchmarks" / "cifar10.md"
SINGLE_LABEL = ["--set", "train.loss=softmax", "--set", "train.num_positive=1"]


def run(cifar10: Path, root: Path, extra: list[str]) -> dict[str, Any]:
    """One run of the command: its JSON summary with wall_s and peak_pss_bytes."""
    command = [str(Path(sys.executable).parent / "mlcd"), *words(str(cifar10), str(root), extra), "--json"]
    with tempfile.TemporaryFile("w+") as output:
        use = measured(command, stdout=output)
        output.seek(0)
        summary: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    if use.exit_code:
        sys.exit(f"the run failed: {summary}")
    return {**summary, "wall_s": use.wall_s, "peak_pss_bytes": use.peak_pss_bytes}


def words(cifar10: str, root: str, extra: list[str]) -> list[str]:
    """The arguments of the command, with the folders as given."""
    data = ["--data", f"{cifar10}/train-*.parquet", "--eval-data", f"{cifar10}/test-*.parquet"]
    return ["run", "--preset", "laptop", *data, "--label-column", "label", "--root", root, *extra]


def page(mlcd: dict[str, Any], single: dict[str, Any]) -> str:
    """The page in markdown."""
    quoted = " ".join(f'"{word}"' if "*" in word else word for word in words("$CIFAR10", "$ROOT", []))
    clusters = mlcd["clusters"]
    scores = [
        ("trained, MLCD, 8 labels", mlcd["metrics"]["trained"]),
        ("trained, single label (softmax)", single["metrics"]["trained"]),
        ("untrained", mlcd["metrics"]["untrained"]),
        ("source (`hog_words`)", mlcd["metrics"]["source"]),
    ]
    lines = [
        "# CIFAR-10, laptop preset",
        "",
        "50,000 training and 10,000 test JPEGs of 32 x 32 pixels; settings as the preset has them, made for digit",
        "scenes. Labels are used only to score; the probes are fitted on training images.",
        "",
        f"Written by `python benchmarks/cifar10.py --cifar10 DIR` on {describe_machine()}.",
        "",
        "```bash",
        f"mlcd {quoted}",
        f"mlcd {quoted} {' '.join(SINGLE_LABEL)}",
        "```",
        "",
        *settings_block(),
        "",
        "| features | kNN accuracy | linear probe accuracy |",
        "|---|---|---|",
        *(f"| {name} | {score['knn']:.3f} | {score['linear_probe']:.3f} |" for name, score in scores),
        "",
        f"Purity of the clusters: {clusters['agreement']['purity']:.3f}; of random features with the same cluster "
        f"sizes: {clusters['chance']['purity']:.3f}.",
        "",
        "| stage | rows | first run | second run (single label) | |",
        "|---|---|---|---|---|",
        *(stage_row(first, second) for first, second in zip(mlcd["stages"], single["stages"], strict=True)),
        f"| whole command | | {mlcd['wall_s']:.0f} s | {single['wall_s']:.0f} s | "
        f"peak memory {mlcd['peak_pss_bytes'] / 2**30:.1f} GiB |",
        "",
        "One seed. The tower was trained for 10 epochs and has not converged; the source features are hand-made for",
        "shapes and blind to colour. The numbers show that the preset runs on real images, not what MLCD can reach.",
    ]
    return "\n".join(lines) + "\n"


def settings_block() -> list[str]:
    """The preset as it stands; every other setting has its default in mlcd_core/specs.py."""
    preset = (REPO / "mlcd_core" / "presets" / "laptop.yaml").read_text(encoding="utf-8")
    return [
        "The preset; every other setting has its default in `mlcd_core/specs.py`:",
        "",
        "```yaml",
        preset.rstrip(),
        "```",
    ]


def stage_row(first: dict[str, Any], second: dict[str, Any]) -> str:
    """One stage in both runs."""
    cells = [first["stage"], first["rows"] or "-", f"{first['seconds']:.1f} s"]
    cells += [f"{second['result']}, {second['seconds']:.1f} s", first["note"]]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """Run both and write the page."""
    parser = argparse.ArgumentParser(description="the laptop preset on CIFAR-10")
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--root", type=Path)
    options = parser.parse_args()
    root = options.root or Path(tempfile.mkdtemp(prefix="mlcd-cifar10-"))
    mlcd = run(options.cifar10.resolve(), root, [])
    single = run(options.cifar10.resolve(), root, SINGLE_LABEL)
    PAGE.write_text(page(mlcd, single), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
