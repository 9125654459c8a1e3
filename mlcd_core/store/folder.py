"""A stage's folder: what is done, what is missing, how a unit and a manifest are committed.

    {root}/{stage}/{spec12}/spec.json
                            units/{unit12}-{attempt:04d}.json      receipts, never overwritten
                            data/{name}-{sha12}{suffix}            immutable, content in the name
                            manifests/{input12}-{attempt:04d}.json the highest valid attempt is the truth
                            forced/{input12}-{token12}-{attempt:04d}.json  who makes it again, from which attempt on

A commit writes the data file, then the receipt (put-if-absent), and after the last unit the manifest. A kill between
two of these leaves either nothing that counts or one more finished unit.

A unit that could not be done is committed too, with rows of a status that only whole units have; such a receipt gives
way to that of a later attempt.
"""

import json
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from mlcd_core.errors import CorruptRecordError, StageFailedError
from mlcd_core.identity import fingerprint, sha256_hex, short, spec_fingerprint, spec_record
from mlcd_core.specs import StageSpec
from mlcd_core.store.files import Files
from mlcd_core.store.records import (
    Manifest,
    Part,
    Receipt,
    content_digest,
    decode_manifest,
    decode_receipt,
    encode,
    provenance,
)

# names of ``tables.RowStatus`` that all rows of a unit get when it could not be done
FAILED_STATUSES = frozenset({"worker_died", "unreadable"})
READERS = 16  # receipts read at a time: one by one, 40,000 take a quarter of an hour from S3
TRIED = 16  # receipts that are read one by one first, for
ALONE_S = 3e-4  # where one takes no longer, as on a disk, threads that wait for each other take three times as long


@dataclass(frozen=True)
class UnitTask:
    """A unit that must run: its position in the stage's order, its identity, and the attempt its receipt will carry."""

    index: int
    unit: str
    attempt: int


@dataclass(frozen=True)
class StagePlan:
    """What one input of a stage needs: the committed manifest, or the units done and pending.

    previous: where there is no committed manifest, the one that stands until the next is sealed.
    least_attempt: attempts before it do not count, neither of units nor of a manifest.
    """

    manifest: Manifest | None
    done: frozenset[str]
    pending: tuple[UnitTask, ...]
    attempt: int
    previous: Manifest | None = None
    least_attempt: int = 1

    @property
    def state(self) -> str:
        """``hit``, ``partial`` or ``miss``."""
        if self.manifest is not None:
            return "hit"
        return "partial" if self.done else "miss"


class StageFolder:
    """Reads and commits the records of one spec of one stage."""

    def __init__(self, files: Files, spec: StageSpec) -> None:
        self.files = files
        self.spec = spec
        self.fingerprint = spec_fingerprint(spec)
        self.prefix = f"{spec.STAGE}/{short(self.fingerprint)}"

    def open(self) -> None:
        """Get ready to write: ``spec.json`` if it is absent, and nothing half-written from a run that was killed.

        Raises CorruptRecordError when another spec stands at this address.
        """
        self.files.sweep(self.prefix)
        record = spec_record(self.spec)
        path = f"{self.prefix}/spec.json"
        if not self.files.create(path, json.dumps(record, sort_keys=True, indent=1).encode() + b"\n"):
            found = json.loads(self.files.read(path) or b"null")
            if fingerprint(found) != self.fingerprint:
                raise CorruptRecordError(
                    f"{self.files.uri(path)} holds another spec than {self.fingerprint}; move that folder away"
                )

    def plan(
        self, inputs: Mapping[str, str], units: Sequence[str], redo: Collection[str] = (), *, least_attempt: int = 1
    ) -> StagePlan:
        """Compare the records with one listing of the folder.

        inputs: role -> digest of what the stage reads. units: identities of its units, in order; ``()`` for a chain,
        whose links are found by ``Chain``. A part that is missing or has another size makes its unit pending.
        redo: units that are pending whatever is there, as the attempt after their current one; what is sealed stands
        until the next manifest. A manifest over a failed unit that was done since is no hit: it is sealed anew.
        least_attempt: see ``force``.
        """
        sizes = {info.path: info.bytes for info in self.files.list(self.prefix)}
        input_digest = fingerprint(dict(inputs))
        # a manifest of 40,000 parts takes a second to read: those of other inputs only when they are needed
        own = [m for m in self._manifests(sizes, short(input_digest)) if m.input == input_digest]
        attempt = max((m.attempt for m in own), default=0) + 1
        newest = max((m for m in own if are_whole(m.parts, sizes)), key=lambda m: m.attempt, default=None)
        counts = newest is not None and newest.attempt >= least_attempt
        if newest is not None and counts and not redo and not self._was_mended(newest, sizes):
            return StagePlan(newest, frozenset(), (), newest.attempt)
        done, pending = self._split(units, sizes, frozenset(redo), least_attempt)
        return StagePlan(None, done, pending, max(attempt, least_attempt), newest, least_attempt)

    def receipts(self, units: Sequence[str], plan: StagePlan | None = None) -> list[Receipt]:
        """The receipts of these units, in order; raises StageFailedError when one is not done.

        plan: of the work that has ended; no attempt counts that is older than what it said was to do.
        """
        sizes = {info.path: info.bytes for info in self.files.list(self.prefix)}
        sealed = _sealed_units(self._manifests(sizes))
        least, planned = (plan.least_attempt, {t.unit: t.attempt for t in plan.pending}) if plan else (1, {})
        first = {unit: planned.get(unit, max(_attempt(sealed, unit), least)) for unit in units}
        standing = self._standing(first, sizes)
        found = [receipt for unit in units if (receipt := standing[unit][0]) is not None]
        if len(found) < len(units):
            raise StageFailedError(
                f"{self.prefix}: {len(units) - len(found)} of {len(units)} units have no receipt after the work ended; "
                "run again"
            )
        return found

    def failed_units(self, units: Sequence[str]) -> frozenset[str]:
        """The units whose current receipt says that they could not be done."""
        sizes = {info.path: info.bytes for info in self.files.list(self.prefix)}
        sealed = _sealed_units(self._manifests(sizes))
        asked = {unit: _attempt(sealed, unit) for unit in units if not self._is_settled(unit, sealed, sizes)}
        standing = self._standing(asked, sizes)
        return frozenset(
            unit for unit, (receipt, _) in standing.items() if receipt is not None and is_failed(receipt.parts)
        )

    def forced(self, inputs: Mapping[str, str], token: str) -> int | None:
        """The attempt that ``force`` gave to this token, or None when it was not asked."""
        start = self._forced_start(inputs, token)
        paths = (info.path for info in self.files.list(f"{self.prefix}/forced"))
        return next((_number(path) for path in paths if path.startswith(start)), None)

    def force(self, inputs: Mapping[str, str], token: str) -> int:
        """The attempt from which records count for whoever makes this stage again, though it is done.

        token: who asks. The first call writes it down, so that the same asker goes on with that attempt after a kill;
        another token starts another. What is sealed stands for all others until the new manifest.
        """
        attempt = self.forced(inputs, token)
        if attempt is None:
            # above every attempt that left a trace: of a manifest, a unit, or a run that was forced and killed
            folders = (f"{self.prefix}/{name}" for name in ("manifests", "units", "forced"))
            attempt = 1 + max((_number(i.path) for folder in folders for i in self.files.list(folder)), default=0)
            self.files.create(f"{self._forced_start(inputs, token)}{attempt:04d}.json", b"{}\n")
        return attempt

    def put(
        self, name: str, suffix: str, data: bytes, *, rows: int, usable: int, counts: Mapping[str, int] | None = None
    ) -> Part:
        """Write one immutable data file, named by its content, and describe it."""
        digest = sha256_hex(data)
        path = f"{self.prefix}/data/{name}-{short(digest)}{suffix}"
        self.files.put(path, data)
        return Part(name, path, rows, usable, len(data), digest, dict(counts or {}))

    def commit(
        self,
        task: UnitTask,
        parts: Sequence[Part],
        *,
        number: int = 0,
        state: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Receipt:
        """Write the unit's receipt if it is absent, and return the one that stands."""
        receipt = Receipt(
            unit=task.unit,
            attempt=task.attempt,
            write_id=uuid.uuid4().hex,
            parts=tuple(parts),
            number=number,
            state=dict(state or {}),
            provenance={**provenance(), **(notes or {})},
        )
        path = self.receipt_path(task.unit, task.attempt)
        if self.files.create(path, encode(receipt)):
            return receipt
        data = self.files.read(path)
        assert data is not None, f"{path} exists and does not"
        return decode_receipt(data, self.files.uri(path))

    def seal(
        self,
        inputs: Mapping[str, str],
        receipts: Sequence[Receipt],
        *,
        attempt: int,
        expected_rows: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Write the manifest over the units' parts, in the given order, and return the one that stands.

        Raises StageFailedError when the rows do not add up to ``expected_rows``: nothing is lost without a word.
        """
        parts: list[Part] = []
        offset = 0
        for receipt in receipts:
            for part in receipt.parts:
                parts.append(replace(part, offset=offset))
                offset += part.rows
        if expected_rows is not None and offset != expected_rows:
            raise StageFailedError(
                f"{self.prefix}: the units hold {offset:,} rows, the input has {expected_rows:,}; "
                "the input changed while it was read: run again"
            )
        manifest = Manifest(
            stage=self.spec.STAGE,
            spec=self.fingerprint,
            input=fingerprint(dict(inputs)),
            inputs=dict(inputs),
            attempt=attempt,
            digest=content_digest(tuple(parts)),
            rows=offset,
            usable=sum(part.usable for part in parts),
            parts=tuple(parts),
            metrics=dict(metrics or {}),
            provenance={
                **provenance(),
                **(notes or {}),
                "units": [[r.unit, r.attempt, len(r.parts)] for r in receipts],
            },
        )
        if self.files.create(manifest.path, encode(manifest)):
            return manifest
        data = self.files.read(manifest.path)
        assert data is not None, f"{manifest.path} exists and does not"
        return decode_manifest(data, self.files.uri(manifest.path))

    def receipt_path(self, unit: str, attempt: int) -> str:
        """Where the receipt of a unit's attempt stands."""
        return f"{self.prefix}/units/{short(unit)}-{attempt:04d}.json"

    def read_receipt(self, unit: str, attempt: int) -> Receipt | None:
        """The receipt of this attempt, or None; raises CorruptRecordError for one of another unit."""
        path = self.receipt_path(unit, attempt)
        data = self.files.read(path)
        if data is None:
            return None
        receipt = decode_receipt(data, self.files.uri(path))
        if receipt.unit != unit:
            raise CorruptRecordError(f"{self.files.uri(path)} is the receipt of unit {receipt.unit}, expected {unit}")
        return receipt

    def standing(self, unit: str, attempt: int, sizes: Mapping[str, int]) -> tuple[Receipt | None, int]:
        """The receipt of the first attempt from ``attempt`` on whose parts are whole, else the first one not taken.

        One that failed counts only while there is no later one. sizes: path -> bytes of a listing of the folder.
        """
        failed: tuple[Receipt | None, int] | None = None
        while self.receipt_path(unit, attempt) in sizes:
            receipt = self.read_receipt(unit, attempt)
            assert receipt is not None
            if are_whole(receipt.parts, sizes):
                if not is_failed(receipt.parts):
                    return receipt, attempt
                failed = (receipt, attempt)
            attempt += 1
        return failed or (None, attempt)

    def _standing(self, first: Mapping[str, int], sizes: Mapping[str, int]) -> dict[str, tuple[Receipt | None, int]]:
        """``standing`` of many units, from the attempt of each on; read several at a time where reading is slow."""

        def read(unit: str) -> tuple[Receipt | None, int]:
            return self.standing(unit, first[unit], sizes)

        units = list(first)
        started = time.monotonic()
        found = [read(unit) for unit in units[:TRIED]]
        if time.monotonic() - started <= TRIED * ALONE_S:
            found += map(read, units[TRIED:])
        else:
            with ThreadPoolExecutor(READERS) as readers:
                found += readers.map(read, units[TRIED:])
        return dict(zip(units, found, strict=True))

    def _was_mended(self, manifest: Manifest, sizes: Mapping[str, int]) -> bool:
        """Whether a unit that failed in this manifest has been done since."""
        failed = {unit: attempt for unit, (attempt, parts) in _sealed_units([manifest]).items() if is_failed(parts)}
        standing = self._standing(failed, sizes)
        return any(receipt is not None and not is_failed(receipt.parts) for receipt, _ in standing.values())

    def _manifests(self, sizes: Mapping[str, int], input12: str = "") -> Iterator[Manifest]:
        """One after the other, for each may hold 40,000 parts."""
        for path in sizes:
            if path.startswith(f"{self.prefix}/manifests/{input12}"):
                data = self.files.read(path)
                assert data is not None, f"{path} vanished while it was read"
                yield decode_manifest(data, self.files.uri(path))

    def _forced_start(self, inputs: Mapping[str, str], token: str) -> str:
        return f"{self.prefix}/forced/{short(fingerprint(dict(inputs)))}-{short(fingerprint(token))}-"

    def _split(
        self, units: Sequence[str], sizes: Mapping[str, int], redo: frozenset[str], least_attempt: int
    ) -> tuple[frozenset[str], tuple[UnitTask, ...]]:
        sealed = _sealed_units(self._manifests(sizes))
        first = {unit: max(_attempt(sealed, unit), least_attempt) for unit in units}
        open_units = [
            unit
            for unit in units
            if unit in redo or first[unit] > _attempt(sealed, unit) or not self._is_settled(unit, sealed, sizes)
        ]
        standing = self._standing({unit: first[unit] for unit in open_units}, sizes)
        done: set[str] = set()
        pending: list[UnitTask] = []
        for index, unit in enumerate(units):
            if unit not in standing:
                done.add(unit)
                continue
            receipt, attempt = standing[unit]
            if unit in redo:
                pending.append(UnitTask(index, unit, self._free_attempt(unit, attempt, sizes)))
            elif receipt is not None:
                done.add(unit)
            else:
                pending.append(UnitTask(index, unit, attempt))
        return frozenset(done), tuple(pending)

    def _is_settled(
        self, unit: str, sealed: "Mapping[str, tuple[int, tuple[Part, ...]]]", sizes: Mapping[str, int]
    ) -> bool:
        """Whether a sealed manifest names the unit's work, whole and not failed.

        A manifest repeats the parts of its receipts, so 40,000 of them need not be read.
        """
        if unit not in sealed:
            return False
        attempt, parts = sealed[unit]
        return self.receipt_path(unit, attempt) in sizes and are_whole(parts, sizes) and not is_failed(parts)

    def _free_attempt(self, unit: str, attempt: int, sizes: Mapping[str, int]) -> int:
        while self.receipt_path(unit, attempt) in sizes:
            attempt += 1
        return attempt


def _sealed_units(manifests: Iterable[Manifest]) -> dict[str, tuple[int, tuple[Part, ...]]]:
    """unit -> the highest attempt that a sealed manifest names, and that attempt's parts."""
    sealed: dict[str, tuple[int, tuple[Part, ...]]] = {}
    for manifest in manifests:
        first = 0
        for unit, attempt, num_parts in manifest.provenance["units"]:
            if attempt > _attempt(sealed, unit) or unit not in sealed:
                sealed[unit] = (attempt, manifest.parts[first : first + num_parts])
            first += num_parts
    return sealed


def _number(path: str) -> int:
    """The attempt that ends the name of a record."""
    return int(path.removesuffix(".json").rsplit("-", 1)[-1])


def _attempt(sealed: Mapping[str, tuple[int, tuple[Part, ...]]], unit: str) -> int:
    """The attempt from which a unit's receipts count."""
    return sealed[unit][0] if unit in sealed else 1


def are_whole(parts: Sequence[Part], sizes: Mapping[str, int]) -> bool:
    """Whether a listing, path -> bytes, has all of these parts with the bytes they had."""
    return all(sizes.get(part.path) == part.bytes for part in parts)


def is_failed(parts: Sequence[Part]) -> bool:
    """Whether these parts stand for a unit that could not be done."""
    return any(not FAILED_STATUSES.isdisjoint(part.counts) for part in parts)
