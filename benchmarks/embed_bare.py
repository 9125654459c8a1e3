"""The bare loop that embed is measured against: one process, Parquet in, float16 unit vectors out, nothing kept.

What a person writes in an afternoon: pyarrow reads, Pillow decodes on a thread pool, the model encodes batches, numpy
normalises. No status of bad images, no keys, no receipts, no second try; any bad image ends it. Only the model is that
of the package, so that what is compared is all the rest.

B images of a batch, N of all, C = 3 colours, H = W = image_size, D embedding dims.
"""

import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from mlcd_core.images.embedder import Embedder, build_embedder, find_weights
from mlcd_core.specs import EmbedSpec

CHUNK = 16  # images per call of the pool: one call each costs as much as a tenth of decoding a 32 px image


@dataclass(frozen=True)
class Split:
    """How the loop uses its threads; ``ahead``: the next batch is decoded while one is encoded."""

    decode_threads: int
    torch_threads: int
    ahead: bool

    def __str__(self) -> str:
        how = "while it encodes" if self.ahead else "in turns"
        return f"decodes on {self.decode_threads}, encodes on {self.torch_threads}, {how}"


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
    embeddings, pieces, began = [], [], time.perf_counter()
    with ThreadPoolExecutor(split.decode_threads) as pool:
        for pixels_BCHW in decoded(paths, spec, split, pool):
            embeddings.append(unit_rows(embedder, pixels_BCHW))
            ended = time.perf_counter()
            pieces.append(Piece(began, ended, len(pixels_BCHW)))
            began = ended
    return Loop(np.concatenate(embeddings), pieces)


def decoded(paths: Sequence[str], spec: EmbedSpec, split: Split, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """Batches of pixels, uint8 BCHW, in order."""
    waiting: list[list[Future[np.ndarray]]] = []
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(spec.batch_rows, columns=["jpg"]):
            images = batch["jpg"].to_pylist()
            chunks = [images[first : first + CHUNK] for first in range(0, len(images), CHUNK)]
            waiting.append([pool.submit(chunk_pixels, chunk, spec.image_size) for chunk in chunks])
            if len(waiting) > split.ahead:
                yield joined(waiting.pop(0))
    yield from map(joined, waiting)


def joined(chunks: Sequence["Future[np.ndarray]"]) -> np.ndarray:
    """The pixels of a batch, once all are decoded."""
    return np.concatenate([chunk.result() for chunk in chunks]).transpose(0, 3, 1, 2)


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


def unit_rows(embedder: Embedder, pixels_BCHW: np.ndarray) -> np.ndarray:
    """Encode, divide by the L2 norm, round to float16."""
    features_BD = embedder.encode(torch.from_numpy(np.ascontiguousarray(pixels_BCHW)))
    return torch.nn.functional.normalize(features_BD).numpy().astype(np.float16)
