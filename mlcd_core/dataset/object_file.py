"""An S3 object as a file of fetched byte ranges, so that Parquet is parsed from memory and requests are few and big.

The end of the object is fetched when the file is made, for the footer is there. What a row group needs is fetched and
held before it is parsed. A read of other bytes makes its own request, which is right and slow.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass

from mlcd_core.dataset.shard import replaced
from mlcd_core.objects import ObjectInfo, Objects

TAIL_BYTES = 64 << 10
# one request brings at most so much: a bigger one that is cut is more to repeat
REQUEST_BYTES = 64 << 20


@dataclass(frozen=True)
class _Held:
    """Bytes of the object from ``start`` on."""

    start: int
    data: memoryview

    def part(self, start: int, stop: int) -> memoryview:
        """What is held of [start, stop)."""
        return self.data[max(start - self.start, 0) : max(stop - self.start, 0)]


class ObjectFile:
    """A seekable file over an object, as pyarrow wants one from Python.

    Its methods raise ShardChangedError when it is not that object any more, StoreError when storage does not answer.
    """

    closed = False

    def __init__(self, objects: Objects, info: ObjectInfo) -> None:
        self._objects = objects
        self._info = info
        self._num_bytes = num_bytes = info.bytes
        self._position = 0
        self._held: list[_Held] = []
        self._tail = self._get(max(0, num_bytes - TAIL_BYTES), num_bytes)

    def hold(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Hold these ranges [start, stop), which are apart, and the end, nothing else."""
        self._held = []
        for start, stop in ranges:
            last = min(stop, self._tail.start)
            for cut in range(start, last, REQUEST_BYTES):
                self._held.append(self._get(cut, min(cut + REQUEST_BYTES, last)))

    def read(self, size: int = -1) -> memoryview | bytes:
        """The next ``size`` bytes, or as many as there are; a view of what is held where that is one piece."""
        start = self._position
        stop = self._num_bytes if size < 0 else min(start + size, self._num_bytes)
        self._position = max(start, stop)
        parts = [part for held in (*self._held, self._tail) if (part := held.part(start, stop))]
        if sum(map(len, parts)) < stop - start:
            parts = [self._get(start, stop).data]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position and return it."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._num_bytes}[whence]
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Let go of the bytes."""
        self._held = []

    def _get(self, start: int, stop: int) -> _Held:
        info = self._info
        data = self._objects.get(info.uri, start=start, end=stop, etag=info.etag) if stop > start else b""
        if data is None or len(data) != stop - start:
            raise replaced(info.uri)
        return _Held(start, memoryview(data))
