"""A store that stumbles: no fault of a while changes a result, and a create says truly whose object stands."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from mlcd_core.errors import StoreError
from mlcd_core.objects import Connection, Limits, Objects, Retries
from mlcd_core.store.s3 import S3Files
from tests.s3.faults import Fault
from tests.s3.proxy import NO_ANSWER, FaultProxy
from tests.servers import Server

LIMITS = Limits(answer_s=0.3)
RETRIES = Retries(sleep=lambda _: None, total_s=60)
CONTENT = bytes(range(256)) * 100

OPERATIONS: dict[str, Callable[[Objects, str], object]] = {
    "GET": lambda objects, uri: objects.get(uri),
    "HEAD": lambda objects, uri: objects.info(uri).bytes,
    "LIST": lambda objects, uri: objects.list(uri.rpartition("/")[0]),
    "PUT": lambda objects, uri: objects.put(uri, CONTENT),
    "DELETE": lambda objects, uri: objects.delete(uri),
}


@pytest.fixture(scope="module")
def connection(s3_proxy: FaultProxy) -> Connection:
    """A client that soon gives a silent try up."""
    return Connection(LIMITS)


@pytest.fixture
def objects(connection: Connection) -> Objects:
    return Objects(connection, RETRIES)


@pytest.fixture
def uri(objects: Objects, s3_address: str, proxy: FaultProxy) -> str:
    """An object that is there."""
    uri = f"{s3_address}/object"
    objects.put(uri, CONTENT)
    proxy.inject()
    return uri


@pytest.mark.parametrize("kind", ["503", "409", "reset", "silence", "lost reply", "late reply"])
@pytest.mark.parametrize("method", OPERATIONS)
def test_every_operation_outlives_every_fault(
    objects: Objects, uri: str, proxy: FaultProxy, method: str, kind: str
) -> None:
    undisturbed = OPERATIONS[method](objects, uri)
    left = objects.get(uri)
    objects.put(uri, CONTENT)
    proxy.inject(Fault(kind, method, nth=(1, 2), seconds=1))
    assert OPERATIONS[method](objects, uri) == undisturbed
    assert proxy.count(method) >= 3
    assert objects.get(uri) == left


@pytest.mark.parametrize("method", ["GET", "LIST"])
def test_a_cut_body_is_never_taken_for_the_whole(objects: Objects, uri: str, proxy: FaultProxy, method: str) -> None:
    whole = OPERATIONS[method](objects, uri)
    proxy.inject(Fault("cut body", method, nth=(1, 2, 3)))
    assert OPERATIONS[method](objects, uri) == whole
    assert proxy.count(method) == 4


def test_a_cut_range_is_read_again(objects: Objects, uri: str, proxy: FaultProxy) -> None:
    proxy.inject(Fault("cut body", "GET", nth=(1,)))
    assert objects.get(uri, start=100, end=300) == CONTENT[100:300]
    assert proxy.count("GET") == 2


@pytest.mark.parametrize("kind", ["503", "409", "reset", "silence", "lost reply", "late reply"])
def test_a_create_that_was_disturbed_knows_that_it_won(
    objects: Objects, s3_address: str, proxy: FaultProxy, kind: str
) -> None:
    proxy.inject(Fault(kind, "PUT", nth=(1, 2), seconds=1))
    assert objects.create(f"{s3_address}/new", b"ours") is True
    assert objects.get(f"{s3_address}/new") == b"ours"


@pytest.mark.parametrize("kind", ["503", "409", "reset", "silence", "lost reply", "late reply"])
def test_a_create_that_was_disturbed_knows_that_it_lost(
    objects: Objects, uri: str, proxy: FaultProxy, kind: str
) -> None:
    proxy.inject(Fault(kind, "PUT", nth=(1, 2), seconds=1))
    assert objects.create(uri, b"ours") is False
    assert objects.get(uri) == CONTENT


def test_a_create_whose_reply_was_lost_reads_back(objects: Objects, s3_address: str, proxy: FaultProxy) -> None:
    proxy.inject(Fault("lost reply", "PUT", nth=(1,)))
    assert objects.create(f"{s3_address}/new", b"ours")
    *puts, back = proxy.requests
    assert {put.status for put in puts} <= {NO_ANSWER, 412}, "nothing is written twice"
    assert (back.method, back.status) == ("GET", 200)


def test_reading_back_may_stumble_too(objects: Objects, s3_address: str, proxy: FaultProxy) -> None:
    proxy.inject(
        Fault("lost reply", "PUT", nth=(1,)), Fault("503", "GET", nth=(1, 2)), Fault("cut body", "GET", nth=(3,))
    )
    assert objects.create(f"{s3_address}/new", b"ours" * 100)
    assert objects.create(f"{s3_address}/new", b"theirs") is False


def test_patience_ends_with_what_was_asked_what_came_and_what_to_do(
    connection: Connection, uri: str, proxy: FaultProxy
) -> None:
    clock = iter(range(0, 10_000, 20))
    objects = Objects(connection, replace(RETRIES, total_s=300, clock=lambda: next(clock)))
    proxy.inject(Fault("503", "GET"))
    with pytest.raises(StoreError, match=rf"cannot read {uri}: .*503 SlowDown.*tried \d+ times in 3\d\d s; check that"):
        objects.get(uri)


def test_a_store_that_is_stopped_and_continued_loses_nothing(
    connection: Connection, s3_server_process: Server, s3_address: str, proxy: FaultProxy
) -> None:
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            os.kill(s3_server_process.pid, signal.SIGCONT)

    files = S3Files(s3_address, lambda: Objects(connection, replace(RETRIES, sleep=wait)))
    os.kill(s3_server_process.pid, signal.SIGSTOP)
    try:
        assert files.create("receipt", b"ours")
    finally:
        os.kill(s3_server_process.pid, signal.SIGCONT)
    assert len(waits) >= 3
    assert not files.create("receipt", b"theirs")
    assert files.read("receipt") == b"ours"


def test_a_store_of_many_faults_gives_what_a_quiet_one_gives(
    objects: Objects, s3_address: str, proxy: FaultProxy
) -> None:
    kinds = ("503", "409", "reset", "lost reply", "cut body")
    files = S3Files(s3_address, lambda: objects)
    proxy.inject(*(Fault(kind, probability=0.3 / len(kinds)) for kind in kinds))
    for i in range(30):
        files.put(f"data/{i}", f"content {i}".encode())
        assert files.create(f"units/{i}", f"receipt {i}".encode())
        assert not files.create(f"units/{i}", b"another")
    statuses = {request.status for request in proxy.requests}
    assert {NO_ANSWER, 503, 409} <= statuses, "the faults came"
    assert [info.path for info in files.list("units")] == sorted(f"units/{i}" for i in range(30))
    for i in range(30):
        assert files.read(f"data/{i}") == f"content {i}".encode()
        assert files.read(f"units/{i}") == f"receipt {i}".encode()
