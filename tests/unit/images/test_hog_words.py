"""hog_words: deterministic, blind to its batch, and clusters that name digits where random features do not."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mlcd_core.errors import ConfigError
from mlcd_core.images import hog_words
from mlcd_core.images.decode import decode_images
from mlcd_core.images.digit_scenes import digit_pool, scene_table
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.specs import EmbedSpec


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Small batches gain nothing from threads, and on a busy machine threads that wait for each other cost minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def embedder():
    spec = EmbedSpec()
    return build_embedder(spec, weights=find_weights(spec, ""), device="cpu")


def scenes(rows, *, split="train", seed=0):
    table = scene_table(split, 0, rows, seed=seed)
    pixels = decode_images(table["png"].to_pylist(), image_size=32, max_pixels=1024).pixels_BCHW
    labels = np.zeros((rows, 10), bool)
    for row, digits in enumerate(table["labels"].to_pylist()):
        labels[row, digits] = True
    return torch.from_numpy(pixels), labels


def purity(points_ND, labels_NC, *, k):
    """Share of rows that hold the most frequent digit of their spherical k-means cluster."""
    points_ND = F.normalize(points_ND, dim=1)
    centroids_KD = points_ND[:k]
    for _ in range(10):
        nearest_N = (points_ND @ centroids_KD.T).argmax(dim=1)
        centroids_KD = F.normalize(torch.zeros_like(centroids_KD).index_add_(0, nearest_N, points_ND), dim=1)
    nearest_N = nearest_N.numpy()
    return sum(labels_NC[nearest_N == c].sum(axis=0).max(initial=0) for c in range(k)) / len(labels_NC)


def test_packaged_codebook_is_small_and_has_the_fitted_shapes(embedder):
    weights = find_weights(EmbedSpec(), "")
    assert len(weights) <= 1_000_000
    book = embedder.codebook
    assert book.words_KW.shape == (500, hog_words.ORIENTATIONS * hog_words.CELLS**2)
    assert book.whitening_KD.shape == (500, embedder.dim) == (500, 128)
    assert book.mean_K.shape == (500,)
    assert book.contrast > 0
    torch.testing.assert_close(book.words_KW.norm(dim=1), torch.ones(500))


def test_encoding_is_deterministic(embedder):
    images, _ = scenes(40)
    features = embedder.encode(images)
    assert features.dtype == torch.float32
    assert features.shape == (40, 128)
    assert torch.equal(features, embedder.encode(images))


@pytest.mark.parametrize("batch_rows", [1, 7, 33])
def test_a_row_does_not_depend_on_its_batch(embedder, batch_rows):
    images, _ = scenes(66)
    together = embedder.encode(images)
    apart = torch.cat([embedder.encode(batch) for batch in torch.split(images, batch_rows)])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)


def test_clusters_are_purer_than_random_features_can_be(embedder):
    images, labels = scenes(1_500)
    random = torch.randn((len(images), embedder.dim), generator=torch.Generator().manual_seed(0))
    assert purity(random, labels, k=75) < 0.5  # chance: .34
    assert purity(embedder.encode(images), labels, k=75) >= 0.79


def test_test_scenes_cluster_as_well_though_their_digits_are_new(embedder):
    images, labels = scenes(600, split="test")
    assert purity(embedder.encode(images), labels, k=30) >= 0.79


def digit_at(image, left, top):
    scene = torch.zeros((3, 32, 32))
    scene[:, top : top + 12, left : left + 12] = F.interpolate(image[None, None], size=(12, 12), mode="bilinear")[0]
    return scene.to(torch.uint8)


@pytest.mark.parametrize("place", [(16, 14), (15, 9)])
def test_a_digit_finds_itself_among_50_at_another_place(embedder, place):
    """Windows stand 2 px apart, so the place still shows: measured .62 and .78, chance is .02."""
    pool = digit_pool("test")
    picks = [np.flatnonzero(pool.values == value)[i] for value in range(10) for i in range(5)]
    digits = torch.from_numpy(pool.images[picks]).float()
    here = F.normalize(embedder.encode(torch.stack([digit_at(digit, 2, 2) for digit in digits])), dim=1)
    elsewhere = F.normalize(embedder.encode(torch.stack([digit_at(digit, *place) for digit in digits])), dim=1)
    assert ((here @ elsewhere.T).argmax(dim=1) == torch.arange(50)).float().mean() > 0.4


@pytest.mark.parametrize("value", [0, 255])
def test_a_blank_image_has_a_finite_embedding(embedder, value):
    features = embedder.encode(torch.full((1, 3, 32, 32), value, dtype=torch.uint8))
    assert torch.isfinite(features).all()
    assert features.norm() > 0


def test_other_image_sizes_scale_the_windows(embedder):
    spec = EmbedSpec(image_size=64)
    larger = build_embedder(spec, weights=find_weights(spec, ""), device="cpu")
    assert larger.fingerprint != embedder.fingerprint
    images, _ = scenes(50)
    doubled = F.interpolate(images.float(), scale_factor=2, mode="bilinear").round().to(torch.uint8)
    similarity = F.cosine_similarity(embedder.encode(images), larger.encode(doubled))
    assert similarity.median() > 0.8


def naive_matches(image_CHW, book):
    """Every window of every level by loops, in float64, with numpy histograms instead of maps and unfold."""
    best = np.full(len(book.words_KW), -np.inf)
    words = book.words_KW.double().numpy()
    for size in hog_words.PYRAMID:
        image = F.interpolate(image_CHW[None].double() / 255, size=(size, size), mode="bilinear", antialias=True)
        padded = np.pad(image[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
        energy = np.zeros((size, size, hog_words.ORIENTATIONS))
        for y in range(size):
            for x in range(size):
                across = padded[:, y + 1, x + 2] - padded[:, y + 1, x]
                down = padded[:, y + 2, x + 1] - padded[:, y, x + 1]
                colour = np.argmax(across**2 + down**2)
                place = np.arctan2(down[colour], across[colour]) % np.pi / np.pi * hog_words.ORIENTATIONS
                low = int(place) % hog_words.ORIENTATIONS
                strength = np.hypot(across[colour], down[colour])
                energy[y, x, low] += strength * (1 - place % 1)
                energy[y, x, (low + 1) % hog_words.ORIENTATIONS] += strength * (place % 1)
        for top in range(0, size - 11, 2):
            for left in range(0, size - 11, 2):
                window = energy[top : top + 12, left : left + 12].reshape(4, 3, 4, 3, -1).mean(axis=(1, 3))
                vector = window.transpose(2, 0, 1).ravel()
                best = np.maximum(best, words @ (vector / np.sqrt((vector**2).sum() + book.contrast.item() ** 2)))
    return np.maximum(best - hog_words.WORD_THRESHOLD, 0) ** 2


def test_word_matches_equal_a_naive_reference(embedder):
    images, _ = scenes(3, seed=5)
    book = embedder.codebook
    matches = hog_words.word_matches(hog_words.window_descriptors(images), book.words_KW, contrast=book.contrast)
    for image, row in zip(images, matches, strict=True):
        np.testing.assert_allclose(row.numpy(), naive_matches(image, book), atol=2e-5)


def test_a_file_that_is_no_codebook_says_what_to_do():
    for weights in (b"not safetensors at all", b""):
        with pytest.raises(ConfigError, match=r"leave embed\.pretrained empty"):
            build_embedder(EmbedSpec(), weights=weights, device="cpu")


def test_a_codebook_with_other_tensors_is_refused():
    from safetensors.torch import save

    with pytest.raises(ConfigError, match="expected a safetensors file with words_KW"):
        build_embedder(EmbedSpec(), weights=save({"words": torch.ones(2)}), device="cpu")
