import numpy as np
import pytest
import torch

from mlcd_core.kmeans import ArrayPoints, nearest_centroids
from mlcd_core.kmeans.two_level import TwoLevel, group_centroids
from tests.unit.kmeans import oracle


def centroids(num_centroids, dim, seed=0, noise=0.5):
    return oracle.on_grid(oracle.blobs(num_centroids, dim, 9, seed=seed, noise=noise).astype(np.float64))


def rows(num_rows, dim, seed=1, noise=0.5):
    return ArrayPoints(oracle.blobs(num_rows, dim, 9, seed=seed, noise=noise)).points_ND


def rounded(rows_ND, step_N):
    return np.rint(np.asarray(rows_ND, np.float32) / step_N).astype(np.int64)


def best_of_probed_groups(rows_ND, centroids_KD, groups, probes):
    """The documented rule in integers: groups by int8 scores, then the exact best among their centroids."""
    rows_ND, share = np.asarray(rows_ND, np.float32), np.float32(1 / 127)
    mean_D = (centroids_KD.astype(np.float64).sum(axis=0) / len(centroids_KD)).astype(np.float32)
    centers_GD = groups.centers_GD.numpy() - mean_D
    center_values = rounded(centers_GD, np.abs(centers_GD).max() * share)
    row_values = rounded(rows_ND, np.abs(rows_ND).max(axis=1, keepdims=True) * share)
    exact_NK, ids = oracle.scores_in_steps(rows_ND, centroids_KD), []
    for scores_G, exact_K in zip(row_values @ center_values.T, exact_NK, strict=True):
        probed = sorted(range(len(scores_G)), key=lambda g: (-scores_G[g], g))[:probes]
        members = sorted(k for g in probed for k in groups.members[g].tolist())
        ids.append(max(members, key=lambda k: (exact_K[k], -k)))
    return ids


@pytest.mark.parametrize("exact_products", [True, False])
@pytest.mark.parametrize(("dim", "probes"), [(5, 1), (16, 1), (16, 3), (40, 7)])
def test_row_gets_the_exact_best_of_its_nearest_groups(dim, probes, exact_products, monkeypatch):
    if not exact_products:
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    centroids_KD, rows_ND = centroids(150, dim), rows(200, dim)
    groups = group_centroids(torch.from_numpy(centroids_KD), seed=0)
    two_level = TwoLevel(torch.from_numpy(centroids_KD), probes=probes, seed=0)
    expected = best_of_probed_groups(rows_ND.float().numpy(), centroids_KD, groups, probes)
    assert two_level.nearest(rows_ND).ids_B.tolist() == expected
    if probes < 3:
        exact = nearest_centroids(rows_ND, centroids_KD, num_labels=1).ids_NL[:, 0].tolist()
        assert expected != exact, "the case must be one where groups are missed"


@pytest.mark.parametrize(("num_centroids", "dim"), [(1, 4), (2, 4), (3, 4), (17, 1), (60, 3), (100, 24)])
def test_all_groups_probed_is_the_exact_answer(num_centroids, dim):
    centroids_KD, rows_ND = centroids(num_centroids, dim), rows(300, dim)
    two_level = TwoLevel(torch.from_numpy(centroids_KD), probes=10**6, seed=0)
    expected = nearest_centroids(rows_ND, centroids_KD, num_labels=1).ids_NL[:, 0]
    assert torch.equal(two_level.nearest(rows_ND).ids_B, expected)


def test_twins_and_equal_centroids_give_the_lower_id():
    half_KD = centroids(30, 8)
    centroids_KD = np.concatenate([half_KD, half_KD])
    rows_ND = rows(200, 8)
    two_level = TwoLevel(torch.from_numpy(centroids_KD), probes=10**6, seed=0)
    expected = nearest_centroids(rows_ND, centroids_KD, num_labels=1).ids_NL[:, 0]
    assert int(expected.max()) < 30
    assert torch.equal(two_level.nearest(rows_ND).ids_B, expected)
    equal = TwoLevel(torch.from_numpy(np.repeat(half_KD[:1], 50, axis=0)), probes=2, seed=0)
    assert equal.nearest(rows_ND).ids_B.tolist() == [0] * 200


def test_tiles_do_not_change_an_id():
    two_level, rows_ND = TwoLevel(torch.from_numpy(centroids(200, 12)), probes=2, seed=0), rows(300, 12)
    expected = two_level.nearest(rows_ND).ids_B
    for tile_rows in (1, 7, 100):
        found = [two_level.nearest(tile_BD).ids_B for tile_BD in torch.split(rows_ND, tile_rows)]
        assert torch.equal(torch.cat(found), expected)


def test_groups_are_a_partition_with_no_empty_group():
    # ten different centroids cannot fill fourteen groups
    centroids_KD = np.tile(centroids(10, 6), (20, 1))
    groups = group_centroids(torch.from_numpy(centroids_KD), seed=0)
    assert sorted(torch.cat(groups.members).tolist()) == list(range(200))
    assert len(groups.members) == len(groups.centers_GD) <= 10
    assert all(len(ids_M) > 0 and ids_M.tolist() == sorted(ids_M.tolist()) for ids_M in groups.members)
