"""Fitting a codebook: its two steps against plain loops, and what a fitted one does to the images it was fitted to."""

import numpy as np
import pytest
import torch

from mlcd_core.images.decode import decode_images
from mlcd_core.images.digit_scenes import scene_table
from mlcd_core.images.fit_hog_words import RIDGE, codebook_bytes, fit_codebook, nearest, spherical_kmeans
from mlcd_core.images.hog_words import Codebook, build_hog_words, window_descriptors, word_matches

NUM_WORDS, DIM = 30, 8


@pytest.fixture(scope="module")
def images_BCHW() -> torch.Tensor:
    pngs = scene_table("train", 0, 120, seed=0)["png"].to_pylist()
    return torch.from_numpy(decode_images(pngs, image_size=32, max_pixels=1024).pixels_BCHW)


@pytest.fixture(scope="module")
def book(images_BCHW: torch.Tensor) -> Codebook:
    return fit_codebook(images_BCHW, num_words=NUM_WORDS, dim=DIM, seed=3)


def naive_kmeans(points: np.ndarray, centroids: np.ndarray, iterations: int) -> np.ndarray:
    """Point by point, in float64."""
    for _ in range(iterations):
        nearest_ids = [max(range(len(centroids)), key=lambda k: point @ centroids[k]) for point in points]
        for k in range(len(centroids)):
            members = [point for point, nearest_id in zip(points, nearest_ids, strict=True) if nearest_id == k]
            total = np.sum(members, axis=0) if members else centroids[k]
            centroids[k] = total / np.linalg.norm(total)
    return centroids


def test_spherical_kmeans_equals_a_loop_over_points() -> None:
    points = np.random.default_rng(0).standard_normal((200, 6)) + 0.5
    drawn = torch.randperm(200, generator=torch.Generator().manual_seed(5))[:7].numpy()
    expected = naive_kmeans(points, points[drawn].copy(), iterations=4)
    found = spherical_kmeans(
        torch.from_numpy(points), 7, iterations=4, generator=torch.Generator().manual_seed(5)
    ).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_a_centroid_that_loses_all_its_points_stays() -> None:
    points = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 2.0]])  # of two equal ones, the first takes all
    for seed in range(6):
        centroids = spherical_kmeans(points, 3, iterations=3, generator=torch.Generator().manual_seed(seed))
        assert sorted(centroids.tolist()) == [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]


def test_the_nearest_is_that_of_one_product_also_over_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    points, centroids = (torch.randn((n, 4), generator=generator, dtype=torch.float64) for n in (5_000, 9))
    assert torch.equal(nearest(points, centroids), (points @ centroids.T).argmax(dim=1))


def test_projected_images_are_centred_uncorrelated_and_whitened_up_to_the_ridge(
    images_BCHW: torch.Tensor, book: Codebook
) -> None:
    matches_BK = word_matches(window_descriptors(images_BCHW), book.words_KW, contrast=book.contrast).double().numpy()
    variances = np.linalg.svd(matches_BK - matches_BK.mean(axis=0), compute_uv=False)[:DIM] ** 2 / len(matches_BK)
    projected_BD = (
        build_hog_words(codebook_bytes(book), image_size=32, device="cpu").encode(images_BCHW).double().numpy()
    )
    np.testing.assert_allclose(projected_BD.mean(axis=0), 0, atol=1e-4)
    covariance_DD = projected_BD.T @ projected_BD / len(projected_BD)
    np.testing.assert_allclose(covariance_DD, np.diag(variances / (variances + RIDGE * variances[0])), atol=1e-3)


def test_words_are_unit_windows_and_the_seed_counts(images_BCHW: torch.Tensor, book: Codebook) -> None:
    torch.testing.assert_close(book.words_KW.norm(dim=1), torch.ones(NUM_WORDS))
    other = fit_codebook(images_BCHW, num_words=NUM_WORDS, dim=DIM, seed=4)
    assert codebook_bytes(other) != codebook_bytes(book)
