"""The images of a unit to an embedding table: exactly one output row per input row, in order.

Images come in batches whose boundaries depend on nothing but the unit, and bad ones are encoded too, as zeros: so a
unit gives the same bytes on every attempt, whatever else runs. The next batch is read and decoded while one is encoded.

N rows of the unit, B rows of a batch, D embedding dims.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import torch

from mlcd_core.errors import CorruptRecordError
from mlcd_core.images.decode import DecodedImages, decode_images
from mlcd_core.images.embedder import Embedder
from mlcd_core.specs import EmbedSpec
from mlcd_core.stopwatch import Stopwatch
from mlcd_core.tables import RowStatus, embedding_schema

RECORD_BATCH_ROWS = 8_192


@runtime_checkable
class CaptionEmbedder(Protocol):
    """What an embedder of ``feature=image_text_mean`` can do beside ``encode``: float32 [B, D], not normalised."""

    def encode_with_captions(self, images_BCHW: torch.Tensor, captions: Sequence[str | None]) -> torch.Tensor:
        """Embed a batch; a row without a caption is its image alone."""
        ...


@dataclass(frozen=True)
class ImageBatch:
    """The images of one encoder call, and their captions where the embedder takes them."""

    images: Sequence[bytes | None]
    captions: Sequence[str | None] | None = None


@dataclass(frozen=True)
class EmbeddedRows:
    """``embeddings_ND`` float16 unit rows, zero where ``status_N`` (int8 RowStatus) is not OK."""

    embeddings_ND: np.ndarray
    status_N: np.ndarray


def embed_batches(
    batches: Iterable[ImageBatch],
    *,
    embedder: Embedder,
    spec: EmbedSpec,
    pool: ThreadPoolExecutor | None = None,
    watch: Stopwatch | None = None,
) -> EmbeddedRows:
    """Decode on the threads of ``pool``, encode, L2-normalise in float32, round to float16.

    An embedding that is zero or not finite becomes a zero row with the status NOT_FINITE. ``watch`` gets the seconds
    that were waited for ``read`` (the next batch), ``decode`` and ``model``. What ``batches`` raises is raised.
    """
    watch = watch or Stopwatch()
    embeddings = [np.zeros((0, embedder.dim), np.float16)]
    status = [np.zeros(0, np.int8)]
    for batch in _prepared_ahead(batches, embedder.image_size, spec, pool, watch):
        with watch.phase("model"):
            features_BD = _features(embedder, batch)
        done = _unit_rows(features_BD, batch.decoded.status_B)
        embeddings.append(done.embeddings_ND)
        status.append(done.status_N)
    return EmbeddedRows(embeddings_ND=np.concatenate(embeddings), status_N=np.concatenate(status))


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


@dataclass(frozen=True)
class _Prepared:
    """A decoded batch, and the seconds that reading and decoding it took."""

    decoded: DecodedImages
    captions: Sequence[str | None] | None
    read_s: float
    decode_s: float


def _prepared_ahead(
    batches: Iterable[ImageBatch], image_size: int, spec: EmbedSpec, pool: ThreadPoolExecutor | None, watch: Stopwatch
) -> Iterator[_Prepared]:
    coming = iter(batches)

    def prepare() -> _Prepared | None:
        started = watch.now()
        batch = next(coming, None)
        if batch is None:
            return None
        read = watch.now()
        decoded = decode_images(
            batch.images, image_size=image_size, max_pixels=spec.max_pixels, pool=pool, mode=spec.decode
        )
        return _Prepared(decoded, batch.captions, read_s=read - started, decode_s=watch.now() - read)

    # its own thread: a decode that waits for ``pool`` inside ``pool`` would wait for ever
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode-ahead") as ahead:
        prepared = _waited(ahead.submit(prepare), watch)
        while prepared is not None:
            following = ahead.submit(prepare)
            yield prepared
            prepared = _waited(following, watch)


def _waited(future: "Future[_Prepared | None]", watch: Stopwatch) -> _Prepared | None:
    """The result; the seconds until it came are those of reading and of decoding, in the proportion of their work."""
    started = watch.now()
    prepared = future.result()
    waited_s = watch.now() - started
    work_s = prepared.read_s + prepared.decode_s if prepared else 0.0
    read_share = prepared.read_s / work_s if prepared and work_s else 1.0
    watch.add("read", waited_s * read_share)
    watch.add("decode", waited_s * (1 - read_share))
    return prepared


def _features(embedder: Embedder, batch: _Prepared) -> np.ndarray:
    images_BCHW = torch.from_numpy(batch.decoded.pixels_BCHW)
    if batch.captions is None:
        features_BD = embedder.encode(images_BCHW)
    else:
        assert isinstance(embedder, CaptionEmbedder), "an embedder without text was given captions"
        features_BD = embedder.encode_with_captions(images_BCHW, batch.captions)
    return np.asarray(features_BD.float().cpu().numpy())


def _unit_rows(features_BD: np.ndarray, status_B: np.ndarray) -> EmbeddedRows:
    with np.errstate(over="ignore", invalid="ignore"):
        norm_B = np.sqrt(np.square(features_BD).sum(axis=1))
    usable_B = np.isfinite(norm_B) & (norm_B > 0)
    status_B = np.where((status_B == RowStatus.OK) & ~usable_B, RowStatus.NOT_FINITE, status_B).astype(np.int8)
    embeddings_BD = np.zeros(features_BD.shape, np.float16)
    good_B = status_B == RowStatus.OK
    embeddings_BD[good_B] = features_BD[good_B] / norm_B[good_B, None]
    return EmbeddedRows(embeddings_ND=embeddings_BD, status_N=status_B)
