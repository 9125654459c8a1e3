"""What training on cluster labels is worth on the demo's scenes: python benchmarks/training_value.py --cache DIR

All losses at two lengths, the paper's scale, margin and ratio, and second rounds, for every seed; beside them the
untrained tower, the source's features and random numbers. Each result is a JSON file in DIR: an interrupted run goes on
where it was; remove DIR after a change of the code. Writes docs/benchmarks/training-value.md.
"""

import argparse
import json
import multiprocessing
import os
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from training_arms import Arm, Workshop, run_arm, run_baselines

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "training-value.md"
LOSSES = {"mlcd": 8, "mlc": 8, "softmax_masked": 8, "mlcd_bias": 8, "softmax": 1}
PAPER = {"scale": 64.0, "margin": 0.3, "negative_ratio": 0.1}
BASELINES = {"untrained": "untrained tower", "source": "source (hand-made for such shapes)", "random": "random numbers"}
GOAL_POINTS = 8
MEASURES = ("map", "knn_map", "feature_mean_norm", "effective_rank")

Scores = dict[str, float]
Results = dict[str, list[Scores]]  # of every seed


@dataclass(frozen=True)
class Plan:
    """What runs: seeds, and the two numbers of epochs."""

    seeds: list[int]
    short: int
    long: int

    def first_arms(self, seed: int) -> list[Arm]:
        """Those that learn from the source's clusters; the longest first, so that processes end together."""
        arms = [
            Arm(f"{loss}-{epochs}", seed, {"loss": loss, "num_positive": positives, "epochs": epochs})
            for epochs in (self.long, self.short)
            for loss, positives in LOSSES.items()
        ]
        return [*arms, Arm(f"paper-{self.short}", seed, {**PAPER, "epochs": self.short})]

    def second_arms(self, seed: int) -> list[Arm]:
        """Those that follow the short run of mlcd."""
        first = next(arm for arm in self.first_arms(seed) if arm.name == f"mlcd-{self.short}")
        return [
            Arm(f"scratch-{self.short}", seed, first.train, after=first, relabels=True),
            Arm(f"continued-{self.short}", seed, first.train, after=first, relabels=True, continues=True),
            Arm(f"same-labels-{self.short}", seed, first.train, after=first, continues=True),
        ]


def run_all(plan: Plan, workshop: Workshop, processes: int) -> Results:
    """Run what has no result yet, and read all: name -> scores of each seed."""
    # each arm has one thread, that of scikit-learn included
    os.environ["OMP_NUM_THREADS"] = "1"
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pool.submit(workshop.prepare).result()
        first = [(arm.name, arm.seed, run_arm, arm) for seed in plan.seeds for arm in plan.first_arms(seed)]
        first += [("baselines", seed, run_baselines, seed) for seed in plan.seeds]
        second = [(arm.name, arm.seed, run_arm, arm) for seed in plan.seeds for arm in plan.second_arms(seed)]
        for jobs in (first, second):
            running = [
                pool.submit(kept, result_path(workshop, name, seed), run, workshop, what)
                for name, seed, run, what in jobs
            ]
            for (name, seed, *_), job in zip(jobs, running, strict=True):
                print(f"{name}, seed {seed}: {json.dumps(job.result())}", flush=True)
    names = [arm.name for arm in plan.first_arms(0) + plan.second_arms(0)]
    results = {name: [read(workshop, name, seed) for seed in plan.seeds] for name in names}
    baselines = [read(workshop, "baselines", seed) for seed in plan.seeds]
    return results | {name: [found[name] for found in baselines] for name in BASELINES}


def kept(path: Path, run: Callable[..., Any], *arguments: Any) -> Any:
    """The result at ``path``, run and written there if it is not."""
    if not path.exists():
        result = run(*arguments)
        path.parent.mkdir(exist_ok=True)
        whole = path.with_suffix(".part")
        whole.write_text(json.dumps(result), encoding="utf-8")
        whole.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def result_path(workshop: Workshop, name: str, seed: int) -> Path:
    """Where a result lies."""
    return workshop.folder / "results" / f"{name}-seed{seed}.json"


def read(workshop: Workshop, name: str, seed: int) -> Any:
    """A result that is there."""
    return json.loads(result_path(workshop, name, seed).read_text(encoding="utf-8"))


def page(plan: Plan, workshop: Workshop, results: Results, processes: int) -> list[str]:
    """The page in markdown."""
    return [
        "# The value of training",
        "",
        f"Written by `python benchmarks/training_value.py --cache DIR --seeds {' '.join(map(str, plan.seeds))}` on",
        f"{describe_machine()}; {processes} runs at a time, one thread each.",
        "",
        f"The demo's digit scenes, {workshop.num_train:,} to train on and {workshop.num_test:,} to test, K = "
        f"{workshop.num_centroids}, the laptop preset (s = 16,",
        "m = 0.1, r = 1, AdamW, batches of 64) but for what a row names. Multi-label mAP of a linear probe and of kNN",
        "votes on test scenes, which no other stage sees; the probe's strength is chosen on train scenes. Each cell is",
        f"the mean over {len(plan.seeds)} seeds and the range; a seed moves clusters, initial weights, order and "
        "augmentation, not the scenes.",
        "The preset was chosen on scenes of this kind and no learning rate was tuned for any loss: levels are",
        "optimistic, differences between rows are what counts. Norm of the mean and effective rank are those of unit",
        "test features.",
        "",
        "## Losses",
        "",
        *loss_table(plan, results),
        "",
        *(difference(plan, results, epochs) for epochs in (plan.short, plan.long)),
        "",
        "## The paper's scale, margin and ratio",
        "",
        *paper_section(plan, workshop, results),
        "",
        "## Rounds",
        "",
        *rounds_section(plan, results),
        "",
    ]


def loss_table(plan: Plan, results: Results) -> list[str]:
    """All losses at both lengths, and the rows without training."""
    lines = [
        "| features | positives | epochs | probe mAP | kNN mAP | norm of mean | effective rank |",
        "|---|---|---|---|---|---|---|",
    ]
    for epochs in (plan.short, plan.long):
        for loss, positives in LOSSES.items():
            scores = results[f"{loss}-{epochs}"]
            lines.append(f"| {loss} | {positives} | {epochs} | {cells(scores)} |")
    return lines + [f"| {title} | | 0 | {cells(results[name])} |" for name, title in BASELINES.items()]


def difference(plan: Plan, results: Results, epochs: int) -> str:
    """How far several positives are above one."""
    multi, single = ([score["map"] for score in results[f"{loss}-{epochs}"]] for loss in ("mlcd", "softmax"))
    points = [100 * (more - less) for more, less in zip(multi, single, strict=True)]
    said = f"- mlcd less softmax at {epochs} epochs: {statistics.mean(points):+.1f} points of probe mAP "
    said += f"({min(points):+.1f} to {max(points):+.1f}); ranges {'apart' if min(multi) > max(single) else 'overlap'}"
    if epochs != plan.short:
        return f"{said}."
    met = statistics.mean(points) >= GOAL_POINTS and min(multi) > max(single)
    return f"{said}; goal {GOAL_POINTS} points, ranges apart: {'met' if met else 'missed'}."


def paper_section(plan: Plan, workshop: Workshop, results: Results) -> list[str]:
    """One row beside the preset's, and what it says."""
    name = f"paper-{plan.short}"
    points = 100 * (mean(results[name], "map") - mean(results[f"mlcd-{plan.short}"], "map"))
    negatives = max(1, round(PAPER["negative_ratio"] * workshop.num_centroids))
    return [
        "| mlcd | probe mAP | kNN mAP | norm of mean | effective rank |",
        "|---|---|---|---|---|",
        f"| s = 64, m = 0.3, r = 0.1 | {cells(results[name])} |",
        f"| preset | {cells(results[f'mlcd-{plan.short}'])} |",
        "",
        f"The settings of the paper are for a million classes. Here r = 0.1 of {workshop.num_centroids} classes is "
        f"{negatives} negatives, and all three",
        f"together change the probe mAP by {points:+.1f} points against the preset after {plan.short} epochs"
        + (": they are not for this size." if points < 0 else "."),
    ]


def rounds_section(plan: Plan, results: Results) -> list[str]:
    """Second rounds beside as many epochs on the first labels."""
    titles = {
        f"mlcd-{plan.short}": ("first round", plan.short),
        f"scratch-{plan.short}": ("second round: clusters of the first tower, weights from scratch", 2 * plan.short),
        f"continued-{plan.short}": ("second round: clusters of the first tower, its weights go on", 2 * plan.short),
        f"same-labels-{plan.short}": ("control: the first labels, its weights go on", 2 * plan.short),
        f"mlcd-{plan.long}": ("control: the first labels, one long run", plan.long),
    }
    best = max((f"scratch-{plan.short}", f"continued-{plan.short}"), key=lambda name: mean(results[name], "map"))
    control = max((f"same-labels-{plan.short}", f"mlcd-{plan.long}"), key=lambda name: mean(results[name], "map"))
    points = 100 * (mean(results[best], "map") - mean(results[control], "map"))
    return [
        "| | epochs in all | probe mAP | kNN mAP | norm of mean | effective rank | purity (shuffled) |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {title} | {epochs} | {cells(results[n])} | {purity(results[n])} |"
            for n, (title, epochs) in titles.items()
        ),
        "",
        "Purity is that of the clusters a run learns from, beside the same with the scenes shuffled.",
        f"The better second round is {points:+.1f} points of probe mAP from the better control: "
        + (
            "clustering anew is worth more than the same epochs on the first labels."
            if points > 0
            else "the same epochs on the first labels are worth as much or more."
        ),
    ]


def cells(scores: list[Scores]) -> str:
    """Mean and range of every measure."""
    return " | ".join(
        spread([score[name] for score in scores], digits=1 if name == "effective_rank" else 3) for name in MEASURES
    )


def purity(scores: list[Scores]) -> str:
    """Means of both."""
    return f"{mean(scores, 'purity'):.3f} ({mean(scores, 'chance_purity'):.3f})"


def spread(values: list[float], digits: int) -> str:
    """Mean (least to most)."""
    return f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def mean(scores: list[Scores], name: str) -> float:
    """Over seeds."""
    return statistics.mean(score[name] for score in scores)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description="the value of training on cluster labels")
    parser.add_argument("--cache", type=Path, required=True, help="folder of scenes, checkpoints and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, nargs=2, default=(10, 20), help="of short and long runs")
    parser.add_argument("--scenes", type=int, nargs=2, default=(6_000, 1_000), help="to train on, to test")
    parser.add_argument("--centroids", type=int, default=200)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    plan = Plan(options.seeds, *options.epochs)
    sizes = f"{options.scenes[0]}-{options.scenes[1]}-{options.centroids}"
    workshop = Workshop(options.cache.resolve() / sizes, *options.scenes, options.centroids)
    results = run_all(plan, workshop, options.processes)
    options.page.write_text("\n".join(page(plan, workshop, results, options.processes)), encoding="utf-8")
    print(options.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
