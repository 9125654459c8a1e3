"""Votes against sorted float64 cosines, written with loops."""

import math

import numpy as np
import pytest

from mlcd_core.evaluate import knn
from mlcd_core.evaluate.knn import TEMPERATURE, knn_votes


def unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def naive_votes(train, test, classes, k):
    votes = np.zeros((len(test), classes.shape[1]))
    for m, row in enumerate(test):
        cosines = [sum(a * b for a, b in zip(row, other, strict=True)) for other in train]
        nearest = sorted(range(len(train)), key=lambda n: (-cosines[n], n))[:k]
        weights = [math.exp(cosines[n] / TEMPERATURE) for n in nearest]
        for n, weight in zip(nearest, weights, strict=True):
            for c in range(classes.shape[1]):
                if classes[n, c]:
                    votes[m, c] += weight / sum(weights)
    return votes


@pytest.mark.parametrize("k", [1, 3, 20, 500])
def test_votes_are_those_of_sorted_cosines(k):
    rng = np.random.default_rng(k)
    train, test = unit(rng.normal(size=(60, 8))), unit(rng.normal(size=(25, 8)))
    classes = rng.random((60, 5)) < 0.3
    votes = knn_votes(train, test, classes, num_neighbors=k)
    np.testing.assert_allclose(votes, naive_votes(train, test, classes, min(k, 60)), atol=1e-5)


def test_blocks_do_not_change_the_neighbours(monkeypatch):
    rng = np.random.default_rng(0)
    train, test = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(31, 8)))
    classes = rng.random((50, 5)) < 0.3
    whole = knn_votes(train, test, classes, num_neighbors=7)
    monkeypatch.setattr(knn, "_BLOCK_VALUES", 200)  # four rows at a time
    np.testing.assert_allclose(knn_votes(train, test, classes, num_neighbors=7), whole, atol=1e-5)


def test_equal_cosines_take_the_lower_train_rows():
    train = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    votes = knn_votes(train, np.array([[1.0, 0.0]]), np.eye(5, dtype=bool), num_neighbors=2)
    np.testing.assert_allclose(votes, [[0, 0.5, 0.5, 0, 0]])


def test_rows_that_are_all_equal_vote_with_the_first_k():
    train = np.tile([[1.0, 0.0]], (30, 1))
    votes = knn_votes(train, train[:3], np.eye(30, dtype=bool), num_neighbors=4)
    np.testing.assert_allclose(votes, np.tile([[0.25] * 4 + [0] * 26], (3, 1)))


def test_zero_rows_get_finite_votes():
    train = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    votes = knn_votes(train, np.zeros((1, 2)), np.eye(3, dtype=bool), num_neighbors=3)
    np.testing.assert_allclose(votes, np.full((1, 3), 1 / 3), atol=1e-6)


def test_nearly_collapsed_features_keep_their_order():
    """Cosines here differ by 1e-6: float32 cosines find less than nine tenths of the true neighbours."""
    rng = np.random.default_rng(3)
    centre = rng.normal(size=16)
    train, test = (unit(centre + 1e-3 * rng.normal(size=(n, 16))) for n in (300, 40))
    classes = np.eye(300, dtype=bool)

    def found(votes):
        true = [set(np.argsort(-(train @ row), kind="stable")[:10]) for row in test]
        return np.mean([len(set(np.flatnonzero(vote)) & near) / 10 for vote, near in zip(votes, true, strict=True)])

    plain = [np.argsort(-(train.astype(np.float32) @ row), kind="stable")[:10] for row in test.astype(np.float32)]
    assert found([np.isin(np.arange(300), near) for near in plain]) < 0.9
    assert found(knn_votes(train, test, classes, num_neighbors=10)) == 1.0
