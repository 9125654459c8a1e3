"""Small scenes, small settings and real processes for the integration tests."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlcd_core.images.digit_scenes import Split, scene_parquet_bytes

BIN = Path(sys.executable).parent
# small enough for seconds, big enough that every stage has several units or links
TINY = {
    "cluster.num_centroids": 12,
    "cluster.iterations": 4,
    "cluster.tolerance": 0,
    "label.num_labels": 6,
    "train.num_positive": 3,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.checkpoint_steps": 3,
    "train.log_steps": 1,
}


@dataclass(frozen=True)
class Finished:
    """How a command ended; ``summary`` is the JSON object on its stdout, if there was one."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])

    def results(self) -> dict[str, str]:
        return {stage["stage"]: stage["result"] for stage in self.summary["stages"]}


Mlcd = Callable[..., Finished]


def write_scenes(folder: Path, split: Split, *, shards: int, rows: int = 40, first: int = 0) -> None:
    """Compose shards of digit scenes; shard i is the same bytes wherever it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(first, first + shards):
        (folder / f"{split}-{shard:05d}.parquet").write_bytes(scene_parquet_bytes(split, shard, rows, 0))


def tiny_settings(**changes: Any) -> list[str]:
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def stop(process: subprocess.Popen[str]) -> None:
    """End a server that a fixture started."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
