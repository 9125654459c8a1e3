"""The laptop's embedder: no network and no download, a codebook of half a megabyte.

An image is read as a bag of shapes. Small windows at two scales are described by gradient orientations (HOG), compared
with K codebook words, and each word keeps its best window, wherever it stands. PCA whitening then makes D numbers of
the K. All parameters are fitted without labels (``fit_hog_words.py``), those of the package on digit scenes.
The window sizes are prior knowledge: they match objects of a third to a half of the image, as in those scenes.
It sees shape only, no colour, and it is no match for a pre-trained network on photographs.

B images, C = 3 colours, O orientations, P window places, W numbers per window, K words, D embedding dims.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mlcd_core.errors import ConfigError
from mlcd_core.identity import fingerprint, sha256_hex

# The image is resized to these sizes and the window is always 12 px: windows of 11/32 and 14/32 of the image.
# Three sizes (10, 12 and 15) were no better (purity .88 against .90, before the ridge) and took half as long again.
PYRAMID = (35, 27)
CELLS = 4  # per window side
CELL = 3  # pixels
STRIDE = 2  # pixels between windows; 1 is four times slower for a purity of .93 instead of .92 (3,000 scenes)
ORIENTATIONS = 8  # unsigned: a dark shape on light ground is the same shape
WORD_THRESHOLD = 0.4  # cosines below it are no match; without it whitening blows up what all windows share
CHUNK_ROWS = 32  # the B x P x K similarities of 256 images would be 120 MB


@dataclass(frozen=True)
class Codebook:
    """What is fitted. ``contrast`` is the gradient energy of a window that counts as half full."""

    words_KW: Tensor
    contrast: Tensor
    mean_K: Tensor
    whitening_KD: Tensor


class HogWords:
    """An ``Embedder``: ``encode`` is deterministic, and a row's values do not depend on its batch beyond rounding."""

    def __init__(self, codebook: Codebook, *, weights_sha256: str, image_size: int, device: str) -> None:
        self.codebook = Codebook(**{name: value.to(device) for name, value in vars(codebook).items()})
        self.image_size = image_size
        self.dim = codebook.whitening_KD.shape[1]
        self.fingerprint = fingerprint(["hog_words", weights_sha256, image_size])

    @torch.inference_mode()
    def encode(self, images_BCHW: Tensor) -> Tensor:
        """Embed uint8 RGB images, float32 [B, D], not normalised, on the codebook's device."""
        book = self.codebook
        chunks = torch.split(images_BCHW.to(book.mean_K.device), CHUNK_ROWS)
        matches = [word_matches(window_descriptors(chunk), book.words_KW, contrast=book.contrast) for chunk in chunks]
        return (torch.cat(matches) - book.mean_K) @ book.whitening_KD


def build_hog_words(weights: bytes, *, image_size: int, device: str) -> HogWords:
    """Read a codebook file (safetensors) into an embedder. Raises ConfigError if it is no codebook."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        codebook = Codebook(**load(weights))
    except (SafetensorError, TypeError) as error:
        raise ConfigError(
            f"the weights of hog_words are no codebook ({error}); expected a safetensors file with "
            f"{', '.join(Codebook.__dataclass_fields__)}: leave embed.pretrained empty for the packaged one, "
            "or make one with mlcd fit-codebook"
        ) from error
    return HogWords(codebook, weights_sha256=sha256_hex(weights), image_size=image_size, device=device)


def window_descriptors(images_BCHW: Tensor) -> Tensor:
    """Describe every window of both scales by its orientation energies, [B, P, W]; any image size."""
    pixels_BCHW = images_BCHW.float() / 255
    levels = [_windows(_orientation_maps(_resized(pixels_BCHW, size))) for size in PYRAMID]
    return torch.cat(levels, dim=1)


def normalised_windows(windows_BPW: Tensor, *, contrast: Tensor) -> Tensor:
    """Scale windows to unit length; those with less energy than ``contrast`` stay shorter, so noise matches no word."""
    energy_BP1 = windows_BPW.square().sum(dim=-1, keepdim=True)
    return windows_BPW * torch.rsqrt(energy_BP1 + contrast.square())


def word_matches(windows_BPW: Tensor, words_KW: Tensor, *, contrast: Tensor) -> Tensor:
    """How well the best window of each image matches each word, [B, K], 0 for no match."""
    similarity_BPK = normalised_windows(windows_BPW, contrast=contrast) @ words_KW.T
    return (similarity_BPK.amax(dim=1) - WORD_THRESHOLD).clamp_min(0).square()


def _resized(pixels_BCHW: Tensor, size: int) -> Tensor:
    if pixels_BCHW.shape[-1] == size:
        return pixels_BCHW
    return F.interpolate(pixels_BCHW, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _orientation_maps(pixels_BCHW: Tensor) -> Tensor:
    """Gradient magnitude of each pixel's strongest colour, shared between its two nearest orientations, [B, O, H, W].

    The strongest colour (Dalal and Triggs 2005), because a gray sum can cancel the edge between two colours.
    """
    padded = F.pad(pixels_BCHW, (1, 1, 1, 1), mode="replicate")
    across = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    down = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    strength, colour = (across.square() + down.square()).max(dim=1, keepdim=True)
    angle = torch.atan2(down.gather(1, colour), across.gather(1, colour))
    bin_B1HW = (angle * (ORIENTATIONS / torch.pi)).remainder(ORIENTATIONS)
    centers_O11 = torch.arange(ORIENTATIONS, device=angle.device).view(-1, 1, 1)
    distance = (bin_B1HW - centers_O11).abs()
    distance = torch.minimum(distance, ORIENTATIONS - distance)
    return strength.sqrt() * (1 - distance).clamp_min(0)


def _windows(maps_BOHW: Tensor) -> Tensor:
    # plain boxes: blurring the maps first made digits easier to find elsewhere, but the probe fell from .926 to .916
    cells = F.avg_pool2d(maps_BOHW, CELL, stride=1)
    return F.unfold(cells, CELLS, dilation=CELL, stride=STRIDE).transpose(1, 2)
