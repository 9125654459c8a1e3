"""What every search backend must hold, judged by integer arithmetic. Used on the CPU here and on CUDA in tests/gpu."""

import numpy as np
import torch

from mlcd_core.kmeans.shortlist import best_of
from tests.unit.kmeans import oracle


def problem(kind, num_rows, num_centroids, dim):
    """(points_ND float16, centroids_KD float32): random, near ties of one blob, duplicates, or all the same."""
    if kind == "constant":
        row = oracle.blobs(1, dim, 1, seed=0)
        points, centroids = np.repeat(row, num_rows, axis=0), np.repeat(row, num_centroids, axis=0)
    elif kind == "tied":
        points, centroids = (oracle.blobs(n, dim, 1, seed=0, noise=1e-3) for n in (num_rows, num_centroids))
    else:
        points, centroids = oracle.blobs(num_rows, dim, 4, seed=0), oracle.blobs(num_centroids, dim, 4, seed=1)
        if kind == "duplicate":
            centroids = centroids[np.arange(num_centroids) // 3]
    return oracle.normalised_rows(points), oracle.on_grid(centroids.astype(np.float64))


def assert_sound(search, points_ND, centroids_KD, num_labels, *, device="cpu"):
    """The shortlists are well-formed, the ceilings true and tight, and settled rows have the oracle's labels.

    Returns the share of rows that were settled.
    """
    points = torch.from_numpy(points_ND).to(device)
    found = search.propose(points, num_labels)
    num_rows, num_centroids = len(points_ND), len(centroids_KD)
    num_candidates = min(num_labels + search.spare, num_centroids)
    assert found.ids_P.dtype == torch.int64
    assert found.ceiling_B.dtype == torch.float64
    assert found.ids_P.device == found.ceiling_B.device == points.device
    ids_BM = found.ids_P.cpu().numpy().reshape(num_rows, num_candidates)
    assert np.array_equal(found.offsets_B1.cpu().numpy(), np.arange(num_rows + 1) * num_candidates)
    assert ((ids_BM >= 0) & (ids_BM < num_centroids)).all()
    assert (np.diff(np.sort(ids_BM, axis=1), axis=1) > 0).all()

    ceiling_B = found.ceiling_B.cpu().numpy()
    exact_BK = oracle.scores_in_steps(points_ND, centroids_KD) / oracle.STEPS**2
    left_BK = exact_BK.copy()
    np.put_along_axis(left_BK, ids_BM, -np.inf, axis=1)
    assert (left_BK.max(axis=1) <= ceiling_B).all()
    # the errors of float16 centroids and of 1024 float32 products stay below 1e-3, and count twice
    assert (ceiling_B <= np.sort(exact_BK, axis=1)[:, -num_candidates] + 2e-3).all()
    if num_candidates == num_centroids:
        assert (ceiling_B == -np.inf).all()

    best_ids, best_cosines = best_of(points, torch.from_numpy(centroids_KD).to(device), found, num_labels)
    ids_BL, cosines_BL = oracle.top_labels(points_ND, centroids_KD, num_labels)
    settled_B = best_cosines[:, -1].cpu().numpy() > ceiling_B
    assert np.array_equal(best_ids.cpu().numpy()[settled_B], ids_BL[settled_B])
    assert np.array_equal(best_cosines.cpu().numpy()[settled_B], cosines_BL[settled_B])
    return settled_B.mean() if num_rows else 1.0
