"""A run that joins a Ray cluster of two nodes, one of which is killed in embed, in cluster and in train.

infra/dev day
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlcd_core import open_run
from tests.integration.harness import Mlcd, tiny_settings, wait_for_first_receipt, write_scenes

REPO = Path(__file__).parents[2]
STAGES = ("embed", "cluster", "label", "train", "evaluate")
KILLED_IN = ("embed", "cluster", "train")
# enough units and links that a kill after the first comes before the last
LONG = {"embed__rows_per_unit": 40, "cluster__iterations": 30, "train__epochs": 4, "embed__workers": 2}


class Cluster:
    """The process that holds the nodes, and the raylet of the node that is to die."""

    def __init__(self, log: Path) -> None:
        command = [sys.executable, "-m", "tests.integration.ray_nodes"]
        pipe = subprocess.PIPE
        with log.open("w") as said:
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=said, text=True, cwd=REPO)
        self.address = self._answer()
        self.raylet = self.add()

    def add(self) -> psutil.Process:
        """Start a node."""
        assert self.process.stdin is not None
        print("add", file=self.process.stdin, flush=True)
        return psutil.Process(int(self._answer()))

    def lose(self) -> None:
        """SIGKILL the node's raylet, which takes its workers along, and start another node."""
        self.raylet.send_signal(signal.SIGKILL)
        self.raylet = self.add()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the process of the Ray nodes ended"
        return line.strip()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path / "nodes.log")
    with cluster.process:
        yield cluster


def digests(root: Path) -> dict[str, str]:
    run = open_run(root)
    return {stage: run.manifest(stage).digest for stage in STAGES}


def test_a_run_outlives_the_loss_of_nodes_and_gives_the_same(tmp_path: Path, mlcd: Mlcd, cluster: Cluster) -> None:
    write_scenes(tmp_path / "data", "train", shards=8)
    settings = tiny_settings(**LONG)
    words = ["run", "--data", str(tmp_path / "data"), *settings]
    root = tmp_path / "root"
    child = mlcd.start(*words, "--root", str(root), "--ray-address", cluster.address)
    try:
        for stage in KILLED_IN:
            wait_for_first_receipt(child, root, stage)
            time.sleep(random.uniform(0, 1))
            cluster.lose()
        assert child.wait(timeout=600) == 0
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    undisturbed = tmp_path / "undisturbed"
    done = mlcd(*words, "--root", str(undisturbed))
    assert done.code == 0, done.stderr
    assert {stage: digests(root)[stage] for stage in STAGES[:3]} == {
        stage: digests(undisturbed)[stage] for stage in STAGES[:3]
    }
    # the tower is equal where the number of ranks was; that all rows were seen is not a matter of ranks
    assert open_run(root).manifest("train").rows == open_run(undisturbed).manifest("train").rows
