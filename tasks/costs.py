"""What a run will write and how long it will take, by what stages like its own wrote and took: rules of three.

Every manifest says how many seconds its stage took and how fast the work itself went, so a root with one committed run
is enough to tell the cost of the next, and a probe (``tasks.probe``) to tell that of the first. What differs in a
setting that changes the speed is not compared.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from mlcd_core.config import stage_spec
from mlcd_core.dataset import spans_of
from mlcd_core.identity import short, spec_record
from mlcd_core.specs import ClusterSpec, StageName, StageSpec, TrainSpec
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

    receipt_bytes: of the receipts of its units or links. record_bytes: of what else is in its folder but data.
    log_bytes: of its log, which only training writes. where: for people.
    """

    manifest: Manifest
    receipt_bytes: int
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


def find_measured(files: Files, spec: StageSpec, where: str) -> Measured | None:
    """The largest committed stage under a root that differs from ``spec`` in nothing that changes its speed."""
    stage = spec.STAGE
    alike = [m for m in sealed_manifests(files, stage) if "timing" in m.provenance and _is_like(files, m, spec)]
    if not alike:
        return None
    manifest = max(alike, key=lambda m: (m.provenance["timing"].get("work") or 0, m.rows, m.attempt))
    prefix = f"{stage}/{short(manifest.spec)}"
    of_folder: dict[str, int] = {}
    for info in files.list(prefix):
        folder = info.path.removeprefix(f"{prefix}/").partition("/")[0]
        of_folder[folder] = of_folder.get(folder, 0) + info.bytes
    receipts = of_folder.pop("units", 0)
    records = sum(size for folder, size in of_folder.items() if folder != "data")
    logs = sum(info.bytes for info in files.list(f"logs/{prefix}"))
    return Measured(manifest, receipts, records, logs, f"{where} on {manifest.provenance['host']}")


def run_size(run: Run, num_centroids: int) -> Size:
    """How much a run has to do if all rows are usable. num_centroids: as pinned, or as the settings and rows say."""
    train, rows = stage_spec(run.config, "train"), sum(shard.rows for shard in run.shards)
    assert isinstance(train, TrainSpec)
    steps = total_steps(train, usable_rows=rows)
    return Size(
        rows=rows,
        test_rows=sum(shard.rows for shard in run.eval_shards),
        units=len(spans_of(run.shards, run.config.embed.rows_per_unit)),
        num_centroids=num_centroids,
        iterations=run.config.cluster.most_iterations,
        steps=steps,
        links=math.ceil(steps / run.config.train.checkpoint_steps),
        records=math.ceil(steps / run.config.train.log_steps),
    )


def plan_costs(run: Run, plans: Sequence[Mapping[str, Any]], size: Size, files: Files, where: str) -> list[Cost | None]:
    """The cost of each planned stage; None of those that are committed, and where nothing like it was measured.

    files: of the root where it was measured. where: what people call that.
    """
    costs: list[Cost | None] = []
    for plan in plans:
        stage: StageName = plan["stage"]
        spec = resolved_embed_spec(run) if stage == "embed" else stage_spec(run.config, stage)
        like = find_measured(files, spec, where) if plan["plan"] != "hit" else None
        total = plan["units_total"] or 0
        share = plan["units_missing"] / total if plan["plan"] == "partial" and total > 1 else 1.0
        workers = 1 if stage == "evaluate" else getattr(run.config, stage).workers
        costs.append(stage_cost(spec, size, like, workers=workers, missing_share=share) if like else None)
    return costs


def _is_like(files: Files, manifest: Manifest, spec: StageSpec) -> bool:
    was, now = sealed_spec(files, manifest), spec_record(spec)
    names = was["spec"].keys() | now["spec"].keys()
    differ = {name for name in names if was["spec"].get(name) != now["spec"].get(name)}
    return was["stage_version"] == now["stage_version"] and differ <= MAY_DIFFER[spec.STAGE]


def stage_cost(spec: StageSpec, size: Size, like: Measured, *, workers: int, missing_share: float = 1.0) -> Cost | None:
    """The cost of a stage by one that was measured; None where that one is too small to tell.

    missing_share: of the units, what is still to be done.
    """
    manifest = like.manifest
    work_s = _work_seconds(spec, size, manifest)
    if work_s is None:
        return None
    took_s, planned_s = work_s
    fixed_s = max(0.0, float(manifest.provenance["timing"]["seconds"]) - took_s)
    seconds = fixed_s + planned_s * missing_share
    on_gpus = workers if "cuda" in _devices(manifest.provenance) else 0
    return Cost(_bytes(spec, size, like), seconds, on_gpus * seconds / 3600, like.where)


def _work_seconds(spec: StageSpec, size: Size, manifest: Manifest) -> tuple[float, float] | None:
    """Seconds of the work that was measured, beside all that is fixed, and of the planned."""
    noted, timing = manifest.provenance, manifest.provenance["timing"]
    if isinstance(spec, ClusterSpec):
        seconds: list[float] = noted["iteration_seconds"]
        pairs = manifest.metrics["identical_of"] * manifest.rows
        scale = size.rows * size.num_centroids / pairs
        return (sum(seconds), size.iterations * sum(seconds) / len(seconds) * scale) if seconds else None
    if isinstance(spec, TrainSpec):
        curve = manifest.metrics["curve"]
        if not curve:
            return None
        per_image_s = sum(1 / record["images_per_s"] for record in curve) / len(curve)
        done = curve[-1]["step"] * spec.batch_size
        return done * per_image_s, size.steps * spec.batch_size * per_image_s
    if not timing.get("work") or not timing.get("work_s"):
        return (0.0, 0.0) if spec.STAGE == "evaluate" else None  # without labels nothing is encoded
    per_row_s = timing["work_s"] / timing["work"]
    if spec.STAGE == "evaluate":
        # each image once per embedder: towers see all images, the source only those of the test
        return timing["work_s"], (2 * size.rows + 3 * size.test_rows) * per_row_s
    return manifest.rows * per_row_s, size.rows * per_row_s


def _bytes(spec: StageSpec, size: Size, like: Measured) -> int:
    """Data, receipts and logs of a stage."""
    parts, metrics = like.manifest.parts, like.manifest.metrics
    data, records = sum(part.bytes for part in parts), like.record_bytes + like.receipt_bytes
    if isinstance(spec, ClusterSpec):
        links = KEPT_LINKS * data * size.num_centroids / like.manifest.rows
        receipts = like.receipt_bytes * size.iterations / int(metrics["iterations"])
        return round(links + receipts) + like.record_bytes
    if isinstance(spec, TrainSpec):
        blocks = sum(part.bytes for part in parts if part.name.startswith("block-"))
        link = data - blocks + blocks * size.num_centroids / int(metrics["num_classes"])
        longer = size.records / len(metrics["curve"])  # receipts and manifest hold the curve
        return round(min(KEPT_LINKS, size.links) * link + (records + like.log_bytes) * longer)
    if spec.STAGE == "evaluate":
        return data + records
    of_part, of_row = _bytes_of_parts(parts)
    return round(of_part * size.units + of_row * size.rows + records * size.units / len(parts))


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
