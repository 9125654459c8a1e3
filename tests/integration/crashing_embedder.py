"""A worker of the embed stage with a decoder that kills its process, as a broken image library would."""

import ctypes
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.specs import EmbedSpec
from tasks.embed_worker import UnitEmbedder

DEADLY = b"kills the decoder"


def broken_decoder_of(root: str | Path) -> Path:
    """While this file exists, images that hold ``DEADLY`` kill the process that opens them."""
    return Path(f"{root}.broken")


class CrashingEmbedder(UnitEmbedder):
    """Opens images by a decoder that may be broken; notes each start of a process."""

    def __init__(self, root: str, spec: EmbedSpec, runtime: EmbedRuntime) -> None:
        open_image = Image.open

        def open_or_die(data: io.BytesIO, **options: Any) -> Image.Image:
            if DEADLY in data.getvalue() and broken_decoder_of(root).exists():
                ctypes.string_at(0)  # a signal from outside would let this thread go on until it is delivered
            return open_image(data, **options)

        Image.open = open_or_die
        super().__init__(root, spec, runtime)

    def __call__(self, task: Any, reads: Mapping[str, Any]) -> dict[str, Any]:
        with broken_decoder_of(f"{reads['shard']['uri']}-{reads['first_row']}").open("a") as starts:
            starts.write("begun\n")
        return super().__call__(task, reads)
