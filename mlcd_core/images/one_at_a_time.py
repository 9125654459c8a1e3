"""An embedder that several threads may use, with one thread of its own that all of it runs on.

A lock would do for the device. But each thread that calls torch on a CPU gets a team of helpers of its own, and two
teams on the same cores cost more than they bring.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlcd_core.images.embed_shard import CaptionEmbedder
from mlcd_core.images.embedder import Embedder

if TYPE_CHECKING:
    from torch import Tensor


class OneAtATime:
    """Builds an embedder and runs its batches in its own thread, in the order of the calls, each waiting for its end.

    Features are given as float32 on the CPU, so that nobody waits for the device outside of that thread.
    """

    def __init__(self, build: Callable[[], Embedder]) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._embedder = self._thread.submit(build).result()
        self.fingerprint = self._embedder.fingerprint
        self.dim = self._embedder.dim
        self.image_size = self._embedder.image_size

    def encode(self, images_BCHW: "Tensor") -> "Tensor":
        """Embed a batch."""
        return self._thread.submit(lambda: self._embedder.encode(images_BCHW).float().cpu()).result()

    def encode_with_captions(self, images_BCHW: "Tensor", captions: Sequence[str | None]) -> "Tensor":
        """Embed a batch of images with their captions, where the embedder takes them."""
        embedder = self._embedder
        assert isinstance(embedder, CaptionEmbedder), "an embedder without text was given captions"
        return self._thread.submit(lambda: embedder.encode_with_captions(images_BCHW, captions).float().cpu()).result()
