"""A linear classifier on frozen features, its regularisation chosen on training rows only.

scikit-learn's LogisticRegression with L-BFGS: multinomial for single labels, one-vs-rest for label sets. Features are
standardised by the rows that are fitted. C is chosen on one seeded 80/20 split of the training rows (at most 10,000 of
them: C bounds the weights, not the number of rows, so it carries over), then the probe is fitted again on all of them.
Nothing here sees a test row. The same bits come out on one machine kind and thread count.

Shapes: N rows, D dims, C classes; the scalar ``c`` is the inverse L2 strength.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlcd_core.errors import ConfigError
from mlcd_core.evaluate.average_precision import mean_average_precision
from mlcd_core.evaluate.targets import TargetKind

CHOICE_ROWS = 10_000
HELD_OUT_SHARE = 0.2
MAX_ITERATIONS = 300
# a column that varies less than fp32 resolves within a unit row holds rounding noise: leave it small
_SMALLEST_STD = 1e-7


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A fitted probe. ``converged`` is False when any of its fits stopped at the iteration limit."""

    mean_D: NDArray[np.float64]
    scale_D: NDArray[np.float64]
    weights_CD: NDArray[np.float64]
    bias_C: NDArray[np.float64]
    converged: bool
    iterations: int

    def scores(self, features_ND: NDArray[np.floating]) -> NDArray[np.float64]:
        """Logit of each class per row; comparable between the classes of a row."""
        standard_ND = (features_ND - self.mean_D) / self.scale_D
        scores_NC: NDArray[np.float64] = standard_ND @ self.weights_CD.T + self.bias_C
        return scores_NC


@dataclass(frozen=True)
class Choice:
    """The inverse strength with the best held-out score, and the score of each value tried (empty: nothing to try)."""

    c: float
    held_out_scores: tuple[float, ...]
    converged: bool


def choose_c(
    features_ND: NDArray[np.floating],
    classes_NC: NDArray[np.bool_],
    *,
    kind: TargetKind,
    candidates: Sequence[float],
    seed: int,
) -> Choice:
    """Pick ``c`` by held-out accuracy (single) or mean average precision (multi); the smallest wins ties."""
    if not candidates or min(candidates) <= 0:
        raise ConfigError(f"evaluate.probe_c is {list(candidates)}; expected one or more numbers above 0")
    rows = np.random.default_rng(seed).permutation(len(features_ND))[:CHOICE_ROWS]
    num_held_out = int(len(rows) * HELD_OUT_SHARE)
    if len(candidates) == 1 or not num_held_out:
        return Choice(min(candidates), (), True)
    held_out, fitted = np.sort(rows[:num_held_out]), np.sort(rows[num_held_out:])
    probes = [fit_probe(features_ND[fitted], classes_NC[fitted], kind=kind, c=c) for c in candidates]
    scores = [_score(probe.scores(features_ND[held_out]), classes_NC[held_out], kind) for probe in probes]
    best = max(range(len(candidates)), key=lambda i: (scores[i], -candidates[i]))
    return Choice(candidates[best], tuple(scores), all(probe.converged for probe in probes))


def fit_probe(
    features_ND: NDArray[np.floating], classes_NC: NDArray[np.bool_], *, kind: TargetKind, c: float
) -> LinearProbe:
    """Fit on all given rows. A class that no row or every row holds gets a constant score: its prior."""
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    standard_ND = features_ND - mean_D
    std_D = np.sqrt(np.einsum("nd,nd->d", standard_ND, standard_ND) / len(standard_ND))
    scale_D = np.where(std_D > _SMALLEST_STD, std_D, 1.0)
    standard_ND /= scale_D
    fit = _fit_multinomial if kind == "single" else _fit_one_vs_rest
    weights_CD, bias_C, converged, iterations = fit(standard_ND, classes_NC, c)
    return LinearProbe(mean_D, scale_D, weights_CD, bias_C, converged, iterations)


def top_class_hits(scores_NC: NDArray[np.floating], classes_NC: NDArray[np.bool_]) -> float:
    """Share of rows whose best class (the lower id on ties) is in the row's set: accuracy when sets hold one class."""
    best_N = scores_NC.argmax(axis=1)
    return float(classes_NC[np.arange(len(best_N)), best_N].mean())


_Fit = tuple[NDArray[np.float64], NDArray[np.float64], bool, int]


def _fit_multinomial(standard_ND: NDArray[np.float64], classes_NC: NDArray[np.bool_], c: float) -> _Fit:
    weights_CD, bias_C = np.zeros((classes_NC.shape[1], standard_ND.shape[1])), np.zeros(classes_NC.shape[1])
    present = np.flatnonzero(classes_NC.any(axis=0))
    bias_C[np.setdiff1d(np.arange(len(bias_C)), present)] = -np.inf
    if len(present) == 1:
        return weights_CD, bias_C, True, 0
    coefficients, intercepts, converged, iterations = _fit_logistic(standard_ND, classes_NC.argmax(axis=1), c)
    # two classes come back as one row of logits for the second against the first
    rows = present if len(present) > 2 else present[1:]
    weights_CD[rows], bias_C[rows] = coefficients, intercepts
    return weights_CD, bias_C, converged, iterations


def _fit_one_vs_rest(standard_ND: NDArray[np.float64], classes_NC: NDArray[np.bool_], c: float) -> _Fit:
    weights_CD = np.zeros((classes_NC.shape[1], standard_ND.shape[1]))
    positives_C = classes_NC.sum(axis=0)
    bias_C = np.log((positives_C + 0.5) / (len(classes_NC) - positives_C + 0.5))
    all_converged, most_iterations = True, 0
    for column in np.flatnonzero((positives_C > 0) & (positives_C < len(classes_NC))):
        coefficients, intercepts, converged, iterations = _fit_logistic(standard_ND, classes_NC[:, column], c)
        weights_CD[column], bias_C[column] = coefficients[0], intercepts[0]
        all_converged, most_iterations = all_converged and converged, max(most_iterations, iterations)
    return weights_CD, bias_C, all_converged, most_iterations


def _fit_logistic(standard_ND: NDArray[np.float64], target_N: NDArray[np.generic], c: float) -> _Fit:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, solver="lbfgs", max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(standard_ND, target_N)
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    # the limit, and a line search that gave up, are both reported as this warning
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return model.coef_, model.intercept_, converged, int(model.n_iter_.max())


def _score(scores_NC: NDArray[np.float64], classes_NC: NDArray[np.bool_], kind: TargetKind) -> float:
    if kind == "single":
        return top_class_hits(scores_NC, classes_NC)
    return mean_average_precision(scores_NC, classes_NC).value or 0.0
