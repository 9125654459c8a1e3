"""The command line: bad use is one clear line, an exit code and nothing written; never a traceback."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import command


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        command.main(list(words))
    return int(ended.value.code or 0)


def shard(path: Path, **columns: list[object]) -> Path:
    pq.write_table(pa.table(columns or {"jpg": [b"1"], "label": [1]}), path)
    return path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--data", "demo", "--set", "train.epoch=3"], 2, "did you mean train.epochs?"),
        (["--data", "demo", "--set", "train.epochs"], 2, "write --set train.epochs=VALUE"),
        (["--data", "demo", "--pin", "cluster"], 2, "write --pin cluster=VALUE"),
        (["--data", "good.parquet", "--pin", "label=default"], 2, "expected cluster=RUN_OR_DIGEST"),
        (["--data", "good.parquet", "--pin", "cluster=gone"], 2, "names no committed cluster"),
        (["--data", "demo", "--preset", "labtop"], 2, "did you mean laptop?"),
        (["--data", "demo", "--only", "trian"], 2, "did you mean train?"),
        (["--data", "demo", "--only", "train", "--until", "train"], 2, "leave out from_stage and until"),
        (["--data", "demo", "--from-stage", "train", "--until", "embed"], 2, "the order is embed, cluster"),
        (["--data", "demo", "--name", "../x"], 2, "becomes a file name"),
        (["--data", "demo", "--rounds", "0"], 2, "rounds is 0; expected 1 or more"),
        (["--data", "demo", "--rounds", "2", "--until", "label"], 2, "all stages up to train"),
        (["--data", "demo", "--rounds", "2", "--pin", "cluster=x"], 2, "leave the pin or the rounds out"),
        (["--data", "good.parquet", "--set", "train.tower=conv-tinny"], 2, "did you mean conv-tiny?"),
        (["--data", "good.parquet", "--set", "train.log_folder=logs"], 2, "give an absolute path"),
        (["--data", "good.parquet", "--set", "train.start_from=abc"], 2, "expected 12 to 64 hex digits"),
        (["--data", "demo", "--set", "embed.embedder=tower"], 2, "expected 12 to 64 hex digits"),
        (["--data", "demo", "--set", "embed.tower=abcabcabcabc"], 2, "set embed.embedder=tower"),
        (["--data", "nowhere/*.parquet"], 1, "give Parquet shards with --data"),
        (["--data", "cut.parquet"], 1, "not a whole Parquet file"),
        (["--data", "texts.parquet"], 1, "no image column jpg, png, webp or image"),
        (["--data", "photos.parquet"], 1, "try --set embed.image_column=photo"),
        (["--data", "good.parquet", "--label-column", "lable"], 1, "no label column 'lable'"),
        (["--data", "good.parquet", "--label-column", "label", "--eval-data", "gone.parquet"], 1, "no shards found"),
        (["--data", "good.parquet", "--eval-data", "good.parquet"], 2, "add --label-column"),
    ],
)
def test_bad_use_is_one_line_with_the_fix_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "good.parquet")
    shard(tmp_path / "texts.parquet", text=["no image"])
    shard(tmp_path / "photos.parquet", photo=[b"1"])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-20])
    assert run("run", *words, "--root", "root") == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("mlcd: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "root").exists()


def test_missing_argument_and_unknown_command_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run") == 2
    assert run("demonstrate") == 2
    assert "usage: mlcd" in capsys.readouterr().err


def parsers(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """The words of every command, and of every group of commands, with its parser."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, nested in action.choices.items():
                yield from parsers(nested, *words, name)


def test_help_of_every_command_names_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    found = dict(parsers(command.command_parser()))
    assert {(), ("demo",), ("run",), ("plan",), ("inspect", "shard"), ("doctor",)} <= set(found)
    for words, parser in found.items():
        assert run(*words, "--help") == 0
        text = capsys.readouterr().out
        assert text.startswith(" ".join(["usage: mlcd", *words]))
        assert [option for option in parser._option_string_actions if option not in text] == []
    for name, option in (("demo", "--set"), ("run", "--eval-data"), ("plan", "--label-column"), ("status", "--name")):
        assert option in found[name,]._option_string_actions


def test_help_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    said = "exit codes: 0 done, 1 failed, 2 usage, 75 another run makes the same, 130 interrupted, 143 terminated"
    assert said in " ".join(capsys.readouterr().out.split())


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    from mlcd_core.errors import DataError

    with pytest.raises(DataError):
        command.main(["run", "--data", str(tmp_path / "none"), "--root", str(tmp_path / "root"), "--debug"])


def test_status_of_a_root_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("status", "--root", str(tmp_path)) == 2
    assert "runs there: none" in capsys.readouterr().err


def test_unwritable_root_is_said_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert run("demo", "--root", str(tmp_path / "file" / "root")) == 1
    assert "choose another with --root" in capsys.readouterr().err


def test_paper_plan_needs_no_data_and_prints_the_same_numbers_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", "--preset", "paper") == 0
    text = capsys.readouterr().out
    assert run("plan", "--preset", "paper", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"] == []
    estimate = plan["estimate"]
    assert (estimate["num_rows"], estimate["dim"], estimate["num_centroids"]) == (389_737_314, 768, 1_000_000)
    assert estimate["iteration_flop"] == 2 * 389_737_314 * 768 * 1_000_000
    for said in ("389,737,314 rows of 768 dims", "5.99e+17 an iteration", "rows 599 GB", "centroids 3.07 GB"):
        assert said in text
    for device in estimate["devices"]:
        assert f"{device['count']} x {device['kind']}" in text


def test_plan_estimates_for_the_rows_of_the_data_or_those_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(shard(tmp_path / "good.parquet", jpg=[b"1"] * 90))
    where = ["--data", data, "--root", str(tmp_path / "root"), "--json", "--set", "cluster.num_centroids=null"]
    assert run("plan", *where) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [stage["plan"] for stage in plan["stages"]] == ["miss", "waits", "waits", "waits", "waits"]
    assert (plan["estimate"]["num_rows"], plan["estimate"]["num_centroids"]) == (90, 3)
    assert run("plan", *where, "--rows", "6000") == 0
    estimate = json.loads(capsys.readouterr().out)["estimate"]
    assert (estimate["num_rows"], estimate["num_centroids"]) == (6000, 200)


def test_plan_shows_the_rounds_that_wait(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(shard(tmp_path / "good.parquet", jpg=[b"1"] * 90))
    words = ["plan", "--data", data, "--root", str(tmp_path / "root"), "--set", "cluster.num_centroids=20"]
    assert run(*words, "--rounds", "2") == 0
    table = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert [line.split()[:3] for line in table[:3]] == [
        ["round", "stage", "plan"],
        ["1", "embed", "miss"],
        ["1", "cluster", "waits"],
    ]
    assert [line.endswith("waits for train of round 1") for line in table[1:]] == [False] * 5 + [True] * 5
    assert run(*words) == 0
    assert "round" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give --data, or --rows"),
        (["--rows", "0"], "rows is 0"),
        (["--rows", "9", "--pin", "cluster=x"], "without data"),
    ],
)
def test_plan_without_anything_to_plan_for_says_so(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("plan", *words) == 2
    assert said in capsys.readouterr().err
