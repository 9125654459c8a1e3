"""The scores as a whole: what they count, that test labels decide nothing, and that they repeat."""

import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pytest

from mlcd_core.errors import DataError, LabelDataError
from mlcd_core.evaluate import Targets, probe_features
from mlcd_core.evaluate.knn import knn_votes
from mlcd_core.evaluate.linear_probe import fit_probe
from mlcd_core.identity import canonical_json
from mlcd_core.specs import EvaluateSpec


def digit_like_sets(num_rows, seed, num_classes=5, dim=12, noise=0.6):
    rng = np.random.default_rng(seed)
    classes = rng.random((num_rows, num_classes)) < 0.35
    directions = np.random.default_rng(77).normal(size=(num_classes, dim))
    features = classes @ directions + noise * rng.normal(size=(num_rows, dim))
    return features.astype(np.float32), [np.flatnonzero(row).tolist() for row in classes]


@pytest.fixture(scope="module")
def sets():
    train, train_labels = digit_like_sets(300, 0)
    test, test_labels = digit_like_sets(120, 1)
    return train, test, train_labels, test_labels


def unit64(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def naive_average_precision(scores, truth):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for place, i in enumerate(order, start=1):
        if truth[i]:
            hits += 1
            total += hits / place
    return total / hits


def test_label_sets_are_scored_by_best_class_and_mean_average_precision(sets):
    train, test, train_labels, test_labels = sets
    targets = Targets.from_labels(train_labels, test_labels)
    result = probe_features(train, test, targets, EvaluateSpec(knn=9))

    votes = knn_votes(unit64(train), unit64(test), targets.train_NC, num_neighbors=9)
    probe = fit_probe(unit64(train), targets.train_NC, kind="multi", c=result.details.probe_c)
    logits = probe.scores(unit64(test))

    def hits(scores):
        return sum(int(row.argmax()) in labels for row, labels in zip(scores, test_labels, strict=True)) / len(test)

    def mean_ap(scores):
        return np.mean([naive_average_precision(scores[:, c], targets.test_MC[:, c]) for c in range(5)])

    assert result.knn == pytest.approx(hits(votes))
    assert result.linear_probe == pytest.approx(hits(logits))
    assert result.multilabel_map == pytest.approx(mean_ap(logits))
    # votes of few neighbours tie, where the naive value depends on row order
    assert result.details.knn_map == pytest.approx(mean_ap(votes), abs=0.02)
    assert result.details.test_rows_without_class == sum(not labels for labels in test_labels) > 0
    assert canonical_json(asdict(result))
    assert 0.7 < result.knn <= 1
    assert 0.8 < result.multilabel_map <= 1


def test_single_labels_are_scored_by_accuracy():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    features = rng.normal(size=(4, 6))[labels] + 0.5 * rng.normal(size=(400, 6))
    targets = Targets.from_labels(labels[:300].tolist(), labels[300:].tolist())
    result = probe_features(features[:300], features[300:], targets, EvaluateSpec(knn=5))

    right = 0
    for row, label in zip(unit64(features[300:]), labels[300:], strict=True):
        cosines = unit64(features[:300]) @ row
        nearest = np.argsort(-cosines)[:5]
        votes = [np.exp(cosines[nearest][labels[nearest] == c] / 0.07).sum() for c in range(4)]
        right += int(np.argmax(votes)) == label
    assert result.knn == pytest.approx(right / 100)
    assert 0.8 < result.linear_probe <= 1
    assert result.multilabel_map is None
    assert result.details.knn_map is None


def test_test_labels_change_scores_but_nothing_that_is_chosen_or_fitted(sets):
    train, test, train_labels, test_labels = sets
    spec = EvaluateSpec(probe_c=(0.001, 0.1, 10.0))
    shuffled = [test_labels[i] for i in np.random.default_rng(5).permutation(len(test_labels))]
    true = probe_features(train, test, Targets.from_labels(train_labels, test_labels), spec)
    other = probe_features(train, test, Targets.from_labels(train_labels, shuffled), spec)
    assert other.multilabel_map < true.multilabel_map - 0.2
    assert other.details.probe_c == true.details.probe_c
    assert other.details.held_out_scores == true.details.held_out_scores
    assert other.details.probe_iterations == true.details.probe_iterations


def test_test_features_change_nothing_that_is_chosen(sets):
    train, test, train_labels, test_labels = sets
    targets = Targets.from_labels(train_labels, test_labels)
    true = probe_features(train, test, targets, EvaluateSpec())
    other = probe_features(train, test * 3 + 1, targets, EvaluateSpec())
    assert other.details.held_out_scores == true.details.held_out_scores


def test_the_same_input_gives_the_same_scores_and_lengths_do_not_matter(sets):
    train, test, train_labels, test_labels = sets
    targets = Targets.from_labels(train_labels, test_labels)
    first = probe_features(train, test, targets, EvaluateSpec())
    assert probe_features(train.copy(), test.copy(), targets, EvaluateSpec()) == first
    assert probe_features(train * 8, test * 0.5, targets, EvaluateSpec()) == first


def test_more_neighbours_than_train_rows_use_all_rows():
    train, train_labels = digit_like_sets(12, 0)
    test, test_labels = digit_like_sets(6, 1)
    result = probe_features(train, test, Targets.from_labels(train_labels, test_labels), EvaluateSpec(knn=50))
    assert result.details.knn_neighbors == 12


def test_a_class_without_test_rows_is_left_out_and_counted(sets):
    train, test, train_labels, test_labels = sets
    without = [[c for c in labels if c != 2] for labels in test_labels]
    details = probe_features(train, test, Targets.from_labels(train_labels, without), EvaluateSpec()).details
    assert (details.classes_scored, details.classes_without_test_rows) == (4, 1)


def test_one_class_scores_one():
    features = np.random.default_rng(0).normal(size=(20, 4))
    result = probe_features(features[:15], features[15:], Targets.from_labels([3] * 15, [3] * 5), EvaluateSpec())
    assert (result.knn, result.linear_probe, result.multilabel_map) == (1.0, 1.0, None)


def test_collapsed_features_score_like_chance_and_do_not_fail(sets):
    _, _, train_labels, test_labels = sets
    targets = Targets.from_labels(train_labels, test_labels)
    result = probe_features(np.ones((300, 4)), np.ones((120, 4)), targets, EvaluateSpec())
    assert result.multilabel_map == pytest.approx(targets.test_MC.mean(axis=0).mean())


@pytest.mark.parametrize("side", ["train", "test"])
def test_features_that_are_not_finite_raise(sets, side):
    features = {"train": sets[0].copy(), "test": sets[1].copy()}
    features[side][3, 2] = np.nan
    with pytest.raises(DataError, match=f"1 of {len(features[side])} {side} rows"):
        probe_features(features["train"], features["test"], Targets.from_labels(*sets[2:]), EvaluateSpec())


def test_rows_without_a_label_each_raise(sets):
    train, test, train_labels, test_labels = sets
    with pytest.raises(LabelDataError, match="299 train rows have features, 300 have labels"):
        probe_features(train[:-1], test, Targets.from_labels(train_labels, test_labels), EvaluateSpec())


def test_importing_evaluation_and_charts_loads_no_heavy_library():
    code = (
        "import sys, mlcd_core.evaluate, mlcd_core.charts;"
        "print({'sklearn', 'matplotlib', 'scipy', 'torch', 'ray', 'prefect'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
