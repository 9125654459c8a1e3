"""The proxy of the tests as a process of its own: rules by JSON, a log of the requests, signed bytes untouched."""

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.s3.faults import Fault, Rules
from tests.s3.proxy import FaultProxy
from tests.servers import await_answer, free_port


class Echo(BaseHTTPRequestHandler):
    """Answers with what came."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        came = json.dumps([self.command, self.path, self.headers.items(), body.decode()]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(came)))
        self.end_headers()
        self.wfile.write(came)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def put(endpoint: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"))
    try:
        connection.request("PUT", path, b"body", {"Authorization": "signed", "Host": "as-signed", "If-None-Match": "*"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_what_was_signed_passes_as_it_is(upstream: str) -> None:
    with FaultProxy(upstream) as proxy:
        _, came = put(proxy.endpoint, "/bucket/a%20key?x=%2F")
    method, path, headers, body = json.loads(came)
    assert (method, path, body) == ("PUT", "/bucket/a%20key?x=%2F", "body")
    assert {("Authorization", "signed"), ("Host", "as-signed"), ("If-None-Match", "*")} <= set(map(tuple, headers))
    assert proxy.requests == [("PUT", "a key", 200)]


def test_as_a_process_it_follows_its_rules_and_logs_every_request(upstream: str, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    rules = json.dumps([{"kind": "503", "key": "a/*", "nth": [2]}])
    command = [sys.executable, "-m", "tests.s3.proxy", "--upstream", upstream, "--port", str(port), "--faults", rules]
    with subprocess.Popen([*command, "--log", str(log)], cwd=Path(__file__).parents[2]) as process:
        try:
            endpoint = f"http://127.0.0.1:{port}"
            await_answer(endpoint, process)
            seen = [put(endpoint, f"/bucket/{key}")[0] for key in ("a/1", "b/1", "a/2", "a/3")]
        finally:
            process.kill()
    assert seen == [200, 200, 503, 200]
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    assert logged[-4:] == [["PUT", "a/1", 200], ["PUT", "b/1", 200], ["PUT", "a/2", 503], ["PUT", "a/3", 200]]


def test_equal_seeds_draw_equal_faults_and_the_share_is_as_asked() -> None:
    def drawn(seed: int) -> list[bool]:
        rules = Rules([Fault("503", "GET", probability=0.2)], seed)
        return [rules.fault_for("GET", "key") is not None for _ in range(1000)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert 150 < sum(drawn(1)) < 250
