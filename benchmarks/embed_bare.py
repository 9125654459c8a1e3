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
class Mark:
    """How many images were done at a time, of any clock."""

    seconds: float
    images: int


@dataclass(frozen=True)
class Loop:
    """What a loop did: its vectors, float16 [N, D], and marks as it went on, the last at its end."""

    embeddings_ND: np.ndarray
    marks: list[Mark]

    def images_per_s(self, *, after: int, begun: int = 0) -> float:
        """The rate from the first mark with ``after`` images on, so that no start-up counts.

        begun: images that may have been under way at that mark; they are taken off, so the rate is at least that.
        """
        first = next(mark for mark in self.marks if mark.images >= after)
        last = self.marks[-1]
        return max(0, last.images - first.images - begun) / (last.seconds - first.seconds)


def bare_loop(paths: Sequence[str], spec: EmbedSpec, pretrained: str, split: Split) -> Loop:
    """Embed all images of the column ``jpg``, on the CPU."""
    torch.set_num_threads(split.torch_threads)
    embedder = build_embedder(spec, weights=find_weights(spec, pretrained), device="cpu")
    embeddings, marks, images = [], [], 0
    with ThreadPoolExecutor(split.decode_threads) as pool:
        for pixels_BCHW in decoded(paths, spec, split, pool):
            embeddings.append(unit_rows(embedder, pixels_BCHW))
            images += len(pixels_BCHW)
            marks.append(Mark(time.perf_counter(), images))
    return Loop(np.concatenate(embeddings), marks)


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
