"""One shard in, one embedding table out: every input row gives exactly one row, in order."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mlcd_core.dataset import ShardReader
from mlcd_core.images.embed_shard import embed_rows, embedding_table, read_ipc
from mlcd_core.images.embedder import Embedder
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus


def embed_shard(reader: ShardReader, *, embedder: Embedder, spec: EmbedSpec, pool: ThreadPoolExecutor) -> pa.Table:
    """Embed the images of a shard into a table of ``tables.embedding_schema``.

    Raises DataError when the shard cannot be read; a bad image is a row with a status and a zero vector.
    """
    rows = list(reader)
    images = [image for group in rows for image in group.images]
    embedded = embed_rows(images, embedder=embedder, spec=spec, pool=pool)
    embeddings_ND, status_N = embedded.embeddings_ND, embedded.status_N
    failed_N = np.array([failed for group in rows for failed in group.upstream_failed], dtype=bool)
    status_N[failed_N] = RowStatus.UPSTREAM_FAILED
    embeddings_ND[failed_N] = 0
    keys = [key for group in rows for key in group.keys]
    return embedding_table(np.arange(len(keys)), keys, status_N, embeddings_ND)


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
