"""Cluster evidence against dictionaries and loops."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import LabelDataError
from mlcd_core.evaluate import cluster_quality, clusters, identical_embeddings
from mlcd_core.identity import canonical_json


def naive_names(labels, sets, num_centroids):
    names, held = {}, {}
    for k in range(num_centroids):
        counts = Counter(c for row, members in zip(labels, sets, strict=True) if row[0] == k for c in members)
        if counts:
            names[k] = min(counts, key=lambda c: (-counts[c], c))
            held[k] = counts[names[k]]
    return names, held


def naive_agreement(labels, sets, num_centroids):
    names, held = naive_names(labels, sets, num_centroids)
    sizes = Counter(row[0] for row in labels)
    purity = sum(held.get(row[0], 0) / sizes[row[0]] for row in labels) / len(labels)
    recall, precision = {}, {}
    for rank in (1, 2, 4, 8, 16):
        if rank > len(labels[0]):
            continue
        recalls, precisions = [], []
        for row, members in zip(labels, sets, strict=True):
            named = {names[k] for k in row[:rank] if k in names}
            if members:
                recalls.append(len(named & members) / len(members))
            if named:
                precisions.append(len(named & members) / len(named))
        recall[rank] = sum(recalls) / len(recalls) if recalls else 0
        precision[rank] = sum(precisions) / len(precisions) if precisions else 0
    return purity, recall, precision


def as_sets(multi_hot):
    return [set(np.flatnonzero(row).tolist()) for row in multi_hot]


def assert_agreement(agreement, labels, multi_hot, num_centroids):
    purity, recall, precision = naive_agreement(labels.tolist(), as_sets(multi_hot), num_centroids)
    assert agreement.purity == pytest.approx(purity)
    assert agreement.recall == pytest.approx(recall)
    assert agreement.precision == pytest.approx(precision)


@settings(deadline=None)  # cores are shared
@given(st.integers(1, 30), st.sampled_from([1, 3, 4, 16]), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_agreement_and_chance_are_those_of_loops(num_rows, num_labels, num_classes, seed):
    rng = np.random.default_rng(seed)
    num_centroids = num_labels + int(rng.integers(0, 4))
    labels = np.stack([rng.permutation(num_centroids)[:num_labels] for _ in range(num_rows)]).astype(np.int32)
    unusable = rng.random(num_rows) < 0.2
    unusable[0] = False
    labels[unusable] = -1
    multi_hot = rng.random((num_rows, num_classes)) < 0.4
    quality = cluster_quality(labels, num_centroids, multi_hot_NC=multi_hot, seed=3)

    used = multi_hot[~unusable]
    assert_agreement(quality.agreement, labels[~unusable], used, num_centroids)
    shuffled = used[np.random.default_rng(3).permutation(len(used))]
    assert_agreement(quality.chance, labels[~unusable], shuffled, num_centroids)
    assert quality.rows_without_class == sum(not members for members in as_sets(used))
    assert (quality.rows, quality.usable) == (num_rows, int((~unusable).sum()))


def test_sizes_count_usable_rows_only():
    labels = np.array([[0], [0], [0], [-1], [2], [4], [4]], dtype=np.int32)
    quality = cluster_quality(labels, 5)
    assert quality.sizes_K.tolist() == [3, 0, 1, 0, 2]
    assert (quality.size_min, quality.size_max, quality.empty_clusters) == (0, 3, 2)
    assert quality.size_quantiles[0.5] == 1
    assert quality.imbalance == pytest.approx(5 * (9 + 1 + 4) / 36)
    assert (quality.usable, quality.rows) == (6, 7)
    assert quality.agreement is quality.chance is quality.rows_without_class is quality.identical_embeddings is None


def test_equal_sizes_have_an_imbalance_of_one():
    assert cluster_quality(np.arange(12, dtype=np.int32)[:, None] % 4, 4).imbalance == 1.0


def test_true_clusters_have_purity_one_and_chance_stands_well_below():
    truth = np.arange(1000) % 10
    quality = cluster_quality(truth[:, None].astype(np.int32), 10, multi_hot_NC=np.eye(10, dtype=bool)[truth])
    assert quality.agreement.purity == 1.0
    assert quality.agreement.recall[1] == quality.agreement.precision[1] == 1.0
    # the most frequent of ten classes among a hundred random rows is near .16
    assert 0.12 < quality.chance.purity < 0.2


def test_small_clusters_of_several_classes_are_pure_by_chance():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 200, (4000, 1)).astype(np.int32)
    quality = cluster_quality(labels, 200, multi_hot_NC=rng.random((4000, 10)) < 0.21)
    assert quality.agreement.purity == pytest.approx(quality.chance.purity, abs=0.02)
    assert quality.chance.purity > 0.3


def test_ties_name_the_lower_class():
    labels = np.zeros((2, 1), dtype=np.int32)
    quality = cluster_quality(labels, 1, multi_hot_NC=np.array([[False, True, False], [True, False, False]]))
    # named 0: the second row is found, the first is not
    assert quality.agreement.recall == {1: 0.5}


def test_rows_without_any_class_give_zeros_and_no_error():
    quality = cluster_quality(np.zeros((3, 2), dtype=np.int32), 2, multi_hot_NC=np.zeros((3, 4), dtype=bool))
    assert quality.agreement.purity == 0.0
    assert quality.agreement.recall == quality.agreement.precision == {1: 0.0, 2: 0.0}
    assert quality.rows_without_class == 3


def test_missing_labels_at_the_end_of_a_row_name_nothing():
    labels = np.array([[0, -1, -1, -1], [1, 0, -1, -1]], dtype=np.int32)
    multi_hot = np.array([[True, False], [False, True]])
    quality = cluster_quality(labels, 2, multi_hot_NC=multi_hot)
    assert_agreement(quality.agreement, labels, multi_hot, 2)


def test_the_seed_decides_the_chance_row():
    rng = np.random.default_rng(1)
    labels, truth = rng.integers(0, 9, (300, 4)).astype(np.int32), rng.random((300, 6)) < 0.3
    first = cluster_quality(labels, 9, multi_hot_NC=truth, seed=1)
    assert cluster_quality(labels, 9, multi_hot_NC=truth, seed=1).chance == first.chance
    other = cluster_quality(labels, 9, multi_hot_NC=truth, seed=2)
    assert other.chance != first.chance
    assert other.agreement == first.agreement


def test_the_record_is_canonical_json_without_the_sizes():
    labels = np.array([[0, 1], [1, 0], [-1, -1]], dtype=np.int32)
    record = cluster_quality(labels, 2, multi_hot_NC=np.eye(3, dtype=bool), embeddings_ND=np.eye(3)).record()
    assert json.loads(canonical_json(record)) == record
    assert record["agreement"]["recall"] == {"1": 1.0, "2": 1.0}
    assert record["size_quantiles"]["0.5"] == 1.0
    assert "sizes_K" not in record
    assert cluster_quality(labels, 2).record()["agreement"] is None


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(1)
    labels, truth = rng.integers(0, 9, (100, 4)).astype(np.int32), rng.random((100, 6)) < 0.3
    whole = cluster_quality(labels, 9, multi_hot_NC=truth).agreement
    monkeypatch.setattr(clusters, "_BLOCK_ROWS", 7)
    blocks = cluster_quality(labels, 9, multi_hot_NC=truth).agreement
    assert blocks.recall == pytest.approx(whole.recall)
    assert blocks.precision == pytest.approx(whole.precision)


def test_identical_embeddings_counts_rows_equal_to_an_earlier_one_in_fp16():
    rng = np.random.default_rng(0)
    rows = rng.integers(-1, 2, (60, 3)).astype(np.float32)
    rows[5] = -0.0
    rows[6] = 0.0
    rows[7] = rows[8] + 1e-6
    seen, expected = [], 0
    for row in rows.astype(np.float16).tolist():
        expected += row in seen
        seen.append(row)
    assert identical_embeddings(rows) == expected > 20
    assert identical_embeddings(rng.normal(size=(50, 8))) == 0
    assert identical_embeddings(np.zeros((0, 8))) == 0


def test_unusable_rows_are_not_identical_embeddings():
    embeddings = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], dtype=np.float16)
    labels = np.array([[0], [0], [-1], [-1]], dtype=np.int32)
    assert cluster_quality(labels, 1, embeddings_ND=embeddings).identical_embeddings == 1


@pytest.mark.parametrize(
    ("labels", "others", "message"),
    [
        ([[-1], [-1]], {}, "none of 2 rows has a cluster label"),
        ([[0], [3]], {}, "cluster labels reach from 0 to 3; expected -1 to 2"),
        ([[0], [-2]], {}, "cluster labels reach from -2 to 0"),
        ([[0], [1]], {"multi_hot_NC": np.zeros((3, 2), dtype=bool)}, "2 rows have cluster labels, 3 have class sets"),
        ([[0], [1]], {"embeddings_ND": np.zeros((1, 2))}, "2 rows have cluster labels, 1 have embeddings"),
    ],
)
def test_labels_that_do_not_fit_raise(labels, others, message):
    with pytest.raises(LabelDataError, match=message):
        cluster_quality(np.array(labels, dtype=np.int32), 3, **others)
