"""open_clip's towers as embedders: its own embeddings from the same files, in each precision, with and without text."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from safetensors.torch import save_file

from mlcd_core.errors import ConfigError
from mlcd_core.images import open_clip_model
from mlcd_core.images.decode import decode_images
from mlcd_core.images.embedder import build_embedder, check_embed_spec, find_weights
from mlcd_core.specs import EmbedSpec

TEXT = {"context_length": 16, "vocab_size": 49_408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
TIMM = {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
COCA = {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "mlcd-tiny-vit": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "mlcd-tiny-timm": {"embed_dim": 24, "vision_cfg": TIMM, "text_cfg": TEXT, "custom_text": True},
    "mlcd-tiny-coca": {
        "embed_dim": 24,
        "vision_cfg": COCA,
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 4},
        "custom_text": True,
    },
}
SMALLEST_PUBLISHED = "ViT-S-32-alt"
CAPTIONS = ["a red digit on the ground", None, "", "  ", "two digits", "ein Bild \N{EM DASH} größer"]


@dataclass(frozen=True)
class Saved:
    """A model with random weights, its file, and open_clip's own transform for it."""

    spec: EmbedSpec
    path: Path
    model: Any
    transform: Any

    def embedder(self, **changes: object) -> Any:
        spec = self.spec.model_copy(update=changes)
        return build_embedder(spec, weights=find_weights(spec, str(self.path)), device="cpu")


@pytest.fixture(scope="module", params=[*CONFIGS, SMALLEST_PUBLISHED])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return saved_model("mlcd-tiny-vit", tmp_path_factory.mktemp("vit"))


def saved_model(architecture: str, folder: Path) -> Saved:
    if architecture in CONFIGS:
        config = folder / f"{architecture}.json"
        config.write_text(json.dumps(CONFIGS[architecture]))
        open_clip.add_model_config(config)
    torch.manual_seed(0)
    path = folder / "weights.safetensors"
    weights = open_clip.create_model(architecture).state_dict()
    save_file({name: value.clone().contiguous() for name, value in weights.items()}, path)
    model, _, transform = open_clip.create_model_and_transforms(architecture, pretrained=str(path))
    size = open_clip.get_model_config(architecture)["vision_cfg"]["image_size"]
    spec = EmbedSpec(embedder="open_clip", architecture=architecture, image_size=size)
    return Saved(spec, path, model.eval(), transform)


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    """Photos of several shapes, one of them smaller than the models' images."""
    return [
        jpeg(width, height) for width, height in ((300, 200), (201, 333), (640, 480), (50, 50), (90, 400), (224, 224))
    ]


def jpeg(width: int, height: int) -> bytes:
    coarse = np.random.default_rng(width).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=92)
    return sink.getvalue()


def pixels(jpegs: list[bytes], spec: EmbedSpec) -> torch.Tensor:
    decoded = decode_images(jpegs, image_size=spec.image_size, max_pixels=spec.max_pixels)
    assert not decoded.status_B.any()
    return torch.from_numpy(decoded.pixels_BCHW)


def open_clips_own(saved: Saved, jpegs: list[bytes]) -> torch.Tensor:
    batch = torch.stack([saved.transform(Image.open(io.BytesIO(data))) for data in jpegs])
    with torch.no_grad():
        features: torch.Tensor = saved.model.encode_image(batch)
    return features


def test_embeddings_of_photos_equal_open_clips_own(saved: Saved, jpegs: list[bytes]) -> None:
    embedder = saved.embedder()
    features = embedder.encode(pixels(jpegs, saved.spec))
    own = open_clips_own(saved, jpegs)
    if "coca" in saved.spec.architecture:
        own = F.normalize(own, dim=1)  # it normalises unless told otherwise
    assert features.dtype == torch.float32
    assert features.shape == (len(jpegs), embedder.dim) == own.shape
    assert F.cosine_similarity(features, own).min() >= 0.9999
    # random weights make all photos alike: what tells them apart must agree as well
    assert F.cosine_similarity(centred(features), centred(own)).min() >= 0.999


def centred(features_BD: torch.Tensor) -> torch.Tensor:
    unit_BD = F.normalize(features_BD, dim=1)
    return unit_BD - unit_BD.mean(dim=0)


def test_bfloat16_is_near_float32_and_not_the_same(vit: Saved, jpegs: list[bytes]) -> None:
    images = pixels(jpegs, vit.spec)
    exact, rough = vit.embedder().encode(images), vit.embedder(precision="bfloat16").encode(images)
    assert rough.dtype == torch.float32
    assert rough.shape == exact.shape
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(rough, exact).min() > 0.999


def test_float16_on_the_cpu_is_refused(vit: Saved) -> None:
    for feature in ("image", "image_text_mean"):
        with pytest.raises(ConfigError, match=r"float16 and the device is the CPU.*set embed\.precision=bfloat16"):
            vit.embedder(precision="float16", feature=feature)


def test_precision_and_feature_are_in_the_fingerprint(vit: Saved) -> None:
    changes = ({}, {"precision": "bfloat16"}, {"feature": "image_text_mean"})
    assert len({vit.embedder(**change).fingerprint for change in changes}) == 3


def test_an_image_and_its_caption_are_the_mean_of_their_unit_vectors(saved: Saved, jpegs: list[bytes]) -> None:
    embedder = saved.embedder(feature="image_text_mean")
    features = embedder.encode_with_captions(pixels(jpegs, saved.spec), CAPTIONS)
    tokenizer = open_clip.get_tokenizer(saved.spec.architecture)
    images = open_clips_own(saved, jpegs)
    for row, caption in enumerate(CAPTIONS):
        expected = images[row] / images[row].norm()
        if caption and caption.strip():
            with torch.no_grad():
                text = saved.model.encode_text(tokenizer([caption]))[0]
            expected = (expected + text / text.norm()) / 2
        torch.testing.assert_close(features[row], expected, atol=2e-3, rtol=0)
        assert F.cosine_similarity(features[row], expected, dim=0) >= 0.9999


def test_captions_change_what_they_stand_at_and_nothing_else(vit: Saved, jpegs: list[bytes]) -> None:
    embedder, images = vit.embedder(feature="image_text_mean"), pixels(jpegs, vit.spec)
    alone = embedder.encode_with_captions(images, [None] * 6)
    torch.testing.assert_close(alone, F.normalize(embedder.encode(images), dim=1))
    torch.testing.assert_close(embedder.encode(images), vit.embedder().encode(images))
    captioned = embedder.encode_with_captions(images, CAPTIONS)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, captioned, strict=True)]
    assert same == [False, True, True, True, False, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architecture": "ViT-B-16-SigLIP", "feature": "image_text_mean"}, "tokenizer timm/ViT-B-16-SigLIP would be"),
        ({"architecture": "ViT-L-14-CLIPA", "feature": "image_text_mean"}, r"set embed\.feature=image"),
        ({"architecture": "roberta-ViT-B-32"}, "text tower roberta-base of Hugging Face"),
        ({"embedder": "hog_words", "feature": "image_text_mean"}, "hog_words, which has no text tower"),
        ({"embedder": "tower", "feature": "image_text_mean"}, r"tower, which has no text tower.*embedder=open_clip"),
        ({"embedder": "adopted", "feature": "image_text_mean"}, "adopted, which has no text tower"),
        ({"feature": "image_text_mean", "caption_column": ""}, r"without embed\.caption_column"),
        ({"embedder": "hog_words", "precision": "bfloat16"}, r"leave embed\.precision out"),
        ({"embedder": "adopted", "precision": "float16"}, r"leave embed\.precision out"),
    ],
)
def test_settings_that_exclude_each_other_say_what_to_change(changes: dict[str, Any], said: str) -> None:
    spec = EmbedSpec(embedder="open_clip", architecture="ViT-B-32", image_size=224).model_copy(update=changes)
    for refuse in (
        lambda: check_embed_spec(spec),
        lambda: find_weights(spec, "weights.pt"),
        lambda: build_embedder(spec, weights=b"", device="cpu"),
    ):
        with pytest.raises(ConfigError, match=said):
            refuse()


def test_settings_of_the_presets_are_accepted() -> None:
    check_embed_spec(EmbedSpec())
    check_embed_spec(EmbedSpec(embedder="open_clip", architecture="ViT-L-14-quickgelu", precision="bfloat16"))
    check_embed_spec(EmbedSpec(embedder="open_clip", architecture="ViT-B-32", feature="image_text_mean"))
    check_embed_spec(EmbedSpec(embedder="open_clip", architecture="ViT-B-16-SigLIP"))
    check_embed_spec(EmbedSpec(embedder="tower", architecture="conv-tiny", precision="bfloat16"))


def test_siglip_is_scaled_by_its_own_mean() -> None:
    assert open_clip_model.colour_scale("ViT-B-16-SigLIP").mean == (0.5, 0.5, 0.5)
    assert open_clip_model.colour_scale("ViT-L-14").mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
