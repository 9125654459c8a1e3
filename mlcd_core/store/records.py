"""Receipts and manifests: the records that prove work is done.

A unit is done when its receipt exists, a stage when its manifest exists; nothing else proves it. Both are small JSON
objects written after the data they name. What is downstream depends on a manifest's *digest*, which covers the content
of the parts and never a path, an attempt, a time or a host: a stage redone with equal bytes leaves everything below it
a hit.
"""

import json
import os
import platform
import socket
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mlcd_core.errors import CorruptRecordError
from mlcd_core.identity import canonical_json, fingerprint, sha256_hex, short
from mlcd_core.store.files import Files

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Part:
    """One immutable data file. ``path`` is relative to the root; ``counts`` are deterministic and enter the digest."""

    name: str
    path: str
    rows: int
    usable: int
    bytes: int
    sha256: str
    counts: dict[str, int] = field(default_factory=dict)
    offset: int = 0


@dataclass(frozen=True)
class Receipt:
    """Proof that one unit is done. ``state`` is what a chain needs to go on; ``write_id`` tells whose write won."""

    unit: str
    attempt: int
    write_id: str
    parts: tuple[Part, ...]
    number: int = 0
    state: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Proof that a stage is done for one input, and the list of what it made, in order."""

    stage: str
    spec: str
    input: str
    inputs: dict[str, str]
    attempt: int
    digest: str
    rows: int
    usable: int
    parts: tuple[Part, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it stands under the root."""
        return f"{self.stage}/{short(self.spec)}/manifests/{short(self.input)}-{self.attempt:04d}.json"


def content_digest(parts: tuple[Part, ...]) -> str:
    """Digest of ordered parts: rows, usable, bytes, sha256, offset and counts of each."""
    return fingerprint([[p.rows, p.usable, p.bytes, p.sha256, p.offset, p.counts] for p in parts])


def encode(record: Receipt | Manifest) -> bytes:
    """The record as canonical JSON with a checksum line over it, ended by a newline."""
    body = canonical_json(asdict(record)).encode()
    return b'{"record":%b,"sha256":"%b"}\n' % (body, sha256_hex(body).encode())


def decode_receipt(data: bytes, where: str) -> Receipt:
    """Read a receipt. Raises CorruptRecordError when it is not whole."""
    record = _decode(data, where)
    return Receipt(**{**record, "parts": _parts(record)})


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Read a manifest. Raises CorruptRecordError when it is not whole, or its digest is not that of its parts."""
    record = _decode(data, where)
    manifest = Manifest(**{**record, "parts": _parts(record)})
    if manifest.digest != content_digest(manifest.parts):
        raise _corrupt(where, "its digest is not the digest of its parts")
    return manifest


def read_part(files: Files, part: Part) -> bytes:
    """The bytes of a part. Raises CorruptRecordError when they are gone or not those that were committed."""
    data = files.read(part.path)
    if data is None:
        raise _gone(files, part)
    if sha256_hex(data) != part.sha256:
        raise _changed(files, part)
    return data


def map_part(files: Files, part: Part) -> "pa.Buffer":
    """The bytes of a part as mapped memory, read once to check them. Raises CorruptRecordError as ``read_part``."""
    data = files.map(part.path)
    if data is None:
        raise _gone(files, part)
    if sha256_hex(data) != part.sha256:
        raise _changed(files, part)
    return data


def provenance() -> dict[str, Any]:
    """Where and with what a record was made; recorded, never hashed."""
    packages = ("mlcd", "torch", "numpy", "pyarrow", "pillow", "open_clip_torch", "ray", "prefect")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "packages": {name: _version(name) for name in packages},
    }


@cache  # 3 ms a package: 40,000 receipts took minutes of it
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _parts(record: dict[str, Any]) -> tuple[Part, ...]:
    return tuple(Part(**part) for part in record["parts"])


def _decode(data: bytes, where: str) -> dict[str, Any]:
    try:
        wrapped = json.loads(data)
        record: dict[str, Any] = wrapped["record"]
        expected = wrapped["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise _corrupt(where, f"it is not a record ({error})") from error
    written = data[len(b'{"record":') : -len(b',"sha256":""}\n') - 64]
    # the bytes as ``encode`` spells them, for that is three times as fast; else another spelling of the same record
    if sha256_hex(written) != expected and sha256_hex(canonical_json(record).encode()) != expected:
        raise _corrupt(where, "its checksum does not match its content")
    return record


def _gone(files: Files, part: Part) -> CorruptRecordError:
    return CorruptRecordError(f"{files.uri(part.path)} is gone; run again, only what it stood for is redone")


def _changed(files: Files, part: Part) -> CorruptRecordError:
    return _corrupt(files.uri(part.path), "its sha256 is not the one in its record")


def _corrupt(where: str, why: str) -> CorruptRecordError:
    return CorruptRecordError(
        f"{where} cannot be trusted: {why}; delete it and run again, only what it stood for is redone"
    )
