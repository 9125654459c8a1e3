"""Storage of the tests: a folder on disk, and a prefix on an S3 server behind the proxy that makes faults."""

import uuid
from collections.abc import Iterator

import pytest

from mlcd_core.store import Files, open_files
from tests.s3.proxy import FaultProxy
from tests.servers import Server, free_port, make_bucket, s3_environment, s3_process

BUCKET = "tests"


@pytest.fixture(scope="session")
def s3_server_process() -> Iterator[Server]:
    """A server with one bucket."""
    port = free_port()
    with s3_process(port) as process:
        server = Server(f"http://127.0.0.1:{port}", process.pid)
        make_bucket(server.endpoint, BUCKET)
        yield server


@pytest.fixture(scope="session")
def s3_proxy(s3_server_process: Server) -> Iterator[FaultProxy]:
    """A proxy in front of the server; the environment of these tests names it."""
    with FaultProxy(s3_server_process.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(proxy.endpoint).items():
            patch.setenv(name, value)
        yield proxy


@pytest.fixture
def proxy(s3_proxy: FaultProxy) -> Iterator[FaultProxy]:
    """The proxy without a rule, and nothing counted yet."""
    s3_proxy.inject()
    yield s3_proxy
    s3_proxy.inject()


@pytest.fixture
def s3_address(proxy: FaultProxy) -> str:
    """An empty prefix on S3."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["disk", "s3"])
def address(request: pytest.FixtureRequest) -> str:
    """An empty root, on disk and on S3."""
    if request.param == "s3":
        address: str = request.getfixturevalue("s3_address")
        return address
    return str(request.getfixturevalue("tmp_path") / "root")


@pytest.fixture
def files(address: str) -> Files:
    """An empty store, on disk and on S3."""
    return open_files(address)
