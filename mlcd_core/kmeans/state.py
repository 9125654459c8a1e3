"""What k-means must remember to go on after a stop, as one Arrow file with the same bytes on every machine.

Nothing of time, hosts or the number of ranks is in it, so a resumed run writes the files an undisturbed run would have
written. Shapes: K centroids, D dims.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mlcd_core.errors import CorruptRecordError
from mlcd_core.identity import canonical_json
from mlcd_core.tables import centroid_schema

_METADATA_KEY = b"mlcd.kmeans"


@dataclass(frozen=True)
class CentroidState:
    """After ``iteration`` iterations over ``num_rows`` rows: the centroids for the next one, and what happened so far.

    ``centroids_KD`` float32 unit rows on the 2^-24 grid; ``counts_K`` int64 rows per cluster in the last assignment
    (zeros before the first); per iteration the ``objective`` (mean of 1 - cos, before its update) and ``splits``, the
    empty clusters that took half of another.
    """

    num_rows: int
    centroids_KD: Tensor
    counts_K: Tensor
    objective: tuple[float, ...] = ()
    splits: tuple[int, ...] = ()

    @classmethod
    def start(cls, centroids_KD: Tensor, num_rows: int) -> Self:
        """The state before the first iteration."""
        return cls(num_rows, centroids_KD, torch.zeros(len(centroids_KD), dtype=torch.int64))

    @property
    def iteration(self) -> int:
        """Iterations done."""
        return len(self.objective)

    def table(self) -> pa.Table:
        """The centroids in ``tables.centroid_schema``, the history in the schema metadata."""
        history = {"num_rows": self.num_rows, "objective": self.objective, "splits": self.splits}
        schema = centroid_schema(self.centroids_KD.shape[1])
        return cluster_table(schema, self.counts_K, self.centroids_KD, {_METADATA_KEY: history})

    def to_arrow_bytes(self) -> bytes:
        """Uncompressed Arrow IPC file of ``table``; equal states give equal bytes."""
        return arrow_bytes(self.table())

    @classmethod
    def from_arrow_bytes(cls, data: bytes) -> Self:
        """Read what ``to_arrow_bytes`` wrote; raises CorruptRecordError for anything else."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
            history = json.loads(table.schema.metadata[_METADATA_KEY])
            return cls(
                num_rows=history["num_rows"],
                centroids_KD=cluster_vectors(table),
                counts_K=torch.from_numpy(table.column("count").to_numpy().copy()),
                objective=tuple(history["objective"]),
                splits=tuple(history["splits"]),
            )
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise CorruptRecordError(
                f"a centroid file of {len(data)} bytes cannot be read ({error}); expected an Arrow file of `cluster`: "
                "delete it and run again, only its iteration is redone"
            ) from error


def cluster_table(
    schema: pa.Schema, counts_K: Tensor, vectors_KD: Tensor, metadata: dict[bytes, dict[str, Any]]
) -> pa.Table:
    """Columns id, count, vector in this schema, with the metadata as canonical JSON."""
    ids = pa.array(np.arange(len(counts_K), dtype=np.int32))
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_KD.numpy().reshape(-1)), type=schema.types[2])
    encoded = {key: canonical_json(value).encode() for key, value in metadata.items()}
    return pa.Table.from_arrays([ids, pa.array(counts_K.numpy()), vectors], schema=schema.with_metadata(encoded))


def cluster_vectors(table: pa.Table) -> Tensor:
    """The vectors [K, D] of a table that ``cluster_table`` made, copied."""
    dim = table.schema.field("vector").type.list_size
    return torch.from_numpy(table.column("vector").chunk(0).flatten().to_numpy().reshape(-1, dim).copy())


def arrow_bytes(table: pa.Table) -> bytes:
    """Uncompressed Arrow IPC file of the table; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
