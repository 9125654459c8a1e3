"""``runs/{name}.json``: run name -> specs from the start, manifests as they seal. It holds no time."""

import json
from typing import Any

from mlcd_core.errors import CorruptRecordError
from mlcd_core.specs import StageName
from mlcd_core.store import Files, Manifest
from tasks.work import StageWork


class RunRecord:
    """The record of one run; rewritten only when its content changes."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self.path = f"runs/{name}.json"

    def read(self) -> dict[str, Any]:
        """The record, or an empty one."""
        data = self._files.read(self.path)
        try:
            record: dict[str, Any] = json.loads(data) if data else {"stages": {}}
        except ValueError as error:
            raise CorruptRecordError(
                f"{self._files.uri(self.path)} is not JSON ({error}); delete it and run again, it is made anew"
            ) from error
        return record

    def note(self, stage: StageName, spec: str, work: StageWork, manifest: Manifest | None) -> None:
        """Note what a stage is about to make, so that ``status`` can count it without the data, or what it made."""
        entry = {
            "spec": spec,
            "inputs": work.inputs,
            "units": list(work.units),
            "last_number": work.last_number,
            "attempt": manifest.attempt if manifest else None,
            "digest": manifest.digest if manifest else None,
        }
        self._write(stage, entry)

    def note_pinned(self, stage: StageName, manifest: Manifest, source: str) -> None:
        """Note the manifest that stands in for a stage, and what the person named to pin it."""
        entry = {
            "spec": manifest.spec,
            "inputs": manifest.inputs,
            "units": [unit for unit, _, _ in manifest.provenance["units"]],
            "last_number": 0,
            "attempt": manifest.attempt,
            "digest": manifest.digest,
            "pin": source,
        }
        self._write(stage, entry)

    def _write(self, stage: StageName, entry: dict[str, Any]) -> None:
        record = self.read()
        if record["stages"].get(stage) != entry:
            record["stages"][stage] = entry
            self._files.sweep("runs")
            self._files.put(self.path, json.dumps(record, sort_keys=True, indent=1).encode() + b"\n")
