"""`mlcd plan --probe` against the run it plans: python benchmarks/plan_cost.py [--data SHARDS --eval-data SHARDS ...]

Plans with a probe, then runs, in processes of their own and in an empty root each time, and compares the bytes under
the root and the seconds of the stages with what the plan said. Without data it is the demo; more words are given to
both commands. Writes the rows of that data in docs/benchmarks/plan-cost.md.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe_machine

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "plan-cost.md"
HEAD = """# What a plan says, and what the run then takes

Each row is `mlcd plan --probe` in an empty root, and the run of the same words after it. Bytes are of all files under
the root but the demo's own images; seconds are the sum of the stages'. Written by `benchmarks/plan_cost.py`.

| data | machine | probe | bytes planned | written | error | seconds planned | taken | error |
|---|---|---|---|---|---|---|---|---|
"""


def mlcd(*words: str) -> dict[str, Any]:
    """The JSON that a command ends with."""
    command = [str(Path(sys.executable).parent / "mlcd"), *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def bytes_under(root: Path) -> int:
    """Of all that a run made."""
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file() and path.parent.name != "demo")


def measure(words: list[str]) -> dict[str, Any]:
    """One plan with a probe, and the run."""
    root = Path(tempfile.mkdtemp(prefix="mlcd-cost-")) / "root"
    started = time.monotonic()
    plan = mlcd("plan", *words, "--root", str(root), "--probe")
    probe_s = time.monotonic() - started
    costs = {stage["stage"]: stage["cost"] for stage in plan["stages"]}
    assert all(costs.values()), f"the probe did not tell what every stage costs: {costs}"
    run = mlcd("run", *words, "--root", str(root))
    took = {stage["stage"]: stage["seconds"] for stage in run["stages"]}
    written = bytes_under(root)
    shutil.rmtree(root.parent)
    for stage, cost in costs.items():
        print(f"{stage:<9} planned {cost['seconds']:8.1f} s, took {took[stage]:8.1f} s", flush=True)
    planned = {name: sum(cost[name] for cost in costs.values()) for name in ("bytes", "seconds")}
    return {"probe_s": probe_s, **planned, "written": written, "took": sum(took.values())}


def row(name: str, found: dict[str, Any]) -> str:
    """A line of the table."""
    bytes_error, time_error = (
        found[plan] / found[real] - 1 for plan, real in (("bytes", "written"), ("seconds", "took"))
    )
    return (
        f"| {name} | {describe_machine()}, load {os.getloadavg()[1]:.1f} | {found['probe_s']:.0f} s "
        f"| {found['bytes']:,} | {found['written']:,} | {bytes_error:+.1%} "
        f"| {found['seconds']:.1f} | {found['took']:.1f} | {time_error:+.0%} |"
    )


def medians(lines: list[str]) -> str:
    """The median error of each data, of bytes and of seconds."""
    errors: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        name, *_, bytes_error, _, _, time_error = (cell.strip() for cell in line.strip("| ").split("|"))
        errors.setdefault(name, []).append((float(bytes_error.strip("%")), float(time_error.strip("%"))))
    said = [
        f"{name} {median(bytes_error for bytes_error, _ in found):+.1f} % of bytes, "
        f"{median(time_error for _, time_error in found):+.0f} % of seconds"
        for name, found in errors.items()
    ]
    return f"Median errors: {'; '.join(said)}."


def main() -> None:
    """Measure so many times, and replace the rows of that name in the page."""
    parser = argparse.ArgumentParser(description="mlcd plan --probe against the run")
    parser.add_argument("--name", default="demo", help="what the rows are called")
    parser.add_argument("--repeats", type=int, default=3)
    options, words = parser.parse_known_args()
    rows = [row(options.name, measure(words or ["--data", "demo"])) for _ in range(options.repeats)]
    old = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    others = [
        line for line in old if line.startswith("| ") and not line.startswith((f"| {options.name} |", "| data |"))
    ]
    lines = [*others, *rows]
    PAGE.write_text(HEAD + "\n".join(lines) + "\n\n" + medians(lines) + "\n", encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
