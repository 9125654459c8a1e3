"""Files on S3: the store's protocol on whole objects, each written by one request."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from mlcd_core.objects import Objects, open_objects
from mlcd_core.objects.address import split_address
from mlcd_core.store.files import FileInfo

if TYPE_CHECKING:
    import pyarrow as pa


class S3Files:
    """Objects under ``s3://bucket/prefix``. Holds no connection: it may be pickled, forked and used by any thread.

    ``objects`` gives the client; it is asked at each operation.
    """

    def __init__(self, address: str, objects: Callable[[], Objects] = open_objects) -> None:
        split_address(address)
        self.address = address.rstrip("/")
        self._objects = objects

    def read(self, path: str) -> bytes | None:
        return self._objects().get(self.uri(path))

    def map(self, path: str) -> "pa.Buffer | None":
        import pyarrow as pa

        data = self.read(path)
        return None if data is None else pa.py_buffer(data)

    def put(self, path: str, data: bytes) -> None:
        self._objects().put(self.uri(path), data)

    def create(self, path: str, data: bytes) -> bool:
        return self._objects().create(self.uri(path), data)

    def folders(self, prefix: str) -> list[str]:
        return self._objects().folders(self.uri(prefix))

    def list(self, prefix: str) -> list[FileInfo]:
        start = len(self.address) + 1
        return [FileInfo(info.uri[start:], info.bytes) for info in self._objects().list(self.uri(prefix))]

    def delete(self, path: str) -> None:
        self._objects().delete(self.uri(path))

    def sweep(self, prefix: str) -> None:
        """Nothing to do: an object that was not put whole is not there."""

    def uri(self, path: str) -> str:
        return f"{self.address}/{path}" if path else self.address
