"""`mlcd plan` over many shards: python benchmarks/plan.py [--shards 40000] [--folder DIR]

Makes that many Parquet files of one row, and times the command in fresh processes: cold (every file is hashed), again
(digests are remembered), after a kill (all receipts of embed but one, no manifest), with embed committed, and with one
shard more. The receipts and parts of embed are written without computing anything. Writes docs/benchmarks/plan.md.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from machine import describe_machine

from mlcd_core.store import LocalFiles, StageFolder
from tasks.run import Request, open_run
from tasks.work import stage_work

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "plan.md"
PAYLOAD = b"payload00000000"
REPEATS = 3


@dataclass(frozen=True)
class Planned:
    """One run of the command: wall time, processor time of its process, and what it says of embed."""

    wall_s: float
    cpu_s: float
    embed: str


def write_shards(folder: Path, first: int, last: int) -> None:
    """Shards of one row; they differ in the bytes of their image."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"jpg": [PAYLOAD]}), sink, compression="none", use_dictionary=False)
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(first, last):
        data = sink.getvalue().replace(PAYLOAD, b"payload%08d" % shard)
        (folder / f"{shard:08d}.parquet").write_bytes(data)


def plan(root: Path, data: Path) -> Planned:
    """Run the command once."""
    command = [str(Path(sys.executable).parent / "mlcd"), "plan", "--data", str(data), "--root", str(root), "--json"]
    started, cpu_before = time.monotonic(), children_cpu_s()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wall_s, cpu_s = time.monotonic() - started, children_cpu_s() - cpu_before
    embed = json.loads(done.stdout)["stages"][0]
    said = f"{embed['plan']}, {embed['units_missing']:,} of {embed['units_total']:,} missing"
    return Planned(wall_s, cpu_s, said)


def children_cpu_s() -> float:
    """Processor time of the processes that have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


class UnsyncedFiles(LocalFiles):
    """Writes without temporary names and syncs: the fixture is 80,000 files, and only their reading is measured."""

    def put(self, path: str, data: bytes) -> None:
        """Write the file."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(data)

    def create(self, path: str, data: bytes) -> bool:
        """Write the file."""
        self.put(path, data)
        return True


def commit_embed(root: Path, data: Path, *, seal: bool) -> None:
    """Write the missing receipts of embed but the last, each with a part of a few bytes; or all, and the manifest."""
    run = open_run(Request(root=str(root), data=str(data)))
    work = stage_work("embed", run, {})
    folder = StageFolder(UnsyncedFiles(root), work.spec)
    pending = folder.plan(work.inputs, work.units).pending
    for task in pending if seal else pending[:-1]:
        part = folder.put(task.unit[:12], ".arrow", task.unit.encode(), rows=1, usable=1, counts={"ok": 1})
        folder.commit(task, [part])
    if seal:
        folder.seal(work.inputs, folder.receipts(work.units), attempt=1, metrics={"status": {"ok": len(work.units)}})


def page(num_shards: int, cases: dict[str, list[Planned]]) -> str:
    """The page in markdown."""
    lines = [
        "# mlcd plan over many shards",
        "",
        f"Written by `python benchmarks/plan.py --shards {num_shards}` on {describe_machine()}, load average "
        f"{os.getloadavg()[1]:.1f}.",
        "",
        "Seconds of the whole command in a fresh process, start of Python included; median of the runs, and the",
        "processor time of that process, which other work on the machine changes less. Each shard is a Parquet file of",
        "one row: the cold case is the cost of so many files, and real shards add the time to hash their bytes, once.",
        "",
        "| case | embed | wall | processor | all wall times |",
        "|---|---|---|---|---|",
    ]
    for case, runs in cases.items():
        median = sorted(runs, key=lambda run: run.wall_s)[len(runs) // 2]
        walls = ", ".join(f"{run.wall_s:.1f}" for run in runs)
        lines.append(f"| {case} | {median.embed} | {median.wall_s:.1f} | {median.cpu_s:.1f} | {walls} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every case and write the page."""
    parser = argparse.ArgumentParser(description="mlcd plan over many shards")
    parser.add_argument("--shards", type=int, default=40_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlcd-plan-"))
    data, root = folder / "data", folder / "root"
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    write_shards(data, 0, options.shards)
    cases = {"cold: no digest is remembered": [plan(root, data)]}
    cases["digests remembered, nothing made"] = [plan(root, data) for _ in range(REPEATS)]
    commit_embed(root, data, seal=False)
    cases["embed killed in its last unit"] = [plan(root, data) for _ in range(REPEATS)]
    commit_embed(root, data, seal=True)
    cases["embed committed"] = [plan(root, data) for _ in range(REPEATS)]
    write_shards(data, options.shards, options.shards + 1)
    cases["embed committed, one shard more"] = [plan(root, data) for _ in range(REPEATS)]
    PAGE.write_text(page(options.shards, cases), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
