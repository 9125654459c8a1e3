"""Some row groups in, one embedding table out: every input row gives exactly one row, in order."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlcd_core.dataset import ImageRows, ShardReader, Span
from mlcd_core.identity import short
from mlcd_core.images.embed_shard import ImageBatch, embed_batches, embedding_table, read_ipc
from mlcd_core.images.embedder import Embedder
from mlcd_core.specs import EmbedSpec
from mlcd_core.stopwatch import Stopwatch
from mlcd_core.tables import RowStatus

if TYPE_CHECKING:
    from mlcd_core.images.adopted import AdoptedVectors


def embed_shard(reader: ShardReader, *, embedder: Embedder, spec: EmbedSpec, pool: ThreadPoolExecutor) -> pa.Table:
    """Embed the images of a whole shard; see ``embed_groups``."""
    return embed_groups(iter(reader), embedder=embedder, spec=spec, pool=pool)


def embed_groups(
    groups: Iterable[ImageRows],
    *,
    embedder: Embedder,
    spec: EmbedSpec,
    pool: ThreadPoolExecutor,
    watch: Stopwatch | None = None,
) -> pa.Table:
    """Embed consecutive row groups of a shard into a table of ``tables.embedding_schema``.

    A bad image is a row with a status and a zero vector. Raises DataError when a row group cannot be read. ``watch`` as
    for ``embed_batches``.
    """
    rows = _Rows(groups, spec.batch_rows)
    embedded = embed_batches(rows.batches(), embedder=embedder, spec=spec, pool=pool, watch=watch)
    failed_N = np.array(rows.upstream_failed, dtype=bool)
    embedded.status_N[failed_N] = RowStatus.UPSTREAM_FAILED
    embedded.embeddings_ND[failed_N] = 0
    return embedding_table(
        rows.first_row + np.arange(len(rows.keys)), rows.keys, embedded.status_N, embedded.embeddings_ND
    )


def adopt_groups(groups: Iterable[ImageRows], vectors: "AdoptedVectors") -> pa.Table:
    """The table of consecutive row groups whose vectors were made elsewhere and are looked up by key.

    A row without an image keeps that status, for there is nothing to train on.
    """
    first_row, keys, states = 0, list[str](), list[int]()
    for group in groups:
        first_row = first_row if keys else group.first_row
        keys += group.keys
        states += map(_state_of, group.images, group.upstream_failed)
    found = vectors.lookup(keys)
    state_N = np.array(states, np.int8)
    has_image_N = state_N == RowStatus.OK
    status_N = np.where(has_image_N, found.status_N, state_N)
    embeddings_ND = np.where(has_image_N[:, None], found.embeddings_ND, np.float16(0))
    return embedding_table(first_row + np.arange(len(keys)), keys, status_N, embeddings_ND)


def failed_table(span: Span, status: RowStatus, dim: int) -> pa.Table:
    """The table of a unit that could not be done: all its rows, made keys, this status, zero vectors."""
    rows_N = span.first_row + np.arange(span.rows)
    keys = [f"{short(span.shard.digest)}-{row:06d}" for row in rows_N]
    status_N, embeddings_ND = np.full(span.rows, status, np.int8), np.zeros((span.rows, dim), np.float16)
    return embedding_table(rows_N, keys, status_N, embeddings_ND)


def status_counts(table: pa.Table) -> dict[str, int]:
    """Rows per status name, zero counts left out."""
    counts = np.bincount(table["status"].to_numpy(), minlength=len(RowStatus))
    return {status.name.lower(): int(counts[status]) for status in RowStatus if counts[status]}


def joined_embeddings(parts: Sequence[bytes]) -> NDArray[np.float16]:
    """The vectors of all parts in order, unusable rows as zeros, in one preallocated float16 [N, D]."""
    tables = [read_ipc(part) for part in parts]
    dim = tables[0].schema.field("embedding").type.list_size
    joined_ND = np.empty((sum(table.num_rows for table in tables), dim), dtype=np.float16)
    start = 0
    for table in tables:
        for chunk in table["embedding"].chunks:
            joined_ND[start : start + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, dim)
            start += len(chunk)
    return joined_ND


def _state_of(image: bytes | None, upstream_failed: bool) -> RowStatus:
    if upstream_failed:
        return RowStatus.UPSTREAM_FAILED
    return RowStatus.NULL_BYTES if image is None else RowStatus.OK


class _Rows:
    """Cuts row groups into batches of a fixed size, whatever the groups are, and keeps what is small of every row."""

    def __init__(self, groups: Iterable[ImageRows], batch_rows: int) -> None:
        self._groups = groups
        self._batch_rows = batch_rows
        self.first_row = 0
        self.keys: list[str] = []
        self.upstream_failed: list[bool] = []

    def batches(self) -> Iterator[ImageBatch]:
        """The batches in order; keys and marks are complete after the last."""
        images: list[bytes | None] = []
        captions: list[str | None] | None = None
        for group in self._groups:
            if not self.keys:
                self.first_row = group.first_row
            self.keys += group.keys
            self.upstream_failed += group.upstream_failed
            # what a failed download left is not decoded
            images += [None if bad else image for bad, image in zip(group.upstream_failed, group.images, strict=True)]
            if group.captions is not None:
                captions = [*(captions or []), *group.captions]
            while len(images) >= self._batch_rows:
                yield ImageBatch(images[: self._batch_rows], captions and captions[: self._batch_rows])
                images, captions = images[self._batch_rows :], captions and captions[self._batch_rows :]
        if images:
            yield ImageBatch(images, captions)
