"""Servers of the tests: S3 in a process of its own, so that its death, silence and faults are those of a real one."""

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

START_S = 120
PAGE = 100  # objects in one answer to a listing, so that tests have listings of many pages


@dataclass(frozen=True)
class Server:
    """A server of the tests and the process it is."""

    endpoint: str
    pid: int


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def s3_process(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A moto server on a port, ready to answer; killed at the end. It keeps everything in memory."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            await_answer(f"http://127.0.0.1:{port}/moto-api/", process)
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The address of an S3 server that is empty, in its own process."""
    port = free_port()
    with s3_process(port):
        yield f"http://127.0.0.1:{port}"


def s3_environment(endpoint: str) -> dict[str, str]:
    """What a process needs in its environment to reach a server of the tests; the credentials open nothing."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "nothing-secret",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def make_bucket(endpoint: str, bucket: str) -> None:
    """Make a bucket on a server of the tests, which asks for no signature."""
    request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT")
    with urllib.request.urlopen(request, timeout=START_S):
        pass


def await_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that is starting answers; it may fail to, then this raises."""
    for _ in range(START_S * 20):
        try:
            with urllib.request.urlopen(url, timeout=START_S):
                return
        except urllib.error.HTTPError:
            return
        except (urllib.error.URLError, ConnectionError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.05)
                break
    raise RuntimeError(f"the server of {url} does not answer; its exit status is {process.poll()}")
