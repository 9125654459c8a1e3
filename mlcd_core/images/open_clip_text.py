"""``feature=image_text_mean``: an image and its caption as one vector, by both towers of an open_clip model.

The paper clusters features "of image and text" and does not say how they become one (arXiv 2407.17331): this is the
mean of the two unit vectors. A row without a caption is its image alone.

B images of a batch, C = 3 colours, H = W = image_size, D embedding dims, T rows that have a caption.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mlcd_core.images.open_clip_config import check_text_tower
from mlcd_core.images.open_clip_embedder import OpenClipEmbedder, OpenClipFacts, open_clip_facts
from mlcd_core.images.open_clip_model import load_model
from mlcd_core.images.precision import Precision, autocast, check_precision

Tokenizer = Callable[[list[str]], Tensor]


class OpenClipCaptionEmbedder(OpenClipEmbedder):
    """An ``Embedder`` that also reads captions; ``encode`` still sees images alone."""

    def __init__(self, model: Any, tokenizer: Tokenizer, facts: OpenClipFacts) -> None:
        super().__init__(model.visual, facts)
        self.model = model
        self.tokenizer = tokenizer

    @torch.inference_mode()
    def encode_with_captions(self, images_BCHW: Tensor, captions: Sequence[str | None]) -> Tensor:
        """The mean of the unit vectors of image and caption, float32 [B, D]; without caption, that of the image."""
        assert len(captions) == len(images_BCHW), f"{len(captions)} captions for {len(images_BCHW)} images"
        features_BD = F.normalize(self.encode(images_BCHW), dim=1)
        rows_T = [row for row, caption in enumerate(captions) if caption and not caption.isspace()]
        if rows_T:
            texts_TD = F.normalize(self._encode_texts([captions[row] or "" for row in rows_T]), dim=1)
            features_BD[rows_T] = (features_BD[rows_T] + texts_TD) / 2
        return features_BD

    def _encode_texts(self, texts: list[str]) -> Tensor:
        with autocast(self.precision, self.device.type):
            features_TD: Tensor = self.model.encode_text(self.tokenizer(texts).to(self.device))
        return features_TD.float()


def build_open_clip_with_text(
    architecture: str, *, weights: bytes, image_size: int, device: str, precision: Precision = "float32"
) -> OpenClipCaptionEmbedder:
    """Build both towers from a file with the whole model.

    Raises ConfigError as ``build_open_clip``, and for an architecture whose tokenizer would be downloaded.
    """
    import open_clip

    check_text_tower(architecture, captions=True)
    facts = open_clip_facts(
        architecture, weights, image_size=image_size, precision=precision, feature="image_text_mean"
    )
    check_precision(precision, device)
    model = load_model(architecture, weights).to(device).eval()
    return OpenClipCaptionEmbedder(model, open_clip.get_tokenizer(architecture), facts)
