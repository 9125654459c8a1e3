"""Is the clustering usable: sizes, identical embeddings, and how well clusters agree with true classes.

A cluster is named by its most frequent class. Purity is high by chance when clusters are small and rows hold several
classes (.37 on digit scenes with random features, where one class in ten would suggest .1), and clusters are named on
the very rows that are scored. So the same numbers for a random assignment with equal cluster sizes stand beside them.

Shapes: N rows, L labels per row (nearest centroid first, -1 for none), K centroids, C classes, D dims.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlcd_core.errors import LabelDataError

RANKS = (1, 2, 4, 8, 16)
SIZE_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class ClassAgreement:
    """Clusters against true class sets.

    ``purity``: mean over rows of the share of its cluster that holds the cluster's most frequent class. ``recall`` and
    ``precision``, by label rank l: the names of a row's first l clusters against the row's set, averaged over the rows
    where they are defined (a row without a class has no recall, a row without a named cluster no precision).
    """

    purity: float
    recall: dict[int, float]
    precision: dict[int, float]


@dataclass(frozen=True, eq=False)
class ClusterQuality:
    """Evidence about one clustering; ``agreement`` and ``chance`` need labels, ``identical_embeddings`` embeddings.

    ``chance`` is ``agreement`` with the class sets of the usable rows shuffled.
    """

    rows: int
    usable: int
    sizes_K: NDArray[np.int64]
    size_min: int
    size_quantiles: dict[float, float]
    size_max: int
    imbalance: float  # K * sum(n^2) / N^2: 1 when all sizes are equal (faiss imbalance_factor)
    empty_clusters: int
    agreement: ClassAgreement | None
    chance: ClassAgreement | None
    rows_without_class: int | None
    identical_embeddings: int | None

    def record(self) -> dict[str, Any]:
        """JSON values of everything but ``sizes_K``; ranks and quantiles become string keys."""
        fields = {name: value for name, value in asdict(self).items() if name != "sizes_K"}
        return {name: _string_keys(value) for name, value in fields.items()}


def cluster_quality(
    labels_NL: NDArray[np.int32],
    num_centroids: int,
    *,
    multi_hot_NC: NDArray[np.bool_] | None = None,
    embeddings_ND: NDArray[np.floating] | None = None,
    seed: int = 0,
) -> ClusterQuality:
    """Measure the rows whose first label is not -1; ``seed`` draws the random assignment of ``chance``."""
    _check(labels_NL, num_centroids, multi_hot_NC, embeddings_ND)
    usable_N = labels_NL[:, 0] >= 0
    labels_UL = labels_NL[usable_N]
    sizes_K = np.bincount(labels_UL[:, 0], minlength=num_centroids).astype(np.int64)
    agreement = chance = rows_without_class = None
    if multi_hot_NC is not None:
        multi_hot_UC = multi_hot_NC[usable_N].astype(np.bool_)
        shuffled = np.random.default_rng(seed).permutation(len(multi_hot_UC))
        agreement = _agreement(labels_UL, multi_hot_UC, num_centroids)
        chance = _agreement(labels_UL, multi_hot_UC[shuffled], num_centroids)
        rows_without_class = int((~multi_hot_UC.any(axis=1)).sum())
    return ClusterQuality(
        rows=len(labels_NL),
        usable=len(labels_UL),
        sizes_K=sizes_K,
        size_min=int(sizes_K.min()),
        size_quantiles={q: float(np.quantile(sizes_K, q)) for q in SIZE_QUANTILES},
        size_max=int(sizes_K.max()),
        imbalance=float(num_centroids * np.square(sizes_K.astype(np.float64)).sum() / len(labels_UL) ** 2),
        empty_clusters=int((sizes_K == 0).sum()),
        agreement=agreement,
        chance=chance,
        rows_without_class=rows_without_class,
        identical_embeddings=None if embeddings_ND is None else identical_embeddings(embeddings_ND[usable_N]),
    )


def identical_embeddings(embeddings_ND: NDArray[np.floating]) -> int:
    """Count the rows whose fp16 vector equals that of an earlier row."""
    # + 0.0 turns -0.0 into 0.0: equal vectors must have equal bytes
    half_ND = np.ascontiguousarray(embeddings_ND.astype(np.float16) + np.float16(0.0))
    row_bytes_N = half_ND.view(np.dtype((np.void, half_ND.itemsize * half_ND.shape[1]))).ravel()
    return len(half_ND) - len(np.unique(row_bytes_N))


def _string_keys(value: Any) -> Any:
    return {str(key): _string_keys(item) for key, item in value.items()} if isinstance(value, dict) else value


def _check(
    labels_NL: NDArray[np.int32],
    num_centroids: int,
    multi_hot_NC: NDArray[np.bool_] | None,
    embeddings_ND: NDArray[np.floating] | None,
) -> None:
    assert labels_NL.ndim == 2, f"labels are rows x ranks, got {labels_NL.shape}"
    for name, other in (("class sets", multi_hot_NC), ("embeddings", embeddings_ND)):
        if other is not None and len(other) != len(labels_NL):
            raise LabelDataError(f"{len(labels_NL)} rows have cluster labels, {len(other)} have {name}; expected equal")
    if not (labels_NL[:, 0] >= 0).any():
        raise LabelDataError(f"none of {len(labels_NL)} rows has a cluster label; expected at least one usable row")
    low, high = int(labels_NL.min()), int(labels_NL.max())
    if low < -1 or high >= num_centroids:
        raise LabelDataError(f"cluster labels reach from {low} to {high}; expected -1 to {num_centroids - 1}")


def _agreement(labels_NL: NDArray[np.int32], multi_hot_NC: NDArray[np.bool_], num_centroids: int) -> ClassAgreement:
    names_K, held_K = _name_clusters(labels_NL[:, 0], multi_hot_NC, num_centroids)
    ranks = [rank for rank in RANKS if rank <= labels_NL.shape[1]]
    recall, precision = dict.fromkeys(ranks, 0.0), dict.fromkeys(ranks, 0.0)
    with_class, with_name = 0, dict.fromkeys(ranks, 0)
    for start in range(0, len(labels_NL), _BLOCK_ROWS):
        block_BL, truth_BC = labels_NL[start : start + _BLOCK_ROWS], multi_hot_NC[start : start + _BLOCK_ROWS]
        names_BL = np.where(block_BL >= 0, names_K[block_BL], -1)
        true_B = truth_BC.sum(axis=1)
        with_class += int((true_B > 0).sum())
        for rank in ranks:
            named_BC = np.zeros_like(truth_BC)
            rows, columns = np.nonzero(names_BL[:, :rank] >= 0)
            named_BC[rows, names_BL[rows, columns]] = True
            named_B, both_B = named_BC.sum(axis=1), (named_BC & truth_BC).sum(axis=1)
            recall[rank] += float((both_B / np.maximum(true_B, 1)).sum())
            precision[rank] += float((both_B / np.maximum(named_B, 1)).sum())
            with_name[rank] += int((named_B > 0).sum())
    return ClassAgreement(
        purity=float(held_K.sum() / len(labels_NL)),
        recall={rank: recall[rank] / max(with_class, 1) for rank in ranks},
        precision={rank: precision[rank] / max(with_name[rank], 1) for rank in ranks},
    )


def _name_clusters(
    cluster_N: NDArray[np.int32], multi_hot_NC: NDArray[np.bool_], num_centroids: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Most frequent class of each cluster (the lower id on ties, -1 if no row has one), and how many rows hold it."""
    num_classes = multi_hot_NC.shape[1]
    rows, classes = np.nonzero(multi_hot_NC)
    # pairs that occur, not a K x C table: a million centroids times a thousand classes would be 8 GB
    pairs, counts = np.unique(cluster_N[rows].astype(np.int64) * num_classes + classes, return_counts=True)
    clusters, classes = pairs // max(num_classes, 1), pairs % max(num_classes, 1)
    order = np.lexsort((classes, -counts, clusters))
    named, first = np.unique(clusters[order], return_index=True)
    names_K, held_K = np.full(num_centroids, -1, dtype=np.int64), np.zeros(num_centroids, dtype=np.int64)
    names_K[named], held_K[named] = classes[order][first], counts[order][first]
    return names_K, held_K
