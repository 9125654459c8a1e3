"""How much frozen features know: kNN and a linear probe, fitted on train rows, scored once on test rows.

Everything that is fitted or chosen comes from train rows; test labels enter the scores and nothing else. Label sets
are scored by the best class of each row and by mean average precision over classes.

Shapes: N train rows, M test rows, D dims.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlcd_core.errors import DataError, LabelDataError
from mlcd_core.evaluate.average_precision import mean_average_precision
from mlcd_core.evaluate.knn import knn_votes
from mlcd_core.evaluate.linear_probe import choose_c, fit_probe, top_class_hits
from mlcd_core.evaluate.targets import Targets
from mlcd_core.specs import EvaluateSpec


@dataclass(frozen=True)
class ProbeDetails:
    """What stands behind the scores: the settings that were chosen, and what was left out."""

    knn_neighbors: int
    knn_map: float | None
    probe_c: float
    held_out_scores: tuple[float, ...]  # one per value of spec.probe_c; empty when there was no choice to make
    converged: bool  # the probe that is scored
    choice_converged: bool  # every fit that took part in the choice of probe_c
    probe_iterations: int
    classes_scored: int
    classes_without_test_rows: int
    test_rows_without_class: int  # such a row can never be right in knn and linear_probe


@dataclass(frozen=True)
class ProbeScores:
    """Single label: ``knn`` and ``linear_probe`` are accuracies, ``multilabel_map`` is None.

    Label sets: ``knn`` and ``linear_probe`` are the share of test rows whose top-voted (most confident) class is in
    the row's set; ``multilabel_map`` is the mean average precision of the one-vs-rest probe.
    """

    knn: float
    linear_probe: float
    multilabel_map: float | None
    details: ProbeDetails


def probe_features(
    train_ND: NDArray[np.floating], test_MD: NDArray[np.floating], targets: Targets, spec: EvaluateSpec
) -> ProbeScores:
    """Score features of usable rows, in the row order of ``targets``; rows are L2-normalised, a zero row stays zero.

    Raises LabelDataError when rows and labels do not match, DataError when features are not finite.
    """
    _check(train_ND, test_MD, targets)
    train_ND, test_MD = _unit_rows(train_ND), _unit_rows(test_MD)
    multi = targets.kind == "multi"

    votes_MC = knn_votes(train_ND, test_MD, targets.train_NC, num_neighbors=spec.knn)
    choice = choose_c(train_ND, targets.train_NC, kind=targets.kind, candidates=spec.probe_c, seed=spec.seed)
    probe = fit_probe(train_ND, targets.train_NC, kind=targets.kind, c=choice.c)
    logits_MC = probe.scores(test_MD)

    scored = int(targets.test_MC.any(axis=0).sum())
    return ProbeScores(
        knn=top_class_hits(votes_MC, targets.test_MC),
        linear_probe=top_class_hits(logits_MC, targets.test_MC),
        multilabel_map=mean_average_precision(logits_MC, targets.test_MC).value if multi else None,
        details=ProbeDetails(
            knn_neighbors=min(spec.knn, len(train_ND)),
            knn_map=mean_average_precision(votes_MC, targets.test_MC).value if multi else None,
            probe_c=choice.c,
            held_out_scores=choice.held_out_scores,
            converged=probe.converged,
            choice_converged=choice.converged,
            probe_iterations=probe.iterations,
            classes_scored=scored,
            classes_without_test_rows=len(targets.classes) - scored,
            test_rows_without_class=int((~targets.test_MC.any(axis=1)).sum()),
        ),
    )


def _check(train_ND: NDArray[np.floating], test_MD: NDArray[np.floating], targets: Targets) -> None:
    assert train_ND.ndim == test_MD.ndim == 2, "features are rows x dims"
    assert train_ND.shape[1] == test_MD.shape[1], "train and test features come from one embedder"
    for side, features, classes in (("train", train_ND, targets.train_NC), ("test", test_MD, targets.test_MC)):
        if len(features) != len(classes):
            raise LabelDataError(
                f"{len(features)} {side} rows have features, {len(classes)} have labels; expected a label for each"
            )
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        if bad:
            raise DataError(f"{bad} of {len(features)} {side} rows have features that are NaN or infinite; drop them")


def _unit_rows(features_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    unit_ND = features_ND.astype(np.float64)
    norm_N1 = np.linalg.norm(unit_ND, axis=1, keepdims=True)
    unit_ND /= np.where(norm_N1 > 0, norm_N1, 1.0)
    return unit_ND
