"""Sources to shards: every image has its row, in order, with its own bytes, and the pipeline's reader reads it."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mlcd_core.dataset import ShardReader, find_shards
from mlcd_core.errors import ConfigError, DataError
from mlcd_core.pack import PackOptions, pack_unit
from mlcd_core.pack.table import ROW_GROUP_ROWS, Row, parquet_bytes
from mlcd_core.store import LocalFiles
from tests.unit.pack.harness import pack_here, picture, plan_here, rows_of, shard_names, write, write_tar


def read_back(to: Path, **columns: str) -> list[tuple[str, bytes | None, bool]]:
    """Rows as embedding reads them."""
    shards = find_shards(str(to / "*.parquet"), memo=to.parent / "memo.sqlite")
    groups = [group for shard in shards for group in ShardReader(shard, **columns)]  # type: ignore[arg-type]
    return [row for g in groups for row in zip(g.keys, g.images, g.upstream_failed, strict=True)]


def test_a_folder_is_read_back_in_name_order_with_its_own_bytes(tmp_path: Path) -> None:
    files = {f"{name}.jpg": picture(i) for i, name in enumerate(["b/1", "a/2", "ü", "日本/x y", "a-c", "it's\n#1"])}
    files["odd.png"] = b"no image at all"
    files["empty.webp"] = b""
    source = write(tmp_path / "in", files)
    pack_here([source], tmp_path / "out", rows_per_shard=3)
    expected = [(name.rpartition(".")[0], data, False) for name, data in sorted(files.items())]
    assert read_back(tmp_path / "out") == expected
    assert shard_names(tmp_path / "out") == [f"images-0000{i}.parquet" for i in range(3)]


def test_names_that_are_no_text_are_packed_too(tmp_path: Path) -> None:
    write(tmp_path / "in", {"a.jpg": b"1"})
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"2")
    pack_here([tmp_path / "in"], tmp_path / "out")
    assert read_back(tmp_path / "out") == [("a", b"1", False), ("caf\\xe9", b"2", False)]


def test_an_imagefolder_has_labels_that_training_can_read(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"dog/1.jpg": b"d", "cat/1.jpg": b"c", "cat/2.jpg": b"e"})
    pack_here([source], tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [(r["key"], r["label"], r["class_name"]) for r in rows] == [
        ("cat/1", 0, "cat"),
        ("cat/2", 0, "cat"),
        ("dog/1", 1, "dog"),
    ]
    [shard] = find_shards(str(tmp_path / "out"), memo=tmp_path / "memo.sqlite")
    [group] = ShardReader(shard, label_column="label")
    assert group.labels == [0, 0, 1]


def test_tars_give_captions_json_and_labels(tmp_path: Path) -> None:
    members = [
        ("0.jpg", b"i0"), ("0.txt", "a cät\n".encode()), ("0.json", b'{"w": 1}'), ("0.cls", b"7"),
        ("1.cls", b"tabby"), ("1.png", b"i1"),
        ("2.txt", b"no image"),
    ]  # fmt: skip
    write_tar(tmp_path / "in" / "b.tar", members)
    write_tar(tmp_path / "in" / "a.tar", [("9.webp", b"i9")])
    pack_here([tmp_path / "in"], tmp_path / "out")
    nothing = {"error_message": None, "label": None, "caption": None, "json": None, "status": "success"}
    assert rows_of(tmp_path / "out") == [
        {**nothing, "key": "9", "image": b"i9"},
        {**nothing, "key": "0", "image": b"i0", "label": 7, "caption": "a cät", "json": '{"w": 1}'},
        {**nothing, "key": "1", "image": b"i1"},
        {
            **nothing,
            "key": "2",
            "image": None,
            "status": "no_image",
            "error_message": "the sample has .txt only",
            "caption": "no image",
        },
    ]
    assert [failed for _, _, failed in read_back(tmp_path / "out")] == [False, False, False, True]


def test_keys_that_two_tars_have_get_the_names_of_their_tars(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / "in" / f"{name}.tar", [("0.jpg", b"0"), ("1.jpg", b"1"), ("0.jpg", b"2")])
    pack_here([tmp_path / "in"], tmp_path / "out", rows_per_shard=2)
    keys = [key for key, _, _ in read_back(tmp_path / "out")]
    assert keys == [f"{tar}.tar/{key}" for tar in "ab" for key in ("0", "1", "0#2")]


def test_a_file_that_vanished_is_a_row_that_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"3"})
    (source / "link.jpg").symlink_to(source / "nowhere")
    plan = plan_here([source], tmp_path / "out")
    (source / "b.jpg").unlink()
    [unit] = plan.units
    receipt = pack_unit(unit, (), plan.options, LocalFiles(tmp_path / "out"), on_rows=lambda rows: None)
    assert read_back(tmp_path / "out") == [
        ("a", b"1", False),
        ("b", None, True),
        ("c", b"3", False),
        ("link", None, True),
    ]
    [part] = receipt.parts
    assert (part.rows, part.usable, part.counts["failed"]) == (4, 2, 2)
    assert receipt.state["failures"] == ["b: No such file or directory", "link: No such file or directory"]


def test_a_source_that_changes_after_the_plan_stops_its_shard(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {"a.jpg": b"1"})
    tars = write_tar(tmp_path / "tars" / "x.tar", [("0.jpg", b"0")]).parent
    for folder, name in ((source, "a.jpg"), (tars, "x.tar")):
        plan = plan_here([folder], tmp_path / "out")
        (folder / name).write_bytes(b"changed")
        with pytest.raises(DataError, match=rf"{name}.* run again with --replace"):
            pack_unit(plan.units[0], (), plan.options, LocalFiles(tmp_path / "out"), on_rows=lambda rows: None)
    assert not (tmp_path / "out").exists()


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float64)


def test_resize_shrinks_what_is_larger_and_keeps_the_bytes_of_the_rest(tmp_path: Path) -> None:
    gradient = np.linspace(0, 255, 60 * 91 * 3).reshape(60, 91, 3).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(gradient).save(sink, "PNG")
    gray16 = io.BytesIO()
    Image.fromarray(gradient[:, :, 0].astype(np.uint16) << 8).save(gray16, "PNG")
    files = {
        "a-wide.png": sink.getvalue(),
        "b-high.jpg": picture(1, width=40, height=99),
        "c-16bit.png": gray16.getvalue(),
        "d-small.jpg": picture(2, width=32, height=500),
        "e-bad.jpg": picture(3, width=64, height=64)[:-300],
        "f-text.jpg": b"<html>",
    }
    source = write(tmp_path / "in", files)
    plan = plan_here([source], tmp_path / "out", resize=32)
    receipt = pack_unit(plan.units[0], (), plan.options, LocalFiles(tmp_path / "out"), on_rows=lambda rows: None)
    rows = {row["key"]: row["image"] for row in rows_of(tmp_path / "out")}
    sizes = {key: Image.open(io.BytesIO(data)).size for key, data in rows.items() if key != "f-text"}
    assert sizes == {
        "a-wide": (48, 32),
        "b-high": (32, 79),
        "c-16bit": (48, 32),
        "d-small": (32, 500),
        "e-bad": (64, 64),
    }
    assert Image.open(io.BytesIO(rows["a-wide"])).format == "JPEG"
    wanted = np.asarray(Image.fromarray(gradient).resize((48, 32), Image.Resampling.BICUBIC), np.float64)
    assert np.abs(decoded(rows["a-wide"]) - wanted).mean() < 2
    assert np.abs(decoded(rows["c-16bit"])[:, :, 1] - wanted[:, :, 0]).mean() < 2
    for key in ("d-small", "e-bad", "f-text"):
        assert rows[key] == files[f"{key}.jpg"]
    assert receipt.parts[0].counts == {"resized": 3, "as_it_is": 1, "not_resized": 2}


def test_an_image_that_costs_too_much_to_decode_is_not_shrunk(tmp_path: Path) -> None:
    """26 million pixels are fewer than a JPEG may have, and more than a PNG may: it takes more memory per pixel."""
    sink = io.BytesIO()
    Image.new("1", (6_500, 4_000)).save(sink, "PNG")
    source = write(tmp_path / "in", {"a.png": sink.getvalue(), "b.jpg": picture(0, width=64, height=64)})
    plan = plan_here([source], tmp_path / "out", resize=32)
    receipt = pack_unit(plan.units[0], (), plan.options, LocalFiles(tmp_path / "out"), on_rows=lambda rows: None)
    assert receipt.parts[0].counts == {"not_resized": 1, "resized": 1}
    assert rows_of(tmp_path / "out")[0]["image"] == sink.getvalue()


def test_row_groups_are_small_and_images_are_not_compressed_again(tmp_path: Path) -> None:
    rows = [Row(str(i), bytes(20_000), "success", caption="x" * 1000) for i in range(ROW_GROUP_ROWS + 10)]
    path = tmp_path / "x.parquet"
    path.write_bytes(parquet_bytes(rows, ("caption",)))
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [ROW_GROUP_ROWS, 10]
    image = metadata.row_group(0).column(1)
    assert (image.path_in_schema, image.compression, image.statistics) == ("image", "UNCOMPRESSED", None)
    assert path.stat().st_size > 510 * 20_000
    big = [Row(str(i), bytes(15 << 20), "success") for i in range(3)]
    path.write_bytes(parquet_bytes(big, ()))
    metadata = pq.ParquetFile(path).metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [2, 1]


def test_rows_are_counted_while_a_shard_is_made(tmp_path: Path) -> None:
    source = write(tmp_path / "in", {f"{i:03d}.jpg": b"x" for i in range(150)})
    plan = plan_here([source], tmp_path / "out")
    heard: list[int] = []
    pack_unit(plan.units[0], (), plan.options, LocalFiles(tmp_path / "out"), on_rows=heard.append)
    assert heard == [64, 64, 22]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows_per_shard": 0}, "--rows-per-shard is 0; expected 1 or more"),
        ({"max_shard_bytes": 1 << 33}, "expected 1 byte to 2 GiB"),
        ({"resize": 3}, "--resize is 3; expected 8 pixels or more"),
        ({"quality": 101}, "--quality is 101; expected 1 to 100"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PackOptions(**options)
