import numpy as np
import pyarrow as pa
import pytest
import torch

from mlcd_core.errors import CorruptRecordError
from mlcd_core.kmeans import CentroidState
from mlcd_core.tables import centroid_schema
from tests.unit.kmeans import oracle


def a_state():
    centroids_KD = torch.from_numpy(oracle.on_grid(oracle.blobs(5, 3, 2, seed=0).astype(np.float64)))
    return CentroidState(100, centroids_KD, torch.arange(5), objective=(0.1 + 0.2, 0.25), splits=(3, 0))


def test_bytes_bring_back_every_field():
    state = a_state()
    read = CentroidState.from_arrow_bytes(state.to_arrow_bytes())
    assert (read.num_rows, read.objective, read.splits, read.iteration) == (100, (0.1 + 0.2, 0.25), (3, 0), 2)
    assert torch.equal(read.centroids_KD, state.centroids_KD)
    assert torch.equal(read.counts_K, state.counts_K)
    assert read.to_arrow_bytes() == state.to_arrow_bytes() == a_state().to_arrow_bytes()


def test_file_holds_the_centroid_table():
    table = pa.ipc.open_file(a_state().to_arrow_bytes()).read_all()
    assert table.schema.equals(centroid_schema(3), check_metadata=False)
    assert table.column("count").to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "data", [b"", b"not arrow", a_state().to_arrow_bytes()[:-20], a_state().to_arrow_bytes()[:100]]
)
def test_damaged_bytes_are_an_error_with_the_fix(data):
    with pytest.raises(CorruptRecordError, match="delete it and run again"):
        CentroidState.from_arrow_bytes(data)


def test_another_arrow_file_is_an_error():
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [1]})
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(CorruptRecordError):
        CentroidState.from_arrow_bytes(bytes(sink.getvalue()))
