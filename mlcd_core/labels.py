"""Pseudo-labels: the nearest centroids of each embedding, best first, row for row in the order of the embeddings.

Rows whose status is not OK have no embedding and get labels of -1 with scores of 0; they never enter k-means either.
How many of a row's labels are positives is a choice of training. Shapes: N rows, U usable rows, K centroids, D dims,
L labels per row.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mlcd_core.errors import DataError
from mlcd_core.kmeans.assign import TILE_ROWS, Assigner
from mlcd_core.kmeans.exact import to_float16
from mlcd_core.kmeans.table_blocks import table_points
from mlcd_core.tables import RowStatus, label_schema


def label_table(embeddings: pa.Table, assigner: Assigner, *, tile_rows: int = TILE_ROWS) -> pa.Table:
    """The assigner's top centroid ids and cosines (float64 dots rounded once to float16) of an embedding table.

    The embeddings are read where they lie, a tile at a time. Raises DataError for a usable row that is not a unit row
    and for centroids of other dims.
    """
    points, num_labels = table_points(embeddings), assigner.num_labels
    if assigner.centroids_KD.shape[1] != points.dim:
        raise DataError(
            f"embeddings have {points.dim} dims, centroids {assigner.centroids_KD.shape[1]}; expected equal dims: they "
            "come from other embeddings, cluster these"
        )
    usable_U = _usable_positions(embeddings)
    labels_NL = torch.full((len(embeddings), num_labels), -1, dtype=torch.int32)
    scores_NL = torch.zeros((len(embeddings), num_labels), dtype=torch.float16)
    for rows, tile_BD in points.tiles(tile_rows):
        found = assigner.nearest(tile_BD.to(assigner.centroids_KD.device))
        labels_NL[usable_U[rows]] = found.ids_NL.cpu()
        scores_NL[usable_U[rows]] = to_float16(found.cosines_NL.cpu())
    schema = label_schema(num_labels)
    columns = [
        embeddings.column("row"),
        embeddings.column("key"),
        _lists(labels_NL, schema.field("labels").type),
        _lists(scores_NL, schema.field("scores").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def labels_to_parquet_bytes(table: pa.Table) -> bytes:
    """A label table as Parquet; equal tables give equal bytes."""
    # centroid ids hardly compress, and without a codec the bytes do not depend on a codec's version
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())


def _usable_positions(embeddings: pa.Table) -> Tensor:
    usable = pc.equal(embeddings.column("status"), pa.scalar(int(RowStatus.OK), pa.int8()))
    return torch.from_numpy(np.flatnonzero(usable.to_numpy()))


def _lists(values_NL: Tensor, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NL.numpy().reshape(-1)), type=kind)
