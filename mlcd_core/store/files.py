"""The few things the pipeline asks of storage, and the local folder that answers them.

Objects appear whole or not at all, and a name that was created once is never created again. Everything else (units,
receipts, manifests) is built on these operations, so another store is one more class of this protocol.
"""

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mlcd_core.errors import StoreError

if TYPE_CHECKING:
    import pyarrow as pa

_TEMPORARY = ".tmp-"


@dataclass(frozen=True)
class FileInfo:
    """One listed object: its name under the root, and its size."""

    path: str
    bytes: int


class Files(Protocol):
    """Whole objects under one root; names are relative, with ``/``. Failures raise StoreError, never mean absence."""

    def read(self, path: str) -> bytes | None:
        """The object's bytes, or None when it does not exist."""

    def map(self, path: str) -> "pa.Buffer | None":
        """The object's bytes as read-only mapped memory, or None when it does not exist. Objects never change."""

    def put(self, path: str, data: bytes) -> None:
        """Make the object appear with exactly these bytes, replacing one of that name."""

    def create(self, path: str, data: bytes) -> bool:
        """Put if absent: False, and nothing changed, when the name exists.

        A store that may lose its answer says True whenever the object holds exactly these bytes.
        """

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right in the folder ``prefix``, sorted; those of S3 hold something."""

    def list(self, prefix: str) -> list[FileInfo]:
        """Every object under the folder ``prefix``, sorted by name; empty when there is none."""

    def delete(self, path: str) -> None:
        """Remove the object; absent is fine."""

    def sweep(self, prefix: str) -> None:
        """Remove what writers that were killed left half-written under the folder ``prefix``."""

    def uri(self, path: str) -> str:
        """The address a person can open."""


class LocalFiles:
    """A folder. Writes go to a temporary name in the same directory, are synced, then linked or renamed into place."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def read(self, path: str) -> bytes | None:
        with self._explained("read", path):
            try:
                with open(f"{self.root}/{path}", "rb") as file:
                    return file.read()
            except FileNotFoundError:
                return None

    def map(self, path: str) -> "pa.Buffer | None":
        import pyarrow as pa

        with self._explained("read", path):
            try:
                return pa.memory_map(str(self.root / path)).read_buffer()
            except FileNotFoundError:
                return None

    def put(self, path: str, data: bytes) -> None:
        with self._explained("write", path), self._written(path, data) as temporary:
            os.replace(temporary, self.root / path)

    def create(self, path: str, data: bytes) -> bool:
        with self._explained("write", path), self._written(path, data) as temporary:
            try:
                os.link(temporary, self.root / path)
            except FileExistsError:
                return False
            return True

    def folders(self, prefix: str) -> list[str]:
        with self._explained("list", prefix):
            try:
                with os.scandir(self.root / prefix) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
            except (FileNotFoundError, NotADirectoryError):
                return []

    def list(self, prefix: str) -> list[FileInfo]:
        with self._explained("list", prefix):
            found: list[FileInfo] = []
            _add_files(found, str(self.root / prefix), prefix)
            return sorted(found, key=lambda info: info.path)

    def delete(self, path: str) -> None:
        with self._explained("delete", path):
            (self.root / path).unlink(missing_ok=True)

    def sweep(self, prefix: str) -> None:
        with self._explained("clean", prefix):
            for temporary in (self.root / prefix).rglob(f"{_TEMPORARY}{socket.gethostname()}-*"):
                if not is_alive(int(temporary.name.rsplit("-", 2)[1])):
                    temporary.unlink(missing_ok=True)

    def uri(self, path: str) -> str:
        return str(self.root / path)

    @contextmanager
    def _written(self, path: str, data: bytes) -> Iterator[Path]:
        """A synced temporary file beside the target; gone on exit, the directory synced after a success."""
        folder = (self.root / path).parent
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _explained(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"cannot {verb} {self.root / path}: {error.strerror or error}; "
                "check that the folder exists, is writable and has free space, or choose another with --root"
            ) from error


def _add_files(found: list[FileInfo], folder: str, prefix: str) -> None:
    """All files below a folder, by scandir: pathlib takes 2.5 s for 80,000."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            name = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_dir(follow_symlinks=False):
                _add_files(found, entry.path, name)
            elif entry.is_file() and not entry.name.startswith(_TEMPORARY):
                with suppress(FileNotFoundError):  # removed since the folder was read
                    found.append(FileInfo(name, entry.stat().st_size))


def is_alive(pid: int) -> bool:
    """Whether a process of that number lives on this machine, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives and is another user's
    return True
