"""Small scenes, small settings and real processes for the integration tests."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from mlcd_core.images.digit_scenes import Split, scene_parquet_bytes
from tests.servers import free_port

BIN = Path(sys.executable).parent
# small enough for seconds, big enough that every stage has several units or links
TINY = {
    "cluster.num_centroids": 12,
    "cluster.iterations": 4,
    "cluster.tolerance": 0,
    "label.num_labels": 6,
    "train.num_positive": 3,
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.checkpoint_steps": 3,
    "train.log_steps": 1,
}


@dataclass(frozen=True)
class Finished:
    """How a command ended; ``summary`` is the JSON object on its stdout, if there was one."""

    code: int
    stdout: str
    stderr: str

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads(self.stdout.splitlines()[-1])

    def results(self) -> dict[str, str]:
        return {stage["stage"]: stage["result"] for stage in self.summary["stages"]}


@dataclass(frozen=True)
class Mlcd:
    """The ``mlcd`` command against one Prefect server, with more variables in its environment if given."""

    api: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *words: str, timeout_s: float = 900) -> Finished:
        """Run it to its end."""
        done = subprocess.run(
            self.command(words), capture_output=True, text=True, env=self.environment(), timeout=timeout_s, check=False
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    def start(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start it in a process group of its own."""
        silent = subprocess.DEVNULL
        return subprocess.Popen(
            self.command(words), stdout=silent, stderr=silent, env=self.environment(), start_new_session=True
        )

    def command(self, words: Sequence[str]) -> list[str]:
        return [str(BIN / "mlcd"), *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PREFECT_API_URL": self.api, **self.variables}


def kill_after_first_receipt(words: Sequence[str], root: Path, delay_s: float, mlcd: Mlcd) -> dict[str, str]:
    """Start a run, SIGKILL its process group ``delay_s`` after its first receipt; the write ids of all receipts."""
    child = mlcd.start(*words)
    wait_for_first_receipt(child, root)
    time.sleep(delay_s)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    return {str(path.relative_to(root)): write_id_of(path) for path in root.glob("*/*/units/*.json")}


def wait_for_first_receipt(child: "subprocess.Popen[bytes]", root: Path, stage: str = "*") -> list[psutil.Process]:
    """Wait until a run has committed something of a stage; its processes at that time."""
    deadline = time.monotonic() + 300
    while not any(root.glob(f"{stage}/*/units/*.json")):
        assert child.poll() is None, f"the run ended with {child.returncode}"
        assert time.monotonic() < deadline, "no receipt in 300 s"
        time.sleep(0.02)
    return psutil.Process(child.pid).children(recursive=True)


def until(condition: Callable[[], Any], limit_s: float) -> None:
    """Wait for a condition; fail after ``limit_s``."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {limit_s} s"
        time.sleep(0.1)


def write_id_of(path: Path) -> str:
    """Whose write a receipt is."""
    return str(json.loads(path.read_bytes())["record"]["write_id"])


def write_scenes(folder: Path, split: Split, *, shards: int, rows: int = 40, first: int = 0) -> None:
    """Compose shards of digit scenes; shard i is the same bytes wherever it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(first, first + shards):
        (folder / f"{split}-{shard:05d}.parquet").write_bytes(scene_parquet_bytes(split, shard, rows, 0))


def tiny_settings(**changes: Any) -> list[str]:
    settings = {**TINY, **{key.replace("__", "."): value for key, value in changes.items()}}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def post(api: str, path: str, body: Mapping[str, Any]) -> Any:
    """What a Prefect server answers."""
    request = urllib.request.Request(f"{api}/{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@contextmanager
def prefect_api(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The API address of a Prefect server that runs until the end; its log is ``server.log`` in the folder."""
    with prefect_process(folder, environment) as (api, _):
        yield api


@contextmanager
def prefect_process(folder: Path, environment: Mapping[str, str]) -> "Iterator[tuple[str, subprocess.Popen[str]]]":
    """The same, and the process."""
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, env=dict(environment))
        try:
            wait_until_up(f"{api}/health", server)
            yield api, server
        finally:
            stop(server)


def wait_until_up(url: str, server: "subprocess.Popen[str]", timeout_s: float = 120) -> None:
    """Return when the server answers; fail when it ended or takes too long."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            assert server.poll() is None, "the Prefect server ended"
            assert time.monotonic() < deadline, f"the Prefect server did not start in {timeout_s} s"
            time.sleep(0.3)


def stop(process: subprocess.Popen[str]) -> None:
    """End a server that a fixture started, and may have killed."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
