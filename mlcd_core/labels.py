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
from torch.utils.dlpack import from_dlpack

from mlcd_core.kmeans.assign import TILE_ROWS, check_num_labels, nearest_centroids
from mlcd_core.kmeans.exact import to_float16
from mlcd_core.kmeans.points import ArrayPoints, Rows
from mlcd_core.tables import RowStatus, label_schema


def label_table(embeddings: pa.Table, centroids_KD: Rows, *, num_labels: int, tile_rows: int = TILE_ROWS) -> pa.Table:
    """Top ``num_labels`` centroid ids and cosines (float64 dots rounded once to float16) of an embedding table.

    Raises ConfigError when there are fewer centroids than labels, DataError for a usable row that is not a unit row.
    """
    check_num_labels(num_labels, len(centroids_KD))
    found = nearest_centroids(usable_points(embeddings), centroids_KD, num_labels=num_labels, tile_rows=tile_rows)
    usable_U = _usable_positions(embeddings)
    labels_NL = torch.full((len(embeddings), num_labels), -1, dtype=torch.int32)
    scores_NL = torch.zeros((len(embeddings), num_labels), dtype=torch.float16)
    labels_NL[usable_U] = found.ids_NL
    scores_NL[usable_U] = to_float16(found.cosines_NL)
    schema = label_schema(num_labels)
    columns = [
        embeddings.column("row"),
        embeddings.column("key"),
        _lists(labels_NL, schema.field("labels").type),
        _lists(scores_NL, schema.field("scores").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def usable_points(embeddings: pa.Table, *, offset: int = 0) -> ArrayPoints:
    """The usable rows of an embedding table as they are stored; their global ids are ``offset`` + ``row``.

    No copy is made when all rows are usable and the table is in one chunk. Raises DataError naming a row that is not a
    float16 unit row.
    """
    usable_U = _usable_positions(embeddings)
    points_ND = _embeddings(embeddings)
    if len(usable_U) < len(embeddings):
        points_ND = points_ND[usable_U]
    rows_N = torch.from_numpy(embeddings.column("row").to_numpy().copy())
    return ArrayPoints.from_unit_rows(points_ND, row_ids=rows_N[usable_U] + offset)


def labels_to_parquet_bytes(table: pa.Table) -> bytes:
    """A label table as Parquet; equal tables give equal bytes."""
    # centroid ids hardly compress, and without a codec the bytes do not depend on a codec's version
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())


def _usable_positions(embeddings: pa.Table) -> Tensor:
    usable = pc.equal(embeddings.column("status"), pa.scalar(int(RowStatus.OK), pa.int8()))
    return torch.from_numpy(np.flatnonzero(usable.to_numpy()))


def _embeddings(embeddings: pa.Table) -> Tensor:
    dim = embeddings.schema.field("embedding").type.list_size
    chunks = [_tensor(chunk.flatten(), dim) for chunk in embeddings.column("embedding").chunks if len(chunk)]
    if len(chunks) == 1:
        return chunks[0]
    return torch.cat([torch.empty((0, dim), dtype=torch.float16), *chunks])


def _tensor(values: pa.Array, dim: int) -> Tensor:
    tensor: Tensor = from_dlpack(values)
    return tensor.view(-1, dim)


def _lists(values_NL: Tensor, kind: pa.DataType) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values_NL.numpy().reshape(-1)), type=kind)
