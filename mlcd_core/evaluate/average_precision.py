"""Mean average precision over classes, with the classes that have no positive row left out and counted.

Shapes: N rows, C classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MeanAveragePrecision:
    """``value`` is None when no class has a positive row."""

    value: float | None
    classes_scored: int
    classes_left_out: int


def mean_average_precision(scores_NC: NDArray[np.floating], truth_NC: NDArray[np.bool_]) -> MeanAveragePrecision:
    """Average over classes of the step-wise area under precision and recall; rows of equal score enter together."""
    from sklearn.metrics import average_precision_score

    scored = np.flatnonzero(truth_NC.any(axis=0))
    values = [float(average_precision_score(truth_NC[:, c], scores_NC[:, c])) for c in scored]
    value = float(np.mean(values)) if values else None
    return MeanAveragePrecision(value, len(scored), truth_NC.shape[1] - len(scored))
