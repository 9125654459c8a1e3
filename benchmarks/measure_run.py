"""Wall time and peak memory of a command with all its processes: python benchmarks/measure_run.py -- mlcd demo --root D

Memory is PSS (shared pages counted once), summed over the process tree and sampled each second; Linux only. The
command's output passes through; one JSON line with wall_s, peak_pss_bytes and exit_code is printed at the end.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import IO

import psutil

SAMPLE_S = 1.0


@dataclass(frozen=True)
class Use:
    """What a command took."""

    wall_s: float
    peak_pss_bytes: int
    exit_code: int


def measured(command: list[str], stdout: IO[str] | None = None) -> Use:
    """Run a command to its end and sample its process tree."""
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command, stdout=stdout) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, tree_pss_bytes(root))
            time.sleep(SAMPLE_S)
    return Use(round(time.monotonic() - started, 1), peak, child.returncode)


def tree_pss_bytes(root: psutil.Process) -> int:
    """PSS of a process and its descendants; those that end while they are read count as nothing."""
    total = 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return total


def main() -> None:
    """Run the command after ``--`` and report."""
    use = measured(sys.argv[sys.argv.index("--") + 1 :])
    print(json.dumps(asdict(use)))
    sys.exit(use.exit_code)


if __name__ == "__main__":
    main()
