"""What a person can choose of a pack."""

from dataclasses import dataclass
from typing import Literal

from mlcd_core.errors import ConfigError

Kind = Literal["folder", "imagefolder", "webdataset"]
KindOption = Literal["auto", "folder", "imagefolder", "webdataset"]


@dataclass(frozen=True)
class PackOptions:
    """``resize``: pixels that the short side is shrunk to, 0 for none. ``max_shard_bytes`` counts image bytes only.

    Raises ConfigError for values that cannot be meant.
    """

    kind: KindOption = "auto"
    rows_per_shard: int = 10_000
    # a worker holds 2.2 times this: the buffer that the file grows in, and the bytes that are handed to the store
    max_shard_bytes: int = 256 << 20
    resize: int = 0
    quality: int = 95

    def __post_init__(self) -> None:
        _check("rows-per-shard", self.rows_per_shard, self.rows_per_shard >= 1, "1 or more")
        # pa.binary() holds 2 GiB, and an S3 object is one PUT
        _check("max-shard-bytes", self.max_shard_bytes, 1 <= self.max_shard_bytes <= 1 << 31, "1 byte to 2 GiB")
        _check("resize", self.resize, self.resize == 0 or self.resize >= 8, "8 pixels or more, or nothing")
        _check("quality", self.quality, 1 <= self.quality <= 100, "1 to 100")

    def planned_bytes(self, file_bytes: int) -> int:
        """What an image file will take in a shard: all of it, or about the size of its JPEG after the resize."""
        if not self.resize:
            return file_bytes
        # a 4:3 picture at quality 95 takes about 0.75 bytes a pixel: its short side squared
        return min(file_bytes, self.resize * self.resize)


def _check(option: str, got: int, is_good: bool, expected: str) -> None:
    if not is_good:
        raise ConfigError(f"--{option} is {got:,}; expected {expected}")
