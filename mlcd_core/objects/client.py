"""Objects of S3: whole reads, single puts, puts that win or lose, and listings; each tried until its outcome is known.

One put makes one object, whole or not at all. A put that may have been done is done again: the bytes are the same. A
create that may have been done is read back: receipts carry an id of their writer, so equal bytes are one's own.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

from mlcd_core.errors import StoreError
from mlcd_core.objects.address import object_address, split_address
from mlcd_core.objects.answers import Absent, BeyondEnd, Taken, Unclear, no_bucket
from mlcd_core.objects.connection import Connection, Limits, cannot
from mlcd_core.objects.retries import Retries

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its address ``s3://bucket/key``, its size and the store's tag of its content."""

    uri: str
    bytes: int
    etag: str


def open_objects(patience_s: float = 300.0) -> "Objects":
    """The client of this process, for the endpoint, region and credentials that the environment names now.

    Any thread may use it. It is found anew at each call, so a forked or spawned process gets its own. Threads that ask
    for the first time at the same moment may get one each.
    patience_s: how long a request is tried again before StoreError is raised.
    """
    environment = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
    return _objects_of(os.getpid(), environment, patience_s)


@cache
def _objects_of(process: int, environment: tuple[tuple[str, str], ...], patience_s: float) -> "Objects":  # noqa: ARG001
    variables = dict(environment)
    # the client itself knows only the second of the two names
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    # who will not wait for long is not kept waiting by one silent try either
    limits = Limits(answer_s=min(Limits.answer_s, max(patience_s, 1.0)))
    return Objects(Connection(limits, region), Retries(total_s=patience_s))


class Objects:
    """Reads and writes objects by address. Raises StoreError when the store refuses, or stays silent for too long."""

    def __init__(self, connection: Connection, retries: Retries) -> None:
        self._connection = connection
        self._retries = retries

    def get(self, uri: str, *, start: int | None = None, end: int | None = None, etag: str = "") -> bytes | None:
        """The object's bytes, or those from ``start`` up to ``end``; None when it does not exist.

        A range that reaches over the end of the object gives what there is. etag: the content that is wanted; None
        when there is another one.
        """
        return self._tried("get_object", uri, lambda: self._get(uri, start or 0, end, etag))

    def info(self, uri: str) -> ObjectInfo | None:
        """Size and tag of an object, or None when it does not exist."""
        return self._tried("head_object", uri, lambda: self._info(uri))

    def folders(self, prefix_uri: str) -> list[str]:
        """Names of the folders right in the folder ``prefix_uri`` that hold any object, sorted."""
        prefix = _prefix(prefix_uri)
        pages = self._pages(prefix_uri, Prefix=prefix, Delimiter="/")
        found = (folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", ()))
        return sorted(path[len(prefix) :].rstrip("/") for path in found)

    def list(self, prefix_uri: str) -> list[ObjectInfo]:
        """Every object below the folder ``prefix_uri``, however deep, sorted by address, as the store sees it now."""
        return sorted(self._below(prefix_uri), key=lambda info: info.uri)

    def put(self, uri: str, data: bytes) -> None:
        """Make the object appear with exactly these bytes, replacing one of that name; one request."""
        self._tried("put_object", uri, lambda: self._connection.ask("put_object", uri, Body=data))

    def create(self, uri: str, data: bytes) -> bool:
        """Put if absent: False, and nothing changed, when the object exists with other bytes."""
        return self._tried("put_object", uri, lambda: self._create(uri, data))

    def delete(self, uri: str) -> None:
        """Remove the object; absent is fine."""
        self._tried("delete_object", uri, lambda: self._delete(uri))

    def _tried(self, operation: str, uri: str, attempt: Callable[[], Answer]) -> Answer:
        what = cannot(operation, uri)
        try:
            return self._retries.persist(attempt, what)
        except (Absent, Taken, BeyondEnd) as answer:
            raise StoreError(
                f"{what}: the store answered {answer}, which is no answer to that; check the address and "
                "AWS_ENDPOINT_URL"
            ) from answer

    def _delete(self, uri: str) -> None:
        with suppress(Absent):
            self._connection.ask("delete_object", uri)

    def _get(self, uri: str, start: int = 0, end: int | None = None, etag: str = "") -> bytes | None:
        whole = start == 0 and end is None
        if end is not None and end <= start:
            return None if self._info(uri) is None else b""
        asked = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        if etag:
            asked["IfMatch"] = f'"{etag}"'
        try:
            answer = self._connection.ask("get_object", uri, **asked)
        except (Absent, Taken):
            return None
        except BeyondEnd:
            return b""
        body: bytes = answer["Body"]
        # a store that knows no ranges answers with the whole object
        return body if whole or "ContentRange" in answer else body[start:end]

    def _info(self, uri: str) -> ObjectInfo | None:
        try:
            answer = self._connection.ask("head_object", uri)
        except Absent:
            self._expect_bucket(uri)
            return None
        return ObjectInfo(uri, answer["ContentLength"], _tag(answer))

    def _expect_bucket(self, uri: str) -> None:
        """A HEAD that finds nothing does not say whether the object is missing or its bucket."""
        try:
            self._connection.ask("head_bucket", uri)
        except Absent as answer:
            raise no_bucket(cannot("head_object", uri), split_address(uri)[0]) from answer

    def _create(self, uri: str, data: bytes) -> bool:
        try:
            self._connection.ask("put_object", uri, Body=data, IfNoneMatch="*")
            return True
        except (Taken, Unclear) as answer:
            found = self._get(uri)
            if found is None:
                raise Unclear(str(answer)) from answer
            return found == data

    def _below(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        bucket, _ = split_address(prefix_uri)
        for page in self._pages(prefix_uri, Prefix=_prefix(prefix_uri)):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # what consoles make to show an empty folder
                    yield ObjectInfo(object_address(bucket, found["Key"]), found["Size"], _tag(found))

    def _pages(self, uri: str, **arguments: str) -> Iterator[Mapping[str, Any]]:
        while True:
            ask = partial(self._connection.ask, "list_objects_v2", uri, **arguments)
            page = self._tried("list_objects_v2", uri, ask)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]


def _prefix(uri: str) -> str:
    _, folder = split_address(uri)
    return f"{folder.rstrip('/')}/" if folder else ""


def _tag(answer: Mapping[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')
