"""Sources: what is found, of which kind it is, and what is refused with the fix."""

import os
from pathlib import Path

import pytest

from mlcd_core.errors import ConfigError, DataError
from mlcd_core.pack import find_sources
from tests.unit.pack.harness import write, write_tar

DATA = b"x"


def test_a_folder_gives_its_images_in_name_order_and_counts_the_rest(tmp_path: Path) -> None:
    names = ["b.jpg", "a/c.PNG", "a-b.webp", "notes.txt", "README", ".hidden.jpg", "a/.cache/x.jpg"]
    found = find_sources([str(write(tmp_path, dict.fromkeys(names, DATA)))], "auto")
    assert found.kind == "folder"
    assert [file.name for file in found.files] == ["a-b.webp", "a/c.PNG", "b.jpg"]
    assert found.ignored == {".txt": 1, "no suffix": 1, "hidden": 2}


def test_one_folder_per_class_is_an_imagefolder_with_labels_in_name_order(tmp_path: Path) -> None:
    found = find_sources([str(write(tmp_path, {"dog/1.jpg": DATA, "cat/2.jpg": DATA}))], "auto")
    assert found.kind == "imagefolder"
    assert found.classes == ("cat", "dog")
    assert found.file_classes == ("cat", "dog")
    assert "2 class folders (cat, dog); --kind folder packs without labels" in found.why


@pytest.mark.parametrize("names", [["cat/1.jpg"], ["cat/1.jpg", "dog/2.jpg", "3.jpg"], ["cat/a/1.jpg", "dog/2.jpg"]])
def test_other_trees_are_folders_unless_said(tmp_path: Path, names: list[str]) -> None:
    write(tmp_path, dict.fromkeys(names, DATA))
    assert find_sources([str(tmp_path)], "auto").kind == "folder"
    if "3.jpg" in names:
        with pytest.raises(DataError, match=r"3\.jpg lies in no class folder; move it"):
            find_sources([str(tmp_path)], "imagefolder")
    else:
        assert find_sources([str(tmp_path)], "imagefolder").kind == "imagefolder"


def test_several_sources_are_named_from_what_they_share(tmp_path: Path) -> None:
    write(tmp_path, {"one/img/cat/1.jpg": DATA, "two/img/cat/1.jpg": DATA, "two/img/dog/2.jpg": DATA})
    found = find_sources([str(tmp_path / "two" / "img"), str(tmp_path / "one" / "img")], "auto")
    assert [file.name for file in found.files] == ["one/img/cat/1.jpg", "two/img/cat/1.jpg", "two/img/dog/2.jpg"]
    assert found.classes == ("cat", "dog")
    assert found.file_classes == ("cat", "cat", "dog")


def test_tars_are_found_by_name_pattern_and_folder(tmp_path: Path) -> None:
    for name in ("00001.tar", "00000.tar", "deep/00002.tar"):
        write_tar(tmp_path / name, [("1.jpg", DATA)])
    (tmp_path / "00000.json").write_text("{}")
    for sources, names in (
        ([tmp_path], ["00000.tar", "00001.tar", "deep/00002.tar"]),
        ([tmp_path / "*.tar"], ["00000.tar", "00001.tar"]),
        ([tmp_path / "00001.tar"], ["00001.tar"]),
        ([tmp_path / "00001.tar", tmp_path / "deep"], ["00001.tar", "deep/00002.tar"]),
    ):
        found = find_sources([str(source) for source in sources], "auto")
        assert found.kind == "webdataset"
        assert [file.name for file in found.files] == names


def test_links_are_followed_but_not_round(tmp_path: Path) -> None:
    write(tmp_path, {"in/a.jpg": DATA, "out/b.jpg": DATA})
    (tmp_path / "in" / "l").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.jpg").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "in" / "pipe.jpg")
    found = find_sources([str(tmp_path / "in")], "auto")
    assert [(file.name, file.bytes) for file in found.files] == [("a.jpg", 1), ("broken.jpg", -1), ("l/b.jpg", 1)]
    assert found.ignored == {"not a file": 1}


def test_what_cannot_be_meant_is_refused_with_the_fix(tmp_path: Path) -> None:
    write(tmp_path, {"mixed/1.jpg": DATA, "mixed/2.tar": DATA, "texts/a.txt": DATA, "x.tar.gz": DATA, "i/1.jpg": DATA})
    mixed = str(tmp_path / "mixed")
    for sources, kind, error, said in (
        (["s3://bucket/images"], "auto", ConfigError, "packing reads local files: copy it here first"),
        ([mixed], "auto", ConfigError, "--kind folder or --kind webdataset"),
        ([str(tmp_path / "texts")], "auto", DataError, r"found 1 \.txt; expected \.jpg"),
        ([str(tmp_path / "x.tar.gz")], "auto", DataError, "unpack a compressed tar"),
        ([str(tmp_path / "gone")], "auto", DataError, "beside it: i, mixed, texts"),
        ([str(tmp_path / "gone" / "*.tar")], "auto", DataError, "does not exist or is empty"),
        ([mixed, str(tmp_path)], "auto", ConfigError, "would be packed twice"),
        ([mixed, mixed], "auto", ConfigError, "named twice"),
        ([str(tmp_path / "i")], "webdataset", DataError, "leave --kind webdataset out"),
    ):
        with pytest.raises(error, match=said):
            find_sources(sources, kind)  # type: ignore[arg-type]
    assert find_sources([mixed], "folder").ignored == {".tar": 1}
    assert find_sources([mixed], "webdataset").ignored == {"images outside of tars": 1}


def test_a_folder_that_cannot_be_listed_stops_the_pack(tmp_path: Path) -> None:
    write(tmp_path, {"open/1.jpg": DATA, "shut/2.jpg": DATA})
    (tmp_path / "shut").chmod(0)
    if os.access(tmp_path / "shut", os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(DataError, match=r"shut cannot be listed.*make it readable"):
        find_sources([str(tmp_path)], "auto")
