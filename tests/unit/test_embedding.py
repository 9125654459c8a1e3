"""A shard gives one embedding row per input row, in order, whatever its images are."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mlcd_core.dataset import ImageRows, Shard, ShardReader, Span, find_shards
from mlcd_core.embedding import adopt_groups, embed_groups, embed_shard, failed_table, joined_embeddings, status_counts
from mlcd_core.images.adopted import AdoptedRows
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


class Captioned:
    """An embedder that shows which caption came with which image."""

    fingerprint, dim, image_size = "captioned", 2, 16

    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the captions were left out")

    def encode_with_captions(self, images_BCHW: torch.Tensor, captions: Sequence[str | None]) -> torch.Tensor:
        assert len(images_BCHW) == len(captions)
        return torch.tensor([[float(caption or "1"), 1.0] for caption in captions])


def test_each_image_goes_with_its_caption_whatever_the_row_groups() -> None:
    captions = [None if row == 4 else str(row + 1) for row in range(11)]
    groups = [
        ImageRows(100 + first, [f"k{i}" for i in rows], [jpeg(0)] * len(rows), [False] * len(rows), None, given)
        for first, rows in ((0, range(4)), (4, range(4, 5)), (5, range(5, 11)))
        for given in [[captions[i] for i in rows]]
    ]
    spec = EmbedSpec(batch_rows=3, image_size=16)
    with ThreadPoolExecutor(1) as pool:
        table = embed_groups(groups, embedder=Captioned(), spec=spec, pool=pool)
    vectors_ND = joined_embeddings([ipc_bytes(table)]).astype(np.float64)
    expected = [float(caption or "1") for caption in captions]
    np.testing.assert_allclose(vectors_ND[:, 0] / vectors_ND[:, 1], expected, rtol=1e-2)
    assert table["row"].to_pylist() == list(range(100, 111))
    assert table["key"].to_pylist() == [f"k{i}" for i in range(11)]


def test_a_failed_unit_has_all_its_rows_with_made_keys() -> None:
    shard = Shard("s3://b/x.parquet", "ab" * 32, bytes=9, rows=30, row_groups=(10, 20))
    table = failed_table(Span(shard, first_row=10, rows=20, first_group=1, groups=1), RowStatus.WORKER_DIED, dim=3)
    assert table.schema == embedding_schema(3)
    assert table["row"].to_pylist() == list(range(10, 30))
    assert table["key"].to_pylist() == [f"abababababab-{row:06d}" for row in range(10, 30)]
    assert status_counts(table) == {"worker_died": 20}
    assert not joined_embeddings([ipc_bytes(table)]).any()


def test_rows_without_row_groups_are_an_empty_table() -> None:
    with ThreadPoolExecutor(1) as pool:
        table = embed_groups([], embedder=Captioned(), spec=EmbedSpec(), pool=pool)
    assert (table.num_rows, table.schema) == (0, embedding_schema(2))


def test_parts_are_joined_in_order(table: pa.Table) -> None:
    halves = [ipc_bytes(table.slice(0, 4)), ipc_bytes(table.slice(4))]
    np.testing.assert_array_equal(joined_embeddings(halves), joined_embeddings([ipc_bytes(table)]))


class OneVectorForAll:
    """Adopted vectors that know every key but "unknown"."""

    dim = 2

    def lookup(self, keys: Sequence[str]) -> AdoptedRows:
        known_N = np.array([key != "unknown" for key in keys])
        status_N = np.where(known_N, RowStatus.OK, RowStatus.NO_VECTOR).astype(np.int8)
        return AdoptedRows(np.where(known_N[:, None], np.float16([0.6, 0.8]), np.float16(0)), status_N)


def test_an_adopted_row_without_an_image_is_not_usable_for_there_is_nothing_to_train_on() -> None:
    groups = [
        ImageRows(10, ["a", "b"], [b"jpeg", None], [False, False], None),
        ImageRows(12, ["c", "unknown"], [b"jpeg", b"jpeg"], [True, False], None),
    ]
    table = adopt_groups(groups, OneVectorForAll())  # type: ignore[arg-type]
    assert table["row"].to_pylist() == [10, 11, 12, 13]
    expected = [RowStatus.OK, RowStatus.NULL_BYTES, RowStatus.UPSTREAM_FAILED, RowStatus.NO_VECTOR]
    assert table["status"].to_pylist() == expected
    assert [any(vector) for vector in table["embedding"].to_pylist()] == [True, False, False, False]
