"""Objects of S3: ranges, listings of many pages, refusals a person can act on, and clients of other processes."""

import os
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlcd_core.errors import ConfigError, StoreError
from mlcd_core.objects import ObjectInfo, Objects, is_s3, open_objects
from mlcd_core.store import open_files
from tests.s3.proxy import FaultProxy, Reply
from tests.servers import PAGE, free_port

CONTENT = bytes(range(256)) * 4


@pytest.fixture
def objects(s3_address: str) -> Objects:
    return open_objects()


RANGES = [(None, None), (0, 1), (0, 1024), (10, 20), (1000, 2000), (1023, None), (None, 5), (1024, 1030), (5000, None)]


@pytest.mark.parametrize(("start", "end"), [*RANGES, (7, 7), (9, 3)])
def test_ranges_are_those_of_a_slice(objects: Objects, s3_address: str, start: int | None, end: int | None) -> None:
    objects.put(f"{s3_address}/x", CONTENT)
    objects.put(f"{s3_address}/empty", b"")
    assert objects.get(f"{s3_address}/x", start=start, end=end) == CONTENT[start:end]
    assert objects.get(f"{s3_address}/empty", start=start, end=end) == b""
    assert objects.get(f"{s3_address}/absent", start=start, end=end) is None


def test_info_tells_size_and_a_tag_that_changes_with_the_content(objects: Objects, s3_address: str) -> None:
    uri = f"{s3_address}/x"
    assert objects.info(uri) is None
    objects.put(uri, b"one")
    first = objects.info(uri)
    assert first == ObjectInfo(uri, 3, first.etag)
    assert objects.list(s3_address) == [first]
    objects.put(uri, b"two")
    assert objects.info(uri).etag != first.etag


def test_listing_of_many_pages_is_whole_sorted_and_without_folder_marks(
    objects: Objects, s3_address: str, proxy: FaultProxy
) -> None:
    names = [f"{s3_address}/many/{i:03d}" for i in range(2 * PAGE + 1)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: objects.put(uri, b"x"), names))
    objects.put(f"{s3_address}/many/", b"")
    objects.put(f"{s3_address}/many-others", b"")
    proxy.inject()
    assert [info.uri for info in objects.list(f"{s3_address}/many")] == names
    assert proxy.count("LIST") == 3


def test_folders_of_many_pages_are_named_once(objects: Objects, s3_address: str) -> None:
    names = [f"{i:03d}" for i in range(PAGE + 1)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: objects.put(f"{s3_address}/many/{name}/{name}", b"x"), names))
    objects.put(f"{s3_address}/many/file", b"x")
    assert objects.folders(f"{s3_address}/many") == names


def test_an_artefact_is_one_request(objects: Objects, s3_address: str, proxy: FaultProxy) -> None:
    big = bytes(101 << 20)  # s3fs would cut it in parts
    objects.put(f"{s3_address}/put", big)
    assert objects.create(f"{s3_address}/create", big[: 1 << 20])
    assert [(request.method, request.status) for request in proxy.requests] == [("PUT", 200)] * 2
    assert objects.get(f"{s3_address}/put") == big
    assert proxy.count("GET") == 1


@pytest.mark.parametrize("act", ["get", "info", "list", "put", "create", "delete"])
def test_a_bucket_that_does_not_exist_is_no_absence(objects: Objects, act: str, proxy: FaultProxy) -> None:
    content = (b"",) if act in {"put", "create"} else ()
    with pytest.raises(StoreError, match=r"cannot .* s3://nowhere/x: there is no bucket 'nowhere'; .*AWS_ENDPOINT_URL"):
        getattr(objects, act)("s3://nowhere/x", *content)
    assert len(proxy.requests) <= 2, "it is refused at once"


@pytest.mark.parametrize("address", ["s3://", "s3:///key"])
def test_an_address_without_bucket_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="s3://bucket/prefix"):
        open_files(address)


def test_only_s3_is_s3() -> None:
    assert is_s3("s3://bucket/key")
    assert not any(is_s3(address) for address in ("/s3://x", "folder", "gs://bucket/key", "s3:/x"))


def test_no_credentials_are_explained_at_once(
    s3_address: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreError, match=r"no credentials.*AWS_ACCESS_KEY_ID.*AWS_PROFILE"):
        open_objects().get(f"{s3_address}/x")
    assert proxy.requests == []


def test_a_store_that_is_not_there_is_an_error_and_not_absence(
    s3_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreError, match=rf"cannot read {s3_address}/x.*{endpoint}.*tried \d+ times.*check that"):
        open_files(s3_address, patience_s=0).read("x")


class Signed(FaultProxy):
    """Keeps the signatures that pass."""

    def forward(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
        self.signature = dict(headers)["Authorization"]
        return super().forward(method, path, headers, body)


@pytest.mark.parametrize(
    ("variables", "region"),
    [({"AWS_REGION": "eu-one"}, "eu-one"), ({"AWS_DEFAULT_REGION": "eu-two"}, "eu-two"), ({}, "us-east-1")],
)
def test_endpoint_region_and_credentials_are_those_of_the_environment(
    s3_address: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], region: str
) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with Signed(proxy.endpoint) as signed:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", signed.endpoint)
        open_objects().put(f"{s3_address}/x", b"")
    assert f"Credential={os.environ['AWS_ACCESS_KEY_ID']}/" in signed.signature
    assert f"/{region}/s3/" in signed.signature


def test_of_many_threads_exactly_one_creates_a_key(objects: Objects, s3_address: str) -> None:
    num_threads, num_keys = 16, 10
    together = threading.Barrier(num_threads)

    def race(thread: int) -> list[int]:
        wins = []
        for key in range(num_keys):
            together.wait()
            if objects.create(f"{s3_address}/{key}", str(thread).encode()):
                wins.append(key)
        return wins

    with ThreadPoolExecutor(num_threads) as pool:
        won = list(pool.map(race, range(num_threads)))
    assert Counter(key for wins in won for key in wins) == dict.fromkeys(range(num_keys), 1)
    for thread, wins in enumerate(won):
        assert all(objects.get(f"{s3_address}/{key}") == str(thread).encode() for key in wins)


FORKED = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from mlcd_core.objects import open_objects

uri = sys.argv[1]
open_objects().put(uri, b"parent")
child = os.fork()
if not child:
    with ThreadPoolExecutor(8) as pool:  # all of them for the first time
        found = list(pool.map(lambda _: open_objects().get(uri), range(8)))
    open_objects().put(uri, b"child")
    sys.exit(0 if found == [b"parent"] * 8 else 3)
_, status = os.waitpid(child, 0)
assert open_objects().get(uri) == b"child"
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_has_a_client_of_its_own(s3_address: str) -> None:
    # -W error: also nothing is left open at the end
    command = [sys.executable, "-W", "error", "-c", FORKED, f"{s3_address}/x"]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
