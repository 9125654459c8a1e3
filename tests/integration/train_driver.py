"""A training in real Ray, without other stages or Prefect: python -m tests.integration.train_driver FOLDER STEPS."""

import sys
from pathlib import Path

from mlcd_core.events import silent
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import LabelSpec
from mlcd_core.store import LocalFiles, StageFolder
from mlcd_core.train import ran_on
from tasks.ray_session import RaySession
from tasks.train import train_on_workers
from tasks.train_worker import TrainJob
from tasks.work import ChainAddress
from tests.unit.train.tiny import NUM_CLASSES, NUM_LABELS, open_tiny_data, tiny_spec, write_tiny_data

SPEC = tiny_spec(epochs=60)
NUM_STEPS = 60 * 7
INPUTS = {"data": "d" * 64, "label": "e" * 64}  # those of tiny_chain


def tiny_job(folder: Path, *, checkpoint_steps: int, workers: int = 2) -> TrainJob:
    """The tiny data of the unit tests, made at the first call, as the stage would send it to workers."""
    labels = StageFolder(LocalFiles(folder), LabelSpec(num_labels=NUM_LABELS))
    if not (folder / "0.parquet").exists():
        write_tiny_data(folder)
    data = open_tiny_data(folder)
    parts = [
        labels.put(str(i), ".parquet", (folder / f"{i}.labels").read_bytes(), rows=shard.rows, usable=shard.rows)
        for i, shard in enumerate(data.shards)
    ]
    return TrainJob(
        links=ChainAddress(str(folder), SPEC, INPUTS, 1, NUM_STEPS),
        runtime=TrainRuntime(workers=workers, device="cpu", checkpoint_steps=checkpoint_steps, log_steps=1),
        shards=data.shards,
        label_parts=tuple(parts),
        num_classes=NUM_CLASSES,
        key_column="key",
    )


def main(folder: Path, checkpoint_steps: int) -> None:
    """Train to the end, and print the world sizes it went through."""
    job = tiny_job(folder, checkpoint_steps=checkpoint_steps)
    job.links.open().folder.open()
    with RaySession(most_workers=2) as session:
        session.start()
        train_on_workers(job, "cpu", folder / "logs", silent)
    chain = job.links.open()
    last = chain.newest()
    assert last is not None
    sys.stdout.write(f"{[ran['world_size'] for ran in ran_on(chain, last)]}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
