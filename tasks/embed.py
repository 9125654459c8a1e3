"""embed: every image of a shard to one normalised float16 vector; one unit per shard."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlcd_core.dataset import Shard, ShardReader
from mlcd_core.identity import fingerprint, sha256_hex, short
from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import StageFolder, UnitTask, open_files
from tasks.run import Run
from tasks.units import run_units
from tasks.work import Committed, Job, Made, StageWork, settings


def embed_work(run: Run, _committed: Committed) -> StageWork:
    """Describe the stage: one unit per shard."""
    spec = resolved_embed_spec(run)
    _, runtime = settings(run, "embed")
    assert isinstance(runtime, EmbedRuntime)
    units = tuple(fingerprint([shard.digest, [0, shard.rows]]) for shard in run.shards)
    inputs = {"data": run.data_digest}

    def make(job: Job) -> Made:
        if job.plan.pending:
            job.session.start()
        pending = list({task.unit: task for task in job.plan.pending}.values())
        run_units(
            UnitEmbedder,
            {"root": run.files.uri(""), "spec": spec, "runtime": runtime},
            pending,
            [vars(run.shards[task.index]) for task in pending],
            workers=runtime.workers,
            report=job.report,
        )
        receipts = job.folder.receipts(units)
        counts: dict[str, int] = {}
        for part in (part for receipt in receipts for part in receipt.parts):
            for name, count in part.counts.items():
                counts[name] = counts.get(name, 0) + count
        return Made(receipts, metrics={"status": counts})

    rows = sum(shard.rows for shard in run.shards)
    return StageWork(spec=spec, inputs=inputs, make=make, units=units, expected_rows=rows)


def resolved_embed_spec(run: Run) -> EmbedSpec:
    """The spec with the sha256 of the weights that ``embed.pretrained`` names."""
    from mlcd_core.images.embedder import find_weights

    spec, runtime = settings(run, "embed")
    assert isinstance(spec, EmbedSpec)
    assert isinstance(runtime, EmbedRuntime)
    return spec.model_copy(update={"weights_sha256": sha256_hex(find_weights(spec, runtime.pretrained))})


class UnitEmbedder:
    """Embeds one shard and commits it."""

    def __init__(self, root: str, spec: EmbedSpec, runtime: EmbedRuntime) -> None:
        import torch

        from mlcd_core.device import pick_device
        from mlcd_core.images.embedder import build_embedder, find_weights

        torch.set_num_threads(runtime.threads)
        self._spec = spec
        self._folder = StageFolder(open_files(root), spec)
        weights = find_weights(spec, runtime.pretrained)
        self._embedder = build_embedder(spec, weights=weights, device=pick_device(runtime.device))
        self._pool = ThreadPoolExecutor(runtime.threads)

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> int:
        """Commit the unit and return its rows."""
        from mlcd_core.embedding import embed_shard, status_counts
        from mlcd_core.images.embed_shard import ipc_bytes

        shard = Shard(**reads)
        reader = ShardReader(shard, image_column=self._spec.image_column, key_column=self._spec.key_column)
        table = embed_shard(reader, embedder=self._embedder, spec=self._spec, pool=self._pool)
        counts = status_counts(table)
        part = self._folder.put(
            short(task.unit),
            ".arrow",
            ipc_bytes(table),
            rows=table.num_rows,
            usable=counts.get("ok", 0),
            counts=counts,
        )
        self._folder.commit(task, [part])
        return int(table.num_rows)
