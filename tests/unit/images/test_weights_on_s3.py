"""Weights that lie on S3, as those of a tower do whose root is there."""

from collections.abc import Iterator

import pytest

from mlcd_core.errors import ConfigError
from mlcd_core.identity import sha256_hex
from mlcd_core.images.embedder import find_weights
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import open_files
from tests.servers import make_bucket, s3_environment, s3_server

TOWER = EmbedSpec(embedder="tower", architecture="conv-tiny", weights_sha256=sha256_hex(b"weights"))


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        make_bucket(endpoint, "weights")
        yield "s3://weights/root of runs"


def test_weights_are_read_by_their_address_and_checked(root: str) -> None:
    files = open_files(root)
    files.put("train/tower.safetensors", b"weights")
    files.put("train/other.safetensors", b"other weights")
    assert find_weights(TOWER, files.uri("train/tower.safetensors")) == b"weights"
    with pytest.raises(ConfigError, match=r"s3://weights/root of runs/train/other.safetensors has [0-9a-f]{64}"):
        find_weights(TOWER, files.uri("train/other.safetensors"))


@pytest.mark.parametrize("embedder", ["tower", "hog_words", "open_clip"])
def test_weights_that_are_not_there_are_a_config_error(root: str, embedder: str) -> None:
    with pytest.raises(ConfigError, match=r"embed\.pretrained=s3://weights/root of runs/none\.pt is not there"):
        find_weights(EmbedSpec(embedder=embedder, architecture="ViT-B-32"), f"{root}/none.pt")
