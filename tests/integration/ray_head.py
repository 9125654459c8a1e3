"""A Ray cluster of one node that takes jobs, on loopback and free ports, with a token and a folder of its own."""

import json
import os
import secrets
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.integration.harness import BIN, stop
from tests.servers import await_answer, free_port

REPO = Path(__file__).parents[2]
ENDED = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class RayHead:
    """The address of its dashboard, and the token that its clients need."""

    address: str
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def variables(self) -> dict[str, str]:
        """What a client has in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def jobs(self) -> dict[str, str]:
        """Id -> status of all jobs that were submitted, the first first."""
        request = urllib.request.Request(f"{self.address}/api/jobs/", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: list[dict[str, Any]] = [job for job in json.load(answer) if job["submission_id"]]
        return {job["submission_id"]: job["status"] for job in sorted(found, key=lambda job: int(job["start_time"]))}


@contextmanager
def ray_head(log: Path, environment: Mapping[str, str]) -> Iterator[RayHead]:
    """A cluster that runs until the end. Its jobs run this checkout by the Python of this environment."""
    port = free_port()
    head = RayHead(f"http://127.0.0.1:{port}")
    options = {
        # loopback as well, where Ray would put the machine's own address in the place of 127.0.0.1
        "--node-ip-address": "127.0.0.2",
        "--port": free_port(),
        "--dashboard-host": "127.0.0.1",
        "--dashboard-port": port,
        "--dashboard-agent-listen-port": free_port(),
        "--ray-client-server-port": free_port(),
        "--num-cpus": 8,
        "--object-store-memory": 150_000_000,
    }
    variables = {
        **environment,
        **head.variables,
        "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": str(REPO),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    # sockets lie in it, whose paths may have 107 characters
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder, log.open("w") as said:
        words = [str(word) for option in options.items() for word in option]
        command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--temp-dir", folder]
        process = subprocess.Popen([*command, *words], stdout=said, stderr=said, text=True, env=variables)
        try:
            await_answer(f"{head.address}/api/version", process)  # type: ignore[arg-type]  # of text, not bytes
            yield head
        finally:
            stop(process)
