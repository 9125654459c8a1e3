"""What a run will write and how long it will take, by what stages like its own wrote and took: rules of three.

Every manifest says how many seconds its stage took and how fast the work itself went, so a root with one committed run
is enough to tell the cost of the next, and a probe (``tasks.probe``) to tell that of the first. What differs in a
setting that changes the speed is not compared, nor what ran with another number of workers or on embeddings of other
dims. A chain that was begun, of clustering or training, is told as a whole.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlcd_core.config import num_workers, stage_spec
from mlcd_core.dataset import spans_of
from mlcd_core.identity import short, spec_record
from mlcd_core.specs import ClusterSpec, LabelSpec, StageName, StageSpec, TrainSpec
from mlcd_core.store import Files, Manifest, Part
from mlcd_core.store.chain import KEPT_LINKS
from tasks.embed import resolved_embed_spec
from tasks.run import Run
from tasks.sealed import sealed_manifests, sealed_spec
from tasks.train import total_steps

# settings of a stage that may differ: they change how much is done, or nothing that takes time
MAY_DIFFER: Mapping[StageName, frozenset[str]] = {
    "embed": frozenset({"rows_per_unit"}),
    "cluster": frozenset({"num_centroids", "rows_per_centroid", "iterations", "tolerance", "seed"}),
    "label": frozenset(),
    "train": frozenset(
        {"epochs", "seed", "learning_rate", "weight_decay", "warmup_share", "schedule", "scale", "margin"}
    ),
    "evaluate": frozenset({"seed", "label_column"}),
}


@dataclass(frozen=True)
class Size:
    """How much a run has to do: images to train on and to test with, embedding units, classes, iterations, steps.

    links: checkpoints of the training, of which the newest two are kept. records: entries of its log.
    """

    rows: int
    test_rows: int
    units: int
    num_centroids: int
    iterations: int
    steps: int
    links: int
    records: int


@dataclass(frozen=True)
class Measured:
    """A committed stage that is like a planned one.

    receipt_bytes: of a receipt of a unit or link, on average. record_bytes: of its manifest, and of what belongs to its
    folder as a whole. log_bytes: of its log, which only training writes. where: for people.
    """

    manifest: Manifest
    receipt_bytes: float
    record_bytes: int
    log_bytes: int
    where: str


@dataclass(frozen=True)
class Cost:
    """Bytes that a stage will have written, and the seconds until it is committed; like: what it was measured by.

    gpu_hours: 0 where the stage it is compared with had no GPU. price: of those seconds, where one was given.
    """

    bytes: int
    seconds: float
    gpu_hours: float
    like: str
    price: float | None = None


def find_measured(files: Files, spec: StageSpec, where: str, *, workers: int, dim: int) -> Measured | None:
    """The largest committed stage under a root that differs from the planned in nothing that changes its speed.

    workers: of the planned stage. dim: of the embeddings.
    """
    stage = spec.STAGE
    alike = [
        manifest
        for manifest in sealed_manifests(files, stage)
        if manifest.provenance.get("timing", {}).get("workers") == workers
        and manifest.provenance.get("dim", dim) == dim
        and _is_like(files, manifest, spec)
    ]
    if not alike:
        return None
    manifest = max(alike, key=lambda m: (m.provenance["timing"].get("work") or 0, m.rows, m.attempt))
    prefix = f"{stage}/{short(manifest.spec)}"
    listed = files.list(prefix)
    receipts = [info.bytes for info in listed if info.path.startswith(f"{prefix}/units/")]
    of_others = tuple(f"{prefix}/{folder}/" for folder in ("data", "units", "manifests"))
    records = [info.bytes for info in listed if info.path == manifest.path or not info.path.startswith(of_others)]
    own_log = f"logs/{prefix}/{short(manifest.input)}"
    logs = [info.bytes for info in files.list(f"logs/{prefix}") if info.path.startswith(own_log)]
    return Measured(
        manifest, fmean(receipts or [0]), sum(records), sum(logs), f"{where} on {manifest.provenance['host']}"
    )


def run_size(run: Run, *, num_rows: int, num_centroids: int) -> Size:
    """How much a run has to do if all rows are usable.

    num_rows: of the data, or as many as there will be. num_centroids: as pinned, or as the settings and rows say.
    """
    train, rows = stage_spec(run.config, "train"), sum(shard.rows for shard in run.shards)
    assert isinstance(train, TrainSpec)
    units, rows = len(spans_of(run.shards, run.config.embed.rows_per_unit)) * num_rows / max(1, rows), num_rows
    steps = total_steps(train, usable_rows=rows)
    return Size(
        rows=rows,
        test_rows=sum(shard.rows for shard in run.eval_shards),
        units=math.ceil(units),
        num_centroids=num_centroids,
        iterations=run.config.cluster.most_iterations,
        steps=steps,
        links=math.ceil(steps / run.config.train.checkpoint_steps),
        records=math.ceil(steps / run.config.train.log_steps),
    )


def plan_costs(
    run: Run, plans: Sequence[Mapping[str, Any]], size: Size, files: Files, where: str, *, dim: int
) -> list[Cost | None]:
    """The cost of each planned stage; None of those that are committed, and where nothing like it was measured.

    files: of the root where it was measured. where: what people call that. dim: of the embeddings.
    """

    def measured(stage: StageName) -> tuple[StageSpec, Measured | None]:
        spec = resolved_embed_spec(run) if stage == "embed" else stage_spec(run.config, stage)
        return spec, find_measured(files, spec, where, workers=num_workers(run.config, stage), dim=dim)

    costs: list[Cost | None] = []
    for plan in plans:
        if plan["plan"] == "hit":
            costs.append(None)
            continue
        spec, like = measured(plan["stage"])
        # how fast rows and centroids meet is seen in clustering, also where that is not to be run
        _, clustering = measured("cluster") if plan["stage"] == "label" else (None, None)
        pair_s = _pair_seconds(clustering.manifest) if clustering else None
        total = plan["units_total"] or 0
        share = plan["units_missing"] / total if plan["plan"] == "partial" and total > 1 else 1.0
        costs.append(stage_cost(spec, size, like, share, pair_s=pair_s) if like else None)
    return costs


def _is_like(files: Files, manifest: Manifest, spec: StageSpec) -> bool:
    was, now = sealed_spec(files, manifest), spec_record(spec)
    names = was["spec"].keys() | now["spec"].keys()
    differ = {name for name in names if was["spec"].get(name) != now["spec"].get(name)}
    return was["stage_version"] == now["stage_version"] and differ <= MAY_DIFFER[spec.STAGE]


def stage_cost(
    spec: StageSpec, size: Size, like: Measured, missing_share: float = 1.0, *, pair_s: float | None = None
) -> Cost | None:
    """The cost of a stage by one that was measured; None where that one is too small to tell.

    missing_share: of the units, what is still to be done. pair_s: seconds that clustering takes for a row and a
    centroid, by which labels of more centroids are told.
    """
    manifest = like.manifest
    work_s = _work_seconds(spec, size, manifest, pair_s)
    if work_s is None:
        return None
    took_s, planned_s = work_s
    timing = manifest.provenance["timing"]
    fixed_s = max(0.0, float(timing["seconds"]) - took_s)
    seconds = fixed_s + planned_s * missing_share
    on_gpus = timing["workers"] if "cuda" in _devices(manifest.provenance) else 0
    return Cost(round(_bytes(spec, size, like) * missing_share), seconds, on_gpus * seconds / 3600, like.where)


def _pair_seconds(manifest: Manifest) -> float | None:
    """Seconds for a row and a centroid in an iteration of a clustering; None where none was seen."""
    seconds: list[float] = manifest.provenance["iteration_seconds"]
    pairs: float = manifest.metrics["identical_of"] * manifest.rows
    return fmean(seconds) / pairs if seconds else None


def _work_seconds(spec: StageSpec, size: Size, manifest: Manifest, pair_s: float | None) -> tuple[float, float] | None:
    """Seconds of the work that was measured, beside all that is fixed, and of the planned."""
    if isinstance(spec, ClusterSpec):
        return _iteration_seconds(size, manifest)
    if isinstance(spec, TrainSpec):
        return _step_seconds(spec, size, manifest)
    timing = manifest.provenance["timing"]
    if not timing.get("work") or not timing.get("work_s"):
        return (0.0, 0.0) if spec.STAGE == "evaluate" else None  # without labels nothing is encoded
    per_row_s = timing["work_s"] / timing["work"]
    if spec.STAGE == "evaluate":
        # each image once per embedder: towers see all images, the source only those of the test
        return timing["work_s"], (2 * size.rows + 3 * size.test_rows) * per_row_s
    more_s = 0.0
    if isinstance(spec, LabelSpec) and pair_s is not None:
        more_s = max(0, size.num_centroids - manifest.metrics["num_centroids"]) * pair_s
    return manifest.rows * per_row_s, size.rows * (per_row_s + more_s)


def _iteration_seconds(size: Size, manifest: Manifest) -> tuple[float, float] | None:
    pair_s = _pair_seconds(manifest)
    if pair_s is None:
        return None
    return sum(manifest.provenance["iteration_seconds"]), size.iterations * pair_s * size.rows * size.num_centroids


def _step_seconds(spec: TrainSpec, size: Size, manifest: Manifest) -> tuple[float, float] | None:
    curve = manifest.metrics["curve"]
    if not curve:
        return None
    per_image_s = fmean(1 / record["images_per_s"] for record in curve)
    return curve[-1]["step"] * spec.batch_size * per_image_s, size.steps * spec.batch_size * per_image_s


def _bytes(spec: StageSpec, size: Size, like: Measured) -> float:
    """Data, receipts, records and logs of a stage."""
    parts, metrics = like.manifest.parts, like.manifest.metrics
    data = sum(part.bytes for part in parts)
    if isinstance(spec, ClusterSpec):
        links = KEPT_LINKS * data * size.num_centroids / like.manifest.rows
        return links + like.receipt_bytes * size.iterations + like.record_bytes
    if isinstance(spec, TrainSpec):
        blocks = sum(part.bytes for part in parts if part.name.startswith("block-"))
        link = data - blocks + blocks * size.num_centroids / int(metrics["num_classes"])
        longer = size.records / len(metrics["curve"])  # the manifest holds the curve
        links = min(KEPT_LINKS, size.links) * link + like.receipt_bytes * size.links
        return links + (like.record_bytes + like.log_bytes) * longer
    if spec.STAGE == "evaluate":
        return data + like.receipt_bytes + like.record_bytes
    of_part, of_row = _bytes_of_parts(parts)
    records = like.receipt_bytes + like.record_bytes / len(parts)  # the manifest names the parts
    return (of_part + records) * size.units + of_row * size.rows


def _bytes_of_parts(parts: Sequence[Part]) -> tuple[float, float]:
    """Bytes of a file without rows, and of each row in it: least squares, where the parts differ in their rows."""
    mean_rows = fmean(part.rows for part in parts)
    mean_bytes = fmean(part.bytes for part in parts)
    spread = sum((part.rows - mean_rows) ** 2 for part in parts)
    if not spread:
        return 0.0, mean_bytes / mean_rows
    of_row = sum((part.rows - mean_rows) * (part.bytes - mean_bytes) for part in parts) / spread
    return max(0.0, mean_bytes - of_row * mean_rows), min(of_row, mean_bytes / mean_rows)


def _devices(noted: Mapping[str, Any]) -> Iterable[str]:
    return [*noted.get("devices", []), noted.get("device", ""), *(piece["device"] for piece in noted.get("ran_on", []))]
