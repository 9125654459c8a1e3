"""Fits the codebook of ``hog_words`` to images, without labels.

Words are spherical k-means centroids of windows drawn by energy; whitening is PCA with a ridge, over how well each
image matches each word. Equal images, seed and thread count give equal bytes.

B images, C = 3 colours, P window places, W numbers per window, N drawn windows, K words, D embedding dims, S windows
drawn of each image.
"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mlcd_core.errors import ConfigError, DataError, TooFewRowsError
from mlcd_core.images.hog_words import CHUNK_ROWS, Codebook, normalised_windows, window_descriptors, word_matches

WINDOWS_PER_IMAGE = 40
ITERATIONS = 20
# share of the largest variance added to all: bare whitening lifts noise directions (purity .90 against .93)
RIDGE = 0.02
TILE_ROWS = 4096


def fit_codebook(images_BCHW: Tensor, *, num_words: int, dim: int, seed: int) -> Codebook:
    """Fit ``num_words`` words and a projection to ``dim`` dims to uint8 RGB images of one size.

    Raises ConfigError for more dims than words, TooFewRowsError for more words than a quarter of the drawn windows,
    DataError for images without any shape.
    """
    _check(len(images_BCHW), num_words=num_words, dim=dim)
    generator = torch.Generator().manual_seed(seed)
    chunks = torch.split(images_BCHW, CHUNK_ROWS)
    windows_NW = torch.cat([_drawn_windows(window_descriptors(chunk), generator) for chunk in chunks])
    contrast = windows_NW.norm(dim=1).median()
    if contrast == 0:
        raise DataError(
            f"most windows of {len(images_BCHW):,} images are of one colour, so there is nothing to tell them apart; "
            "expected pictures: look at the image column"
        )
    unit_NW = normalised_windows(windows_NW, contrast=contrast)
    words_KW = spherical_kmeans(unit_NW, num_words, iterations=ITERATIONS, generator=generator)
    matches_BK = torch.cat([word_matches(window_descriptors(chunk), words_KW, contrast=contrast) for chunk in chunks])
    mean_K, whitening_KD = _whitened_pca(matches_BK, dim)
    return Codebook(words_KW=words_KW, contrast=contrast, mean_K=mean_K, whitening_KD=whitening_KD)


def codebook_bytes(codebook: Codebook) -> bytes:
    """The codebook as the file (safetensors) that ``build_hog_words`` reads."""
    from safetensors.torch import save

    data: bytes = save(vars(codebook))
    return data


def spherical_kmeans(points_NW: Tensor, num_words: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Unit centroids [K, W] after so many iterations from drawn points; one that loses all its points stays."""
    centroids_KW = points_NW[torch.randperm(len(points_NW), generator=generator)[:num_words]]
    for _ in range(iterations):
        nearest_N = nearest(points_NW, centroids_KW)
        sums_KW = torch.zeros_like(centroids_KW).index_add_(0, nearest_N, points_NW)
        empty_K = torch.bincount(nearest_N, minlength=num_words) == 0
        sums_KW[empty_K] = centroids_KW[empty_K]
        centroids_KW = F.normalize(sums_KW, dim=1)
    return centroids_KW


def nearest(points_NW: Tensor, centroids_KW: Tensor) -> Tensor:
    """The centroid with the largest dot product for each point, int64 [N]."""
    return torch.cat([(tile @ centroids_KW.T).argmax(dim=1) for tile in torch.split(points_NW, TILE_ROWS)])


def _check(num_images: int, *, num_words: int, dim: int) -> None:
    if not 1 <= dim <= num_words:
        raise ConfigError(f"{dim} dims of {num_words} words; expected 1 to {num_words}: give fewer dims or more words")
    num_windows = num_images * WINDOWS_PER_IMAGE
    if num_words > num_windows // 4:
        raise TooFewRowsError(
            f"{num_words:,} words from {num_images:,} images, {WINDOWS_PER_IMAGE} windows of each; words may be at "
            f"most windows/4: give at most {num_windows // 4:,} words, or more images"
        )


def _drawn_windows(windows_BPW: Tensor, generator: torch.Generator) -> Tensor:
    energy_BP = windows_BPW.square().sum(dim=2).clamp_min(1e-12)  # full windows are the ones with shapes
    picks_BS = torch.multinomial(energy_BP, WINDOWS_PER_IMAGE, generator=generator)
    return windows_BPW.gather(1, picks_BS[..., None].expand(-1, -1, windows_BPW.shape[2])).flatten(0, 1)


def _whitened_pca(rows_BK: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    mean_K = rows_BK.double().mean(dim=0)
    centered_BK = rows_BK.double() - mean_K
    variances, directions_KK = torch.linalg.eigh(centered_BK.T @ centered_BK / len(rows_BK))
    variances, directions_KK = variances.flip(0), directions_KK.flip(1)
    if variances[0] <= 0:
        raise DataError("all images match all words alike; expected pictures that differ: look at the image column")
    whitening_KD = directions_KK[:, :dim] / (variances[:dim] + RIDGE * variances[0]).sqrt()
    return mean_K.float(), whitening_KD.float().contiguous()
