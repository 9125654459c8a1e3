"""The bare loop that embed is measured against: one process, Parquet in, float16 unit vectors out, nothing kept.

What a person writes in an afternoon: pyarrow reads, Pillow decodes on a thread pool, the model encodes batches, numpy
normalises. No status of bad images, no keys, no receipts, no second try; any bad image ends it. Only the model is that
of the package, so that what is compared is all the rest.

B images of a batch, N of all, C = 3 colours, H = W = image_size, D embedding dims.
"""

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from mlcd_core.images.embedder import Embedder, build_embedder, find_weights
from mlcd_core.specs import EmbedSpec

Begun = TypeVar("Begun")
WORDS = {"in turns": "in turns", "ahead": "a batch ahead"}
CHUNK = 16  # images per call of the pool: a call costs 60 us, decoding a 32 px image 160


@dataclass(frozen=True)
class Split:
    """How the loop uses its threads.

    how: ``in turns``, a batch is decoded, then encoded; ``ahead``, the next batch is decoded while one is encoded;
    ``side by side``, each of ``decode_threads`` threads decodes and encodes batches of its own.
    """

    decode_threads: int
    torch_threads: int
    how: Literal["in turns", "ahead", "side by side"]

    def __str__(self) -> str:
        if self.how == "side by side":
            return f"{self.decode_threads} threads side by side, each with batches of its own"
        return f"decodes on {self.decode_threads}, encodes on {self.torch_threads}, {WORDS[self.how]}"


@dataclass(frozen=True)
class Piece:
    """Some images that were embedded together: from when to when, of any clock, and in which process."""

    began: float
    ended: float
    images: int
    process: int = 0

    def share_after(self, seconds: float) -> float:
        """The share of its time that lies after ``seconds``."""
        return min(1.0, max(0.0, self.ended - seconds) / (self.ended - self.began))


@dataclass(frozen=True)
class Loop:
    """What a loop did: its vectors, float16 [N, D], and its pieces, batches or units, in any order."""

    embeddings_ND: np.ndarray
    pieces: list[Piece]

    def between_ends(self) -> float:
        """Images per second between the first end of a piece and the last; all of a piece counts when it ends."""
        first = min(self.pieces, key=lambda piece: piece.ended)
        images = sum(piece.images for piece in self.pieces) - first.images
        return images / (self._last_end - first.ended)

    def steady(self) -> float:
        """Images per second from when every process has ended a piece, to the last end.

        A piece that began before counts with the share of its time that is left, so nothing is counted that was done
        before.
        """
        ends: dict[int, float] = {}
        for piece in self.pieces:
            ends[piece.process] = min(piece.ended, ends.get(piece.process, piece.ended))
        start = max(ends.values())
        images = sum(piece.images * piece.share_after(start) for piece in self.pieces)
        return images / (self._last_end - start) if self._last_end > start else float("nan")

    @property
    def _last_end(self) -> float:
        return max(piece.ended for piece in self.pieces)


def bare_loop(paths: Sequence[str], spec: EmbedSpec, pretrained: str, split: Split) -> Loop:
    """Embed all images of the column ``jpg``, on the CPU."""
    torch.set_num_threads(split.torch_threads)
    embedder = build_embedder(spec, weights=find_weights(spec, pretrained), device="cpu")
    batches = batches_of(paths, spec.batch_rows)
    with ThreadPoolExecutor(split.decode_threads) as pool:
        if split.how == "side by side":
            done = list(side_by_side(batches, embedder, split, pool))
        else:
            done = list(one_by_one(batches, embedder, split, pool))
    return Loop(np.concatenate([rows_BD for rows_BD, _ in done]), [piece for _, piece in done])


def batches_of(paths: Sequence[str], batch_rows: int) -> Iterator[list[bytes]]:
    """The images of all files, so many at a time, in order."""
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(batch_rows, columns=["jpg"]):
            yield batch["jpg"].to_pylist()


def one_by_one(
    batches: Iterator[list[bytes]], embedder: Embedder, split: Split, pool: ThreadPoolExecutor
) -> Iterator[tuple[np.ndarray, Piece]]:
    """Vectors of each batch, decoded on the pool and encoded here."""
    began = time.perf_counter()

    def decoding(images: list[bytes]) -> list[Future[np.ndarray]]:
        chunks = [images[first : first + CHUNK] for first in range(0, len(images), CHUNK)]
        return [pool.submit(chunk_pixels, chunk, embedder.image_size) for chunk in chunks]

    for chunks in begun_ahead(decoding, batches, 1 if split.how == "ahead" else 0):
        pixels_BHWC = np.concatenate([chunk.result() for chunk in chunks])
        vectors_BD = unit_rows(embedder, pixels_BHWC)
        ended = time.perf_counter()
        yield vectors_BD, Piece(began, ended, len(vectors_BD))
        began = ended


def side_by_side(
    batches: Iterator[list[bytes]], embedder: Embedder, split: Split, pool: ThreadPoolExecutor
) -> Iterator[tuple[np.ndarray, Piece]]:
    """Vectors of each batch, decoded and encoded on one thread of the pool."""

    def embedded(images: list[bytes]) -> tuple[np.ndarray, Piece]:
        began = time.perf_counter()
        vectors_BD = unit_rows(embedder, chunk_pixels(images, embedder.image_size))
        return vectors_BD, Piece(began, time.perf_counter(), len(images), threading.get_ident())

    def embedding(images: list[bytes]) -> Future[tuple[np.ndarray, Piece]]:
        return pool.submit(embedded, images)

    for future in begun_ahead(embedding, batches, split.decode_threads):
        yield future.result()


def begun_ahead(begin: Callable[[list[bytes]], Begun], batches: Iterator[list[bytes]], ahead: int) -> Iterator[Begun]:
    """What ``begin`` makes of each batch, with so many begun beyond the one that is given."""
    waiting: deque[Begun] = deque()
    for images in batches:
        waiting.append(begin(images))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def chunk_pixels(images: Sequence[bytes], image_size: int) -> np.ndarray:
    """Some images, uint8 BHWC."""
    return np.stack([plain_pixels(image, image_size) for image in images])


def plain_pixels(data: bytes, image_size: int) -> np.ndarray:
    """RGB, short side to ``image_size`` by a bicubic filter, the centre square; uint8 HWC."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    short = min(image.size)
    if short != image_size:
        width, height = (image_size * side // short for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((image.width - image_size) / 2), round((image.height - image_size) / 2)
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


def unit_rows(embedder: Embedder, pixels_BHWC: np.ndarray) -> np.ndarray:
    """Encode, divide by the L2 norm, round to float16."""
    pixels_BCHW = np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2))
    features_BD = embedder.encode(torch.from_numpy(pixels_BCHW))
    return torch.nn.functional.normalize(features_BD).numpy().astype(np.float16)
