"""One S3 server for the tests of this folder, and the places where their shards lie."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.s3.proxy import FaultProxy
from tests.servers import make_bucket, s3_environment, s3_server
from tests.unit.dataset.places import LocalPlace, Place, S3Place

BUCKET = "shards"
PREFIXES = count()


@pytest.fixture
def memo(tmp_path: Path) -> Path:
    return tmp_path / "memo" / "digests.sqlite"


@pytest.fixture(scope="session")
def proxy() -> Iterator[FaultProxy]:
    """Counts what is asked of the server."""
    with s3_server() as endpoint, FaultProxy(endpoint) as proxy:
        make_bucket(endpoint, BUCKET)
        yield proxy


@pytest.fixture
def s3(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Place:
    for name, value in s3_environment(proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    proxy.inject()
    return S3Place(f"s3://{BUCKET}/test-{next(PREFIXES)}/data")


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        found: S3Place = request.getfixturevalue("s3")
        return found
    return LocalPlace(str(tmp_path / "data"))
