"""What a disturbed root holds beside an undisturbed one, and what its runs read again; as records and as a table."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from tests.chaos.disturbances import Kind
from tests.chaos.disturbed_root import OK, DisturbedRoot, write_id
from tests.chaos.s3_world import DATA
from tests.integration.s3_store import Store

CHECKS_PER_START = 2
KINDS: tuple[Kind, ...] = ("driver", "raylet", "actor", "store")


@dataclass(frozen=True)
class Held:
    """What embed has made under a root: sha256 of each data file by name, keys of all rows in order, and the digest."""

    files: dict[str, str]
    keys: list[str]
    digest: str


@dataclass(frozen=True)
class Verdict:
    """One root: what fell on it and what it came to. ``failures`` says in words what is wrong; empty is right."""

    root: str
    runs: int
    disturbances: dict[str, int]
    rows: int
    lost: int
    doubled: int
    in_order: bool
    files_equal: bool
    digest_equal: bool
    receipts_seen: int
    receipts_changed: int
    receipts_written_twice: int
    read_again: int
    column_checks: int
    seconds: float
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reads:
    """GETs of finished shards. ``column_checks``: those by which each start looks at the first shard's columns."""

    again: int
    column_checks: int


def held(store: Store, root: str) -> Held:
    """Read by the side door what the one manifest of embed names, and every data file there is."""
    names = store.keys(f"{root}/embed/")
    files = {name.removeprefix(f"{root}/"): store.read(name) for name in names if "/data/" in name}
    [manifest] = [json.loads(store.read(name))["record"] for name in names if "/manifests/" in name]
    keys = [key for part in manifest["parts"] for key in keys_of(files[part["path"]])]
    return Held({name: hashlib.sha256(data).hexdigest() for name, data in files.items()}, keys, manifest["digest"])


def judge(disturbed: DisturbedRoot, reference: Held) -> Verdict:
    """Compare a root whose last run ended well with the reference."""
    found = held(disturbed.world.store, disturbed.root)
    changed = [key for key, seen in disturbed.seen.items() if write_id(disturbed.world.store.read(key)) != seen]
    written = Counter(
        key for method, key, status in disturbed.requests() if method == "PUT" and status == OK and "/units/" in key
    )
    reads = reads_of_finished(disturbed)
    counted = disturbed.counted()
    verdict = Verdict(
        root=disturbed.root,
        runs=len(disturbed.families),
        disturbances={kind: sum(fell.kind == kind for fell in counted) for kind in KINDS},
        rows=len(found.keys),
        lost=(Counter(reference.keys) - Counter(found.keys)).total(),
        doubled=(Counter(found.keys) - Counter(reference.keys)).total(),
        in_order=found.keys == reference.keys,
        files_equal=found.files == reference.files,
        digest_equal=found.digest == reference.digest,
        receipts_seen=len(disturbed.seen),
        receipts_changed=len(changed),
        receipts_written_twice=sum(times > 1 for times in written.values()),
        read_again=reads.again,
        column_checks=reads.column_checks,
        seconds=round(disturbed.seconds, 1),
        failures=list(disturbed.errors),
    )
    verdict.failures.extend(_failures(verdict))
    return verdict


def reads_of_finished(disturbed: DisturbedRoot) -> Reads:
    """Count the GETs of each shard that the proxy logged after the shard's receipt.

    Before a start has looked at the root it reads the end of the first shard, to check the columns while nothing is
    running yet: once for the command and once for the flow. These are counted apart.
    """
    requests, checks = disturbed.requests(), set(_column_checks(disturbed))
    again = excluded = 0
    for done, shard in _finished(disturbed).items():
        gets = {i for i, (method, key, _) in enumerate(requests) if i > done and (method, key) == ("GET", shard)}
        again += len(gets - checks)
        excluded += len(gets & checks)
    return Reads(again, excluded)


def _column_checks(disturbed: DisturbedRoot) -> Iterator[int]:
    """Positions of the reads of the first shard between a start and its first look at the root, at most two a start."""
    requests = disturbed.requests()
    root, shard = f"{disturbed.root}/", f"{DATA}/00000.parquet"
    for start in disturbed.started_at:
        # actors of the run before may still write, but they never list
        before = takewhile(
            lambda i: requests[i].method != "LIST" or not requests[i].key.startswith(root), range(start, len(requests))
        )
        gets = (i for i in before if requests[i][:2] == ("GET", shard))
        yield from islice(gets, CHECKS_PER_START)


def keys_of(part: bytes) -> list[str]:
    """The keys of an embedding part."""
    keys: list[str] = pa.ipc.open_file(pa.BufferReader(part)).read_all()["key"].to_pylist()
    return keys


def table(verdicts: Sequence[Verdict]) -> str:
    """A line per root."""
    heads = [*KINDS, "rows", "lost", "doubled", "order", "files", "digest", "receipts", "again", "checks", "s"]
    lines = [f"{'root':<12}{'runs':>5}" + "".join(f"{head:>9}" for head in heads)]
    for v in verdicts:
        states = ["equal" if same else "DIFFER" for same in (v.in_order, v.files_equal, v.digest_equal)]
        kept = f"{v.receipts_seen - v.receipts_changed}/{v.receipts_seen}"
        cells: list[Any] = [*v.disturbances.values(), v.rows, v.lost, v.doubled, *states, kept]
        cells += [v.read_again, v.column_checks, v.seconds]
        lines.append(f"{v.root:<12}{v.runs:>5}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join(lines)


def _finished(disturbed: DisturbedRoot) -> dict[int, str]:
    """Position of the request that made each shard's receipt -> key of the shard."""
    store, found = disturbed.world.store, {}
    for i, (method, key, status) in enumerate(disturbed.requests()):
        if method == "PUT" and status == OK and key.startswith(f"{disturbed.root}/embed/") and "/units/" in key:
            [part] = json.loads(store.read(key))["record"]["parts"]
            shard = keys_of(store.read(str(PurePosixPath(disturbed.root) / part["path"])))[0].split("-")[0]
            found[i] = f"{DATA}/{shard}.parquet"
    return found


def _failures(verdict: Verdict) -> list[str]:
    wrong = {
        "rows lost": verdict.lost,
        "rows doubled": verdict.doubled,
        "keys not in order": not verdict.in_order,
        "data files differ": not verdict.files_equal,
        "digest differs": not verdict.digest_equal,
        "receipts changed": verdict.receipts_changed,
        "receipts written twice": verdict.receipts_written_twice,
        "reads of finished shards": verdict.read_again,
    }
    return [f"{what}: {number}" for what, number in wrong.items() if number]
