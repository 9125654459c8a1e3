"""Units that could not be done, and units that are done again: which receipt counts, and what stays valid."""

from pathlib import Path

import pytest

from mlcd_core.identity import fingerprint
from mlcd_core.specs import LabelSpec
from mlcd_core.store import LocalFiles, Manifest, Receipt, StageFolder, UnitTask

UNITS = [fingerprint(f"unit {i}") for i in range(3)]
INPUTS = {"data": fingerprint("data")}
GOOD, DIED, UNREADABLE = {"ok": 9, "truncated": 1}, {"worker_died": 10}, {"unreadable": 0}


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(LocalFiles(tmp_path), LabelSpec(num_labels=4))


def do(stage: StageFolder, task: UnitTask, counts: dict[str, int] = GOOD) -> Receipt:
    rows, usable = sum(counts.values()), counts.get("ok", 0)
    data = f"{task.unit}, {sorted(counts)}".encode()
    part = stage.put(task.unit[:12], ".bin", data, rows=rows, usable=usable, counts=counts)
    return stage.commit(task, [part])


def run(stage: StageFolder, *outcomes: dict[str, int], redo: frozenset[str] = frozenset()) -> Manifest:
    """Do what is pending, in order, and seal."""
    plan = stage.plan(INPUTS, UNITS, redo)
    if plan.manifest is not None:
        return plan.manifest
    for task, counts in zip(plan.pending, outcomes, strict=True):
        do(stage, task, counts)
    return stage.seal(INPUTS, stage.receipts(UNITS, plan), attempt=plan.attempt)


def attempts(manifest: Manifest) -> list[int]:
    return [attempt for _, attempt, _ in manifest.provenance["units"]]


def test_failed_units_are_named_whether_sealed_or_not(stage: StageFolder) -> None:
    for task, counts in zip(stage.plan(INPUTS, UNITS).pending, [GOOD, DIED, UNREADABLE], strict=True):
        do(stage, task, counts)
    assert stage.failed_units(UNITS) == frozenset(UNITS[1:])
    run(stage)
    assert stage.failed_units(UNITS) == frozenset(UNITS[1:])


def test_a_failed_unit_is_done_and_seals(stage: StageFolder) -> None:
    manifest = run(stage, GOOD, DIED, UNREADABLE)
    assert (manifest.rows, manifest.usable) == (20, 9)
    assert stage.plan(INPUTS, UNITS).state == "hit"


def test_units_to_redo_are_pending_as_their_next_attempt_and_no_other_is(stage: StageFolder) -> None:
    run(stage, GOOD, DIED, GOOD)
    plan = stage.plan(INPUTS, UNITS, stage.failed_units(UNITS))
    assert plan.manifest is None
    assert plan.pending == (UnitTask(1, UNITS[1], 2),)
    assert plan.done == {UNITS[0], UNITS[2]}
    assert plan.attempt == 2


def test_what_was_redone_seals_beside_the_old_manifest(stage: StageFolder) -> None:
    old = run(stage, GOOD, DIED, GOOD)
    assert stage.plan(INPUTS, UNITS).manifest == old
    new = run(stage, GOOD, redo=stage.failed_units(UNITS))
    assert (new.attempt, attempts(new)) == (2, [1, 2, 1])
    assert new.digest != old.digest
    assert stage.plan(INPUTS, UNITS).manifest == new
    assert stage.failed_units(UNITS) == frozenset()


def test_the_same_bytes_again_are_the_same_digest(stage: StageFolder) -> None:
    old = run(stage, GOOD, DIED, GOOD)
    new = run(stage, DIED, redo=stage.failed_units(UNITS))
    assert (new.attempt, attempts(new)) == (2, [1, 2, 1])
    assert new.digest == old.digest


def test_nothing_to_redo_is_a_hit(stage: StageFolder) -> None:
    old = run(stage, GOOD, GOOD, GOOD)
    assert stage.plan(INPUTS, UNITS, stage.failed_units(UNITS)).manifest == old


def test_good_units_can_be_redone_too(stage: StageFolder) -> None:
    run(stage, GOOD, GOOD, GOOD)
    again = run(stage, {"ok": 8, "truncated": 2}, redo=frozenset(UNITS[:1]))
    assert attempts(again) == [2, 1, 1]
    assert again.usable == 8 + 9 + 9


def test_a_redo_that_was_killed_before_it_sealed_loses_nothing(stage: StageFolder) -> None:
    """The old manifest stands until the next one, and the next redo finds the unit mended."""
    old = run(stage, GOOD, DIED, DIED)
    [first, _] = stage.plan(INPUTS, UNITS, stage.failed_units(UNITS)).pending
    do(stage, first)
    assert stage.plan(INPUTS, UNITS).previous == old
    assert stage.failed_units(UNITS) == {UNITS[2]}
    new = run(stage, GOOD, redo=stage.failed_units(UNITS))
    assert attempts(new) == [1, 2, 2]
    assert new.usable == 27


def test_a_redo_killed_after_its_last_unit_is_sealed_by_any_later_run(stage: StageFolder) -> None:
    old = run(stage, GOOD, DIED, GOOD)
    [task] = stage.plan(INPUTS, UNITS, stage.failed_units(UNITS)).pending
    do(stage, task)
    assert stage.failed_units(UNITS) == frozenset()
    plan = stage.plan(INPUTS, UNITS)
    assert (plan.manifest, plan.previous, plan.pending, plan.attempt) == (None, old, (), 2)
    new = run(stage)
    assert (attempts(new), new.usable) == ([1, 2, 1], 27)
    assert stage.plan(INPUTS, UNITS).manifest == new


def test_a_unit_mended_for_other_data_is_taken_over(stage: StageFolder) -> None:
    run(stage, GOOD, DIED, GOOD)
    others = {"data": fingerprint("grown data")}
    plan = stage.plan(others, UNITS, stage.failed_units(UNITS))
    do(stage, plan.pending[0])
    stage.seal(others, stage.receipts(UNITS, plan), attempt=plan.attempt)
    assert run(stage).usable == 27


def test_a_mended_unit_counts_before_anything_was_sealed(stage: StageFolder) -> None:
    """A stage over its error budget seals nothing, so its units are redone without a manifest."""
    for task, counts in zip(stage.plan(INPUTS, UNITS).pending, [GOOD, DIED, GOOD], strict=True):
        do(stage, task, counts)
    [again] = stage.plan(INPUTS, UNITS, stage.failed_units(UNITS)).pending
    assert again == UnitTask(1, UNITS[1], 2)
    do(stage, again)
    plan = stage.plan(INPUTS, UNITS)
    assert plan.pending == ()
    assert [receipt.attempt for receipt in stage.receipts(UNITS)] == [1, 2, 1]


def test_a_unit_that_fails_again_is_redone_as_the_attempt_after_that(stage: StageFolder) -> None:
    run(stage, GOOD, DIED, GOOD)
    run(stage, DIED, redo=stage.failed_units(UNITS))
    [task] = stage.plan(INPUTS, UNITS, stage.failed_units(UNITS)).pending
    assert task == UnitTask(1, UNITS[1], 3)
