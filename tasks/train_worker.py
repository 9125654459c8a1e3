"""One rank of a training: what it is told, and how it calls the core's loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd_core.dataset import Shard, parts_of_shards
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import TrainSpec
from mlcd_core.store import Part, open_files, read_part
from tasks.rendezvous import address_of, connect_store, serve_store
from tasks.train_start import StartParts
from tasks.train_stop import RemoteStop
from tasks.work import ChainAddress
from tasks.worker_log import LOG_EVENT, send_log

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainJob:
    """What all ranks are told, small enough to send. ``centroids`` and ``start``: what training begins from, if so."""

    links: ChainAddress
    runtime: TrainRuntime
    shards: tuple[Shard, ...]
    label_parts: tuple[Part, ...]
    num_classes: int
    key_column: str
    centroids: Part | None = None
    start: StartParts | None = None


def train_worker(config: dict[str, Any]) -> None:
    """Read this rank's lanes, train, write its blocks of each checkpoint.

    Keys: ``job``, ``device`` of all ranks, and ``report``, a ``RemoteReport``.
    """
    import torch.distributed as dist
    from ray.train import get_context

    from mlcd_core.train import Start, TrainData, train

    job: TrainJob = config["job"]
    send_log(f"rank {get_context().get_world_rank()}", lambda line: config["report"](LOG_EVENT, line))
    _join_group("nccl" if config["device"] == "cuda" else "gloo")
    files, spec = open_files(job.links.root), job.links.spec
    assert isinstance(spec, TrainSpec)

    def read(part: Part) -> bytes:
        return read_part(files, part)

    begin = job.start
    train(
        spec,
        TrainData(
            shards=job.shards,
            read_labels=LabelReader(job.links.root, job.label_parts, job.shards),
            key_column=job.key_column,
        ),
        num_classes=job.num_classes,
        chain=job.links.open(),
        group=dist.group.WORLD,
        runtime=job.runtime,
        report=config["report"],
        centroids_KD=_centroids(read(job.centroids)) if job.centroids else None,
        start=Start(begin.parts, read, same_classes=begin.same_classes) if begin else None,
        stop=RemoteStop(config["report"].board),
    )
    dist.destroy_process_group()  # after an error Ray Train ends the process


def _join_group(backend: str) -> None:
    import torch.distributed as dist
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    ranks = get_context()
    own = serve_store() if ranks.get_world_rank() == 0 else None
    address = broadcast_from_rank_zero(address_of(own) if own else None)
    store = own or connect_store(address)
    dist.init_process_group(backend, store=store, rank=ranks.get_world_rank(), world_size=ranks.get_world_size())


class LabelReader:
    """Reads the labels of a shard by its position in the data. Raises LabelDataError for parts of other shards."""

    def __init__(self, root: str, parts: Sequence[Part], shards: Sequence[Shard]) -> None:
        self._files = open_files(root)
        self._parts_of_shards = parts_of_shards(parts, shards)

    def __call__(self, shard: int) -> pa.Table:
        """The rows of shard number ``shard``, of all its parts, in ``tables.label_schema``."""
        return pa.concat_tables([self._read(part) for part in self._parts_of_shards[shard]])

    def _read(self, part: Part) -> pa.Table:
        return pq.read_table(pa.BufferReader(read_part(self._files, part)))


def _centroids(part: bytes) -> "NDArray[np.float32]":
    from mlcd_core.kmeans import CentroidState

    centroids_KD: NDArray[np.float32] = CentroidState.from_arrow_bytes(part).centroids_KD.numpy()
    return centroids_KD
