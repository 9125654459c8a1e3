"""A store that can be watched: an S3 server in its process, proxies in theirs that log every request, and a side door.

What is counted is the code under test alone: the tests themselves read and write by the side door, past the proxies.
"""

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.s3.proxy import Request
from tests.servers import await_answer, free_port, make_bucket, s3_process

BUCKET = "mlcd"
TIMEOUT_S = 60
# the server asks that there be a signature, not that it be right; and it would parse a body that is called a form
HEADERS = {"Authorization": "AWS tests:none", "Content-Type": "application/octet-stream"}


@dataclass(frozen=True)
class Store:
    """A server with one bucket, and the side door to it."""

    endpoint: str
    process: "subprocess.Popen[bytes]"

    def put(self, key: str, data: bytes) -> None:
        self._ask(self._url(key), method="PUT", data=data)

    def read(self, key: str) -> bytes:
        return self._ask(self._url(key))

    def keys(self, prefix: str = "") -> list[str]:
        """All keys that start so, in order."""
        found: list[str] = []
        query = {"list-type": "2", "prefix": prefix}
        while True:
            page = ET.fromstring(self._ask(f"{self.endpoint}/{BUCKET}?{urllib.parse.urlencode(query)}"))
            found += [element.text or "" for element in page.iterfind("{*}Contents/{*}Key")]
            token = page.findtext("{*}NextContinuationToken")
            if not token:
                return sorted(found)
            query["continuation-token"] = token

    def _url(self, key: str) -> str:
        return f"{self.endpoint}/{BUCKET}/{urllib.parse.quote(key)}"

    def _ask(self, url: str, method: str = "GET", data: bytes | None = None) -> bytes:
        request = urllib.request.Request(url, method=method, data=data, headers=HEADERS)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read()
            return body


@dataclass
class RequestLog:
    """The requests that a proxy has logged so far, in the order in which they ended."""

    path: Path
    requests: list[Request] = field(default_factory=list)
    _read_bytes: int = 0

    def read(self) -> list[Request]:
        """All of them, with those since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._read_bytes)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        self.requests += [Request(*json.loads(line)) for line in whole.splitlines()]
        return self.requests


@contextmanager
def store() -> Iterator[Store]:
    """A server with an empty bucket."""
    port = free_port()
    with s3_process(port) as process:
        endpoint = f"http://127.0.0.1:{port}"
        make_bucket(endpoint, BUCKET)
        yield Store(endpoint, process)


@contextmanager
def proxy(upstream: str, log: Path, faults: Sequence[Mapping[str, Any]] = (), *, seed: int = 0) -> Iterator[str]:
    """The address of a proxy before ``upstream`` that logs to a file, and does by rule what ``faults`` say."""
    port = free_port()
    words = ["--upstream", upstream, "--port", str(port), "--log", str(log), "--seed", str(seed)]
    command = [sys.executable, "-m", "tests.s3.proxy", *words, "--faults", json.dumps(list(faults))]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            # no key of the bucket, so that no rule and no count knows of it
            await_answer(f"http://127.0.0.1:{port}/", process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
