"""``mlcd doctor``, ``inspect`` and ``retry-failed`` as they are typed: what they take, print and return."""

import argparse
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import doctor_command, inspect_command, retry_command, run_command
from mlcd_core.errors import ConfigError, UpstreamMissingError

REPO = Path(__file__).parents[2]


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mlcd")
    commands = parser.add_subparsers(required=True)
    for command in (doctor_command, inspect_command, retry_command):
        command.add_parser(commands)
    run_command.add_parsers(commands)
    return parser.parse_args(words)


def run(*words: str) -> int:
    options = parsed(*words)
    code: int = options.command(options)
    return code


def test_retry_failed_takes_the_options_of_run_and_asks_the_flow_to_redo() -> None:
    words = ("--data", "x", "--root", "r", "--set", "embed.workers=2", "--only", "embed", "--json")
    options = parsed("retry-failed", *words)
    command: partial[Any] = options.command
    assert (command.func, command.keywords) == (run_command.run, {"retry_failed": True})
    plain = argparse.ArgumentParser()
    run_command.add_run_options(plain)
    expected = vars(plain.parse_args(words))
    assert {**vars(options), "command": None} == {**expected, "command": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("doctor", "--help"), "--data"),
        (("inspect", "--help"), "shard|image"),
        (("inspect", "shard", "--help"), "the start of its digest"),
        (("inspect", "image", "--help"), "every row that has it"),
        (("retry-failed", "--help"), "worker_died"),
    ],
)
def test_help_says_what_is_meant(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 0
    assert said in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("stages", [("--only", "train"), ("--from-stage", "cluster")])
def test_retry_failed_without_embed_is_refused(stages: tuple[str, str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(ConfigError, match=r"retry-failed makes units of embed again, but the stages are .*train"):
        run("retry-failed", "--data", "demo", "--root", str(root), *stages)
    assert not root.exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_a_run_says_what_it_adopts(as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"key": ["a", "b"], "jpg": [b"1", b"2"]}), tmp_path / "data.parquet")
    vectors = pa.array([[3.0, 4.0], [6.0, 8.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"key": ["a", "b"], "vector": vectors}), tmp_path / "vectors.parquet")
    adopts = [f"embed.vectors={tmp_path / 'vectors.parquet'}", "embed.embedder=adopted"]
    # settings of train are checked later, so that this run ends before a server is started
    words = [word for given in (*adopts, "train.log_folder=relative") for word in ("--set", given)]
    words += ["--json"] if as_json else []
    with pytest.raises(ConfigError, match="give an absolute path"):
        run("run", "--data", str(tmp_path / "data.parquet"), "--root", str(tmp_path / "root"), *words)
    said = "adopting 2 vectors of 2 dims, lengths 5 to 10 in a sample (they are normalised)\n"
    assert capsys.readouterr() == ("", "" if as_json else said)


def test_doctor_looks_into_the_column_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pq.write_table(pa.table({"jpg": [b"1"], "photo": [b"1"]}), tmp_path / "data.parquet")
    words = ("doctor", "--root", str(tmp_path / "root"), "--data", str(tmp_path / "data.parquet"))
    run(*words, "--image-column", "photo")
    assert "images in the column photo" in capsys.readouterr().out


def test_doctor_prints_a_line_per_finding_and_the_same_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor", "--root", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert run("doctor", "--root", str(tmp_path), "--json") == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [line.split()[:2] for line in lines] == [[finding["state"], finding["subject"]] for finding in findings]


def test_doctor_fails_with_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor", "--root", str(tmp_path), "--data", str(tmp_path / "none")) == 1
    assert "error  data" in capsys.readouterr().out


def test_inspect_of_an_empty_root_says_what_to_do(tmp_path: Path) -> None:
    for kind in ("shard", "image"):
        with pytest.raises(UpstreamMissingError, match="start it with mlcd run"):
            run("inspect", kind, "x", "--root", str(tmp_path))


def test_naming_the_commands_loads_neither_prefect_nor_pydantic() -> None:
    code = "import flows.doctor_command, flows.inspect_command, flows.retry_command, sys; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPO).stdout
    assert {name.split(".")[0] for name in printed.split()} & {
        "prefect",
        "pydantic",
        "torch",
        "ray",
        "pyarrow",
    } == set()
