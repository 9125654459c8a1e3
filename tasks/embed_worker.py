"""One unit of embed: the images of a span of a shard to vectors, committed with what it took.

An actor runs two units at a time, so that one is read and decoded while the other is on the device. Both share the
threads that decode, and a single thread that the model runs on.
"""

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol

from mlcd_core.dataset import ImageRows, Shard, ShardReader, Span
from mlcd_core.digest_memo import row_groups_of, text_of
from mlcd_core.errors import DataError, ShardChangedError
from mlcd_core.identity import short
from mlcd_core.runtimes import EmbedRuntime
from mlcd_core.specs import EmbedSpec
from mlcd_core.stopwatch import Stopwatch
from mlcd_core.store import StageFolder, UnitTask, open_files
from mlcd_core.tables import RowStatus

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLED = 4  # images of a unit that are decoded both ways, where the fast way is used


class UnitEmbedder:
    """Embeds one span and commits it; two threads may call it at a time."""

    def __init__(self, root: str, spec: EmbedSpec, runtime: EmbedRuntime) -> None:
        self._spec = spec
        self._folder = StageFolder(open_files(root), spec)
        self._vectors: _Vectors = _Adopted(spec, runtime) if spec.embedder == "adopted" else _Encoded(spec, runtime)

    def __call__(self, task: UnitTask, reads: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the unit and return its rows, counts, seconds and device.

        A span whose pages cannot be read is committed as a failed unit. Raises StoreError when storage does not answer,
        DataError when the shard is gone or has other columns: neither says that its rows are lost.
        """
        span = span_of(reads)
        if span.shard.error:
            return self._commit_failed(task, span, RowStatus.UNREADABLE, span.shard.error)
        watch = Stopwatch()
        captions = self._spec.caption_column if self._spec.feature == "image_text_mean" else ""
        with watch.phase("read"):
            reader = ShardReader(
                span.shard,
                image_column=self._spec.image_column,
                key_column=self._spec.key_column,
                caption_column=captions,
            )
        try:
            table, notes = self._vectors.table(_readable(reader.read_span(span)), watch)
        except _UnreadableError as error:
            return self._commit_failed(task, span, RowStatus.UNREADABLE, str(error))
        return self._commit(task, span, table, watch, notes)

    def give_up(self, task: UnitTask, reads: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the unit without reading it: the process dies of it."""
        return self._commit_failed(task, span_of(reads), RowStatus.WORKER_DIED, "its process died again and again")

    def _commit_failed(self, task: UnitTask, span: Span, status: RowStatus, why: str) -> dict[str, Any]:
        from mlcd_core.embedding import failed_table

        table = failed_table(span, status, self._vectors.dim)
        # named also where no row has it, since that is what tells a failed unit
        return self._commit(task, span, table, Stopwatch(), {"error": why}, {status.name.lower(): span.rows})

    def _commit(
        self,
        task: UnitTask,
        span: Span,
        table: "pa.Table",
        watch: Stopwatch,
        notes: Mapping[str, Any],
        counts: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        from mlcd_core.embedding import status_counts
        from mlcd_core.images.embed_shard import ipc_bytes

        counts = counts or status_counts(table)
        with watch.phase("commit"):
            data = ipc_bytes(table)
            part = self._folder.put(
                short(task.unit), ".arrow", data, rows=table.num_rows, usable=counts.get("ok", 0), counts=counts
            )
        seconds = {name: round(spent, 6) for name, spent in watch.seconds.items()}
        took = {"seconds": seconds, "device": self._vectors.device, **notes}
        where = {"source": span.shard.uri, "digest": span.shard.digest, "first_row": span.first_row, "rows": span.rows}
        # the one that stands counts: another worker may have been first
        [part] = self._folder.commit(task, [part], notes={**where, **took}).parts
        return {"rows": part.rows, "counts": part.counts, **took}


def reads_of(span: Span) -> dict[str, Any]:
    """A span as JSON values, as it travels to a worker; row groups as a text, for a big file has many spans."""
    return {**vars(span), "shard": {**vars(span.shard), "row_groups": text_of(span.shard.row_groups)}}


def span_of(reads: Mapping[str, Any]) -> Span:
    """The span that travelled."""
    shard = Shard(**{**reads["shard"], "row_groups": row_groups_of(reads["shard"]["row_groups"])})
    return Span(**{**reads, "shard": shard})


class _UnreadableError(Exception):
    """The pages of a span cannot be read; the text says why."""


class _Vectors(Protocol):
    """Where the vectors of a unit come from."""

    dim: int
    device: str

    def table(self, groups: Iterable[ImageRows], watch: Stopwatch) -> "tuple[pa.Table, dict[str, Any]]":
        """The embedding table of some row groups, and notes for the receipt."""
        ...


class _Encoded:
    """From the images, by an embedder."""

    def __init__(self, spec: EmbedSpec, runtime: EmbedRuntime) -> None:
        import torch

        from mlcd_core.device import pick_device
        from mlcd_core.images.embedder import Embedder, build_embedder, find_weights
        from mlcd_core.images.one_at_a_time import OneAtATime

        def build() -> Embedder:
            torch.set_num_threads(runtime.threads)
            return build_embedder(spec, weights=find_weights(spec, runtime.pretrained), device=self.device)

        self._spec = spec
        self.device = pick_device(runtime.device)
        self._embedder = OneAtATime(build)
        self.dim = self._embedder.dim
        self._pool = ThreadPoolExecutor(runtime.threads, thread_name_prefix="decode")

    def table(self, groups: Iterable[ImageRows], watch: Stopwatch) -> "tuple[pa.Table, dict[str, Any]]":
        from mlcd_core.embedding import embed_groups

        sample: list[bytes] = []
        table = embed_groups(
            _sampled(groups, sample), embedder=self._embedder, spec=self._spec, pool=self._pool, watch=watch
        )
        return table, self._decode_notes(sample)

    def _decode_notes(self, sample: list[bytes]) -> dict[str, Any]:
        if self._spec.decode == "exact":
            return {}
        from mlcd_core.images.sample import fast_decode_psnr

        size, max_pixels = self._embedder.image_size, self._spec.max_pixels
        return {"fast_decode_psnr": asdict(fast_decode_psnr(sample, image_size=size, max_pixels=max_pixels))}


class _Adopted:
    """From files that were made elsewhere."""

    device = "none"

    def __init__(self, spec: EmbedSpec, runtime: EmbedRuntime) -> None:
        from mlcd_core.images.adopted import open_adopted

        self._adopted = open_adopted(spec, runtime.vectors)
        self.dim = self._adopted.dim

    def table(self, groups: Iterable[ImageRows], watch: Stopwatch) -> "tuple[pa.Table, dict[str, Any]]":
        from mlcd_core.embedding import adopt_groups

        with watch.phase("read"):
            return adopt_groups(groups, self._adopted), {}


def _readable(groups: Iterable[ImageRows]) -> Iterator[ImageRows]:
    """The groups; what is wrong with them is told from whatever else may fail while they are used."""
    try:
        yield from groups
    except ShardChangedError:
        raise
    except DataError as error:
        raise _UnreadableError(str(error)) from error


def _sampled(groups: Iterable[ImageRows], sample: list[bytes]) -> Iterator[ImageRows]:
    """The groups, the first few images of which are kept in ``sample``."""
    for group in groups:
        sample += [image for image in group.images if image][: SAMPLED - len(sample)]
        yield group
