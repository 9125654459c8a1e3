"""``mlcd pack`` in this process: options, refusals before any worker starts, and what is printed."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from flows import pack_command
from flows.addresses import absolute
from mlcd_core.errors import ConfigError, DataError, MlcdError
from tests.unit.pack.harness import pack_here, write, write_tar


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    pack_command.add_parser(parser.add_subparsers())
    return parser.parse_args(["pack", *words])


def run(*words: str) -> int:
    chosen = options(*words)
    code: int = chosen.command(chosen)
    return code


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("500MB", 500_000_000), ("1.5 kb", 1500), ("1GiB", 1 << 30), ("2g", 2 * 10**9)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert options("in", "--to", "out", "--max-shard-bytes", text).max_shard_bytes == expected


def test_a_size_that_is_none_is_bad_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("in", "--to", "out", "--max-shard-bytes", "much")
    assert "'much' is no size; write for example 500MB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["--rows-per-shard", "0"], ConfigError, "--rows-per-shard is 0; expected 1 or more"),
        (["--workers", "-1"], ConfigError, "--workers is -1; expected 1 or more"),
        (["--kind", "webdataset"], DataError, "no .tar files below"),
        (["s3://bucket/more"], ConfigError, "packing reads local files"),
    ],
)
def test_bad_use_writes_nothing(tmp_path: Path, words: list[str], error: type[MlcdError], said: str) -> None:
    source = write(tmp_path / "in", {"a.jpg": b"x"})
    with pytest.raises(error, match=said):
        run(str(source), *words, "--to", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_pack_that_is_whole_says_so_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", {"cat/a.jpg": b"x", "dog/b.jpg": b"y", "dog/b.txt": b"a dog"})
    (source / "dog" / "link.jpg").symlink_to(source / "nowhere")
    to = tmp_path / "out"
    pack_here([source], to)
    assert run(str(source), "--to", str(to)) == 0
    printed = capsys.readouterr()
    assert f"3 images in 1 shards, {(to / 'images-00000.parquet').stat().st_size / 1000:.3g} kB" in printed.out
    assert "nothing was left to do" in printed.out
    assert (
        "without an image: 1; mend them and run again with --retry-failed, or with --replace where files changed\n"
        "  dog/link: No such file"
    ) in printed.out
    assert "not packed: 1 .txt" in printed.out
    assert f"next: mlcd run --data '{to}/*.parquet' --label-column label" in printed.out
    assert "pack: imagefolder: 3 images in 2 class folders (cat, dog)" in printed.err
    assert run(str(source), "--to", str(to), "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["images"], summary["failed"], summary["packed"]) == (3, 1, 0)


def test_labels_are_proposed_only_where_every_row_has_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [("0.jpg", b"x"), ("0.cls", b"7"), ("1.jpg", b"y"), ("1.cls", b"8")]
    write_tar(tmp_path / "all" / "a.tar", members)
    write_tar(tmp_path / "some" / "a.tar", [*members, ("2.jpg", b"z"), ("2.cls", b"tabby"), ("3.jpg", b"z")])
    printed = {}
    for name in ("all", "some"):
        pack_here([tmp_path / name], tmp_path / f"{name}-out")
        assert run(str(tmp_path / name), "--to", str(tmp_path / f"{name}-out")) == 0
        printed[name] = capsys.readouterr().out.splitlines()
    assert printed["all"][-1].endswith("/all-out/*.parquet' --label-column label")
    assert not [line for line in printed["all"] if "without a label" in line]
    assert printed["some"][-1].endswith("/some-out/*.parquet'")
    assert "without a label: 2; the .cls of a sample must hold an int" in printed["some"]


def test_the_next_command_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, to = write(tmp_path / "in", {"a.jpg": b"x"}), tmp_path / "it's $HOME"
    pack_here([source], to)
    assert run(str(source), "--to", f"{to}/", "--json") == 0
    command = json.loads(capsys.readouterr().out)["next"]
    assert shlex.split(command) == ["mlcd", "run", "--data", f"{to}/*.parquet"]
    assert "$HOME/*.parquet'" in command  # in single quotes, where a shell expands nothing


def test_addresses_are_made_absolute_and_know_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    given = ["~/shards", "~", "a/~/b", "~no-such-user/b", "/x/*.parquet", "s3://bucket/~", ""]
    assert [absolute(address) for address in given] == [
        f"{tmp_path}/home/shards",
        f"{tmp_path}/home",
        f"{tmp_path}/a/~/b",
        f"{tmp_path}/~no-such-user/b",
        "/x/*.parquet",
        "s3://bucket/~",
        "",
    ]


def test_progress_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"shards_done": 3, "shards": 40, "images_done": 30_100, "images": 400_000, "images_per_s": 1234.4}
    pack_command._say("packing", {**values, "eta_s": 90.0})
    pack_command._say("packing", {**values, "eta_s": None})
    pack_command._say("pack_indexing", {"done": 5, "tars": 1000})
    assert capsys.readouterr().err.splitlines() == [
        "pack: 3 of 40 shards, 30,100 of 400,000 images, 1,234 images/s, 1.5 min to go",
        "pack: 3 of 40 shards, 30,100 of 400,000 images, 1,234 images/s",
        "pack: read the headers of 5 of 1,000 tars",
    ]
