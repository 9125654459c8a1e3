"""What proves that a pack, or one shard of it, is done.

    {to}/images-00000.parquet                      shards, whole files
    {to}/pack.json                                 written last: the pack is whole
    {to}/.pack/plan.json                           what goes in which shard
    {to}/.pack/units/{name}-{unit12}.json          a shard's receipt, created once, after the shard

A shard is done when its unit has a receipt and a listing shows the file with the bytes it names. A target holds one
plan: another one is refused, or replaces it, and then only shards whose unit differs are made again.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from mlcd_core.errors import ConfigError, CorruptRecordError, DataError
from mlcd_core.identity import short
from mlcd_core.pack.plan import PackPlan, PackUnit
from mlcd_core.pack.plan_record import difference, plan_record
from mlcd_core.store import Files, Part, Receipt, content_digest
from mlcd_core.store.records import decode_receipt, encode, provenance

PLAN = ".pack/plan.json"
UNITS = ".pack/units"
WHOLE = "pack.json"

Changed = Literal["refuse", "replace"]
Failed = Literal["keep", "retry"]


class PackLedger:
    """Reads and writes the records of the pack under one target."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def recorded(self) -> dict[str, Any] | None:
        """The plan that the target holds, or None."""
        data = self.files.read(PLAN)
        if data is None:
            return None
        try:
            record: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise CorruptRecordError(
                f"{self.files.uri(PLAN)} is not a plan ({error}); pack to another folder with --to"
            ) from error
        return record

    def begin(self, plan: PackPlan, *, changed: Changed) -> None:
        """Make ``plan`` the target's plan, and remove what a plan before it left.

        Raises ConfigError when the target holds another plan and ``changed`` is refuse, DataError when it holds
        Parquet files that are not of a pack.
        """
        self.files.sweep("")
        names = {info.path for info in self.files.list("")}
        recorded = self.recorded()
        self._check_foreign(names, plan, recorded)
        record = plan_record(plan)
        if recorded is None:
            if self.files.create(PLAN, _json(record)):
                return
            recorded = self.recorded() or record  # of somebody who was faster
        if recorded["identity"] != plan.identity:
            if changed == "refuse":
                raise ConfigError(f"{self.files.uri('')} holds {difference(recorded, plan)}")
            self.files.delete(WHOLE)
        if recorded != record:
            self.files.put(PLAN, _json(record))
        self._drop_stale(names, plan)

    def pending(self, plan: PackPlan, *, failed: Failed = "keep") -> tuple[PackUnit, ...]:
        """The shards to make: those without a receipt, or without the file it names; with retry also those with rows
        that could not be read. While there are any, the pack does not count as whole.
        """
        sizes = {info.path: info.bytes for info in self.files.list("")}
        pending = tuple(unit for unit in plan.units if not self._is_done(unit, sizes, failed))
        if pending:
            self.files.delete(WHOLE)
        for unit in pending:
            if receipt_path(unit) in sizes:
                self.files.delete(receipt_path(unit))
        return pending

    def commit(self, unit: PackUnit, part: Part, *, failures: Sequence[str]) -> Receipt:
        """Write the receipt of a shard that stands, if it is absent, and return the one that does."""
        receipt = Receipt(
            unit=unit.digest,
            attempt=1,
            write_id=uuid.uuid4().hex,
            parts=(part,),
            state={"failures": list(failures)},
            provenance=provenance(),
        )
        if self.files.create(receipt_path(unit), encode(receipt)):
            return receipt
        return self.receipt(unit)

    def receipt(self, unit: PackUnit) -> Receipt:
        """The receipt of a shard that is done. Raises CorruptRecordError when it is gone or another unit's."""
        path = receipt_path(unit)
        data = self.files.read(path)
        if data is None:
            raise CorruptRecordError(f"{self.files.uri(path)} is gone; run again, only that shard is made again")
        receipt = decode_receipt(data, self.files.uri(path))
        if receipt.unit != unit.digest:
            raise CorruptRecordError(f"{self.files.uri(path)} is the receipt of {receipt.unit}, expected {unit.digest}")
        return receipt

    def finish(self, plan: PackPlan, receipts: Sequence[Receipt]) -> None:
        """Write ``pack.json``: all shards stand. It holds no time, and is not written again when it is the same."""
        parts = tuple(part for receipt in receipts for part in receipt.parts)
        data = _json(
            {
                "kind": plan.kind,
                "options": asdict(plan.options),
                "columns": ["key", "image", "status", "error_message", *plan.columns],
                "classes": list(plan.classes),
                "broken": [asdict(tar) for tar in plan.broken],
                "digest": content_digest(parts),
                "images": sum(part.rows for part in parts),
                "failed": sum(part.rows - part.usable for part in parts),
                "bytes": sum(part.bytes for part in parts),
                "shards": [[p.path, p.rows, p.bytes, p.sha256] for p in parts],
            }
        )
        if self.files.read(WHOLE) != data:
            self.files.put(WHOLE, data)

    def _is_done(self, unit: PackUnit, sizes: Mapping[str, int], failed: Failed) -> bool:
        if receipt_path(unit) not in sizes or unit.path not in sizes:
            return False
        [part] = self.receipt(unit).parts
        return part.bytes == sizes[unit.path] and (failed == "keep" or part.usable == part.rows)

    def _check_foreign(self, names: set[str], plan: PackPlan, recorded: Mapping[str, Any] | None) -> None:
        own = {f"{_name_of(path)}.parquet" for path in names if path.startswith(UNITS)}
        if recorded:
            own |= {unit.path for unit in plan.units} | {f"{unit['name']}.parquet" for unit in recorded["units"]}
        foreign = sorted(name for name in names - own if name.endswith(".parquet") and "/" not in name)
        if foreign:
            raise DataError(
                f"{self.files.uri('')} holds Parquet files that this pack did not make: {foreign[0]}"
                f"{f' and {len(foreign) - 1:,} more' if foreign[1:] else ''}; they would be read as its shards: "
                "pack to a folder of its own with --to"
            )

    def _drop_stale(self, names: set[str], plan: PackPlan) -> None:
        """Remove shards of another plan, each before its receipt: what has no receipt would not be known as ours."""
        receipts = {receipt_path(unit) for unit in plan.units}
        for path in sorted(name for name in names if name.startswith(UNITS) and name not in receipts):
            self.files.delete(f"{_name_of(path)}.parquet")
            self.files.delete(path)


def receipt_path(unit: PackUnit) -> str:
    """Where a shard's receipt stands under the target."""
    return f"{UNITS}/{unit.name}-{short(unit.digest)}.json"


def _name_of(receipt: str) -> str:
    """The shard's name in the path of its receipt."""
    return receipt.removeprefix(f"{UNITS}/").rpartition("-")[0]


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"
