"""Rows for the clustering benchmark, made once and kept as float16 unit rows in .npy files.

Fitting a codebook of 1,024 words to 10,000 of the CIFAR-10 training images and embedding all 50,000 takes minutes.
"""

from pathlib import Path

import fit_hog_words
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from mlcd_core.images import hog_words
from mlcd_core.images.decode import decode_images

NUM_WORDS, MOST_DIMS = 1024, 512
FIT_IMAGES = 10_000
JITTER = 0.25


def unit_noise(cache: Path, num_rows: int, dim: int) -> Path:
    """Normalised Gaussian noise."""
    path = cache / f"noise-{num_rows}x{dim}.npy"
    if not path.exists():
        save_unit_rows(path, np.random.default_rng(0).standard_normal((num_rows, dim), dtype=np.float32))
    return path


def jittered_hog_words(cache: Path, cifar10: Path, num_rows: int, dim: int) -> Path:
    """The leading dims of the whitened CIFAR-10 rows, repeated with noise until there are ``num_rows``."""
    path = cache / f"hog-words-{num_rows}x{dim}.npy"
    if not path.exists():
        rows = np.load(cifar10_rows(cache, cifar10))[:, :dim]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        random = np.random.default_rng(0)
        repeated = np.resize(rows, (num_rows, dim))
        noise = random.standard_normal((num_rows, dim), dtype=np.float32) * np.float32(JITTER / dim**0.5)
        save_unit_rows(path, random.permutation(repeated + noise))
    return path


def cifar10_rows(cache: Path, cifar10: Path) -> Path:
    """Float32 ``hog_words`` features of the training images, by a codebook fitted to some of them without labels."""
    path = cache / "cifar10-hog-words.npy"
    if not path.exists():
        shards = sorted(cifar10.glob("train-*.parquet"))
        jpegs = [jpeg for shard in shards for jpeg in pq.read_table(shard, columns=["jpg"])["jpg"].to_pylist()]
        images = torch.from_numpy(decode_images(jpegs, image_size=32, max_pixels=32 * 32).pixels_BCHW)
        book = fit_hog_words.fit_codebook(images[:FIT_IMAGES], num_words=NUM_WORDS, dim=MOST_DIMS)
        embedder = hog_words.HogWords(book, weights_sha256="", image_size=32, device="cpu")
        features = torch.cat([embedder.encode(batch) for batch in torch.split(images, 500)])
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, features.numpy())
    return path


def save_unit_rows(path: Path, rows: NDArray[np.float32]) -> None:
    """Normalise in float64 and round once."""
    exact = rows.astype(np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, (exact / np.linalg.norm(exact, axis=1, keepdims=True)).astype(np.float16))
