import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.kmeans.assign import Assigner
from mlcd_core.labels import label_table, labels_to_parquet_bytes
from mlcd_core.tables import embedding_schema, label_schema
from tests.unit.kmeans import oracle


def embedding_table(points_ND, status_N=None):
    status_N = np.zeros(len(points_ND), np.int8) if status_N is None else np.asarray(status_N, np.int8)
    points_ND = np.where(status_N[:, None] == 0, points_ND, np.float16(0))
    schema = embedding_schema(points_ND.shape[1])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(points_ND.reshape(-1)), type=schema.field("embedding").type)
    keys = [f"key-{row}" for row in range(len(points_ND))]
    rows = np.arange(len(points_ND), dtype=np.int64)
    return pa.Table.from_arrays([pa.array(rows), pa.array(keys), pa.array(status_N), vectors], schema=schema)


def unit_rows(num_rows, dim=6, seed=0):
    return oracle.normalised_rows(oracle.blobs(num_rows, dim, 4, seed))


def grid_centroids(num_centroids, dim=6, seed=1):
    return oracle.on_grid(oracle.blobs(num_centroids, dim, 4, seed).astype(np.float64))


def assigner(centroids_KD, num_labels):
    return Assigner(torch.as_tensor(centroids_KD), num_labels=num_labels)


def matrix(column, num_labels):
    return column.combine_chunks().flatten().to_numpy().reshape(-1, num_labels)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 1, 7]), max_size=30), st.integers(1, 10), st.integers(1, 20))
def test_every_row_has_its_labels_in_order_and_unusable_rows_none(status, num_labels, tile_rows):
    points_ND, centroids_KD = unit_rows(len(status)), grid_centroids(10)
    table = label_table(embedding_table(points_ND, status), assigner(centroids_KD, num_labels), tile_rows=tile_rows)
    assert table.schema.equals(label_schema(num_labels))
    assert table.column("row").to_pylist() == list(range(len(status)))
    assert table.column("key").to_pylist() == [f"key-{row}" for row in range(len(status))]
    ids_NL, cosines_NL = oracle.top_labels(points_ND, centroids_KD, num_labels)
    usable = np.array(status, dtype=int)[:, None] == 0
    assert np.array_equal(matrix(table.column("labels"), num_labels), np.where(usable, ids_NL, -1))
    expected_NL = np.where(usable, cosines_NL.astype(np.float16), np.float16(0))
    assert np.array_equal(matrix(table.column("scores"), num_labels), expected_NL)


def test_slices_and_chunks_give_the_labels_of_their_rows():
    table, centroids_KD = embedding_table(unit_rows(50), [row % 7 == 3 for row in range(50)]), grid_centroids(9)
    expected = label_table(table, assigner(centroids_KD, 3))
    assert label_table(table.slice(11, 20), assigner(centroids_KD, 3)).equals(expected.slice(11, 20))
    chunked = pa.concat_tables([table.slice(0, 13), table.slice(13, 0), table.slice(13)])
    assert label_table(chunked, assigner(centroids_KD, 3)).equals(expected)


def test_stored_row_that_is_not_unit_is_named():
    points_ND = unit_rows(20)
    points_ND[4] *= np.float16(1.5)
    with pytest.raises(DataError, match="row 4 "):
        label_table(embedding_table(points_ND), assigner(grid_centroids(4), 2))


def test_centroids_of_other_embeddings_are_an_error():
    with pytest.raises(DataError, match=r"embeddings have 6 dims, centroids 7"):
        label_table(embedding_table(unit_rows(5)), assigner(grid_centroids(4, dim=7), 2))


def test_more_labels_than_centroids_are_an_error_with_the_fix():
    with pytest.raises(ConfigError, match=r"label\.num_labels <= 4"):
        label_table(embedding_table(unit_rows(5)), assigner(grid_centroids(4), 5))


def test_parquet_bytes_are_equal_for_equal_tables_and_read_back():
    points_ND, centroids_KD = unit_rows(200), torch.from_numpy(grid_centroids(9))
    table = label_table(embedding_table(points_ND), assigner(centroids_KD, 4))
    pieces = pa.concat_tables([table.slice(0, 70), table.slice(70)])
    data = labels_to_parquet_bytes(table)
    assert data == labels_to_parquet_bytes(pieces)
    assert pq.read_table(pa.BufferReader(data)).equals(table)
