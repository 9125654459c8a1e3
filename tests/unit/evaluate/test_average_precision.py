"""Mean average precision against the definition, written with loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.evaluate.average_precision import mean_average_precision


def naive_average_precision(scores, truth):
    """Sum of precision times gain in recall, at every distinct score from the highest down."""
    total = 0.0
    recall_before = 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for s, t in zip(scores, truth, strict=True) if s >= threshold]
        recall = sum(taken) / sum(truth)
        total += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return total


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.integers(1, 12), st.integers(1, 4), st.randoms(use_true_random=False))
def test_value_is_the_mean_of_naive_average_precision_with_ties(num_rows, num_classes, random):
    scores = np.array([[random.randint(0, 4) / 4 for _ in range(num_classes)] for _ in range(num_rows)])
    truth = np.array([[random.random() < 0.4 for _ in range(num_classes)] for _ in range(num_rows)])
    columns = [c for c in range(num_classes) if truth[:, c].any()]
    result = mean_average_precision(scores, truth)
    assert (result.classes_scored, result.classes_left_out) == (len(columns), num_classes - len(columns))
    if not columns:
        assert result.value is None
    else:
        expected = [naive_average_precision(scores[:, c].tolist(), truth[:, c].tolist()) for c in columns]
        assert result.value == pytest.approx(sum(expected) / len(expected), abs=1e-12)


def test_perfect_order_scores_one_and_constant_scores_give_the_share_of_positives():
    truth = np.array([[True], [True], [False], [False]])
    assert mean_average_precision(np.array([[4.0], [3.0], [2.0], [1.0]]), truth).value == 1.0
    assert mean_average_precision(np.zeros((4, 1)), truth).value == 0.5
