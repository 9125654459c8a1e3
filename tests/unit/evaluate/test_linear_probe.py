"""The probe against plain gradient descent on the same objective, and the choice of its strength."""

import warnings

import numpy as np
import pytest

from mlcd_core.errors import ConfigError
from mlcd_core.evaluate import linear_probe
from mlcd_core.evaluate.linear_probe import choose_c, fit_probe, top_class_hits


def scenes(num_rows, num_classes, seed, noise=1.0):
    rng = np.random.default_rng(seed)
    classes = rng.random((num_rows, num_classes)) < 0.4
    directions = np.random.default_rng(99).normal(size=(num_classes, 6))
    return classes @ directions + noise * rng.normal(size=(num_rows, 6)), classes


def one_hot(labels, num_classes):
    return np.eye(num_classes, dtype=bool)[labels]


def naive_logistic(features, target, c, steps=6000, rate=0.3):
    """Minimise sum of log(1 + exp(-y f)) plus |w|^2 / 2c by gradient descent on standardised columns."""
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    w, b = np.zeros(x.shape[1]), 0.0
    for _ in range(steps):
        error = 1 / (1 + np.exp(-(x @ w + b))) - target
        w -= rate * (x.T @ error + w / c) / len(x)
        b -= rate * error.mean()
    return x @ w + b


def naive_softmax(features, labels, num_classes, c, steps=6000, rate=0.3):
    x = (features - features.mean(axis=0)) / features.std(axis=0)
    w, b = np.zeros((num_classes, x.shape[1])), np.zeros(num_classes)
    for _ in range(steps):
        logits = x @ w.T + b
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        error = p / p.sum(axis=1, keepdims=True) - one_hot(labels, num_classes)
        w -= rate * (error.T @ x + w / c) / len(x)
        b -= rate * error.mean(axis=0)
    return x @ w.T + b


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_label_sets_are_fitted_one_against_the_rest(c):
    features, classes = scenes(80, 3, seed=0)
    probe = fit_probe(features, classes, kind="multi", c=c)
    expected = np.stack([naive_logistic(features, classes[:, k], c) for k in range(3)], axis=1)
    np.testing.assert_allclose(probe.scores(features), expected, atol=5e-3)
    assert probe.converged
    assert 0 < probe.iterations < linear_probe.MAX_ITERATIONS


def test_single_labels_are_fitted_as_one_softmax():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, 90)
    features = rng.normal(size=(4, 5))[labels] + rng.normal(size=(90, 5))
    probe = fit_probe(features, one_hot(labels, 4), kind="single", c=0.5)
    np.testing.assert_allclose(
        centred(probe.scores(features)), centred(naive_softmax(features, labels, 4, 0.5)), atol=5e-3
    )


def test_two_single_classes_are_one_logistic_regression():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 60)
    features = labels[:, None] * np.ones(4) + rng.normal(size=(60, 4))
    scores = fit_probe(features, one_hot(labels, 2), kind="single", c=1.0).scores(features)
    np.testing.assert_allclose(scores[:, 1] - scores[:, 0], naive_logistic(features, labels, 1.0), atol=5e-3)


def test_one_single_class_is_always_predicted():
    probe = fit_probe(np.random.default_rng(0).normal(size=(9, 3)), np.ones((9, 1), dtype=bool), kind="single", c=1.0)
    assert top_class_hits(probe.scores(np.zeros((4, 3))), np.ones((4, 1), dtype=bool)) == 1.0


def test_a_single_class_without_rows_is_never_predicted():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 3], size=40)
    scores = fit_probe(rng.normal(size=(40, 3)), one_hot(labels, 4), kind="single", c=1.0).scores(np.eye(3))
    assert (scores[:, 2] == -np.inf).all()
    assert np.isfinite(scores[:, [0, 1, 3]]).all()


def test_a_class_of_a_set_that_no_row_or_every_row_holds_scores_its_prior():
    features, classes = scenes(40, 4, seed=3)
    classes[:, 1], classes[:, 2] = False, True
    scores = fit_probe(features, classes, kind="multi", c=1.0).scores(features)
    np.testing.assert_allclose(scores[:, 1], np.log(0.5 / 40.5))
    np.testing.assert_allclose(scores[:, 2], np.log(40.5 / 0.5))


def test_constant_columns_change_nothing():
    features, classes = scenes(60, 3, seed=4)
    with_constant = np.hstack([features, np.full((60, 1), 0.3), np.full((60, 1), 0.1) + 1e-9])
    np.testing.assert_allclose(
        fit_probe(with_constant, classes, kind="multi", c=1.0).scores(with_constant),
        fit_probe(features, classes, kind="multi", c=1.0).scores(features),
        atol=1e-3,
    )


def test_a_fit_that_stops_at_the_limit_is_recorded_and_warns_nobody(monkeypatch):
    monkeypatch.setattr(linear_probe, "MAX_ITERATIONS", 2)
    features, classes = scenes(80, 3, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit_probe(features, classes, kind="multi", c=10.0).converged
        choice = choose_c(features, classes, kind="multi", candidates=(1.0, 10.0), seed=0)
    assert not choice.converged


def naive_choice(features, classes, candidates, seed, score):
    rows = list(np.random.default_rng(seed).permutation(len(features)))
    held_out, fitted = sorted(rows[: len(rows) // 5]), sorted(rows[len(rows) // 5 :])
    return [score(features[fitted], classes[fitted], features[held_out], classes[held_out], c) for c in candidates]


def test_strength_is_chosen_by_held_out_accuracy():
    rng = np.random.default_rng(6)
    labels = rng.integers(0, 3, 100)
    features = rng.normal(size=(3, 8))[labels] + 2 * rng.normal(size=(100, 8))

    def accuracy(fit_x, fit_y, x, y, c):
        scores = fit_probe(fit_x, fit_y, kind="single", c=c).scores(x)
        return sum(scores[i].argmax() == y[i].argmax() for i in range(len(x))) / len(x)

    candidates = (0.001, 0.1, 10.0)
    expected = naive_choice(features, one_hot(labels, 3), candidates, 7, accuracy)
    choice = choose_c(features, one_hot(labels, 3), kind="single", candidates=candidates, seed=7)
    assert choice.held_out_scores == pytest.approx(expected)
    assert choice.c == candidates[expected.index(max(expected))]


def test_ties_choose_the_smallest_strength():
    features, classes = scenes(100, 3, seed=8, noise=0.0)
    choice = choose_c(features, classes, kind="multi", candidates=(10.0, 1.0, 100.0), seed=0)
    assert set(choice.held_out_scores) == {1.0}
    assert choice.c == 1.0


def test_the_choice_reads_a_bounded_number_of_rows(monkeypatch):
    monkeypatch.setattr(linear_probe, "CHOICE_ROWS", 50)
    features, classes = scenes(200, 3, seed=9)
    read = np.random.default_rng(4).permutation(200)[:50]
    spoiled = features.copy()
    spoiled[np.setdiff1d(np.arange(200), read)] = 0.0
    wanted = {"kind": "multi", "candidates": (0.1, 1.0), "seed": 4}
    assert choose_c(spoiled, classes, **wanted) == choose_c(features, classes, **wanted)


@pytest.mark.parametrize("num_rows", [1, 4])
def test_too_few_rows_to_hold_out_take_the_smallest_strength(num_rows):
    features, classes = scenes(num_rows, 3, seed=9)
    choice = choose_c(features, classes, kind="multi", candidates=(1.0, 0.1), seed=0)
    assert (choice.c, choice.held_out_scores) == (0.1, ())


@pytest.mark.parametrize("candidates", [(), (1.0, 0.0), (-1.0,)])
def test_strengths_that_cannot_be_meant_raise(candidates):
    features, classes = scenes(10, 3, seed=9)
    with pytest.raises(ConfigError, match=r"evaluate\.probe_c"):
        choose_c(features, classes, kind="multi", candidates=candidates, seed=0)
