"""Webdataset tars to shards: the plan over their indexes, and the rows of one shard.

A sample without an image is a row without one. Shards never mix tars, so a new tar adds shards and changes none.
"""

import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from mlcd_core.pack.keys import text_of
from mlcd_core.pack.options import PackOptions
from mlcd_core.pack.plan import PackPlan, PackUnit, TarRows, listing_digest, unit_digest, unit_name
from mlcd_core.pack.sources import Sources
from mlcd_core.pack.table import NO_IMAGE, Row
from mlcd_core.pack.tar_index import COLUMN_OF, TarIndex, check_unchanged
from mlcd_core.pack.tar_samples import Sample, read_samples


def plan_tars(sources: Sources, indexes: Sequence[TarIndex], options: PackOptions) -> PackPlan:
    """The shards of the tars, whose indexes are in the order of ``sources.files``.

    Where two tars have the same key, every key gets the name of its tar before it.
    """
    columns = tuple(name for name in COLUMN_OF.values() if any(name in index.columns for index in indexes))
    is_shared = _share_keys(indexes)
    prefixes = [f"{text_of(tar.name)}/" if is_shared else "" for tar in sources.files]
    reads = [
        (span.first_key, TarRows(tar, span.start, span.rows, prefix, span.renamed))
        for tar, index, prefix in zip(sources.files, indexes, prefixes, strict=True)
        for span in index.spans
    ]
    return PackPlan(
        kind="webdataset",
        listing=listing_digest(sources, options),
        options=options,
        columns=columns,
        classes=(),
        ignored=dict(sum((Counter(index.ignored) for index in indexes), Counter(sources.ignored))),
        broken=tuple(index.broken for index in indexes if index.broken is not None),
        units=tuple(tar_unit(i, first_key, rows, columns, options) for i, (first_key, rows) in enumerate(reads)),
    )


def tar_unit(index: int, first_key: str, rows: TarRows, columns: tuple[str, ...], options: PackOptions) -> PackUnit:
    """The shard number ``index``."""
    renamed = {str(row): key for row, key in rows.renamed.items()}
    tar = list(rows.tar._replace(path=""))
    digest = unit_digest(options, columns, ["tar", tar, rows.start, rows.rows, rows.key_prefix, renamed])
    return PackUnit(unit_name(index), rows.rows, digest, first_key, rows)


def tar_rows(reads: TarRows) -> Iterator[Row]:
    """The rows of a shard. Raises DataError for a tar that changed since the plan."""
    check_unchanged(reads.tar)
    with open(reads.tar.path, "rb") as file:
        file.seek(reads.start)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            samples = islice(read_samples(tar, reads.tar.bytes), reads.rows)
            for row, sample in enumerate(samples):
                key = reads.renamed.get(row, text_of(sample.key))
                yield _row(f"{reads.key_prefix}{key}", _Contents(tar, sample))


@dataclass(frozen=True)
class _Contents:
    """The members of a sample, read when asked for."""

    tar: tarfile.TarFile
    sample: Sample

    def bytes_of(self, suffix: str | None) -> bytes | None:
        info = self.sample.members.get(suffix) if suffix is not None else None
        if info is None:
            return None
        member = self.tar.extractfile(info)
        assert member is not None, f"{info.name} is no regular file"
        return member.read()

    def text_of(self, suffix: str) -> str | None:
        data = self.bytes_of(suffix)
        return None if data is None else data.decode("utf-8", "replace").strip()


def _row(key: str, contents: _Contents) -> Row:
    image = contents.bytes_of(contents.sample.image)
    row = Row(
        key=key,
        image=image,
        status="success",
        label=_int(contents.text_of("cls")),
        caption=contents.text_of("txt"),
        json=contents.text_of("json"),
    )
    if image is not None:
        return row
    members = ", ".join(f".{text_of(suffix)}" for suffix in contents.sample.members)
    return row._replace(status=NO_IMAGE, error_message=f"the sample has {members} only")


def _int(text: str | None) -> int | None:
    """A class that is no number has no label."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _share_keys(indexes: Sequence[TarIndex]) -> bool:
    """Whether two tars have a key in common; a pair of equal hashes would say so too, which does no harm."""
    hashes = np.frombuffer(b"".join(index.key_hashes for index in indexes), np.uint64)
    return len(np.unique(hashes)) < len(hashes)
