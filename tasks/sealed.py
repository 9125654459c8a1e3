"""The sealed manifests of a root, and the one that a digest names."""

import json
import re
from collections.abc import Iterable
from typing import Any

from mlcd_core.errors import ConfigError, CorruptRecordError, UpstreamMissingError
from mlcd_core.identity import short
from mlcd_core.specs import STAGES, StageName
from mlcd_core.store import Files, Manifest
from mlcd_core.store.records import decode_manifest

DIGEST = re.compile(r"[0-9a-f]{12,64}")


def sealed_manifests(files: Files, stage: str) -> Iterable[Manifest]:
    """Every manifest of a stage, of all specs, inputs and attempts."""
    for spec12 in files.folders(stage):  # a listing of the stage would hold every receipt
        for info in files.list(f"{stage}/{spec12}/manifests"):
            data = files.read(info.path)
            assert data is not None, f"{info.path} vanished while it was read"
            yield decode_manifest(data, files.uri(info.path))


def read_manifest(files: Files, path: str) -> Manifest:
    """The manifest that stands at ``Manifest.path``. Raises UpstreamMissingError when there is none."""
    data = files.read(path)
    if data is None:
        raise UpstreamMissingError(
            f"{files.uri(path)} is not there, which the run has found committed; expected the same storage under that "
            "address here and where the run was started: use a root on S3, or a folder that both machines share"
        )
    return decode_manifest(data, files.uri(path))


def find_manifest(files: Files, stage: StageName, digest: str, *, key: str) -> Manifest:
    """The manifest of ``stage`` whose digest begins with ``digest``; the highest attempt where several have it.

    key: the setting that a person wrote the digest in. Raises ConfigError for a digest that is none, names nothing,
    names a manifest of another stage, or is the start of several.
    """
    if not DIGEST.fullmatch(digest):
        raise ConfigError(
            f"{key} is {digest!r}; expected 12 to 64 hex digits of the digest of a committed {stage}; "
            f"{_choices(files, stage)}"
        )
    sealed = [manifest for manifest in sealed_manifests(files, stage) if manifest.digest.startswith(digest)]
    digests = sorted({manifest.digest for manifest in sealed})
    if len(digests) == 1:
        return max(sealed, key=lambda manifest: (manifest.attempt, manifest.spec))
    if digests:
        raise ConfigError(f"{key}={digest} is the start of {' and '.join(digests)}; give all 64 digits")
    others = [
        other
        for other in STAGES
        if other != stage and any(manifest.digest.startswith(digest) for manifest in sealed_manifests(files, other))
    ]
    found = f"is the digest of a committed {others[0]}" if others else "names nothing that is committed"
    raise ConfigError(
        f"{key}={digest} {found} under {files.uri('')}; expected one of {stage}; {_choices(files, stage)}"
    )


def sealed_spec(files: Files, manifest: Manifest) -> dict[str, Any]:
    """What ``spec.json`` says about how a manifest was made. Raises CorruptRecordError when it is gone."""
    path = f"{manifest.stage}/{short(manifest.spec)}/spec.json"
    data = files.read(path)
    if data is None:
        raise CorruptRecordError(f"{files.uri(path)} is gone; run again with --only {manifest.stage}, it is made anew")
    record: dict[str, Any] = json.loads(data)
    return record


def _choices(files: Files, stage: StageName) -> str:
    digests = sorted({short(manifest.digest) for manifest in sealed_manifests(files, stage)})
    return f"there are {', '.join(digests)}" if digests else f"there is none: run {stage} first"
