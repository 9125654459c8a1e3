"""evaluate: probes of the trained tower, the untrained tower and the source embedder; one unit, one metrics file."""

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlcd_core.dataset import Shard, data_digest
from mlcd_core.events import Value
from mlcd_core.identity import canonical_json, fingerprint, short
from mlcd_core.runtimes import EmbedRuntime, EvaluateRuntime
from mlcd_core.specs import EmbedSpec, EvaluateSpec, TrainSpec
from mlcd_core.store import Files, Manifest, StageFolder, UnitTask, open_files, read_part
from tasks.embed import resolved_embed_spec
from tasks.run import Run
from tasks.train_worker import LabelReader
from tasks.work import UPSTREAM, Committed, Job, Made, StageWork, settings
from tasks.worker_log import LOG_EVENT, send_log

if TYPE_CHECKING:
    from mlcd_core.images.embedder import Embedder


NO_SCORES = {"knn": None, "linear_probe": None, "multilabel_map": None}


@dataclass(frozen=True)
class EvaluateJob:
    """What the evaluating worker needs, small enough to send."""

    root: str
    spec: EvaluateSpec
    runtime: EvaluateRuntime
    embed_spec: EmbedSpec
    embed_runtime: EmbedRuntime
    train_spec: TrainSpec
    shards: tuple[Shard, ...]
    eval_shards: tuple[Shard, ...]
    embed: Manifest
    label: Manifest
    train: Manifest


def evaluate_work(run: Run, committed: Committed) -> StageWork:
    """Describe the stage: a set of one unit."""
    spec, runtime = settings(run, "evaluate")
    train_spec, _ = settings(run, "train")
    _, embed_runtime = settings(run, "embed")
    assert isinstance(spec, EvaluateSpec)
    assert isinstance(runtime, EvaluateRuntime)
    assert isinstance(train_spec, TrainSpec)
    assert isinstance(embed_runtime, EmbedRuntime)
    spec = spec.model_copy(update={"label_column": run.label_column})
    inputs: dict[str, str] = {"data": run.data_digest, "eval_data": data_digest(run.eval_shards)}
    inputs |= {stage: committed[stage].digest for stage in UPSTREAM["evaluate"]}
    unit = fingerprint(inputs)
    job_of_worker = EvaluateJob(
        root=run.files.uri(""),
        spec=spec,
        runtime=runtime,
        embed_spec=resolved_embed_spec(run),
        embed_runtime=embed_runtime,
        train_spec=train_spec,
        shards=run.shards,
        eval_shards=run.eval_shards,
        embed=committed["embed"],
        label=committed["label"],
        train=committed["train"],
    )

    def make(job: Job) -> Made:
        import ray

        if job.plan.pending:
            job.session.start()
            threads = {"OMP_NUM_THREADS": str(runtime.threads), "MKL_NUM_THREADS": str(runtime.threads)}
            worker = ray.remote(num_cpus=1, max_calls=1, runtime_env={"env_vars": threads})(_evaluate_and_log)
            job.report("evaluate", {"train_shards": len(run.shards), "test_shards": len(run.eval_shards)})
            encoded, log = ray.get(worker.remote(job_of_worker, job.plan.pending[0]))
            for line in log:
                job.report(LOG_EVENT, line)
            job.report("measured", encoded)
        [receipt] = job.folder.receipts((unit,), job.plan)
        return Made([receipt], metrics=receipt.state)

    return StageWork(spec=spec, inputs=inputs, make=make, units=(unit,))


def _evaluate_and_log(job: EvaluateJob, task: UnitTask) -> tuple[dict[str, float], list[Mapping[str, Value]]]:
    """What ``evaluate_unit`` returns, and what was logged; the process ends with it."""
    log: list[Mapping[str, Value]] = []
    send_log(f"worker {os.getpid()}", log.append)
    return evaluate_unit(job, task), log


def evaluate_unit(job: EvaluateJob, task: UnitTask) -> dict[str, float]:
    """Measure everything there are labels for, and commit it as one JSON file.

    Returns the images that were encoded (``work``, each once per embedder) and the seconds it took (``work_s``).
    """
    import torch

    torch.set_num_threads(job.runtime.threads)
    with ThreadPoolExecutor(job.runtime.threads) as pool:
        metrics, encoded = _measure(job, pool)
    folder = StageFolder(open_files(job.root), job.spec)
    part = folder.put(short(task.unit), ".json", canonical_json(metrics).encode() + b"\n", rows=0, usable=0)
    folder.commit(task, [part], state=metrics)
    return encoded


def _measure(job: EvaluateJob, pool: ThreadPoolExecutor) -> tuple[dict[str, Any], dict[str, float]]:
    from mlcd_core.embedding import joined_embeddings
    from mlcd_core.evaluate.compare import compare_features, describe_clusters, encode_shards
    from mlcd_core.evaluate.shard_rows import read_raw_labels

    files = open_files(job.root)
    reader = LabelReader(job.root, job.label.parts, job.shards)
    labels_NL = np.concatenate([_label_matrix(reader(shard)) for shard in range(len(job.shards))])
    usable_N = labels_NL[:, 0] >= 0
    embeddings_ND = joined_embeddings([read_part(files, part) for part in job.embed.parts])
    raw_labels = None
    encoded: dict[str, float] = {}
    probes: dict[str, Any] = {"scores": {}, "details": {}}
    if job.spec.label_column:
        raw_labels = read_raw_labels(job.shards, spec=job.spec, usable_N=usable_N)
    if job.spec.label_column and job.eval_shards:
        embedders = _embedders(job, files)
        towers = {name: embedder for name, embedder in embedders.items() if name != "source"}
        started = time.perf_counter()
        train = encode_shards(job.shards, towers, spec=job.spec, pool=pool, usable_N=usable_N)
        if "source" in embedders:
            train.features["source"] = embeddings_ND[train.positions_N].astype(np.float32)
        captions = job.embed_spec.caption_column if job.embed_spec.feature == "image_text_mean" else ""
        test = encode_shards(job.eval_shards, embedders, spec=job.spec, pool=pool, caption_column=captions)
        images = len(train.labels) * len(towers) + len(test.labels) * len(embedders)
        encoded = {"work": images, "work_s": round(time.perf_counter() - started, 3)}
        probes = compare_features(train, test, spec=job.spec)
        probes["scores"].setdefault("source", NO_SCORES)
    clusters = describe_clusters(
        labels_NL,
        job.label.metrics["num_centroids"],
        embeddings_ND=embeddings_ND,
        raw_labels=raw_labels,
        seed=job.spec.seed,
    )
    return {**probes, "clusters": clusters}, encoded


def _embedders(job: EvaluateJob, files: Files) -> dict[str, "Embedder"]:
    from mlcd_core.device import pick_device
    from mlcd_core.images.embedder import build_embedder, find_weights
    from mlcd_core.train.checkpoint import tower_part_name
    from mlcd_core.train.encoder import TowerEmbedder

    device = pick_device(job.runtime.device)
    name = tower_part_name(job.train_spec)
    tower = next(part for part in job.train.parts if part.name == name)
    embedders: dict[str, Embedder] = {
        "trained": TowerEmbedder(job.train_spec, weights=read_part(files, tower), device=device),
        "untrained": TowerEmbedder(job.train_spec, weights=None, device=device),
    }
    if job.embed_spec.embedder != "adopted":  # of adopted vectors there are none for test images
        weights = find_weights(job.embed_spec, job.embed_runtime.pretrained)
        embedders["source"] = build_embedder(job.embed_spec, weights=weights, device=device)
    return embedders


def _label_matrix(table: pa.Table) -> NDArray[np.int32]:
    column = table["labels"].combine_chunks()
    labels_NL: NDArray[np.int32] = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    return labels_NL
