"""train: the core's training loop inside Ray Train workers.

Ray gives the processes and their group, nothing more: checkpoints are links of our own chain, the loop itself asks it
where to go on, and Ray's run gets a fresh name and a scratch folder each time.
"""

import math
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.dataset import Shard
from mlcd_core.events import Report
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.store import LocalFiles, Part, read_part
from tasks.progress import forwarded_events
from tasks.run import Run
from tasks.work import ChainAddress, Committed, Job, Made, StageWork, settings


@dataclass(frozen=True)
class TrainJob:
    """What a train worker needs, small enough to send."""

    links: ChainAddress
    runtime: TrainRuntime
    shards: tuple[Shard, ...]
    label_parts: tuple[Part, ...]
    num_classes: int
    key_column: str
    report: Report


def train_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage; C is the number of centroids in the label manifest."""
    spec, runtime = settings(run, "train")
    assert isinstance(spec, TrainSpec)
    assert isinstance(runtime, TrainRuntime)
    label = committed["label"]

    def make(job: Job) -> Made:
        job.session.start()
        links = work.links(job)
        with forwarded_events(job.report) as report:
            num_classes, key_column = label.metrics["num_centroids"], run.config.embed.key_column
            _fit(TrainJob(links, runtime, run.shards, label.parts, num_classes, key_column, report))
        last = links.open().newest()
        assert last is not None, "training ended without a checkpoint"
        return Made([last], metrics={"curve": last.state["curve"]}, notes={"world_size": runtime.workers})

    work = StageWork(
        spec=spec,
        inputs={"data": run.data_digest, "label": label.digest},
        make=make,
        last_number=_total_steps(spec, usable_rows=label.usable),
    )
    return work


def _total_steps(spec: TrainSpec, *, usable_rows: int) -> int:
    """Steps of the whole run: a lane gives batch_size / lanes rows a step, the longest lane sets the epoch."""
    longest_lane = math.ceil(usable_rows / spec.lanes)
    return spec.epochs * math.ceil(longest_lane / (spec.batch_size // spec.lanes))


def _fit(job: TrainJob) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory(prefix="mlcd-ray-train-") as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=job.runtime.workers, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name=uuid.uuid4().hex, storage_path=scratch),
        )
        trainer.fit()


def train_worker(config: dict[str, Any]) -> None:
    """One rank: reads its lanes, trains, writes its blocks of each checkpoint."""
    import torch.distributed as dist

    from mlcd_core.train import TrainData, train

    job: TrainJob = config["job"]
    chain = job.links.open()
    spec = job.links.spec
    assert isinstance(spec, TrainSpec)
    train(
        spec,
        TrainData(
            shards=job.shards, read_labels=LabelReader(job.links.root, job.label_parts), key_column=job.key_column
        ),
        num_classes=job.num_classes,
        chain=chain,
        group=dist.group.WORLD,
        runtime=job.runtime,
        report=job.report,
    )


class LabelReader:
    """Reads the label table of a shard by its position in the data."""

    def __init__(self, root: str, parts: Sequence[Part]) -> None:
        self._files = LocalFiles(root)
        self._parts = parts

    def __call__(self, shard: int) -> pa.Table:
        """The table of ``tables.label_schema`` that belongs to shard number ``shard``."""
        return pq.read_table(pa.BufferReader(read_part(self._files, self._parts[shard])))
