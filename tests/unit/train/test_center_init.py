"""Centers that start from centroids: their direction, the length of random centers, the same on any rank."""

import numpy as np
import pytest
import torch

from mlcd_core.errors import ConfigError
from mlcd_core.train.center_init import initial_centers, principal_map
from mlcd_core.train.head import ShardedHead
from tests.unit.train.tiny import tiny_spec

NUM_CLASSES = 40


def unit_rows(dim, num_rows=NUM_CLASSES, rank=None):
    """Random unit rows; those of a lower rank lie in a plane through 0."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(num_rows, rank or dim)) @ rng.normal(size=(rank or dim, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def centers(kind, centroids_KE, dim, num_classes=NUM_CLASSES):
    init = initial_centers(tiny_spec(center_init=kind), centroids_KE, num_classes=num_classes, dim=dim)
    return init(range(num_classes)).numpy()


def test_normal_leaves_it_to_the_head():
    assert initial_centers(tiny_spec(), None, num_classes=3, dim=4) is None


def test_centroids_keep_their_direction_and_get_the_length_of_random_centers():
    centroids_KE = unit_rows(64)
    found = centers("centroids", centroids_KE, 64)
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(found / lengths[:, None], centroids_KE, atol=1e-6)
    random_CD = ShardedHead(tiny_spec(), NUM_CLASSES, 64).centers_CD
    np.testing.assert_allclose(lengths, float(random_CD.norm(dim=1).square().mean().sqrt()), rtol=0.05)
    assert np.ptp(lengths) < 1e-9


def test_pca_keeps_the_angles_of_centroids_that_lie_in_so_many_dims():
    centroids_KE = unit_rows(30, rank=8)
    found = centers("centroids_pca", centroids_KE, 8)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, centroids_KE @ centroids_KE.T, atol=1e-5)


def test_pca_map_is_orthonormal_and_keeps_the_most_that_a_map_can():
    centroids_KE = unit_rows(12)
    map_ED = principal_map(centroids_KE, 5).numpy()
    np.testing.assert_allclose(map_ED.T @ map_ED, np.eye(5), atol=1e-12)
    singular = np.linalg.svd(centroids_KE.astype(np.float64), compute_uv=False)
    kept = np.square(centroids_KE @ map_ED).sum()
    np.testing.assert_allclose(kept, np.square(singular[:5]).sum(), rtol=1e-10)
    assert all(map_ED[np.abs(map_ED).argmax(axis=0), range(5)] > 0)


def test_pca_into_more_dims_pads_with_zeros_and_keeps_all_angles():
    centroids_KE = unit_rows(6)
    found = centers("centroids_pca", centroids_KE, 10)
    assert found.shape == (NUM_CLASSES, 10)
    assert not found[:, 6:].any()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, centroids_KE @ centroids_KE.T, atol=1e-5)


def test_a_range_of_classes_has_its_own_rows():
    init = initial_centers(tiny_spec(center_init="centroids_pca"), unit_rows(9), num_classes=NUM_CLASSES, dim=4)
    assert torch.equal(init(range(10, 20)), init(range(NUM_CLASSES))[10:20])


@pytest.mark.parametrize(
    ("kind", "centroids_KE", "message"),
    [
        ("centroids", unit_rows(30), "gives 8 dims while the centroids have 30; set train.center_init=centroids_pca"),
        ("centroids", unit_rows(8, num_rows=7), "7 centroids for 40 classes"),
        ("centroids_pca", None, "got none"),
    ],
)
def test_centroids_that_do_not_fit_are_refused(kind, centroids_KE, message):
    with pytest.raises(ConfigError, match=message):
        centers(kind, centroids_KE, 8)


def test_a_centroid_outside_the_kept_directions_is_refused():
    centroids_KE = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2]]
    with pytest.raises(ConfigError, match="centroid 5 has the length"):
        centers("centroids_pca", centroids_KE, 2, num_classes=6)
