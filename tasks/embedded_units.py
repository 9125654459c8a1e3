"""The units of a run's embed stage, as the records tell them: sealed in a manifest, or so far by their receipts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlcd_core.errors import CorruptRecordError, UpstreamMissingError
from mlcd_core.identity import short
from mlcd_core.opened import OpenedRun
from mlcd_core.specs import EmbedSpec
from mlcd_core.store import Files, Manifest, Part, Receipt, StageFolder
from mlcd_core.store.records import decode_receipt


@dataclass(frozen=True)
class EmbeddedUnit:
    """Consecutive rows of one shard. ``number``: of its part in the manifest, or among the units that are done."""

    number: int
    unit: str
    attempt: int
    source: str
    first_row: int
    rows: int
    part: Part


@dataclass(frozen=True)
class EmbeddedUnits:
    """Those that are done. manifest: None while some of ``total`` are missing."""

    files: Files
    spec: str
    units: Sequence[EmbeddedUnit]
    total: int
    manifest: Manifest | None

    @cached_property
    def sources(self) -> list[str]:
        """The shards, each once, in order."""
        return list(dict.fromkeys(unit.source for unit in self.units))

    @property
    def rows(self) -> int:
        """Rows of all units that are done."""
        return sum(unit.rows for unit in self.units)

    def receipt(self, unit: EmbeddedUnit) -> Receipt:
        """How a unit was made. Raises CorruptRecordError when its receipt is gone."""
        path = f"embed/{short(self.spec)}/units/{short(unit.unit)}-{unit.attempt:04d}.json"
        data = self.files.read(path)
        if data is None:
            raise CorruptRecordError(
                f"{self.files.uri(path)} is gone, its manifest names it; run again with --only embed"
            )
        return decode_receipt(data, self.files.uri(path))


def embedded_units(run: OpenedRun) -> EmbeddedUnits:
    """Read the records. Raises UpstreamMissingError when the run has not begun to embed."""
    record = json.loads(run.files.read(f"runs/{run.name}.json") or b'{"stages": {}}')
    entry = record["stages"].get("embed")
    if entry is None:
        known = [info.path.removeprefix("runs/").removesuffix(".json") for info in run.files.list("runs")]
        raise UpstreamMissingError(
            f"the run {run.name!r} under {run.files.uri('')} has embedded nothing; runs there: "
            f"{', '.join(known) or 'none'}: name one with --name, or start it with mlcd run"
        )
    manifest = run.manifest("embed") if entry["digest"] is not None else None
    return _sealed(run.files, manifest) if manifest else _so_far(run.files, entry)


def _sealed(files: Files, manifest: Manifest) -> EmbeddedUnits:
    sources = manifest.provenance.get("sources")
    if sources is None:
        raise CorruptRecordError(
            f"the embeddings {short(manifest.digest)} of {files.uri('')} do not say which shards they are of: an "
            "earlier version made them; run again, embed is made anew"
        )
    units = [
        EmbeddedUnit(number, unit, attempt, source, first_row, rows, part)
        for number, ((unit, attempt, _), (source, first_row, rows), part) in enumerate(
            zip(manifest.provenance["units"], sources, manifest.parts, strict=True)
        )
    ]
    return EmbeddedUnits(files, manifest.spec, units, len(units), manifest)


def _so_far(files: Files, entry: dict[str, Any]) -> EmbeddedUnits:
    spec_json = files.read(f"embed/{short(entry['spec'])}/spec.json")
    if spec_json is None:
        return EmbeddedUnits(files, entry["spec"], [], len(entry["units"]), None)
    folder = StageFolder(files, EmbedSpec.model_validate(json.loads(spec_json)["spec"]))
    plan = folder.plan(entry["inputs"], entry["units"])
    if plan.manifest is not None:
        return _sealed(files, plan.manifest)
    receipts = folder.receipts([unit for unit in entry["units"] if unit in plan.done])
    units = [_unit(number, receipt) for number, receipt in enumerate(receipts)]
    return EmbeddedUnits(files, entry["spec"], units, len(entry["units"]), None)


def _unit(number: int, receipt: Receipt) -> EmbeddedUnit:
    notes, [part] = receipt.provenance, receipt.parts
    return EmbeddedUnit(number, receipt.unit, receipt.attempt, notes["source"], notes["first_row"], part.rows, part)
