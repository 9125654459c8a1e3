"""Fixtures of the integration tests: a Prefect server on a free port, and the ``mlcd`` command against it."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import BIN, Mlcd, stop


@pytest.fixture(scope="session")
def prefect_server(private_home: Path) -> Iterator[str]:
    """The API address of a server of this session's own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = [str(BIN / "prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (private_home / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)
        wait_until_up(f"{api}/health", server)
        yield api
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


@pytest.fixture(scope="session")
def mlcd(prefect_server: str) -> Mlcd:
    """The command against the session's server."""
    return Mlcd(prefect_server)
