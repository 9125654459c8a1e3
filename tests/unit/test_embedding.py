"""A shard gives one embedding row per input row, in order, whatever its images are."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlcd_core.dataset import ShardReader, find_shards
from mlcd_core.embedding import embed_shard, joined_embeddings, status_counts
from mlcd_core.images.embed_shard import ipc_bytes
from mlcd_core.images.embedder import build_embedder, find_weights
from mlcd_core.specs import EmbedSpec
from mlcd_core.tables import RowStatus, embedding_schema


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture
def table(tmp_path: Path) -> pa.Table:
    images = [jpeg(0), None, b"", b"<html>", jpeg(1)[:-200], jpeg(2), jpeg(3)]
    status = ["success"] * 5 + ["failed_to_resize", "success"]
    columns = {"key": [f"k{i}" for i in range(7)], "jpg": images, "status": status}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=3)
    [shard] = find_shards(str(tmp_path / "x.parquet"), memo=tmp_path / "memo")
    spec = EmbedSpec(batch_rows=2)
    embedder = build_embedder(spec, weights=find_weights(spec, ""), device="cpu")
    with ThreadPoolExecutor(2) as pool:
        return embed_shard(ShardReader(shard), embedder=embedder, spec=spec, pool=pool)


def test_every_row_is_there_in_order_with_its_status(table: pa.Table) -> None:
    ok, null, no_image = RowStatus.OK, RowStatus.NULL_BYTES, RowStatus.NOT_AN_IMAGE
    assert table.schema == embedding_schema(128)
    assert table["key"].to_pylist() == [f"k{i}" for i in range(7)]
    assert table["row"].to_pylist() == list(range(7))
    expected = [ok, null, no_image, no_image, RowStatus.TRUNCATED, RowStatus.UPSTREAM_FAILED, ok]
    assert table["status"].to_pylist() == expected
    assert status_counts(table) == {"ok": 2, "null_bytes": 1, "upstream_failed": 1, "not_an_image": 2, "truncated": 1}


def test_usable_rows_are_unit_vectors_and_the_others_zero(table: pa.Table) -> None:
    vectors_ND = joined_embeddings([ipc_bytes(table)]).astype(np.float64)
    norms_N = np.linalg.norm(vectors_ND, axis=1)
    usable_N = np.array(table["status"].to_pylist()) == 0
    np.testing.assert_allclose(norms_N[usable_N], 1, atol=2e-3)
    assert not vectors_ND[~usable_N].any()


def test_parts_are_joined_in_order(table: pa.Table) -> None:
    halves = [ipc_bytes(table.slice(0, 4)), ipc_bytes(table.slice(4))]
    np.testing.assert_array_equal(joined_embeddings(halves), joined_embeddings([ipc_bytes(table)]))
