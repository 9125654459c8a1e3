"""Spherical k-means and top-k labels once more, in plain numpy integers; imports nothing from mlcd_core.

Rows and centroids are multiples of 2^-24, so their dots and sums are computed as integers, without any rounding at all.
Shapes: N rows, K centroids, D dims, L labels per row.
"""

import numpy as np

STEPS = 2**24


def normalised_rows(points_ND):
    """Float16 rows along the given ones: float64 normalisation, one rounding. Not for rows that are float16 already."""
    points_ND = np.asarray(points_ND, dtype=np.float64)
    return (points_ND / np.sqrt(tree_sum(points_ND**2))[:, None]).astype(np.float16)


def tree_sum(terms_ND):
    """Sum over D in the documented order: fold the upper half onto the lower half until one column is left."""
    columns = [terms_ND[:, d] for d in range(terms_ND.shape[1])]
    while len(columns) > 1:
        half = (len(columns) + 1) // 2
        columns = [columns[i] + columns[half + i] if half + i < len(columns) else columns[i] for i in range(half)]
    return columns[0]


def on_grid(directions_KD):
    """Unit rows along float64 directions, rounded to multiples of 2^-24."""
    unit_KD = directions_KD / np.sqrt(tree_sum(directions_KD * directions_KD))[:, None]
    return (np.rint(unit_KD * STEPS) / STEPS).astype(np.float32)


def integers(rows_ND):
    """Rows of grid values as int64, in steps of 2^-24."""
    steps_ND = np.asarray(rows_ND, dtype=np.float64) * STEPS
    assert (steps_ND == np.rint(steps_ND)).all()
    return steps_ND.astype(np.int64)


def scores_in_steps(points_ND, centroids_KD):
    """Exact dots as int64 in steps of 2^-48; unit rows keep every partial sum below 2^50."""
    return integers(points_ND) @ integers(centroids_KD).T


def top_labels(points_ND, centroids_KD, num_labels):
    """(ids, float64 cosines): the L best centroids of each row, equal scores by the lower id."""
    scores_NK = scores_in_steps(points_ND, centroids_KD)
    num_centroids = len(centroids_KD)
    ids_NL = [sorted(range(num_centroids), key=lambda k: (-scores_K[k], k))[:num_labels] for scores_K in scores_NK]
    cosines_NL = [[int(row[k]) / STEPS**2 for k in ids] for row, ids in zip(scores_NK, ids_NL, strict=True)]
    shape = (len(points_ND), num_labels)
    return np.array(ids_NL, np.int32).reshape(shape), np.array(cosines_NL, np.float64).reshape(shape)


def lloyd(points_ND, start_KD, iterations):
    """(centroids, objective per iteration, counts of the last assignment, splits per iteration), all iterations run."""
    centroids_KD, objective, splits = start_KD, [], []
    for _ in range(iterations):
        ids_N1, _ = top_labels(points_ND, centroids_KD, 1)
        # Python's integers and their quotient: nothing is rounded before the end
        dots = scores_in_steps(points_ND, centroids_KD)
        total = sum(int(row[k]) for row, k in zip(dots, ids_N1[:, 0], strict=True))
        objective.append(1 - total / (len(points_ND) * STEPS**2))
        counts_K = np.bincount(ids_N1[:, 0], minlength=len(centroids_KD))
        directions_KD = np.zeros(centroids_KD.shape)
        for cluster in range(len(centroids_KD)):
            total_D = integers(points_ND[ids_N1[:, 0] == cluster]).sum(axis=0) / STEPS
            directions_KD[cluster] = total_D if np.any(total_D) else centroids_KD[cluster]
        splits.append(split_empty(directions_KD, counts_K.copy()))
        centroids_KD = on_grid(directions_KD)
    return centroids_KD, objective, counts_K, splits


def split_empty(directions_KD, counts_K):
    """Give each empty cluster, in id order, half of the biggest one; returns how many there were."""
    signs_D = np.where(np.arange(directions_KD.shape[1]) % 2 == 0, 1.0, -1.0)
    empty_ids = [k for k in range(len(counts_K)) if counts_K[k] == 0]
    for empty in empty_ids:
        donor = int(np.argmax(counts_K))
        directions_KD[empty] = directions_KD[donor] * (1 + signs_D / 1024)
        directions_KD[donor] = directions_KD[donor] * (1 - signs_D / 1024)
        counts_K[empty] = counts_K[donor] // 2
        counts_K[donor] -= counts_K[empty]
    return len(empty_ids)


def splitmix64(*words):
    """The documented mixing in Python integers."""
    mixed = 0
    for number, word in enumerate(words):
        mixed = (word % 2**64) if number == 0 else mixed ^ (word % 2**64)
        mixed = (mixed + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed % 2**63


def hash_ranked_start(points_ND, row_ids, num_centroids, seed):
    """The first K rows with distinct values in the order of (hash of seed and row id, row id), on the grid."""
    order = sorted(range(len(points_ND)), key=lambda n: (splitmix64(seed, row_ids[n]), row_ids[n]))
    distinct = dict.fromkeys(tuple(points_ND[n].tolist()) for n in order)
    return on_grid(np.array(list(distinct)[:num_centroids], dtype=np.float64))


def blobs(num_rows, dim, num_blobs, seed, noise=0.5):
    """Float32 rows around random directions."""
    random = np.random.default_rng(seed)
    centers = random.standard_normal((num_blobs, dim))
    rows = centers[random.integers(0, num_blobs, num_rows)] + noise * random.standard_normal((num_rows, dim))
    return rows.astype(np.float32)
