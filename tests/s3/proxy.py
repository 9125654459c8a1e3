"""A proxy that stands before an S3 server and does to requests what networks and busy stores do.

Faults come by rule: which requests (method, key), and which of them (the n-th, or a share drawn from a seeded
generator). Signed bytes pass untouched, the Host header included. Conditional puts of one key pass one at a time,
because the server of the tests looks and then writes without a lock. Every request is recorded, with its status.

As a process of its own:
    python -m tests.s3.proxy --upstream URL --port N [--seed N] [--log FILE]
        --faults '[{"kind": "503", "method": "PUT", "key": "*/units/*", "probability": 0.05}]'
"""

import argparse
import http.client
import json
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.s3.faults import Fault, Rules

NO_ANSWER = 0
# what belongs to one connection and not to the message
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Request(NamedTuple):
    """One request and the status that was sent back, or ``NO_ANSWER``. A listing has method LIST and its prefix."""

    method: str
    key: str
    status: int


@dataclass(frozen=True)
class Reply:
    """An answer of the server, whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultProxy:
    """Forwards to ``upstream`` while the context is open; ``endpoint`` is its own address."""

    def __init__(
        self,
        upstream: str,
        faults: Iterable[Fault] = (),
        *,
        port: int = 0,
        seed: int = 0,
        record: Callable[[Request], None] | None = None,
    ) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        self._seed = seed
        self._record = record
        self._lock = threading.Lock()
        self._of_key: dict[str, threading.Lock] = {}
        self.inject(*faults)
        self._server = _Server(("127.0.0.1", port), self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "FaultProxy":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def inject(self, *faults: Fault) -> None:
        """Replace the rules, count anew, and forget the requests so far."""
        with self._lock:
            self.rules = Rules(faults, self._seed)
            self.requests.clear()

    def count(self, method: str, key: str = "*") -> int:
        """How many recorded requests have this method and a key of this pattern."""
        with self._lock:
            return sum(r.method == method and fnmatchcase(r.key, key) for r in self.requests)

    def note(self, request: Request) -> None:
        """Record a request."""
        with self._lock:
            self.requests.append(request)
            if self._record:
                self._record(request)

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
        """Send a request on and read the whole answer."""
        connection = http.client.HTTPConnection(self.upstream)
        with self._alone(path, headers):
            try:
                connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers:
                    if name.lower() != "expect":  # it was answered here
                        connection.putheader(name, value)
                connection.endheaders(body or None)
                answer = connection.getresponse()
                return Reply(answer.status, answer.getheaders(), answer.read())
            finally:
                connection.close()

    def _alone(self, path: str, headers: list[tuple[str, str]]) -> AbstractContextManager[object]:
        if not any(name.lower() == "if-none-match" for name, _ in headers):
            return nullcontext()
        with self._lock:
            return self._of_key.setdefault(path, threading.Lock())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # senders that gave up
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        """Answer a request, or not, as its fault says."""
        proxy = self.server.proxy
        self.operation = _operation(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.rules.fault_for(*self.operation)
        match fault.kind if fault else None:
            case "503":
                return self._send(_refusal(503, "SlowDown"))
            case "409":
                return self._send(_refusal(409, "ConditionalRequestConflict"))
            case "reset":
                return self._reset()
            case "silence":
                self._close()
                proxy.stopping.wait(fault.seconds)
                return None
        try:
            if fault and fault.kind == "no condition":
                del self.headers["If-None-Match"]
            reply = proxy.forward(self.command, self.path, list(self.headers.items()), body)
        except (ConnectionError, http.client.HTTPException):
            return self._reset()
        match fault.kind if fault else None:
            case "lost reply":
                return self._close()
            case "late reply":
                self._note(reply.status)
                proxy.stopping.wait(fault.seconds)
                return self._write(reply)
            case "cut body":
                self.close_connection = True
                return self._send(reply, len(reply.body) // 2)
        return self._send(reply)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _send(self, reply: Reply, num_bytes: int | None = None) -> None:
        self._note(reply.status)
        self._write(reply, num_bytes)

    def _write(self, reply: Reply, num_bytes: int | None = None) -> None:
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if reply.status != 204:
            self.send_header("Content-Length", _length(self.command, reply))
        self.end_headers()
        self.wfile.write(reply.body[:num_bytes])

    def _close(self) -> None:
        self._note(NO_ANSWER)
        self.close_connection = True

    def _reset(self) -> None:
        # a linger time of zero makes the close a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._close()

    def _note(self, status: int) -> None:
        """Before the answer goes: its receiver may look at the record at once."""
        self.server.proxy.note(Request(*self.operation, status))

    def log_message(self, *_: object) -> None:
        """The requests are recorded, not printed."""


def _operation(command: str, path: str) -> tuple[str, str]:
    """Method and key of a request; of a listing, LIST and the prefix."""
    url = urlsplit(path)
    key = unquote(url.path).lstrip("/").partition("/")[2]
    query = parse_qs(url.query)
    if command == "GET" and "list-type" in query:
        return "LIST", query.get("prefix", [""])[0]
    return command, key


def _refusal(status: int, code: str) -> Reply:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>by rule</Message></Error>"
    return Reply(status, [("Content-Type", "application/xml")], body.encode())


def _length(command: str, reply: Reply) -> str:
    told = next((value for name, value in reply.headers if name.lower() == "content-length"), "0")
    return told if command == "HEAD" else str(len(reply.body))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.s3.proxy")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--faults", default="[]", help="a JSON list of the fields of Fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("/dev/null"), help="a file that gets one JSON list a request")
    options = parser.parse_args(arguments)
    faults = [Fault(**{**rule, "nth": tuple(rule.get("nth", ()))}) for rule in json.loads(options.faults)]
    with options.log.open("a", buffering=1) as log:
        record = lambda request: print(json.dumps(request), file=log)  # noqa: E731
        with FaultProxy(options.upstream, faults, port=options.port, seed=options.seed, record=record) as proxy:
            proxy.stopping.wait()


if __name__ == "__main__":
    main()
