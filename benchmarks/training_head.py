"""The head beside k-slot Partial FC, in memory and time: python benchmarks/training_head.py [--runs 5]

Memory is measured once per contender in a fresh process; for time the contenders take turns in one. Then the row
optimizer beside PyTorch's, and a million classes. Writes docs/benchmarks/training-head.md.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from machine import describe_machine
from partial_fc import KSlotPartialFC
from training_measure import PHASES, THREADS, PeakMemory, apart, head_phases, random_batch
from training_rows import (
    DENSE,
    LAZY,
    MOVE_ALONE,
    LaptopRun,
    head_on_laptop,
    race_row_optimizers,
    rival_on_laptop,
    training_on_laptop,
)

from mlcd_core.train.head import HeadSpec, ShardedHead

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "training-head.md"
SCALE, MARGIN = 64.0, 0.3
CASES = ((8, 1.0), (8, 0.1), (1, 1.0), (1, 0.1))  # labels per row, negative ratio
MEMORY_GOAL, MEMORY_CASE = 20, (8, 1.0)
TIME_GOAL, TIME_CASE = 3, (8, 0.1)
OPTIMIZER_GOAL, TOUCHED_SHARE = 20, 0.01
LAPTOP_ROWS, LAPTOP_STEPS = 256, 20

Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One comparison: rows, classes and dims, labels per row, and the share of the classes drawn as negatives."""

    num_rows: int
    num_classes: int
    dim: int
    num_labels: int = 1
    negative_ratio: float = 1.0

    @property
    def key(self) -> tuple[int, float]:
        """What CASES lists."""
        return self.num_labels, self.negative_ratio


@dataclass(frozen=True)
class Outcome:
    """Bytes and seconds of a step of both, and the phases of ours."""

    mlcd_bytes: int
    rival_bytes: int
    mlcd_seconds: list[float]
    rival_seconds: list[float]
    phases: dict[str, float]

    @property
    def saved(self) -> float:
        """How many times the memory the rival takes."""
        return self.rival_bytes / self.mlcd_bytes

    @property
    def speed(self) -> float:
        """How many times as long the rival takes."""
        return statistics.median(self.rival_seconds) / statistics.median(self.mlcd_seconds)


def mlcd_head(case: Case) -> ShardedHead:
    """Eq. 5 for several labels, Eq. 3 for one."""
    loss = "mlcd" if case.num_labels > 1 else "softmax"
    spec = HeadSpec(loss=loss, negative_ratio=case.negative_ratio, scale=SCALE, margin=MARGIN)
    return ShardedHead(spec, case.num_classes, case.dim)


def mlcd_step(case: Case) -> Step:
    """Forward and backward of ours."""
    head, steps = mlcd_head(case), itertools.count()
    features_BD, labels_BL = random_batch(case.num_rows, case.num_classes, case.dim, case.num_labels)

    def step() -> None:
        features_BD.grad = None
        head(features_BD, labels_BL, step=next(steps)).loss.backward()

    return step


def rival_step(case: Case) -> Step:
    """Forward and backward of Partial FC."""
    head = KSlotPartialFC(case.num_classes, case.dim, negative_ratio=case.negative_ratio, scale=SCALE, margin=MARGIN)
    features_BD, labels_BL = random_batch(case.num_rows, case.num_classes, case.dim, case.num_labels)

    def step() -> None:
        features_BD.grad = head.weight_CD.grad = None
        head(features_BD, labels_BL).backward()

    return step


def extra_bytes(make_step: Callable[[Case], Step], case: Case) -> int:
    """The most memory of one step beyond what the process has before it: weights and batch do not count."""
    make_step(replace(case, num_rows=8, num_classes=64))()  # threads and workspaces
    step = make_step(case)
    with PeakMemory() as memory:
        step()
    return memory.growth


def race(case: Case, runs: int) -> tuple[list[float], list[float]]:
    """Seconds of each step of ours and of the rival's, in turns; one step of each before is not counted."""
    steps = mlcd_step(case), rival_step(case)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs + 1):
        for step, measured in zip(steps, seconds, strict=True):
            started = time.perf_counter()
            step()
            measured.append(time.perf_counter() - started)
    return seconds[0][1:], seconds[1][1:]


def phases(case: Case, runs: int) -> dict[str, float]:
    """Where a step of ours goes, the optimizer included."""
    batch = random_batch(case.num_rows, case.num_classes, case.dim, case.num_labels)
    return head_phases(mlcd_head(case), *batch, runs)


def measure(case: Case, runs: int) -> Outcome:
    """All of one case."""
    memory = apart(extra_bytes, mlcd_step, case), apart(extra_bytes, rival_step, case)
    outcome = Outcome(*memory, *apart(race, case, runs), apart(phases, case, runs))
    print(f"{case}: {outcome.saved:.1f} x less memory, {outcome.speed:.2f} x faster", flush=True)
    return outcome


def head_section(outcomes: dict[Case, Outcome]) -> list[str]:
    """Memory, time and phases of all cases."""
    by_key = {case.key: outcome for case, outcome in outcomes.items()}
    size = next(iter(outcomes))
    return [
        f"## Forward and backward: {size.num_rows:,} rows, {size.num_classes:,} classes, {size.dim} dims",
        "",
        "Memory is the most that a step takes beyond weights and batch, gradients included. Time is the median of",
        "steps without the optimizer. With one label the loss of both is the softmax; with eight, ours is Eq. 5 and",
        "theirs is the mean of eight softmaxes, each with negatives of its own.",
        "",
        "| labels | r | memory: mlcd | Partial FC | ratio | time: mlcd | Partial FC | ratio |",
        "|---|---|---|---|---|---|---|---|",
        *(head_row(case, outcome) for case, outcome in outcomes.items()),
        "",
        f"- {said('Memory', MEMORY_CASE, by_key[MEMORY_CASE].saved, MEMORY_GOAL)}",
        f"- {said('Time', TIME_CASE, by_key[TIME_CASE].speed, TIME_GOAL)}",
        "",
        "Where a step of ours goes, its row optimizer included:",
        "",
        f"| labels | r | {' | '.join(PHASES)} |",
        f"|---|---|{'---|' * len(PHASES)}",
        *(f"| {case.num_labels} | {case.negative_ratio} | {phase_cells(o.phases)} |" for case, o in outcomes.items()),
        "",
    ]


def head_row(case: Case, outcome: Outcome) -> str:
    """One case."""
    cells = [str(case.num_labels), str(case.negative_ratio)]
    cells += [megabytes(outcome.mlcd_bytes), megabytes(outcome.rival_bytes), f"{outcome.saved:.1f}"]
    cells += [spread(outcome.mlcd_seconds), spread(outcome.rival_seconds), f"{outcome.speed:.2f}"]
    return f"| {' | '.join(cells)} |"


def said(what: str, key: tuple[int, float], ratio: float, goal: int) -> str:
    """A ratio and whether it is what was aimed at."""
    where = f"with {key[0]} labels at r = {key[1]}"
    return f"{what} {where}: {ratio:.1f} times that of ours for Partial FC; goal {goal}: {verdict(ratio, goal)}."


def optimizer_section(num_classes: int, dim: int, runs: int) -> list[str]:
    """Row optimizers, at their 1 % of the rows."""
    seconds = apart(race_row_optimizers, num_classes, dim, TOUCHED_SHARE, runs)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    whole = median[DENSE] / median[LAZY]
    alone = median[DENSE + MOVE_ALONE] / median[LAZY + MOVE_ALONE]
    return [
        f"## Row optimizers: {num_classes:,} x {dim}, {TOUCHED_SHARE * 100:.0f} % of the rows touched",
        "",
        "One update, in turns. Ours reads the touched rows and moves them. AdamW first needs a gradient of all rows,",
        "zero but for the touched: what autograd makes of `weight[index]`. SparseAdam has one count of steps for all",
        "rows, so a row touched late has its moments corrected as an old one, and no weight decay.",
        "",
        "| | time |",
        "|---|---|",
        *(f"| {name} | {spread(taken)} |" for name, taken in seconds.items()),
        "",
        f"- AdamW takes {whole:.1f} times as long; goal {OPTIMIZER_GOAL}: {verdict(whole, OPTIMIZER_GOAL)}.",
        f"- Its move alone takes {alone:.1f} times as long as ours; goal {OPTIMIZER_GOAL}: "
        f"{verdict(alone, OPTIMIZER_GOAL)}.",
        "",
    ]


def laptop_section(num_classes: int, dim: int) -> list[str]:
    """A million classes."""
    ours: LaptopRun = apart(head_on_laptop, num_classes, dim, LAPTOP_ROWS, LAPTOP_STEPS)
    runs = {
        f"mlcd: head and optimizer, {dim} dims": ours,
        f"Partial FC and AdamW, {dim} dims": apart(rival_on_laptop, num_classes, dim, LAPTOP_ROWS, LAPTOP_STEPS),
        "mlcd: whole training step of conv-tiny, 64 dims": apart(
            training_on_laptop, num_classes, LAPTOP_ROWS, LAPTOP_STEPS
        ),
    }
    return [
        f"## {num_classes:,} classes on a laptop",
        "",
        f"Batches of {LAPTOP_ROWS}, 8 labels, r = 0.01; median of {LAPTOP_STEPS} steps with their update. The first",
        "two have random features, since the laptop's tower has 64 dims; the third trains it on random pixels.",
        "",
        "| | step | peak memory of the process | optimizer state of the centers |",
        "|---|---|---|---|",
        *(
            f"| {name} | {milliseconds(run.seconds)} | {megabytes(run.peak_bytes)} | {megabytes(run.optimizer_bytes)} |"
            for name, run in runs.items()
        ),
        "",
        "Ours by phase: " + ", ".join(f"{name} {milliseconds(taken)}" for name, taken in ours.phases.items()) + ".",
        "",
    ]


def verdict(value: float, goal: float) -> str:
    """Whether a ratio reaches its goal."""
    return "met" if value >= goal else "missed"


def spread(seconds: list[float]) -> str:
    """Median, least and most."""
    return f"{milliseconds(statistics.median(seconds))} ({milliseconds(min(seconds))} to {milliseconds(max(seconds))})"


def milliseconds(seconds: float) -> str:
    """In ms, to three digits where they are small."""
    return f"{seconds * 1e3:,.0f} ms" if seconds >= 0.1 else f"{seconds * 1e3:.1f} ms"


def megabytes(size: int) -> str:
    """In MB."""
    return f"{size / 1e6:,.0f} MB"


def phase_cells(found: dict[str, float]) -> str:
    """Cells of a table."""
    return " | ".join(milliseconds(found[name]) for name in PHASES)


def main() -> None:
    """Measure all and write the page."""
    parser = argparse.ArgumentParser(description="the head beside k-slot Partial FC")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=3, default=(1024, 100_000, 256), help="rows, classes, dims")
    parser.add_argument(
        "--many", type=int, nargs=3, default=(1_000_000, 256, 128), help="classes; dims of the last two"
    )
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    many, optimizer_dim, laptop_dim = options.many
    cases = [Case(*options.size, *key) for key in CASES]
    lines = [
        "# The head: memory and time",
        "",
        f"Written by `python benchmarks/training_head.py --runs {options.runs}` on {describe_machine()}; {THREADS}",
        "threads. The rival is `benchmarks/partial_fc.py`: Partial FC v2, once per label. A ratio above 1 is in our",
        "favour, one below 1 in its.",
        "",
        *head_section({case: measure(case, options.runs) for case in cases}),
        *optimizer_section(many, optimizer_dim, options.runs),
        *laptop_section(many, laptop_dim),
    ]
    options.page.write_text("\n".join(lines), encoding="utf-8")
    print(options.page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
