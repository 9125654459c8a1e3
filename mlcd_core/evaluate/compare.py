"""The trained tower, the untrained tower and the source embedder side by side, and the clusters they learned from.

Test rows are encoded here and nowhere else: they never enter the embed, cluster, label or train stages, nor any fit.
Shapes: N rows, D dims, L labels.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlcd_core.dataset import ImageRows, Shard, ShardReader
from mlcd_core.errors import LabelDataError
from mlcd_core.evaluate.clusters import cluster_quality
from mlcd_core.evaluate.probes import probe_features
from mlcd_core.evaluate.shard_rows import UsableRows, usable_rows
from mlcd_core.evaluate.targets import Targets
from mlcd_core.images.decode import decode_images
from mlcd_core.images.embed_shard import CaptionEmbedder
from mlcd_core.images.embedder import Embedder
from mlcd_core.specs import EvaluateSpec
from mlcd_core.tables import RowStatus


@dataclass(frozen=True, eq=False)
class EncodedRows:
    """Usable rows of some shards: features by embedder name, the raw label of each row, and which rows these are."""

    features: dict[str, NDArray[np.float32]]
    labels: list[Any]
    positions_N: NDArray[np.int64]


def encode_shards(
    shards: Sequence[Shard],
    embedders: Mapping[str, Embedder],
    *,
    spec: EvaluateSpec,
    pool: ThreadPoolExecutor,
    usable_N: NDArray[np.bool_] | None = None,
    caption_column: str = "",
) -> EncodedRows:
    """Decode every row once per image size and encode it with every embedder; rows that do not decode are left out.

    usable_N: rows that may be decoded, counted through all shards; None: all. Without embedders nothing is decoded and
    every row that may be is returned with its label. caption_column: what embedders that take captions are given.
    """
    features = {name: [np.zeros((0, embedder.dim), np.float32)] for name, embedder in embedders.items()}
    labels: list[Any] = []
    positions: list[int] = []
    for place in usable_rows(shards, usable_N):
        for rows in _rows(place, spec, caption_column):
            usable_B = place.usable_N[rows.first_row : rows.first_row + len(rows.images)].copy()
            images = [image if usable else None for image, usable in zip(rows.images, usable_B, strict=True)]
            decoded = {
                size: decode_images(images, image_size=size, max_pixels=spec.max_pixels, pool=pool)
                for size in {embedder.image_size for embedder in embedders.values()}
            }
            for result in decoded.values():
                usable_B &= (result.status_B == RowStatus.OK) & ~np.array(rows.upstream_failed, dtype=bool)
            for name, embedder in embedders.items():
                pixels_BCHW = torch.from_numpy(decoded[embedder.image_size].pixels_BCHW[usable_B])
                captions = [caption for caption, usable in zip(rows.captions or [], usable_B, strict=False) if usable]
                features[name].append(_encode(embedder, pixels_BCHW, captions, spec.batch_rows))
            found = rows.labels or [None] * len(rows.images)
            labels += [label for label, usable in zip(found, usable_B, strict=True) if usable]
            positions += [place.first_row + rows.first_row + int(i) for i in np.flatnonzero(usable_B)]
    joined = {name: np.concatenate(parts) for name, parts in features.items()}
    return EncodedRows(joined, labels, np.array(positions, dtype=np.int64))


def compare_features(train: EncodedRows, test: EncodedRows, *, spec: EvaluateSpec) -> dict[str, Any]:
    """Probe scores by embedder name, with what stands behind them under ``details``.

    Raises LabelDataError when a usable row has no label or test rows hold classes that train rows do not.
    """
    _check_labels(train.labels, "train")
    _check_labels(test.labels, "test")
    targets = Targets.from_labels(train.labels, test.labels)
    scores = {
        name: asdict(probe_features(train.features[name], test.features[name], targets, spec))
        for name in train.features
    }
    details = {name: score.pop("details") for name, score in scores.items()}
    return {"scores": scores, "details": details, "kind": targets.kind, "test_rows": len(test.labels)}


def describe_clusters(
    labels_NL: NDArray[np.int32],
    num_centroids: int,
    *,
    embeddings_ND: NDArray[np.float16],
    raw_labels: Sequence[Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Cluster evidence as plain values: sizes, identical embeddings; with labels purity and recall beside chance.

    Rows whose label is null are left out where there are labels.
    """
    multi_hot_NC = None
    if raw_labels is not None:
        labelled_N = np.array([label is not None for label in raw_labels])
        labels_NL, embeddings_ND = labels_NL[labelled_N], embeddings_ND[labelled_N]
        known = [label for label in raw_labels if label is not None]
        multi_hot_NC = Targets.from_labels(known, known).train_NC
    quality = cluster_quality(
        labels_NL, num_centroids, multi_hot_NC=multi_hot_NC, embeddings_ND=embeddings_ND, seed=seed
    )
    return quality.record()


def _rows(place: UsableRows, spec: EvaluateSpec, caption_column: str) -> Iterator[ImageRows]:
    if place.row_groups:
        reader = ShardReader(
            place.shard,
            image_column=spec.image_column,
            label_column=spec.label_column,
            caption_column=caption_column,
        )
        yield from reader.read_groups(place.row_groups)


def _encode(
    embedder: Embedder, pixels_BCHW: torch.Tensor, captions: Sequence[str | None], batch_rows: int
) -> NDArray[np.float32]:
    encoded = [np.zeros((0, embedder.dim), dtype=np.float32)]
    for first in range(0, len(pixels_BCHW), batch_rows):
        batch = slice(first, first + batch_rows)
        if captions and isinstance(embedder, CaptionEmbedder):
            features_BD = embedder.encode_with_captions(pixels_BCHW[batch], captions[batch])
        else:
            features_BD = embedder.encode(pixels_BCHW[batch])
        encoded.append(features_BD.float().cpu().numpy())
    return np.concatenate(encoded)


def _check_labels(labels: Sequence[Any], side: str) -> None:
    missing = sum(label is None for label in labels)
    if missing:
        raise LabelDataError(
            f"{missing:,} of {len(labels):,} {side} rows have no label; give every row one (an empty list is a label)"
        )
