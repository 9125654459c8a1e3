"""Finding weights and building embedders: the bytes of the spec, or an error that says what to change."""

import json

import open_clip
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from mlcd_core.errors import ConfigError
from mlcd_core.identity import sha256_hex
from mlcd_core.images.embedder import build_embedder, embedding_dim, find_weights
from mlcd_core.specs import EmbedSpec

TINY = "mlcd-test-tiny"
TINY_CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random open_clip model of a small architecture of our own."""
    path = tmp_path_factory.mktemp("configs") / f"{TINY}.json"
    path.write_text(json.dumps(TINY_CONFIG))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    return open_clip.create_model(TINY).eval()


@pytest.fixture(params=["safetensors", "pt", "pt-nested"])
def weights_file(request, tiny, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / f"weights.{request.param.removesuffix('-nested')}"
    state = {name: value.contiguous() for name, value in tiny.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "nested" in request.param else state, path)
    return path


SPEC = EmbedSpec(embedder="open_clip", architecture=TINY, image_size=32)


def test_features_equal_open_clips_own(tiny, weights_file):
    embedder = build_embedder(SPEC, weights=find_weights(SPEC, str(weights_file)), device="cpu")
    assert (embedder.dim, embedder.image_size) == (24, 32)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    features = embedder.encode(images)
    mean = torch.tensor(tiny.visual.image_mean).view(-1, 1, 1)
    std = torch.tensor(tiny.visual.image_std).view(-1, 1, 1)
    with torch.no_grad():
        reference = tiny.encode_image((images.float() / 255 - mean) / std)
    assert features.dtype == torch.float32
    assert F.cosine_similarity(features, reference).min() >= 0.9999
    torch.testing.assert_close(features, reference)


@pytest.mark.usefixtures("tiny")
def test_fingerprint_follows_the_weights(tmp_path):
    names = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        path = tmp_path / f"{seed}.pt"
        if not path.exists():
            torch.save(open_clip.create_model(TINY).state_dict(), path)
        names.add(build_embedder(SPEC, weights=path.read_bytes(), device="cpu").fingerprint)
    assert len(names) == 2


def test_packaged_codebook_is_found_without_a_path():
    assert sha256_hex(find_weights(EmbedSpec(), "")) == sha256_hex(find_weights(EmbedSpec(), ""))


def test_a_local_codebook_is_read_from_its_path(tmp_path):
    path = tmp_path / "book.safetensors"
    path.write_bytes(find_weights(EmbedSpec(), ""))
    assert find_weights(EmbedSpec(), str(path)) == path.read_bytes()


def test_weights_with_another_sha256_are_refused():
    spec = EmbedSpec(weights_sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"packaged codebook has [0-9a-f]{64}.*clear embed.weights_sha256"):
        find_weights(spec, "")
    with pytest.raises(ConfigError, match="the given weights"):
        build_embedder(spec, weights=find_weights(EmbedSpec(), ""), device="cpu")


def test_weights_with_the_right_sha256_are_taken():
    weights = find_weights(EmbedSpec(), "")
    assert find_weights(EmbedSpec(weights_sha256=sha256_hex(weights)), "") == weights


@pytest.mark.parametrize(
    ("spec", "pretrained", "said"),
    [
        (EmbedSpec(), "no/such.safetensors", "is not a file.*leave it empty"),
        (EmbedSpec(), "openai", "is not a file"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-B-32"), "no/such.pt", "is not a file.*open_clip tag"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-B-23"), "openai", "did you mean .*ViT-B-32"),
        (EmbedSpec(embedder="open_clip"), "", "no open_clip model"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-B-16-SigLIP"), "webly", "did you mean webli"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-B-32"), "", "neither a file nor a tag"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-B-32"), "openai", "ViT-B-32-quickgelu"),
        (EmbedSpec(embedder="open_clip", architecture="ViT-L-14"), "laion2b_s32b_b82k", "another tag"),
    ],
)
def test_weights_that_cannot_be_meant_say_what_to_do(spec, pretrained, said):
    with pytest.raises(ConfigError, match=said):
        find_weights(spec, pretrained)


def test_a_tag_is_read_through_open_clips_download(tmp_path, monkeypatch):
    """The hub is out of reach here; what it would leave in its cache is a file."""
    file = tmp_path / "cached.safetensors"
    file.write_bytes(b"weights")
    asked = []

    def download(config, *, prefer_hf_hub):
        asked.append((config["hf_hub"], prefer_hf_hub))
        return str(file)

    monkeypatch.setattr(open_clip, "download_pretrained", download)
    spec = EmbedSpec(embedder="open_clip", architecture="ViT-B-32")
    assert find_weights(spec, "laion2b_s34b_b79k") == b"weights"
    assert asked == [("laion/CLIP-ViT-B-32-laion2B-s34B-b79K/", True)]


def test_a_failed_download_names_the_way_out(monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    spec = EmbedSpec(embedder="open_clip", architecture="ViT-B-32")
    with pytest.raises(ConfigError, match=r"no route to host.*set embed.pretrained to its path"):
        find_weights(spec, "laion2b_s34b_b79k")


@pytest.mark.usefixtures("tiny")
def test_an_image_size_that_is_not_the_models_is_refused():
    with pytest.raises(ConfigError, match=r"set embed\.image_size=32"):
        build_embedder(SPEC.model_copy(update={"image_size": 64}), weights=b"", device="cpu")


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("weights", [b"", b"junk that is no safetensors", b"PK\x03\x04 and no zip"])
def test_broken_weights_are_a_config_error(weights):
    with pytest.raises(ConfigError, match=f"do not fit {TINY}"):
        build_embedder(SPEC, weights=weights, device="cpu")


@pytest.mark.usefixtures("tiny")
def test_weights_of_another_architecture_are_a_config_error():
    with pytest.raises(ConfigError, match=r"check embed\.architecture"):
        build_embedder(SPEC, weights=find_weights(EmbedSpec(), ""), device="cpu")


def test_a_tower_is_built_from_its_architecture_and_weights(tmp_path):
    from safetensors.torch import save

    from mlcd_core.train.model import build_tower

    tower = build_tower("conv-tiny", image_size=32, seed=3)
    path = tmp_path / "tower.safetensors"
    path.write_bytes(save(tower.state_dict()))
    spec = EmbedSpec(embedder="tower", architecture="conv-tiny", image_size=32)
    spec = spec.model_copy(update={"weights_sha256": sha256_hex(path.read_bytes())})
    embedder = build_embedder(spec, weights=find_weights(spec, str(path)), device="cpu")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(embedder.encode(images), tower(images))
    assert embedding_dim(spec, str(path)) == embedder.dim == 64
    with pytest.raises(ConfigError, match="the given weights"):
        build_embedder(spec, weights=save(build_tower("conv-tiny", image_size=32, seed=4).state_dict()), device="cpu")


def test_weights_of_a_tower_are_a_file():
    with pytest.raises(ConfigError, match=r"gone.safetensors is not a file.*weights of tower.*existing file$"):
        find_weights(EmbedSpec(embedder="tower", architecture="conv-tiny"), "gone.safetensors")


def test_a_tower_encodes_in_bfloat16():
    from safetensors.torch import save

    from mlcd_core.train.model import build_tower

    weights = save(build_tower("conv-tiny", image_size=32, seed=3).state_dict())
    spec = EmbedSpec(embedder="tower", architecture="conv-tiny", image_size=32)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    exact = build_embedder(spec, weights=weights, device="cpu").encode(images)
    rough = build_embedder(spec.model_copy(update={"precision": "bfloat16"}), weights=weights, device="cpu")
    assert rough.encode(images).dtype == torch.float32
    assert F.cosine_similarity(rough.encode(images), exact).min() > 0.99
    assert not torch.equal(rough.encode(images), exact)
    with pytest.raises(ConfigError, match="float16 and the device is the CPU"):
        build_embedder(spec.model_copy(update={"precision": "float16"}), weights=weights, device="cpu")


def test_adopted_vectors_embed_nothing():
    spec = EmbedSpec(embedder="adopted")
    for asked in (
        lambda: find_weights(spec, ""),
        lambda: build_embedder(spec, weights=b"", device="cpu"),
    ):
        with pytest.raises(ConfigError, match="adopted has vectors and no weights"):
            asked()
