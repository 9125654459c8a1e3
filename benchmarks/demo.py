"""The demo as a stranger runs it, and what it shows: python benchmarks/demo.py [--seeds 0 1 2] [--folder DIR]

For each seed: `mlcd demo` on a fresh root, the same with single labels on the same clusters, and for the first seed the
first command again. Writes docs/benchmarks/demo.md.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import describe_machine
from measure_run import measured

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "demo.md"
SINGLE_LABEL = ["--set", "train.loss=softmax", "--set", "train.num_positive=1"]


def demo(root: Path, extra: list[str]) -> dict[str, Any]:
    """One run of the demo: its JSON summary with wall_s and peak_pss_bytes."""
    with tempfile.TemporaryFile("w+") as output:
        mlcd = str(Path(sys.executable).parent / "mlcd")
        use = measured([mlcd, "demo", "--root", str(root), "--json", *extra], stdout=output)
        output.seek(0)
        summary: dict[str, Any] = json.loads(output.read().splitlines()[-1])
    if use.exit_code:
        sys.exit(f"the demo failed: {summary}")
    return {**summary, "wall_s": use.wall_s, "peak_pss_bytes": use.peak_pss_bytes}


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Size and modification time of every file."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def seconds(summary: dict[str, Any]) -> str:
    """Stage times of a run, in order."""
    return ", ".join(f"{stage['stage']} {stage['seconds']:.1f}" for stage in summary["stages"])


def results(summary: dict[str, Any]) -> str:
    """How each stage ended, in order."""
    return ", ".join(f"{stage['stage']} {stage['result']}" for stage in summary["stages"])


def page(runs: dict[int, dict[str, dict[str, Any]]], again: dict[str, Any], num_changed: int) -> str:
    """The page in markdown."""
    seeds = list(runs)
    first = runs[seeds[0]]["mlcd"]
    lines = [
        "# The demo",
        "",
        f"Written by `python benchmarks/demo.py --seeds {' '.join(map(str, seeds))}` on {describe_machine()}.",
        "",
        "Multi-label mAP of a linear probe on 1,000 test scenes, 10 epochs. Both towers are trained on the same",
        "clusters and settings; the preset's settings were chosen on scenes of this kind, so the level is optimistic",
        "and the difference is what counts. The source is made by hand for shapes of this size.",
        "",
        "| seed | untrained | single label (softmax) | MLCD, 8 labels | source | MLCD - single | purity (random) |",
        "|---|---|---|---|---|---|---|",
        *(row(seed, runs[seed]) for seed in seeds),
        "",
        "All measures at the first seed:",
        "",
        "| features | kNN | linear probe | multi-label mAP |",
        "|---|---|---|---|",
        *(score_row(name, score) for name, score in first["metrics"].items()),
        score_row("trained, single label", runs[seeds[0]]["single"]["metrics"]["trained"]),
        "",
        f"- First run: {first['wall_s']:.0f} s wall, stages in seconds: {seconds(first)}; peak memory (PSS of all "
        f"processes, sampled each second) {first['peak_pss_bytes'] / 2**30:.2f} GiB.",
        f"- Again: {again['wall_s']:.1f} s wall, stages {results(again)}, stage time "
        f"{sum(s['seconds'] for s in again['stages']):.2f} s in all, files under the root that changed: {num_changed}.",
        f"- Single label on the same clusters: {runs[seeds[0]]['single']['wall_s']:.0f} s wall; "
        f"stages {results(runs[seeds[0]]['single'])}.",
    ]
    return "\n".join(lines) + "\n"


def row(seed: int, pair: dict[str, dict[str, Any]]) -> str:
    """One seed."""
    mlcd, single = pair["mlcd"], pair["single"]
    scores = mlcd["metrics"]
    untrained, source = scores["untrained"]["multilabel_map"], scores["source"]["multilabel_map"]
    multi, alone = scores["trained"]["multilabel_map"], single["metrics"]["trained"]["multilabel_map"]
    purity = f"{mlcd['clusters']['agreement']['purity']:.3f} ({mlcd['clusters']['chance']['purity']:.3f})"
    cells = [f"{value:.3f}" for value in (untrained, alone, multi, source)]
    return f"| {seed} | " + " | ".join(cells) + f" | {100 * (multi - alone):+.1f} points | {purity} |"


def score_row(name: str, score: dict[str, float]) -> str:
    """One embedder."""
    return f"| {name} | {score['knn']:.3f} | {score['linear_probe']:.3f} | {score['multilabel_map']:.3f} |"


def main() -> None:
    """Run all and write the page."""
    parser = argparse.ArgumentParser(description="the demo, measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlcd-demo-"))
    runs: dict[int, dict[str, dict[str, Any]]] = {}
    for seed in options.seeds:
        root, words = folder / f"seed-{seed}", ["--set", f"seed={seed}"]
        mlcd = demo(root, words)
        if not runs:
            before = listing(root)
            again = demo(root, words)
            num_changed = sum(before.get(path) != now for path, now in listing(root).items())
        runs[seed] = {"mlcd": mlcd, "single": demo(root, [*words, *SINGLE_LABEL])}
    PAGE.write_text(page(runs, again, num_changed), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
