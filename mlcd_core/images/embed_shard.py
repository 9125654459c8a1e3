"""The images of one shard to an embedding table: exactly one output row per input row, in order.

Rows go to the encoder in fixed batches of ``spec.batch_rows``, bad images included, as zeros: the boundaries depend on
nothing else, so a shard gives the same bytes on every attempt. The next batch is decoded while one is encoded.

N rows of the shard, B rows of a batch, D embedding dims.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from mlcd_core.errors import CorruptRecordError
from mlcd_core.images.decode import DecodedImages, decode_images
from mlcd_core.images.embedder import Embedder
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus, embedding_schema

RECORD_BATCH_ROWS = 8_192


@dataclass(frozen=True)
class EmbeddedRows:
    """``embeddings_ND`` float16 unit rows, zero where ``status_N`` (int8 RowStatus) is not OK."""

    embeddings_ND: np.ndarray
    status_N: np.ndarray


def embed_rows(
    images: Sequence[bytes | None], *, embedder: Embedder, spec: EmbedSpec, pool: ThreadPoolExecutor | None = None
) -> EmbeddedRows:
    """Decode on the threads of ``pool``, encode, L2-normalise in float32, round to float16.

    An embedding that is zero or not finite becomes a zero row with the status NOT_FINITE.
    """
    embeddings_ND = np.zeros((len(images), embedder.dim), np.float16)
    status_N = np.zeros(len(images), np.int8)
    first = 0
    for decoded in _decoded_ahead(images, embedder=embedder, spec=spec, pool=pool):
        features_BD = embedder.encode(torch.from_numpy(decoded.pixels_BCHW)).float().cpu().numpy()
        done = _unit_rows(features_BD, decoded.status_B)
        last = first + len(done.status_N)
        embeddings_ND[first:last], status_N[first:last] = done.embeddings_ND, done.status_N
        first = last
    return EmbeddedRows(embeddings_ND=embeddings_ND, status_N=status_N)


def embedding_table(
    rows: Sequence[int] | np.ndarray, keys: Sequence[str], status_N: np.ndarray, embeddings_ND: np.ndarray
) -> pa.Table:
    """Lay out embeddings in ``tables.embedding_schema``; ``rows`` count inside the input shard."""
    schema = embedding_schema(embeddings_ND.shape[1])
    values = pa.array(np.ascontiguousarray(embeddings_ND, dtype=np.float16).reshape(-1))
    columns = [
        pa.array(rows, pa.int64()),
        pa.array(keys, pa.string()),
        pa.array(status_N, pa.int8()),
        pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type),
    ]
    return pa.table(columns, schema=schema)


def ipc_bytes(table: pa.Table) -> bytes:
    """Write a table as an uncompressed Arrow IPC file, which readers can map; the chunks of the table do not matter."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=RECORD_BATCH_ROWS)
    return bytes(sink.getvalue())


def read_ipc(data: bytes | pa.Buffer) -> pa.Table:
    """Read a whole IPC file without copying. Raises CorruptRecordError if it is none."""
    try:
        return pa.ipc.open_file(pa.BufferReader(data)).read_all()
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptRecordError(
            f"{len(data):,} bytes are no Arrow IPC file ({error}); expected an embedding part: make its unit again"
        ) from error


def _decoded_ahead(
    images: Sequence[bytes | None], *, embedder: Embedder, spec: EmbedSpec, pool: ThreadPoolExecutor | None
) -> Iterator[DecodedImages]:
    def decode(first: int) -> DecodedImages:
        batch = images[first : first + spec.batch_rows]
        return decode_images(batch, image_size=embedder.image_size, max_pixels=spec.max_pixels, pool=pool)

    # its own thread: a decode that waits for ``pool`` inside ``pool`` would wait for ever
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-ahead") as ahead:
        coming: Future[DecodedImages] | None = None
        for first in range(0, len(images), spec.batch_rows):
            following = ahead.submit(decode, first)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _unit_rows(features_BD: np.ndarray, status_B: np.ndarray) -> EmbeddedRows:
    with np.errstate(over="ignore", invalid="ignore"):
        norm_B = np.sqrt(np.square(features_BD).sum(axis=1))
    usable_B = np.isfinite(norm_B) & (norm_B > 0)
    status_B = np.where((status_B == RowStatus.OK) & ~usable_B, RowStatus.NOT_FINITE, status_B).astype(np.int8)
    embeddings_BD = np.zeros(features_BD.shape, np.float16)
    good_B = status_B == RowStatus.OK
    embeddings_BD[good_B] = features_BD[good_B] / norm_B[good_B, None]
    return EmbeddedRows(embeddings_ND=embeddings_BD, status_N=status_B)
