"""A plan as the record that its target keeps, and what another plan differs in.

Of tars the record holds the cuts, so that going on needs no tar to be read again; of folders, whose plan is made of
the listing in seconds, only digests.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mlcd_core.pack.options import PackOptions
from mlcd_core.pack.plan import PackPlan, PackUnit, TarRows, listing_digest
from mlcd_core.pack.scan import FoundFile
from mlcd_core.pack.sources import Sources
from mlcd_core.pack.tar_index import BrokenTar
from mlcd_core.pack.webdataset import tar_unit


def plan_record(plan: PackPlan) -> dict[str, Any]:
    """The plan as JSON values."""
    return {
        "identity": plan.identity,
        "listing": plan.listing,
        "kind": plan.kind,
        "options": asdict(plan.options),
        "columns": list(plan.columns),
        "classes": list(plan.classes),
        "ignored": plan.ignored,
        "broken": [asdict(tar) for tar in plan.broken],
        "units": [_unit_record(unit) for unit in plan.units],
    }


def recorded_tar_plan(record: Mapping[str, Any], sources: Sources, options: PackOptions) -> PackPlan | None:
    """The plan that ``PackLedger`` kept, when it was made of the same tars and options: no tar is read again."""
    if record["listing"] != listing_digest(sources, options):
        return None
    columns = tuple(record["columns"])
    tars = {tar.name: tar for tar in sources.files}
    units = [
        tar_unit(index, unit["first_key"], _rows_of_record(unit, tars), columns, options)
        for index, unit in enumerate(record["units"])
    ]
    return PackPlan(
        kind="webdataset",
        listing=record["listing"],
        options=options,
        columns=columns,
        classes=(),
        ignored=record["ignored"],
        broken=tuple(BrokenTar(**tar) for tar in record["broken"]),
        units=tuple(units),
    )


def difference(recorded: Mapping[str, Any], plan: PackPlan) -> str:
    """Why the plan is not the recorded one, and what to do."""
    now = plan_record(plan)
    options = [
        f"{name} was {then}, is {now['options'][name]}"
        for name, then in recorded["options"].items()
        if now["options"].get(name) != then
    ]
    digests = {unit["name"]: unit["digest"] for unit in recorded["units"]}
    differ = [unit for unit in plan.units if digests.get(unit.name) != unit.digest]
    if recorded["kind"] != plan.kind:
        what = f"a pack of the kind {recorded['kind']}, these sources are of the kind {plan.kind}"
    elif options:
        what = f"a pack with other options: {'; '.join(options)}"
    elif differ:
        what = f"a pack of other files, from {differ[0].name} ({differ[0].first_key}) on"
    else:
        what = f"a pack of more files: {len(recorded['units']):,} shards, now {len(plan.units):,}"
    same = len(plan.units) - len(differ)
    return (
        f"{what}; pack to another folder with --to, or make it this pack with --replace, which keeps "
        f"{same:,} of {len(plan.units):,} shards"
    )


def _unit_record(unit: PackUnit) -> dict[str, Any]:
    record = {"name": unit.name, "rows": unit.rows, "digest": unit.digest, "first_key": unit.first_key}
    if not isinstance(unit.reads, TarRows):
        return record
    reads = unit.reads
    where = {"tar": reads.tar.name, "start": reads.start, "key_prefix": reads.key_prefix}
    return {**record, **where, "renamed": {str(row): key for row, key in reads.renamed.items()}}


def _rows_of_record(unit: Mapping[str, Any], tars: Mapping[str, FoundFile]) -> TarRows:
    renamed = {int(row): key for row, key in unit["renamed"].items()}
    return TarRows(tars[unit["tar"]], unit["start"], unit["rows"], unit["key_prefix"], renamed)
