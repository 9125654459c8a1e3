"""``mlcd fit-codebook``: a codebook of ``hog_words`` fitted to images of the user's own shards; no label is read.

Which images are drawn depends on the shards, their row groups and the seed alone: row groups in a drawn order, some
rows of each. Few are read whole, and none is read twice.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlcd_core.dataset import Shard, ShardReader, find_shards
from mlcd_core.digest_memo import default_memo
from mlcd_core.errors import ConfigError, DataError
from mlcd_core.events import Report
from mlcd_core.identity import sha256_hex
from mlcd_core.objects import is_s3
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import open_files

if TYPE_CHECKING:
    from numpy.typing import NDArray

# a row group has 100 rows as img2dataset writes it; neighbours in it can be alike where data are sorted by class
FEWEST_ROWS_PER_GROUP = 16
LARGEST_SEED = (1 << 63) - 1  # of torch


@dataclass(frozen=True)
class CodebookRequest:
    """What to fit to what. data, out: absolute or ``s3://`` addresses; out names a file."""

    data: str
    out: str
    num_images: int
    num_words: int
    dim: int
    seed: int
    image_size: int
    image_column: str = "auto"


@dataclass(frozen=True)
class FittedCodebook:
    """The file that was written. images: used for the fit; skipped: drawn, and not to be decoded."""

    path: str
    sha256: str
    bytes: int
    images: int
    skipped: int


def fit_codebook_file(request: CodebookRequest, report: Report) -> FittedCodebook:
    """Draw images, fit, and write the file at once, whole; the same request gives the same bytes.

    Raises ConfigError for a request that cannot be meant, before any image is read; DataError for data without usable
    images; and the errors of ``fit_codebook``.
    """
    import torch

    from mlcd_core.images.fit_hog_words import codebook_bytes, fit_codebook

    folder, name = _split(request.out)
    _check_draw(request)
    drawn = _draw(request)
    report("codebook_images", {"images": len(drawn.pixels_BCHW), "skipped": drawn.skipped})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order would be another file on a machine with other cores
    try:
        images_BCHW = torch.from_numpy(drawn.pixels_BCHW)
        codebook = fit_codebook(images_BCHW, num_words=request.num_words, dim=request.dim, seed=request.seed)
    finally:
        torch.set_num_threads(threads)
    data = codebook_bytes(codebook)
    open_files(folder).put(name, data)
    return FittedCodebook(request.out, sha256_hex(data), len(data), len(images_BCHW), drawn.skipped)


@dataclass(frozen=True)
class _DrawnImages:
    """``pixels_BCHW`` uint8, all usable."""

    pixels_BCHW: "NDArray[np.uint8]"
    skipped: int


def _draw(request: CodebookRequest) -> _DrawnImages:
    from mlcd_core.images.decode import decode_images

    shards = find_shards(request.data, memo=default_memo())
    kept: list[NDArray[np.uint8]] = []
    num_kept = skipped = 0
    for images in _image_groups(shards, request):
        decoded = decode_images(images, image_size=request.image_size, max_pixels=EmbedSpec().max_pixels)
        usable_BCHW = decoded.pixels_BCHW[decoded.status_B == 0][: request.num_images - num_kept]
        skipped += int((decoded.status_B != 0).sum())
        num_kept += len(usable_BCHW)
        kept.append(usable_BCHW)
        if num_kept == request.num_images:
            break
    if num_kept == 0:
        raise DataError(f"no usable image in {request.data}, {skipped:,} are bad; see mlcd doctor --data DATA")
    return _DrawnImages(np.concatenate(kept), skipped)


def _image_groups(shards: Sequence[Shard], request: CodebookRequest) -> Iterator[list[bytes | None]]:
    """Some images of each row group, the groups in a drawn order."""
    rng = np.random.default_rng(request.seed)
    groups = [(shard, group) for shard in shards for group, rows in enumerate(shard.row_groups) if rows]
    rows_per_group = max(FEWEST_ROWS_PER_GROUP, math.ceil(request.num_images / max(1, len(groups))))
    for place in rng.permutation(len(groups)):
        shard, group = groups[place]
        rows = ShardReader(shard, image_column=request.image_column).read(group)
        yield [rows.images[row] for row in rng.permutation(len(rows.images))[:rows_per_group]]


def _check_draw(request: CodebookRequest) -> None:
    if request.num_images < 1:
        raise ConfigError(f"--images {request.num_images}; expected 1 or more")
    if not 0 <= request.seed <= LARGEST_SEED:
        raise ConfigError(f"--seed {request.seed}; expected 0 to {LARGEST_SEED}")


def _split(address: str) -> tuple[str, str]:
    """Folder and name of the file. Raises ConfigError for a folder or bucket: found after the fit, it would be lost."""
    folder, _, name = address.rpartition("/")
    is_bucket = is_s3(address) and not is_s3(folder)
    if not name or is_bucket or (not is_s3(address) and Path(address).is_dir()):
        inside = address.rstrip("/")
        raise ConfigError(
            f"--out {address} is a folder; expected the name of a file, such as {inside}/book.safetensors"
        )
    return folder or "/", name
