"""``mlcd inspect shard``: what became of one shard. Records are read, and of bad rows their parts; nothing else."""

import difflib
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import mlcd_core
from mlcd_core.errors import ConfigError
from mlcd_core.identity import fingerprint, short
from mlcd_core.images.embed_shard import read_ipc
from mlcd_core.store import read_part
from mlcd_core.store.folder import FAILED_STATUSES
from mlcd_core.tables import RowStatus
from tasks.embedded_units import EmbeddedUnit, EmbeddedUnits, embedded_units

BAD_KEYS, READERS = 20, 16
OK = RowStatus.OK.name.lower()


def inspect_shard(root: str, run_name: str, shard: str) -> dict[str, Any]:
    """Units, rows per status, attempts, seconds, device and the first bad keys of a shard.

    shard: its address or path, its file name, or the start of its digest. Raises ConfigError when it names no
    shard of the run, or several.
    """
    embedded = embedded_units(mlcd_core.open_run(root, run_name))
    source = _named(embedded, shard)
    units = [unit for unit in embedded.units if unit.source == source]
    status: Counter[str] = Counter()
    for unit in units:  # no sum of counters, which drops the zero that a failed unit without rows is told by
        status.update(unit.part.counts)
    return {
        "shard": source,
        "rows": sum(unit.rows for unit in units),
        "sealed": embedded.manifest is not None,
        "units_done": len(embedded.units),
        "units_total": embedded.total,
        "status": dict(status.most_common()),
        "units": [_unit_record(embedded, unit) for unit in units],
        "bad": list(islice(_bad_rows(embedded, units), BAD_KEYS)),
        "next": _next_command(root, run_name, status, sealed=embedded.manifest is not None),
    }


def run_options(root: str, run_name: str) -> str:
    """The options that name a run, ready for a shell."""
    name = "" if run_name == "default" else f" --name {shlex.quote(run_name)}"
    return f"--root {shlex.quote(root)}{name}"


def _named(embedded: EmbeddedUnits, shard: str) -> str:
    """The address of the shard that a person named."""
    folder, name = os.path.split(shard)
    path = f"{os.path.realpath(folder)}/{name}"  # as the shards of a disk are named
    by_file = [source for source in embedded.sources if source in (shard, path) or source.rsplit("/", 1)[-1] == shard]
    found = by_file or _with_digest(embedded, shard)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{shard} names {len(found)} shards: {', '.join(found[:5])}; give the whole address of one")
    names = [source.rsplit("/", 1)[-1] for source in embedded.sources]
    near = difflib.get_close_matches(shard.rsplit("/", 1)[-1], names, n=1) or names[:1]
    so_far = "" if embedded.manifest else f" ({embedded.total - len(embedded.units)} units are still to be made)"
    raise ConfigError(
        f"no shard {shard} among the {len(names):,} embedded ones{so_far}; expected an address, a file name or the "
        f"start of a digest, such as {near[0] if near else 'none yet'}"
    )


def _with_digest(embedded: EmbeddedUnits, digest: str) -> list[str]:
    """Shards whose digest begins so; only their receipts say it, so that all of them are read."""
    if not re.fullmatch("[0-9a-f]{6,64}", digest):
        return []
    if len(digest) == 64:
        spans = ((unit, fingerprint([digest, [unit.first_row, unit.first_row + unit.rows]])) for unit in embedded.units)
        return list(dict.fromkeys(unit.source for unit, identity in spans if unit.unit == identity))
    with ThreadPoolExecutor(READERS) as pool:
        receipts = pool.map(embedded.receipt, embedded.units)
        found = [receipt.provenance for receipt in receipts if receipt.provenance["digest"].startswith(digest)]
    return list(dict.fromkeys(notes["source"] for notes in found))


def _unit_record(embedded: EmbeddedUnits, unit: EmbeddedUnit) -> dict[str, Any]:
    notes = embedded.receipt(unit).provenance
    return {
        "unit": short(unit.unit),
        "attempt": unit.attempt,
        "first_row": unit.first_row,
        "rows": unit.rows,
        "status": unit.part.counts,
        "seconds": notes.get("seconds", {}),
        "device": notes.get("device"),
        "host": notes["host"],
    }


def _bad_rows(embedded: EmbeddedUnits, units: Sequence[EmbeddedUnit]) -> Iterator[dict[str, Any]]:
    for unit in units:
        if unit.part.usable == unit.part.rows:
            continue
        table = read_ipc(read_part(embedded.files, unit.part))
        for row, key, status in zip(*(table[name].to_pylist() for name in ("row", "key", "status")), strict=True):
            if status != RowStatus.OK:
                yield {"key": key, "row": row, "status": RowStatus(status).name.lower()}


def _next_command(root: str, run_name: str, status: Counter[str], *, sealed: bool) -> str:
    where = run_options(root, run_name)
    if FAILED_STATUSES & status.keys():  # these alone may succeed when they are tried again
        return f"mlcd retry-failed {where} --data ... (with the settings of the run)"
    if not sealed:
        return f"mlcd run {where} --data ... (with the settings of the run) makes the units that are missing"
    if status.keys() - {OK}:
        return f"mlcd inspect image KEY {where}"
    return f"mlcd status {where}"
