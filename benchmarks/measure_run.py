"""Wall time and peak memory of a command with all its processes: python benchmarks/measure_run.py -- mlcd demo --root D

Memory is PSS (shared pages counted once), summed over the process tree and sampled each second; Linux only. The
command's output passes through; one JSON line with wall_s, peak_pss_bytes and exit_code is printed at the end.
"""

import json
import subprocess
import sys
import time

import psutil

SAMPLE_S = 1.0


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
    command = sys.argv[sys.argv.index("--") + 1 :]
    started, peak = time.monotonic(), 0
    with subprocess.Popen(command) as child:
        root = psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, tree_pss_bytes(root))
            time.sleep(SAMPLE_S)
    wall_s = round(time.monotonic() - started, 1)
    print(json.dumps({"wall_s": wall_s, "peak_pss_bytes": peak, "exit_code": child.returncode}))
    sys.exit(child.returncode)


if __name__ == "__main__":
    main()
