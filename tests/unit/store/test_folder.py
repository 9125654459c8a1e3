"""Receipts and manifests: what counts as done, what is missing, and what a commit may never do."""

from dataclasses import replace

import pytest

from mlcd_core.errors import CorruptRecordError, StageFailedError
from mlcd_core.identity import fingerprint
from mlcd_core.specs import LabelSpec
from mlcd_core.store import Files, Receipt, StageFolder, UnitTask, content_digest

UNITS = [fingerprint(f"unit {i}") for i in range(4)]
INPUTS = {"data": fingerprint("data")}


def folder(files: Files, num_labels: int = 4) -> StageFolder:
    return StageFolder(files, LabelSpec(num_labels=num_labels))


def do(stage: StageFolder, task: UnitTask, content: bytes | None = None) -> Receipt:
    data = content or f"content of {task.unit}".encode()
    part = stage.put(task.unit[:12], ".bin", data, rows=10, usable=9, counts={"ok": 9, "truncated": 1})
    return stage.commit(task, [part])


def paths(stage: StageFolder, kind: str) -> list[str]:
    return [info.path for info in stage.files.list(f"{stage.prefix}/{kind}")]


class Unwritable:
    """The reading half of a store; whoever writes through it fails."""

    def __init__(self, files: Files) -> None:
        self.read, self.list, self.uri = files.read, files.list, files.uri


def finish(stage: StageFolder, units: list[str] = UNITS, inputs: dict[str, str] = INPUTS) -> None:
    plan = stage.plan(inputs, units)
    for task in plan.pending:
        do(stage, task)
    stage.seal(inputs, stage.receipts(units), attempt=plan.attempt)


def test_nothing_done_is_a_miss_and_some_done_is_partial(files: Files) -> None:
    stage = folder(files)
    plan = stage.plan(INPUTS, UNITS)
    assert plan.state == "miss"
    assert [task.unit for task in plan.pending] == UNITS
    do(stage, plan.pending[2])
    plan = stage.plan(INPUTS, UNITS)
    assert plan.state == "partial"
    assert [task.index for task in plan.pending] == [0, 1, 3]


def test_sealed_stage_is_a_hit_and_planning_writes_nothing(files: Files) -> None:
    stage = folder(files)
    finish(stage)
    plan = folder(Unwritable(files)).plan(INPUTS, UNITS)
    assert plan.state == "hit"
    assert plan.manifest is not None
    assert plan.manifest.rows == 40
    assert [part.offset for part in plan.manifest.parts] == [0, 10, 20, 30]


def test_data_without_receipt_counts_for_nothing(files: Files) -> None:
    stage = folder(files)
    stage.put(UNITS[0][:12], ".bin", b"killed before the receipt", rows=1, usable=1)
    assert stage.plan(INPUTS, UNITS).state == "miss"


def test_second_receipt_of_a_unit_does_not_replace_the_first(files: Files) -> None:
    stage = folder(files)
    task = stage.plan(INPUTS, UNITS).pending[0]
    first = do(stage, task)
    second = do(stage, task, b"another worker was slower")
    assert second.write_id == first.write_id
    assert second.parts == first.parts


def test_one_unit_more_reuses_the_others(files: Files) -> None:
    stage = folder(files)
    finish(stage, UNITS[:3])
    plan = stage.plan({"data": fingerprint("grown")}, UNITS)
    assert [task.unit for task in plan.pending] == UNITS[3:]


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
def test_lost_part_makes_only_its_unit_pending_and_the_next_manifest_seals_beside_the_old(
    files: Files, damage: str
) -> None:
    stage = folder(files)
    finish(stage)
    old = stage.plan(INPUTS, UNITS).manifest
    assert old is not None
    lost = old.parts[1].path
    if damage == "deleted":
        files.delete(lost)
    else:
        files.put(lost, files.read(lost)[:-1])
    plan = stage.plan(INPUTS, UNITS)
    assert [(task.unit, task.attempt) for task in plan.pending] == [(UNITS[1], 2)]
    finish(stage)
    new = stage.plan(INPUTS, UNITS).manifest
    assert new is not None
    assert (new.attempt, new.digest) == (2, old.digest)


def test_part_lost_again_takes_the_next_attempt(files: Files) -> None:
    stage = folder(files)
    for attempt in (1, 2, 3):
        finish(stage)
        manifest = stage.plan(INPUTS, UNITS).manifest
        assert manifest is not None
        assert manifest.attempt == attempt
        files.delete(manifest.parts[0].path)


def test_digest_covers_content_and_nothing_else(files: Files) -> None:
    stage = folder(files)
    finish(stage)
    manifest = stage.plan(INPUTS, UNITS).manifest
    assert manifest is not None
    parts = manifest.parts
    moved = tuple(replace(part, path="elsewhere", name="other") for part in parts)
    assert content_digest(moved) == manifest.digest
    for change in ({"rows": 11}, {"usable": 8}, {"bytes": 1}, {"sha256": "0" * 64}, {"offset": 1}, {"counts": {}}):
        assert content_digest((replace(parts[0], **change), *parts[1:])) != manifest.digest
    assert content_digest(parts[::-1]) != manifest.digest


def test_rows_that_do_not_add_up_stop_the_seal(files: Files) -> None:
    stage = folder(files)
    receipts = [do(stage, task) for task in stage.plan(INPUTS, UNITS).pending]
    with pytest.raises(StageFailedError, match="40 rows, the input has 41"):
        stage.seal(INPUTS, receipts, attempt=1, expected_rows=41)
    assert stage.plan(INPUTS, UNITS).manifest is None


def test_damaged_records_are_refused_with_their_name(files: Files) -> None:
    stage = folder(files)
    finish(stage)
    [manifest] = paths(stage, "manifests")
    files.put(manifest, files.read(manifest).replace(b'"rows":10', b'"rows":11', 1))
    with pytest.raises(CorruptRecordError, match=manifest):
        stage.plan(INPUTS, UNITS)


def test_damaged_receipt_is_refused(files: Files) -> None:
    stage = folder(files)
    do(stage, stage.plan(INPUTS, UNITS).pending[0])
    [receipt] = paths(stage, "units")
    files.put(receipt, files.read(receipt)[:-10])
    with pytest.raises(CorruptRecordError, match=receipt):
        stage.plan(INPUTS, UNITS)


def test_another_spec_has_another_folder_and_a_foreign_spec_file_is_refused(files: Files) -> None:
    stage, other = folder(files), folder(files, num_labels=5)
    assert stage.prefix != other.prefix
    stage.open()
    stage.open()
    files.put(f"{stage.prefix}/spec.json", b"{}")
    with pytest.raises(CorruptRecordError, match=r"spec\.json"):
        stage.open()


def test_growth_is_planned_from_the_manifest_without_reading_the_receipts_it_names(files: Files) -> None:
    stage = folder(files)
    finish(stage, UNITS[:3])
    for receipt in paths(stage, "units"):
        files.put(receipt, b"not read")
    plan = stage.plan({"data": fingerprint("grown")}, UNITS)
    assert [task.unit for task in plan.pending] == UNITS[3:]
    with pytest.raises(CorruptRecordError):
        stage.receipts(UNITS[:3])


def test_sealed_unit_whose_receipt_is_gone_is_pending_for_another_input(files: Files) -> None:
    stage = folder(files)
    finish(stage, UNITS[:3])
    files.delete(stage.receipt_path(UNITS[1], 1))
    plan = stage.plan({"data": fingerprint("grown")}, UNITS)
    assert [task.unit for task in plan.pending] == [UNITS[1], UNITS[3]]


def test_a_hit_reads_no_manifest_of_another_input(files: Files) -> None:
    stage = folder(files)
    finish(stage)
    grown = {"data": fingerprint("grown")}
    finish(stage, UNITS, grown)
    [other] = [path for path in paths(stage, "manifests") if fingerprint(grown)[:12] in path]
    files.put(other, b"not read")
    assert stage.plan(INPUTS, UNITS).state == "hit"
