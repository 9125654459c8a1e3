"""What goes in which shard, fixed before the first one is made.

A unit is one shard. Its digest covers all that decides its bytes: the files it reads by name, size and modification
time, where they are cut, and what is done to them; never a path. Two plans are the same when their units are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mlcd_core.identity import fingerprint, sha256_hex
from mlcd_core.pack.options import Kind, PackOptions
from mlcd_core.pack.scan import FoundFile
from mlcd_core.pack.sources import Sources
from mlcd_core.pack.tar_index import BrokenTar

# goes up when the same sources would give other bytes
PACK_VERSION = 1


class FolderRow(NamedTuple):
    """One image file; ``label`` is -1 where there are no classes."""

    key: str
    file: FoundFile
    label: int
    class_name: str


@dataclass(frozen=True)
class FolderRows:
    """The image files of one shard, in order."""

    rows: tuple[FolderRow, ...]


@dataclass(frozen=True)
class TarRows:
    """The samples of one shard: ``rows`` of them from the header at byte ``start`` of a tar.

    ``key_prefix`` stands before every key; ``renamed``: row of the shard -> key, where the tar repeats a key.
    """

    tar: FoundFile
    start: int
    rows: int
    key_prefix: str
    renamed: dict[int, str]


@dataclass(frozen=True)
class PackUnit:
    """One shard: its name without ``.parquet``, its rows, the digest of what it reads, its first key for people."""

    name: str
    rows: int
    digest: str
    first_key: str
    reads: FolderRows | TarRows

    @property
    def path(self) -> str:
        """Where the shard stands under the target."""
        return f"{self.name}.parquet"


@dataclass(frozen=True)
class PackPlan:
    """All shards, in order. ``listing``: digest of the sources as listed, and of all options.

    ``columns`` are those beside ``key``, ``image``, ``status`` and ``error_message``.
    """

    kind: Kind
    listing: str
    options: PackOptions
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    ignored: dict[str, int]
    broken: tuple[BrokenTar, ...]
    units: tuple[PackUnit, ...]

    @cached_property
    def identity(self) -> str:
        """Digest of all units: equal plans make equal shards."""
        return fingerprint([[unit.name, unit.digest] for unit in self.units])

    @property
    def rows(self) -> int:
        """Images of all shards."""
        return sum(unit.rows for unit in self.units)


def listing_digest(sources: Sources, options: PackOptions) -> str:
    """Digest of the sources as they were listed, without reading them, and of all options."""
    made_by = fingerprint([PACK_VERSION, sources.kind, asdict(options)])
    return digest_of_lines(made_by, [f"{f.name}\0{f.bytes}\0{f.mtime_ns}" for f in sources.files])


def unit_digest(options: PackOptions, columns: Sequence[str], what: Any, lines: Sequence[str] = ()) -> str:
    """Digest of a unit: ``what`` it reads, as JSON values and as lines of text."""
    return digest_of_lines(fingerprint([PACK_VERSION, options.resize, options.quality, list(columns), what]), lines)


def unit_name(index: int) -> str:
    """Names sort as the units do, up to 100,000 of them."""
    return f"images-{index:05d}"


def digest_of_lines(head: str, lines: Sequence[str]) -> str:
    """sha256 of text; ten times as fast as canonical JSON, which a million files would wait for."""
    # no name holds \0, and lines end with a number, so that a line break in a name cannot pass for the end of a line
    return sha256_hex("\n".join([head, *lines]).encode("utf-8", "surrogatepass"))
