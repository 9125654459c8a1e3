"""Fit the packaged codebook of ``hog_words``, without labels, and measure its clusters beside random features.

    python benchmarks/fit_hog_words.py [--out FILE]

Words are spherical k-means centroids of windows drawn by energy, whitening is PCA with a ridge; both see only images of
train scenes of seed 1000 (the demo uses seed 0). Labels are read only to print the purity of k-means clusters of other
scenes and the mAP of a linear probe on test scenes. The few settings (window sizes, threshold, ridge) were chosen by
such purities on train scenes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import save
from torch import Tensor

from mlcd_core.images import hog_words
from mlcd_core.images.decode import decode_images
from mlcd_core.images.digit_scenes import SCENE_SIZE, Split, scene_table

FIT_SEED, FIT_SCENES = 1000, 4000
NUM_WORDS, DIM = 500, 128
WINDOWS_PER_SCENE = 40
# share of the largest variance added to all: bare whitening lifts noise directions (purity .90 against .93)
RIDGE = 0.02
PACKAGED = Path(hog_words.__file__).with_suffix(".safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    parser.add_argument("--scenes", type=int, default=FIT_SCENES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, _ = scenes("train", args.scenes, seed=FIT_SEED)
    weights = save(vars(fit_codebook(images)))
    args.out.write_bytes(weights)
    print(f"{args.out.name}: {len(weights):,} bytes")
    measure(hog_words.build_hog_words(weights, image_size=SCENE_SIZE, device="cpu"))


def fit_codebook(images_BCHW: Tensor, *, num_words: int = NUM_WORDS, dim: int = DIM) -> hog_words.Codebook:
    generator = torch.Generator().manual_seed(FIT_SEED)
    chunks = torch.split(images_BCHW, hog_words.CHUNK_ROWS)
    windows_NW = torch.cat([drawn_windows(hog_words.window_descriptors(chunk), generator) for chunk in chunks])
    contrast = windows_NW.norm(dim=1).median()
    unit_NW = hog_words.normalised_windows(windows_NW, contrast=contrast)
    words_KW = spherical_kmeans(unit_NW, num_words, iterations=20, generator=generator)
    matches_BK = torch.cat(
        [hog_words.word_matches(hog_words.window_descriptors(c), words_KW, contrast=contrast) for c in chunks]
    )
    mean_K, whitening_KD = whitened_pca(matches_BK, dim)
    return hog_words.Codebook(words_KW=words_KW, contrast=contrast, mean_K=mean_K, whitening_KD=whitening_KD)


def drawn_windows(windows_BPW: Tensor, generator: torch.Generator) -> Tensor:
    energy_BP = windows_BPW.square().sum(dim=2).clamp_min(1e-12)  # full windows are the ones with shapes
    picks_BS = torch.multinomial(energy_BP, WINDOWS_PER_SCENE, generator=generator)
    return windows_BPW.gather(1, picks_BS[..., None].expand(-1, -1, windows_BPW.shape[2])).flatten(0, 1)


def spherical_kmeans(points_ND: Tensor, k: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    centroids_KD = points_ND[torch.randperm(len(points_ND), generator=generator)[:k]]
    for _ in range(iterations):
        nearest_N = nearest(points_ND, centroids_KD)
        sums_KD = torch.zeros_like(centroids_KD).index_add_(0, nearest_N, points_ND)
        empty_K = torch.bincount(nearest_N, minlength=k) == 0
        sums_KD[empty_K] = centroids_KD[empty_K]
        centroids_KD = F.normalize(sums_KD, dim=1)
    return centroids_KD


def nearest(points_ND: Tensor, centroids_KD: Tensor) -> Tensor:
    return torch.cat([(tile @ centroids_KD.T).argmax(dim=1) for tile in torch.split(points_ND, 4096)])


def whitened_pca(rows_NK: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    mean_K = rows_NK.double().mean(dim=0)
    centered_NK = rows_NK.double() - mean_K
    variances, directions_KK = torch.linalg.eigh(centered_NK.T @ centered_NK / len(rows_NK))
    variances, directions_KK = variances.flip(0), directions_KK.flip(1)
    whitening_KD = directions_KK[:, :dim] / (variances[:dim] + RIDGE * variances[0]).sqrt()
    return mean_K.float(), whitening_KD.float().contiguous()


def measure(embedder: hog_words.HogWords) -> None:
    train, train_labels = scenes("train", 6000, seed=0)
    test, test_labels = scenes("test", 1000, seed=0)
    started = time.perf_counter()
    train_ND = torch.cat([embedder.encode(batch) for batch in torch.split(train, 256)])
    ms = (time.perf_counter() - started) / len(train) * 1000
    print(f"encode: {ms:.2f} ms per {SCENE_SIZE} px image, one thread")
    random_ND = torch.randn(train_ND.shape, generator=torch.Generator().manual_seed(0))
    for name, points_ND in (("hog_words", train_ND), ("random features", random_ND)):
        purities = [purity(points_ND, train_labels, k=k) for k in (100, 200, 400)]
        print(f"{name}: purity " + " / ".join(f"{p:.3f}" for p in purities) + " at K = 100 / 200 / 400")
    print(f"linear probe mAP: {probe_map(train_ND, train_labels, embedder.encode(test), test_labels):.3f}")


def purity(points_ND: Tensor, labels_NC: np.ndarray, *, k: int) -> float:
    """Mean over rows of the share of their cluster's scenes that hold the cluster's most frequent digit."""
    unit_ND = F.normalize(points_ND, dim=1)
    generator = torch.Generator().manual_seed(0)
    nearest_N = nearest(unit_ND, spherical_kmeans(unit_ND, k, iterations=20, generator=generator)).numpy()
    hits = sum(labels_NC[nearest_N == cluster].sum(axis=0).max(initial=0) for cluster in range(k))
    return float(hits) / len(labels_NC)


def probe_map(train_ND: Tensor, train_labels: np.ndarray, test_ND: Tensor, test_labels: np.ndarray) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import average_precision_score

    x, y = F.normalize(train_ND, dim=1).numpy() * 10, F.normalize(test_ND, dim=1).numpy() * 10
    scores = [LogisticRegression(max_iter=500).fit(x, labels).decision_function(y) for labels in train_labels.T]
    return float(np.mean([average_precision_score(t, s) for t, s in zip(test_labels.T, scores, strict=True)]))


def scenes(split: Split, rows: int, *, seed: int) -> tuple[Tensor, np.ndarray]:
    table = scene_table(split, 0, rows, seed)
    decoded = decode_images(table["png"].to_pylist(), image_size=SCENE_SIZE, max_pixels=SCENE_SIZE**2)
    labels_NC = np.zeros((rows, 10), dtype=bool)
    for row, digits in enumerate(table["labels"].to_pylist()):
        labels_NC[row, digits] = True
    return torch.from_numpy(decoded.pixels_BCHW), labels_NC


if __name__ == "__main__":
    main()
