"""What an iteration under way has summed, as one Arrow file, so that a stop costs minutes of a long iteration.

Sums of rows are exact in float64 (``exact``), so they can be taken in any pieces and by any number of ranks: a block of
rows is in the sums or it is not, and going on means to add the others. Shapes: K centroids, D dims, B blocks.
"""

import json
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mlcd_core.errors import CorruptRecordError
from mlcd_core.kmeans.state import CentroidState, arrow_bytes, cluster_table, cluster_vectors
from mlcd_core.tables import sums_schema

_METADATA_KEY = b"mlcd.kmeans.partial"


@dataclass(frozen=True)
class Tally:
    """Rows counted while they are assigned: in all, those that changed cluster, those whose cluster before is not
    known, those that took a float64 pass over all centroids, those compared with the exact answer, and those of them
    that have it.
    """

    rows: int = 0
    changed: int = 0
    unknown: int = 0
    exhaustive: int = 0
    probed: int = 0
    equal: int = 0

    def __add__(self, other: Self) -> Self:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class PartialSums:
    """The sums over the blocks ``done_B`` (bool, by block number), assigned to the centroids after ``iteration``.

    ``sums_KD`` float64, exact; ``counts_K`` int64; ``num_rows`` are those of the whole data.
    """

    num_rows: int
    iteration: int
    done_B: Tensor
    sums_KD: Tensor
    counts_K: Tensor
    tally: Tally

    @classmethod
    def start(cls, state: CentroidState, num_blocks: int, device: torch.device) -> Self:
        """No block summed yet; the sums are on ``device``."""
        return cls(
            num_rows=state.num_rows,
            iteration=state.iteration,
            done_B=torch.zeros(num_blocks, dtype=torch.bool),
            sums_KD=torch.zeros(state.centroids_KD.shape, dtype=torch.float64, device=device),
            counts_K=torch.zeros(len(state.centroids_KD), dtype=torch.int64, device=device),
            tally=Tally(),
        )

    @property
    def num_blocks(self) -> int:
        """Blocks that are in the sums."""
        return int(self.done_B.sum())

    def to_arrow_bytes(self) -> bytes:
        """Uncompressed Arrow IPC file in ``tables.sums_schema``; equal sums give equal bytes."""
        progress = {
            "num_rows": self.num_rows,
            "iteration": self.iteration,
            "blocks": len(self.done_B),
            "done": np.packbits(self.done_B.numpy()).tobytes().hex(),
            "tally": vars(self.tally),
        }
        schema = sums_schema(self.sums_KD.shape[1])
        return arrow_bytes(cluster_table(schema, self.counts_K, self.sums_KD, {_METADATA_KEY: progress}))

    @classmethod
    def from_arrow_bytes(cls, data: bytes) -> Self:
        """Read what ``to_arrow_bytes`` wrote; raises CorruptRecordError for anything else."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all().combine_chunks()
            progress = json.loads(table.schema.metadata[_METADATA_KEY])
            packed = np.frombuffer(bytes.fromhex(progress["done"]), dtype=np.uint8)
            return cls(
                num_rows=progress["num_rows"],
                iteration=progress["iteration"],
                done_B=torch.from_numpy(np.unpackbits(packed, count=progress["blocks"]).astype(bool)),
                sums_KD=cluster_vectors(table),
                counts_K=torch.from_numpy(table.column("count").to_numpy().copy()),
                tally=Tally(**progress["tally"]),
            )
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise CorruptRecordError(
                f"a file of partial sums of {len(data)} bytes cannot be read ({error}); expected an Arrow file of "
                "`cluster`: delete it and run again, only what it holds is redone"
            ) from error
