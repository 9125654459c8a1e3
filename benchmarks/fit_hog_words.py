"""Fit the packaged codebook of ``hog_words``, without labels, and measure its clusters beside random features.

    python benchmarks/fit_hog_words.py [--out FILE]

The fit (``mlcd_core/images/fit_hog_words.py``) sees only images of train scenes of seed 1000 (the demo uses seed 0).
Labels are read only to print the purity of k-means clusters of other scenes and the mAP of a linear probe on test
scenes. The few settings (window sizes, threshold, ridge) were chosen by such purities on train scenes.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mlcd_core.images import hog_words
from mlcd_core.images.decode import decode_images
from mlcd_core.images.digit_scenes import SCENE_SIZE, Split, scene_table
from mlcd_core.images.fit_hog_words import codebook_bytes, fit_codebook, nearest, spherical_kmeans

FIT_SEED, FIT_SCENES = 1000, 4000
NUM_WORDS, DIM = 500, 128
PACKAGED = Path(hog_words.__file__).with_suffix(".safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PACKAGED)
    parser.add_argument("--scenes", type=int, default=FIT_SCENES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, _ = scenes("train", args.scenes, seed=FIT_SEED)
    weights = codebook_bytes(fit_codebook(images, num_words=NUM_WORDS, dim=DIM, seed=FIT_SEED))
    args.out.write_bytes(weights)
    print(f"{args.out.name}: {len(weights):,} bytes")
    measure(hog_words.build_hog_words(weights, image_size=SCENE_SIZE, device="cpu"))


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
