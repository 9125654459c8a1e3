"""SIGKILL a real run at random times and show that nothing is lost: infra/dev chaos [--seed N] [--kills 2] [--folder D]

An undisturbed run gives the reference. Then the same command is started on another root and its whole process group is
killed, until ``--kills`` kills each in embed, cluster and train fell between the stage's first receipt and its
manifest. When a kill comes is drawn from the seed, on the clock of this script: the code under test does not know.
The runs that are killed save k-means after every round of blocks, so that cluster is killed inside iterations. At the
end the command must finish; every receipt that existed at a kill must still have its write id; and the digests
of embed, cluster, label and train must equal the reference's. Prints one JSON object; exit code 1 when one differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MLCD = Path(sys.executable).parent / "mlcd"
SETTINGS = {"cluster.num_centroids": 1000, "cluster.iterations": 100, "cluster.tolerance": 0}
# where and how, so no digest knows of it: the reference saves whole iterations only
SETTINGS_OF_KILLED = {"cluster.save_seconds": 0}
COMPARED = ("embed", "cluster", "label", "train")
# seconds after the stage's next receipt within which the kill falls
WINDOW_S = {"embed": 2.0, "cluster": 6.0, "train": 25.0}
POLL_S = 0.05
GIVE_UP_S = 900.0


def command(root: Path, settings: Mapping[str, Any]) -> list[str]:
    """The command that is run undisturbed, or started, killed and started again."""
    words = [f"--set={key}={value}" for key, value in {**SETTINGS, **settings}.items()]
    return [str(MLCD), "demo", "--root", str(root), "--json", *words]


def receipts(root: Path, stage: str) -> dict[str, str]:
    """Write id of every receipt of a stage, by path."""
    found = {}
    for path in sorted(root.glob(f"{stage}/*/units/*.json")):
        found[str(path.relative_to(root))] = json.loads(path.read_bytes())["record"]["write_id"]
    return found


def all_receipts(root: Path) -> dict[str, str]:
    """Receipts of all stages."""
    return {path: write_id for stage in COMPARED for path, write_id in receipts(root, stage).items()}


def sealed(root: Path, stage: str) -> bool:
    """Whether the stage has a manifest."""
    return any(root.glob(f"{stage}/*/manifests/*.json"))


def digests(root: Path) -> dict[str, str]:
    """Digest of each compared stage by the run's own record."""
    stages = json.loads((root / "runs" / "default.json").read_bytes())["stages"]
    return {stage: stages[stage]["digest"] for stage in COMPARED}


def partial_links(root: Path) -> int:
    """Links of cluster that hold the sums of an unfinished iteration."""
    found = [json.loads(path.read_bytes())["record"] for path in root.glob("cluster/*/units/*.json")]
    return sum(len(record["parts"]) > 1 for record in found)


def run_to_end(root: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Run the command undisturbed; its JSON summary."""
    done = subprocess.run(command(root, settings), stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def kill_once(root: Path, stage: str, draw: random.Random) -> dict[str, Any]:
    """Start the command, wait for the stage's next receipt and a drawn time more, and kill its process group."""
    before = set(receipts(root, stage))
    delay_s = draw.uniform(0, WINDOW_S[stage])
    with (root.parent / "log.txt").open("a") as log:
        child = subprocess.Popen(command(root, SETTINGS_OF_KILLED), stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + GIVE_UP_S
        while set(receipts(root, stage)) == before and child.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        time.sleep(delay_s)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    counts = bool(receipts(root, stage)) and not sealed(root, stage)
    return {"stage": stage, "delay_s": round(delay_s, 3), "receipts": len(receipts(root, stage)), "counts": counts}


def disturb(folder: Path, num_kills: int, draw: random.Random) -> tuple[Path, list[dict[str, Any]], dict[str, str]]:
    """Kill until every stage has its kills, on one root; a stage that sealed too early starts a fresh root."""
    while True:
        root = Path(tempfile.mkdtemp(dir=folder, prefix="killed-")) / "root"
        kills: list[dict[str, Any]] = []
        seen: dict[str, str] = {}
        for stage in ("embed", "cluster", "train"):
            counted = 0
            while counted < num_kills and not sealed(root, stage):
                kill = kill_once(root, stage, draw)
                print(json.dumps(kill), file=sys.stderr)
                kills.append(kill)
                counted += kill["counts"]
                seen |= all_receipts(root)
            if counted < num_kills:
                break
        else:
            return root, kills, seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the experiment and report."""
    parser = argparse.ArgumentParser(description="kill a run at random times, resume it, compare")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=2, help="kills per stage")
    parser.add_argument("--folder", type=Path, help="where the two roots are made (default: a temporary folder)")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="mlcd-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)

    undisturbed = folder / "undisturbed" / "root"
    run_to_end(undisturbed, {})
    root, kills, seen = disturb(folder, options.kills, random.Random(options.seed))
    run_to_end(root, SETTINGS_OF_KILLED)

    after = all_receipts(root)
    lost = [path for path, write_id in seen.items() if after.get(path) != write_id]
    expected, found = digests(undisturbed), digests(root)
    in_part = partial_links(root)
    passed = not lost and expected == found and in_part > 0
    report = {"seed": options.seed, "kills": kills, "receipts_seen": len(seen), "receipts_lost": lost}
    report["partial_links"] = in_part
    print(json.dumps({**report, "undisturbed": expected, "killed": found, "equal": expected == found}))
    if not options.folder:
        shutil.rmtree(folder)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
