"""The samples of a webdataset tar: consecutive members whose names agree up to the first dot.

``000001.jpg, 000001.txt, 000001.json`` are one sample. A tar that was cut, or holds something else behind a member,
is read up to there and then raises with the place: Python's tarfile takes many such ends for a proper one.
"""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from mlcd_core.errors import DataError
from mlcd_core.pack.scan import IMAGE_SUFFIXES, suffix_of

# as webdataset's: the key is the path up to the first dot of its last component; .hidden has none
_NAME = re.compile(r"^((?:.*/|)[^./][^./]*)[.]([^/]*)$", re.DOTALL)
_CHUNK = 1 << 20


class BrokenTarError(DataError):
    """A tar that cannot be read from byte ``offset`` on; ``args`` are the offset and why."""

    @property
    def offset(self) -> int:
        """The byte up to which it was read."""
        return int(self.args[0])

    @property
    def why(self) -> str:
        """What stands there."""
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.why} at byte {self.offset:,}"


@dataclass(frozen=True)
class Sample:
    """``key``, the byte where its first header starts, and its members by suffix (``jpg``, ``txt``), in tar order."""

    key: str
    start: int
    members: dict[str, tarfile.TarInfo] = field(default_factory=dict)

    @property
    def image(self) -> str | None:
        """The suffix of its image: one that is an image's as it is, else one that ends so, the first in the tar."""
        exact = [suffix for suffix in self.members if f".{suffix}" in IMAGE_SUFFIXES]
        ending = [suffix for suffix in self.members if suffix_of(suffix) in IMAGE_SUFFIXES]
        return next(iter(exact + ending), None)


def read_samples(tar: tarfile.TarFile, tar_bytes: int) -> Iterator[Sample]:
    """The samples from where ``tar`` stands to its end.

    Raises BrokenTarError after the last one that could be read; a sample that the break cuts is given if its image is
    whole.
    """
    sample: Sample | None = None
    try:
        for info in _members(tar, tar_bytes):
            parts = _NAME.match(info.name.removeprefix("./"))
            if parts is None:
                continue
            key, suffix = parts[1], parts[2].lower()
            if sample is None or key != sample.key or suffix in sample.members:
                if sample is not None:
                    yield sample
                sample = Sample(key, info.offset)
            sample.members[suffix] = info
    except BrokenTarError:
        if sample is not None and sample.image is not None:
            yield sample
        raise
    if sample is not None:
        yield sample


def _members(tar: tarfile.TarFile, tar_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The whole regular files in it."""
    try:
        while (info := tar.next()) is not None:
            # it keeps all it has seen, a gigabyte for a million; typeshed does not know the attribute
            tar.members = []  # type: ignore[attr-defined]
            if info.offset_data + info.size > tar_bytes:
                raise BrokenTarError(info.offset, "the file ends inside a member")
            if info.isreg():
                yield info
    except tarfile.TarError as error:
        raise BrokenTarError(min(tar.offset, tar_bytes), str(error)) from error
    _check_end(tar, tar_bytes)


def _check_end(tar: tarfile.TarFile, tar_bytes: int) -> None:
    """tarfile stops at a cut or damaged header as at the end; the end is blocks of zeros, and nothing else follows."""
    assert tar.fileobj is not None
    file: BinaryIO = tar.fileobj  # type: ignore[assignment]
    end = tar.offset
    if end >= tar_bytes:
        raise BrokenTarError(end, "the file ends without the mark of an end")
    file.seek(end)
    while chunk := file.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise BrokenTarError(end, "no header and no end, but something else")
