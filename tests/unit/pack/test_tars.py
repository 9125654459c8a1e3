"""Tars: samples as webdataset groups them, and a tar that was cut anywhere gives what stands before the cut."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlcd_core.errors import DataError
from mlcd_core.pack import PackOptions, TarIndex, index_tar
from mlcd_core.pack.scan import file_at
from mlcd_core.pack.tar_samples import read_samples
from tests.unit.pack.harness import write_tar


def index(path: Path, **options: int) -> TarIndex:
    return index_tar(file_at(str(path), path.name), PackOptions(**options))


def samples(path: Path) -> list[tuple[str, list[str], str | None]]:
    with tarfile.open(path, "r:") as tar:
        return [(s.key, list(s.members), s.image) for s in read_samples(tar, path.stat().st_size)]


def test_members_with_one_base_name_are_one_sample(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/1.txt", "./a/2.seg.png", "./a/2.json", "b.c/3.JPG", "b.c/3.jpg.txt", ".hidden", "LICENSE"]
    path = write_tar(tmp_path / "x.tar", [(name, b"x") for name in names])
    assert samples(path) == [
        ("a/1", ["jpg", "txt"], "jpg"),
        ("a/2", ["seg.png", "json"], "seg.png"),
        ("b.c/3", ["jpg", "jpg.txt"], "jpg"),
    ]
    assert index(path).columns == {"caption", "json"}


def test_a_plain_image_goes_before_one_with_a_longer_suffix(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.mask.png", b"m"), ("1.webp", b"i")])
    assert samples(path) == [("1", ["mask.png", "webp"], "webp")]
    assert index(path).ignored == {".mask.png in tars": 1}


def test_long_and_odd_names_of_every_format_are_read_from_any_cut(tmp_path: Path) -> None:
    names = [f"{'d' * 90}/{'é' * 60}{i}.jpg" for i in range(6)]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / f"{form}.tar", [(name, b"x" * 700) for name in names], format=form)
        spans = index(path, rows_per_shard=2).spans
        assert [span.first_key for span in spans] == [name.removesuffix(".jpg") for name in names[::2]]
        for span in spans:
            with path.open("rb") as file:
                file.seek(span.start)
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    first = next(iter(read_samples(tar, path.stat().st_size)))
            assert first.key == span.first_key


def test_shards_are_cut_by_rows_and_by_bytes(tmp_path: Path) -> None:
    sizes = [100, 100, 100, 900, 1, 1]
    path = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"x" * size) for i, size in enumerate(sizes)])
    assert [span.rows for span in index(path, rows_per_shard=2).spans] == [2, 2, 2]
    assert [span.rows for span in index(path, max_shard_bytes=300).spans] == [3, 1, 2]


def test_repeated_keys_are_told_apart(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(name, b"x") for name in ("1.jpg", "2.jpg", "1.jpg", "1.jpg", "2.jpg")])
    [first, second] = index(path, rows_per_shard=3).spans
    assert (first.renamed, second.renamed) == ({2: "1#2"}, {0: "1#3", 1: "2#2"})


def whole_before(members: Sequence[tarfile.TarInfo], cut: int) -> list[list[str]]:
    """Oracle: the members that end before the cut, by sample; the last only with its image."""
    groups: list[list[str]] = []
    for info in members:
        if info.offset_data + info.size <= cut:
            key, suffix = info.name.split(".")
            if not groups or groups[-1][0] != key:
                groups.append([key])
            groups[-1].append(suffix)
    if groups and "jpg" not in groups[-1]:
        groups.pop()
    return groups


def test_a_tar_cut_anywhere_gives_the_samples_before_and_says_where_it_ends(tmp_path: Path) -> None:
    contents = [
        (f"{i}.{suffix}", b"y" * size) for i in range(4) for suffix, size in (("txt", 30), ("jpg", 700 + 300 * i))
    ]
    whole = write_tar(tmp_path / "whole.tar", contents)
    data = whole.read_bytes()
    with tarfile.open(whole) as tar:
        members = tar.getmembers()
    end = members[-1].offset_data + 2048  # the last member is padded to here
    assert index(whole).broken is None
    assert [span.rows for span in index(whole).spans] == [4]
    path = tmp_path / "cut.tar"
    for cut in [*range(0, end, 101), *(info.offset for info in members), *(info.offset_data for info in members), end]:
        path.write_bytes(data[:cut])
        found = index(path)
        expected = whole_before(members, cut)
        assert sum(span.rows for span in found.spans) == len(expected)
        assert found.broken is not None
        assert found.broken.samples == len(expected)
        assert found.broken.offset <= cut


def test_damage_in_the_middle_is_no_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"x" * 600) for i in range(4)])
    data = bytearray(path.read_bytes())
    data[2 * 1536 : 2 * 1536 + 300] = b"\x07" * 300
    path.write_bytes(data)
    broken = index(path).broken
    assert broken is not None
    assert str(broken) == "x.tar: no header and no end, but something else at byte 3,072, after 2 samples"


def test_tars_that_were_joined_are_not_taken_for_one(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", [("1.jpg", b"x")]).read_bytes()
    path = tmp_path / "joined.tar"
    path.write_bytes(one + one)
    assert index(path).broken is not None


def test_no_tar_at_all_and_none_there(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(io.BytesIO(b"not a tar" * 200).getvalue())
    broken = index(path).broken
    assert broken is not None
    assert (broken.offset, broken.samples) == (0, 0)
    missing = file_at(str(tmp_path / "y.tar"), "y.tar")
    with pytest.raises(DataError, match=r"y\.tar cannot be read: No such file"):
        index_tar(missing, PackOptions())
