"""What the probes must predict: the label column of train and test rows as multi-hot matrices.

A single-label row is a set of one class, so every metric is written once, for sets. Classes are those seen in train, in
id order; a test class that no train row holds cannot be predicted and is an error rather than a silent miss.

Shapes: N train rows, M test rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mlcd_core.errors import LabelDataError

TargetKind = Literal["single", "multi"]
RawLabels = Sequence[int] | Sequence[Sequence[int]]

_NAMED_AT_MOST = 10


@dataclass(frozen=True, eq=False)
class Targets:
    """Multi-hot class sets of train and test rows; column c is ``classes[c]``."""

    kind: TargetKind
    classes: tuple[int, ...]
    train_NC: NDArray[np.bool_]
    test_MC: NDArray[np.bool_]

    @classmethod
    def from_labels(cls, train: RawLabels, test: RawLabels) -> "Targets":
        """Build from one int per row (``single``), or one list of ints per row (``multi``; a list may be empty).

        Raises LabelDataError for mixed or missing labels, negative ids, no labelled row on either side, and test
        classes unseen in train.
        """
        kind = _kind(train, "train")
        if _kind(test, "test") != kind:
            raise LabelDataError(
                f"train rows are {kind} label, test rows are not; give both one int per row or both a list of ints"
            )
        train_sets, test_sets = _class_sets(train), _class_sets(test)
        classes = tuple(sorted(set().union(*train_sets)))
        unseen = sorted(set().union(*test_sets) - set(classes))
        if unseen:
            raise LabelDataError(
                f"{len(unseen)} test classes are in no train row: {_some(unseen)}; train rows hold {len(classes)} "
                "classes; add train rows of these classes or drop their test rows"
            )
        if not any(test_sets):
            raise LabelDataError(f"none of {len(test_sets)} test rows holds a class; give eval_data with labels")
        return cls(kind, classes, _multi_hot(train_sets, classes), _multi_hot(test_sets, classes))


def _kind(rows: RawLabels, side: str) -> TargetKind:
    if not len(rows):
        raise LabelDataError(f"there are no {side} rows to evaluate on; expected at least one labelled row")
    kinds = {_row_kind(row, f"{side} row {i}") for i, row in enumerate(rows)}
    if len(kinds) > 1:
        raise LabelDataError(f"{side} labels mix ints and lists of ints; expected one of the two in every row")
    return kinds.pop()


def _row_kind(row: object, where: str) -> TargetKind:
    if _is_class_id(row, where):
        return "single"
    if isinstance(row, (Sequence, np.ndarray)) and not isinstance(row, (str, bytes)):
        for item in row:
            if not _is_class_id(item, where):
                raise LabelDataError(f"{where} holds {item!r} in its list; expected class ids, ints of 0 or more")
        return "multi"
    raise LabelDataError(f"{where} has the label {row!r}; expected an int or a list of ints: drop rows without labels")


def _is_class_id(value: object, where: str) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        return False
    if value < 0:
        # many data sets write -1 for "no label": as a class of its own it would be scored without a word
        raise LabelDataError(f"{where} has the class id {value}; expected 0 or more: drop rows without labels")
    return True


def _class_sets(rows: RawLabels) -> list[set[int]]:
    return [{int(row)} if isinstance(row, (int, np.integer)) else {int(item) for item in row} for row in rows]


def _multi_hot(sets: list[set[int]], classes: tuple[int, ...]) -> NDArray[np.bool_]:
    column = {class_id: c for c, class_id in enumerate(classes)}
    hot_NC = np.zeros((len(sets), len(classes)), dtype=np.bool_)
    for row, members in enumerate(sets):
        hot_NC[row, [column[class_id] for class_id in members]] = True
    return hot_NC


def _some(ids: list[int]) -> str:
    more = f" and {len(ids) - _NAMED_AT_MOST} more" if len(ids) > _NAMED_AT_MOST else ""
    return ", ".join(map(str, ids[:_NAMED_AT_MOST])) + more
