"""A contact sheet: a row of thumbnails per cluster, so that a person sees at a glance what a cluster holds."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from mlcd_core.images.decode import decode_images

THUMB, GAP, CAPTION = 48, 2, 14  # pixels
_PALETTE_COLORS = 128


@dataclass(frozen=True)
class SheetRow:
    """One row: what is written above it, and encoded images, from left to right."""

    caption: str
    images: Sequence[bytes]


def pick_rows(
    labels_NL: NDArray[np.int32], scores_NL: NDArray[np.float16], *, clusters: int, columns: int, seed: int
) -> dict[int, list[int]]:
    """Cluster -> its rows that lie nearest to its centroid, nearest first, of some clusters drawn at random.

    N rows, L labels each, the nearest first; -1 for a row without labels. Clusters with ``columns`` rows or more are
    drawn first, then smaller ones, the largest before the others. In order of the cluster's number.
    """
    own_N = labels_NL[:, 0]
    found, counts = np.unique(own_N[own_N >= 0], return_counts=True)
    random = np.random.default_rng(seed)
    # full rows first, then the fullest; among equals by chance
    order = np.lexsort((random.random(len(found)), -np.minimum(counts, columns)))
    chosen = sorted(int(cluster) for cluster in found[order][:clusters])
    nearest_first_N = np.argsort(-scores_NL[:, 0].astype(np.float32), kind="stable")
    return {cluster: [int(n) for n in nearest_first_N if own_N[n] == cluster][:columns] for cluster in chosen}


def contact_sheet_png(rows: Sequence[SheetRow], *, max_pixels: int) -> bytes:
    """The sheet as PNG with a palette of 128 colours; an image that cannot be decoded is black.

    max_pixels: of an image, as for ``decode_images``.
    """
    columns = max((len(row.images) for row in rows), default=1)
    row_height = CAPTION + THUMB + GAP
    sheet = Image.new("RGB", (columns * (THUMB + GAP), max(1, len(rows) * row_height)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        top = number * row_height
        draw.text((1, top + 1), row.caption, fill="black")
        pixels_BCHW = decode_images(list(row.images), image_size=THUMB, max_pixels=max_pixels).pixels_BCHW
        for column, pixels_CHW in enumerate(pixels_BCHW):
            thumb = Image.fromarray(np.ascontiguousarray(pixels_CHW.transpose(1, 2, 0)))
            sheet.paste(thumb, (column * (THUMB + GAP), top + CAPTION))
    packed = io.BytesIO()
    sheet.quantize(_PALETTE_COLORS, dither=Image.Dither.NONE).save(packed, "PNG", optimize=True)
    return packed.getvalue()
