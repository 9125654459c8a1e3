"""Where the samples of a tar are, found by its headers alone: the data between is skipped.

The index cuts a tar into the spans that become shards, so that one huge tar is packed by many workers, and says what
a plan over many tars needs: columns, repeated keys, broken ends.
"""

import hashlib
import tarfile
from collections import Counter
from dataclasses import dataclass

from mlcd_core.errors import DataError
from mlcd_core.pack.cutting import cut
from mlcd_core.pack.keys import numbered, text_of
from mlcd_core.pack.options import PackOptions
from mlcd_core.pack.scan import FoundFile, file_at
from mlcd_core.pack.tar_samples import BrokenTarError, Sample, read_samples

# suffix of a member -> the column it becomes
COLUMN_OF = {"cls": "label", "txt": "caption", "json": "json"}


@dataclass(frozen=True)
class BrokenTar:
    """A tar that cannot be read from byte ``offset`` on, after so many samples."""

    tar: str
    offset: int
    samples: int
    why: str

    def __str__(self) -> str:
        return f"{self.tar}: {self.why} at byte {self.offset:,}, after {self.samples:,} samples"


@dataclass(frozen=True)
class TarSpan:
    """Samples of one shard. ``renamed``: row -> key, where the tar has that key before."""

    start: int
    rows: int
    first_key: str
    renamed: dict[int, str]


@dataclass(frozen=True)
class TarIndex:
    """``key_hashes``: 8 bytes per sample, to find keys that several tars have."""

    spans: tuple[TarSpan, ...]
    columns: frozenset[str]
    key_hashes: bytes
    ignored: dict[str, int]
    broken: BrokenTar | None


@dataclass(frozen=True)
class _Place:
    key: str
    start: int
    image_bytes: int


def index_tar(tar: FoundFile, options: PackOptions) -> TarIndex:
    """Read the headers of a tar. Raises DataError when it cannot be opened or is not what was listed."""
    places: list[_Place] = []
    columns: set[str] = set()
    ignored: Counter[str] = Counter()
    broken: BrokenTar | None = None
    try:
        check_unchanged(tar)
        with open(tar.path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for sample in read_samples(opened, tar.bytes):
                _take(sample, places, columns, ignored)
    except BrokenTarError as error:
        broken = BrokenTar(text_of(tar.name), error.offset, len(places), error.why)
    except tarfile.ReadError as error:  # not even a first header
        broken = BrokenTar(text_of(tar.name), 0, 0, str(error))
    except OSError as error:
        raise DataError(f"{tar.path} cannot be read: {error.strerror}; make it readable or leave it out") from error
    keys = numbered([place.key for place in places])
    return TarIndex(_spans(places, keys, options), frozenset(columns), _hashes(keys), dict(ignored), broken)


def check_unchanged(tar: FoundFile) -> None:
    """Raise DataError when the tar is not what was listed."""
    now = file_at(tar.path, tar.name)
    if now != tar:
        raise DataError(
            f"{tar.path} changed after it was listed; leave the sources at rest and run again with --replace"
        )


def _take(sample: Sample, places: list[_Place], columns: set[str], ignored: Counter[str]) -> None:
    image = sample.image
    places.append(_Place(text_of(sample.key), sample.start, sample.members[image].size if image else 0))
    for suffix in sample.members:
        if suffix in COLUMN_OF:
            columns.add(COLUMN_OF[suffix])
        elif suffix != image:
            ignored[f".{text_of(suffix)} in tars"] += 1


def _spans(places: list[_Place], keys: list[str], options: PackOptions) -> tuple[TarSpan, ...]:
    pieces = cut(
        places,
        lambda place: options.planned_bytes(place.image_bytes),
        most_items=options.rows_per_shard,
        most_bytes=options.max_shard_bytes,
    )
    spans: list[TarSpan] = []
    first = 0
    for piece in pieces:
        own = keys[first : first + len(piece)]
        renamed = {row: key for row, (key, place) in enumerate(zip(own, piece, strict=True)) if key != place.key}
        spans.append(TarSpan(piece[0].start, len(piece), own[0], renamed))
        first += len(piece)
    return tuple(spans)


def _hashes(keys: list[str]) -> bytes:
    return b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
