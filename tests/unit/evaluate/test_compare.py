"""Encoding shards for evaluation: rows stay aligned with their labels when images are bad, and labels are checked."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mlcd_core.dataset import Shard, find_shards
from mlcd_core.errors import DataError, LabelDataError
from mlcd_core.evaluate import compare
from mlcd_core.evaluate.compare import EncodedRows, compare_features, describe_clusters, encode_shards
from mlcd_core.evaluate.shard_rows import read_raw_labels
from mlcd_core.images.digit_scenes import scene_table
from mlcd_core.specs import EvaluateSpec

SPEC = EvaluateSpec(label_column="labels", image_column="png", batch_rows=7, probe_c=(1.0,))


class MeanColour:
    """An embedder simple enough to know the answer."""

    fingerprint = "mean colour"
    dim = 3

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size

    def encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        assert images_BCHW.shape[1:] == (3, self.image_size, self.image_size)
        assert len(images_BCHW) <= SPEC.batch_rows
        return images_BCHW.float().mean(dim=(2, 3))


def shards(tmp_path: Path, bad_rows: dict[int, bytes | None]) -> tuple[Shard, ...]:
    table = scene_table("train", 0, 20, 0)
    images = [bad_rows.get(i, image) for i, image in enumerate(table["png"].to_pylist())]
    table = table.set_column(table.column_names.index("png"), "png", pa.array(images, pa.binary()))
    for shard in range(2):
        pq.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=6)
    return find_shards(str(tmp_path / "*.parquet"), memo=tmp_path / "memo")


def test_rows_that_do_not_decode_are_left_out_and_the_rest_stays_aligned(tmp_path: Path) -> None:
    found = shards(tmp_path, {3: None, 11: b"no image"})
    with ThreadPoolExecutor(2) as pool:
        rows = encode_shards(found, {"small": MeanColour(16), "large": MeanColour(32)}, spec=SPEC, pool=pool)
    kept = [row for row in range(20) if row not in (3, 11)]
    assert rows.positions_N.tolist() == kept + [20 + row for row in kept]
    labels = scene_table("train", 0, 20, 0)["labels"].to_pylist()
    assert rows.labels == [labels[row] for row in kept] * 2
    assert rows.features["small"].shape == rows.features["large"].shape == (36, 3)
    np.testing.assert_array_equal(rows.features["large"][:18], rows.features["large"][18:])
    np.testing.assert_allclose(rows.features["small"], rows.features["large"], atol=12)


def test_without_embedders_every_row_is_returned_with_its_label(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        rows = encode_shards(shards(tmp_path, {3: None}), {}, spec=SPEC, pool=pool)
    assert len(rows.labels) == 40
    assert rows.features == {}


def test_rows_whose_download_failed_keep_their_place_among_the_labels(tmp_path: Path) -> None:
    table = scene_table("train", 0, 4, 0)
    status = pa.array(["success", "failed_to_download", "success", "success"])
    pq.write_table(table.append_column("status", status), tmp_path / "0.parquet")
    found = find_shards(str(tmp_path / "*.parquet"), memo=tmp_path / "memo")
    with ThreadPoolExecutor(1) as pool:
        assert len(encode_shards(found, {}, spec=SPEC, pool=pool).labels) == 4
        assert encode_shards(found, {"x": MeanColour(32)}, spec=SPEC, pool=pool).positions_N.tolist() == [0, 2, 3]


def test_rows_that_embed_could_not_read_are_neither_read_nor_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shards(tmp_path, {3: b"this image would kill the decoder"})
    data = bytearray((tmp_path / "1.parquet").read_bytes())
    image = pq.ParquetFile(tmp_path / "1.parquet").metadata.row_group(1).column(1)
    data[image.data_page_offset : image.data_page_offset + 40] = b"\xff" * 40  # rows 26 to 31 of all
    (tmp_path / "1.parquet").write_bytes(data)
    bad_shard = Shard("gone.parquet", "b" * 64, bytes=1, rows=0, error="it has no footer")
    damaged = (found[0], bad_shard, found[1])
    usable_N = np.ones(40, dtype=bool)
    usable_N[[3, 23, *range(26, 32)]] = False  # the bad image is in both shards
    decoded: list[bytes | None] = []
    real = compare.decode_images
    monkeypatch.setattr(compare, "decode_images", lambda images, **kw: decoded.extend(images) or real(images, **kw))
    labels = scene_table("train", 0, 20, 0)["labels"].to_pylist() * 2
    with ThreadPoolExecutor(1) as pool:
        rows = encode_shards(damaged, {"x": MeanColour(16)}, spec=SPEC, pool=pool, usable_N=usable_N)
        assert b"this image would kill the decoder" not in decoded
        with pytest.raises(DataError, match=r"row group 1 of .*1\.parquet cannot be read"):
            encode_shards(damaged[2:], {"x": MeanColour(16)}, spec=SPEC, pool=pool)
    assert rows.positions_N.tolist() == np.flatnonzero(usable_N).tolist()
    assert rows.labels == [labels[row] for row in np.flatnonzero(usable_N)]
    expected = [None if 26 <= row < 32 else label for row, label in enumerate(labels)]
    assert read_raw_labels(damaged, spec=SPEC, usable_N=usable_N) == expected


def test_labels_alone_are_those_of_every_row(tmp_path: Path) -> None:
    found = shards(tmp_path, {3: None})
    assert read_raw_labels(found, spec=SPEC) == scene_table("train", 0, 20, 0)["labels"].to_pylist() * 2


class CaptionLength(MeanColour):
    """Takes captions: the feature of a row is the length of its own."""

    def encode_with_captions(self, images_BCHW: torch.Tensor, captions: Sequence[str | None]) -> torch.Tensor:
        assert len(images_BCHW) == len(captions) <= SPEC.batch_rows
        return torch.tensor([[len(caption or "")] * 3 for caption in captions], dtype=torch.float32)


def test_captions_go_to_the_embedder_that_takes_them_and_stay_with_their_rows(tmp_path: Path) -> None:
    table = scene_table("train", 0, 20, 0)
    images = [None if row == 5 else image for row, image in enumerate(table["png"].to_pylist())]
    table = table.set_column(table.column_names.index("png"), "png", pa.array(images, pa.binary()))
    captions = [None if row == 7 else "x" * row for row in range(20)]
    pq.write_table(table.append_column("caption", pa.array(captions)), tmp_path / "0.parquet", row_group_size=9)
    found = find_shards(str(tmp_path / "*.parquet"), memo=tmp_path / "memo")
    embedders = {"source": CaptionLength(32), "tower": MeanColour(32)}
    with ThreadPoolExecutor(1) as pool:
        rows = encode_shards(found, embedders, spec=SPEC, pool=pool, caption_column="caption")
        plain = encode_shards(found, embedders, spec=SPEC, pool=pool)
    assert rows.features["source"][:, 0].tolist() == [0 if row == 7 else row for row in range(20) if row != 5]
    np.testing.assert_array_equal(rows.features["tower"], plain.features["tower"])
    np.testing.assert_array_equal(plain.features["source"], plain.features["tower"])


def test_scores_come_out_by_name_with_their_details() -> None:
    random = np.random.default_rng(0)
    labels = [int(label) for label in random.integers(0, 2, 60)]
    told_N1 = np.array(labels, dtype=np.float32)[:, None] * 2 - 1
    features = {"told": np.hstack([told_N1, told_N1]), "noise": random.normal(size=(60, 4)).astype(np.float32)}
    train = EncodedRows({k: v[:40] for k, v in features.items()}, labels[:40], np.arange(40))
    test = EncodedRows({k: v[40:] for k, v in features.items()}, labels[40:], np.arange(20))
    compared = compare_features(train, test, spec=EvaluateSpec(knn=3))
    assert compared["scores"]["told"] == {"knn": 1.0, "linear_probe": 1.0, "multilabel_map": None}
    assert compared["scores"]["noise"]["linear_probe"] < 0.9
    assert (compared["kind"], compared["test_rows"]) == ("single", 20)


def test_row_without_a_label_is_refused() -> None:
    rows = EncodedRows({"x": np.ones((2, 2), np.float32)}, [1, None], np.arange(2))
    with pytest.raises(LabelDataError, match="1 of 2 train rows have no label"):
        compare_features(rows, rows, spec=EvaluateSpec())


def test_cluster_evidence_has_classes_only_when_there_are_labels() -> None:
    labels_NL = np.array([[0, 1], [1, 0], [-1, -1]], dtype=np.int32)
    vectors_ND = np.array([[1, 0], [0, 1], [0, 0]], dtype=np.float16)
    plain = describe_clusters(labels_NL, 2, embeddings_ND=vectors_ND, raw_labels=None, seed=0)
    assert (plain["usable"], plain["agreement"], plain["chance"]) == (2, None, None)
    labelled = describe_clusters(labels_NL, 2, embeddings_ND=vectors_ND, raw_labels=[7, 8, 7], seed=0)
    assert labelled["agreement"]["purity"] == 1.0
    one_null = describe_clusters(labels_NL, 2, embeddings_ND=vectors_ND, raw_labels=[7, None, 7], seed=0)
    assert (one_null["rows"], one_null["usable"]) == (2, 1)
