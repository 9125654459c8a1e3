import numpy as np
import pytest

from mlcd_core.errors import LabelDataError
from mlcd_core.evaluate import Targets


def test_one_int_per_row_becomes_one_hot_rows_in_class_id_order():
    targets = Targets.from_labels([7, 2, 7, 30], [2, 30])
    assert targets.kind == "single"
    assert targets.classes == (2, 7, 30)
    assert targets.train_NC.tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert targets.test_MC.tolist() == [[1, 0, 0], [0, 0, 1]]


def test_lists_become_multi_hot_rows_and_a_list_may_be_empty_or_repeat_a_class():
    targets = Targets.from_labels([[5, 1], [], [9, 9]], [[], [9, 1]])
    assert targets.kind == "multi"
    assert targets.classes == (1, 5, 9)
    assert targets.train_NC.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert targets.test_MC.tolist() == [[0, 0, 0], [1, 0, 1]]
    assert targets.test_MC.dtype == np.bool_


def test_numpy_labels_are_the_same_as_lists():
    arrays = Targets.from_labels([np.array([5, 1]), np.array([], dtype=np.int64)], [np.array([1])])
    lists = Targets.from_labels([[5, 1], []], [[1]])
    assert arrays.classes == lists.classes
    assert (arrays.train_NC == lists.train_NC).all()
    assert Targets.from_labels(np.array([1, 0]), np.array([1])).kind == "single"


def test_a_class_that_is_absent_from_test_keeps_its_column():
    assert Targets.from_labels([0, 1, 2], [1]).test_MC.shape == (1, 3)


@pytest.mark.parametrize(("train", "test"), [([1, 2], [1, 8, 3, 3]), ([[1], [2]], [[1, 8], [3]])])
def test_test_classes_unseen_in_train_are_named(train, test):
    with pytest.raises(LabelDataError, match=r"2 test classes are in no train row: 3, 8;"):
        Targets.from_labels(train, test)


def test_a_long_list_of_unseen_classes_is_cut():
    with pytest.raises(LabelDataError, match=r"30 test classes.* 10 and 20 more;"):
        Targets.from_labels([0], list(range(31)))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([], [1], "no train rows"),
        ([1], [], "no test rows"),
        ([1, [1]], [1], "train labels mix"),
        ([1], [[1]], "train rows are single label, test rows are not"),
        ([1, None], [1], "train row 1 has the label None"),
        ([1], [1.0], "test row 0 has the label 1.0"),
        ([True], [1], "train row 0 has the label True"),
        (["3"], [3], "train row 0 has the label '3'"),
        ([[1, None]], [[1]], "train row 0 holds None"),
        ([1, -1], [1], "train row 1 has the class id -1"),
        ([[1, -1]], [[1]], "train row 0 has the class id -1"),
        ([[1]], [[], []], "none of 2 test rows holds a class"),
        ([[], []], [[]], "none of 1 test rows holds a class"),
    ],
)
def test_labels_that_cannot_be_meant_raise(train, test, message):
    with pytest.raises(LabelDataError, match=message):
        Targets.from_labels(train, test)
