"""One arm of the value benchmark: a training run on the demo's scenes and what its features are worth, in-process.

The stages are the library's own (embedder, k-means, labels, training loop, probes), called without Ray, one thread per
arm. Test scenes are only encoded for the probes; the probes choose their settings on train scenes.

N rows, L labels per row.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from mlcd_core.config import Config, load_config, stage_spec
from mlcd_core.dataset import Shard, ShardReader, data_digest, find_shards
from mlcd_core.embedding import embed_shard, joined_embeddings
from mlcd_core.evaluate.compare import EncodedRows, compare_features, describe_clusters, encode_shards
from mlcd_core.identity import fingerprint, sha256_hex
from mlcd_core.images.digit_scenes import Split, scene_parquet_bytes
from mlcd_core.images.embed_shard import ipc_bytes, read_ipc
from mlcd_core.images.embedder import Embedder, build_embedder, find_weights
from mlcd_core.kmeans import ArrayPoints, fit
from mlcd_core.kmeans.assign import Assigner
from mlcd_core.labels import label_table, labels_to_parquet_bytes
from mlcd_core.runtimes import TrainRuntime
from mlcd_core.specs import ClusterSpec, EmbedSpec, EvaluateSpec, TrainSpec
from mlcd_core.store import Chain, LocalFiles, Receipt, StageFolder, content_digest
from mlcd_core.train import Start, TrainData, tower_part_name, train
from mlcd_core.train.encoder import TowerEmbedder
from mlcd_core.train.watches import feature_watches

NUM_SHARDS: dict[Split, int] = {"train": 8, "test": 2}
SCENES_SEED = 0  # as the demo's; an arm's seed moves all but the scenes
NUM_LABELS = 8
RANDOM_DIM = 64


@dataclass(frozen=True)
class Arm:
    """One training run; ``train`` are its settings that differ from the laptop preset.

    After another run it can take new clusters, of that run's tower (``relabels``), and start from its weights
    (``continues``).
    """

    name: str
    seed: int
    train: Mapping[str, Any] = field(default_factory=dict)
    after: "Arm | None" = None
    relabels: bool = False
    continues: bool = False


@dataclass(frozen=True)
class Trained:
    """The end of a run: its last link, the spec and chain it stands in, and the clusters it learned from."""

    spec: TrainSpec
    chain: Chain
    link: Receipt
    labels_NL: NDArray[np.int32]
    embeddings_ND: NDArray[np.float16]

    @property
    def embedder(self) -> TowerEmbedder:
        """The trained tower."""
        tower = next(part for part in self.link.parts if part.name == tower_part_name(self.spec))
        return TowerEmbedder(self.spec, weights=self.chain.read(tower), device="cpu")


@dataclass(frozen=True)
class Workshop:
    """Where scenes, source embeddings and checkpoints lie, and how many scenes and clusters there are."""

    folder: Path
    num_train: int
    num_test: int
    num_centroids: int

    def prepare(self) -> None:
        """Make the scenes, and embed them with the preset's embedder; what is there already stays."""
        for split, rows in (("train", self.num_train), ("test", self.num_test)):
            for shard in range(NUM_SHARDS[split]):
                rows_here = rows // NUM_SHARDS[split]
                self._once(
                    f"scenes/{split}-{shard:05d}.parquet", scene_parquet_bytes, split, shard, rows_here, SCENES_SEED
                )
        spec = stage_spec(self.config(0), "embed")
        assert isinstance(spec, EmbedSpec)
        source = build_embedder(spec, weights=find_weights(spec, ""), device="cpu")
        for split in NUM_SHARDS:
            for number, shard in enumerate(self.shards(split)):
                self._once(f"source/{split}-{number:05d}.arrow", _embedded, shard, source, spec)

    def shards(self, split: Split) -> tuple[Shard, ...]:
        """The scenes of a split."""
        return find_shards(f"{self.folder}/scenes/{split}-*.parquet", memo=self.folder / "digests")

    def source(self, split: Split) -> list[bytes]:
        """The source embeddings of a split, shard by shard."""
        return [path.read_bytes() for path in sorted(self.folder.glob(f"source/{split}-*.arrow"))]

    def config(self, seed: int, train: Mapping[str, Any] | None = None) -> Config:
        """The laptop preset with these changes."""
        overrides = {"seed": seed, "cluster.num_centroids": self.num_centroids, "label.num_labels": NUM_LABELS}
        overrides |= {f"train.{key}": value for key, value in (train or {}).items()}
        return load_config("laptop", environment={}, overrides=overrides)

    def _once(self, path: str, make: Callable[..., bytes], *arguments: Any) -> None:
        files = LocalFiles(self.folder)
        if not (self.folder / path).exists():
            files.put(path, make(*arguments))


def run_arm(workshop: Workshop, arm: Arm) -> dict[str, float]:
    """Train an arm and measure its tower and its clusters."""
    trained = run_training(workshop, arm)
    scores = measure(workshop, arm.seed, {"trained": trained.embedder})["trained"]
    raw_labels = _encoded(workshop, "train", {}, _evaluate_spec(workshop, arm.seed)).labels
    clusters = describe_clusters(
        trained.labels_NL,
        workshop.num_centroids,
        embeddings_ND=trained.embeddings_ND,
        raw_labels=raw_labels,
        seed=arm.seed,
    )
    purity = {"purity": clusters["agreement"]["purity"], "chance_purity": clusters["chance"]["purity"]}
    return {**scores, **purity}


def run_baselines(workshop: Workshop, seed: int) -> dict[str, dict[str, float]]:
    """Measure what needs no training: the untrained tower, the source's features, and random numbers."""
    spec = stage_spec(workshop.config(seed), "train")
    assert isinstance(spec, TrainSpec)
    source = {split: joined_embeddings(workshop.source(split)).astype(np.float32) for split in NUM_SHARDS}
    rng = np.random.default_rng(seed)
    noise = {split: rng.standard_normal((len(rows), RANDOM_DIM)).astype(np.float32) for split, rows in source.items()}
    untrained = TowerEmbedder(spec, weights=None, device="cpu")
    return measure(workshop, seed, {"untrained": untrained}, {"source": source, "random": noise})


def measure(
    workshop: Workshop,
    seed: int,
    embedders: Mapping[str, Embedder],
    features: Mapping[str, Mapping[Split, NDArray[np.float32]]] | None = None,
) -> dict[str, dict[str, float]]:
    """Probes of towers, and of features that are there already; norm and rank are those of the test features."""
    spec = _evaluate_spec(workshop, seed)
    encoded: dict[Split, EncodedRows] = {}
    for split in NUM_SHARDS:
        encoded[split] = _encoded(workshop, split, embedders, spec)
        encoded[split].features.update({name: rows[split] for name, rows in (features or {}).items()})
    found = compare_features(encoded["train"], encoded["test"], spec=spec)
    return {
        name: {
            "map": score["multilabel_map"],
            "knn_map": found["details"][name]["knn_map"],
            **feature_watches(torch.nn.functional.normalize(torch.from_numpy(encoded["test"].features[name]), dim=1)),
        }
        for name, score in found["scores"].items()
    }


def run_training(workshop: Workshop, arm: Arm) -> Trained:
    """Train an arm; one that has been trained is only opened again."""
    before = run_training(workshop, arm.after) if arm.after else None
    shards, tables = workshop.shards("train"), [read_ipc(part) for part in workshop.source("train")]
    settings = dict(arm.train)
    if before and arm.relabels:
        embed_spec = stage_spec(workshop.config(arm.seed), "embed")
        assert isinstance(embed_spec, EmbedSpec)
        tables = [read_ipc(_embedded(shard, before.embedder, embed_spec)) for shard in shards]
    if before and arm.continues:
        settings["start_from"] = content_digest(before.link.parts)
    config = workshop.config(arm.seed, settings)
    spec, cluster_spec = stage_spec(config, "train"), stage_spec(config, "cluster")
    assert isinstance(spec, TrainSpec)
    assert isinstance(cluster_spec, ClusterSpec)
    embeddings_ND = joined_embeddings([ipc_bytes(table) for table in tables])
    centroids_KD = fit(ArrayPoints.from_unit_rows(embeddings_ND), cluster_spec).centroids_KD
    assigner = Assigner(centroids_KD, num_labels=NUM_LABELS)
    labels = [label_table(table, assigner) for table in tables]
    label_digest = fingerprint([sha256_hex(labels_to_parquet_bytes(table)) for table in labels])
    start = None
    if before and arm.continues:
        start = Start(before.link.parts, before.chain.read, same_classes=not arm.relabels)
    folder = StageFolder(LocalFiles(workshop.folder / "towers" / f"{arm.name}-{arm.seed}"), spec)
    folder.open()
    chain = Chain(folder, {"data": data_digest(shards), "label": label_digest}, attempt=1, last_number=10**6)
    link = train(
        spec,
        TrainData(shards, labels.__getitem__),
        num_classes=workshop.num_centroids,
        chain=chain,
        runtime=TrainRuntime(device="cpu"),
        start=start,
    )
    labels_NL = np.concatenate([_label_matrix(table) for table in labels])
    return Trained(spec, chain, link, labels_NL, embeddings_ND)


def _embedded(shard: Shard, embedder: Embedder, spec: EmbedSpec) -> bytes:
    with ThreadPoolExecutor(1) as pool:
        table = embed_shard(ShardReader(shard), embedder=embedder, spec=spec, pool=pool)
    assert not table["status"].to_numpy().any(), "every scene decodes"
    return ipc_bytes(table)


def _encoded(workshop: Workshop, split: Split, embedders: Mapping[str, Embedder], spec: EvaluateSpec) -> EncodedRows:
    with ThreadPoolExecutor(1) as pool:
        return encode_shards(workshop.shards(split), embedders, spec=spec, pool=pool)


def _evaluate_spec(workshop: Workshop, seed: int) -> EvaluateSpec:
    spec = stage_spec(workshop.config(seed), "evaluate")
    assert isinstance(spec, EvaluateSpec)
    return spec.model_copy(update={"label_column": "labels"})


def _label_matrix(table: pa.Table) -> NDArray[np.int32]:
    labels_NL: NDArray[np.int32] = table["labels"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return labels_NL
