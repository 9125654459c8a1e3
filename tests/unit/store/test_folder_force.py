"""A stage that is made again though it is done: what counts, for whom, and from when on."""

from pathlib import Path

import pytest

from mlcd_core.identity import fingerprint
from mlcd_core.specs import ClusterSpec, LabelSpec
from mlcd_core.store import Chain, LocalFiles, Manifest, Receipt, StageFolder, StagePlan, UnitTask

UNITS = [fingerprint(f"unit {i}") for i in range(3)]
INPUTS = {"data": fingerprint("data")}


@pytest.fixture
def stage(tmp_path: Path) -> StageFolder:
    return StageFolder(LocalFiles(tmp_path), LabelSpec(num_labels=4))


def do(stage: StageFolder, task: UnitTask, content: str) -> Receipt:
    return stage.commit(task, [stage.put(task.unit[:12], ".bin", f"{task.unit} {content}".encode(), rows=1, usable=1)])


def make(stage: StageFolder, plan: StagePlan, content: str = "first") -> Manifest:
    """Do what is pending and seal."""
    for task in plan.pending:
        do(stage, task, content)
    return stage.seal(INPUTS, stage.receipts(UNITS, plan), attempt=plan.attempt)


def forced_plan(stage: StageFolder, token: str) -> StagePlan:
    return stage.plan(INPUTS, UNITS, least_attempt=stage.force(INPUTS, token))


def attempts(manifest: Manifest) -> list[int]:
    return [attempt for _, attempt, _ in manifest.provenance["units"]]


def test_all_units_are_pending_and_what_is_sealed_stands_until_the_new_manifest(stage: StageFolder) -> None:
    old = make(stage, stage.plan(INPUTS, UNITS))
    plan = forced_plan(stage, "run 1")
    assert [task.attempt for task in plan.pending] == [2, 2, 2]
    for task in plan.pending[:2]:
        do(stage, task, "second")
    assert stage.plan(INPUTS, UNITS).manifest == old
    new = make(stage, forced_plan(stage, "run 1"), "second")
    assert stage.plan(INPUTS, UNITS).manifest == new
    assert (new.attempt, attempts(new)) == (2, [2, 2, 2])
    assert new.digest != old.digest


def test_who_forced_and_was_killed_goes_on_and_once_sealed_forces_no_more(stage: StageFolder) -> None:
    make(stage, stage.plan(INPUTS, UNITS))
    do(stage, forced_plan(stage, "run 1").pending[1], "second")
    plan = forced_plan(stage, "run 1")
    assert plan.state == "partial"
    assert [task.unit for task in plan.pending] == [UNITS[0], UNITS[2]]
    new = make(stage, plan, "second")
    assert forced_plan(stage, "run 1").manifest == new


def test_another_run_that_forces_takes_nothing_of_a_forced_run_before_it(stage: StageFolder) -> None:
    make(stage, stage.plan(INPUTS, UNITS))
    for task in forced_plan(stage, "run 1").pending[:2]:
        do(stage, task, "second")
    plan = forced_plan(stage, "run 2")
    assert [task.attempt for task in plan.pending] == [3, 3, 3]
    assert attempts(make(stage, plan, "third")) == [3, 3, 3]
    assert stage.plan(INPUTS, UNITS).attempt == 3


def test_who_did_not_force_takes_no_unit_of_a_forced_run_that_did_not_seal(stage: StageFolder) -> None:
    for task in stage.plan(INPUTS, UNITS).pending[:2]:
        do(stage, task, "first")
    do(stage, forced_plan(stage, "run 1").pending[0], "second")
    plan = stage.plan(INPUTS, UNITS)
    assert [task.unit for task in plan.pending] == [UNITS[2]]
    assert attempts(make(stage, plan)) == [1, 1, 1]


def test_equal_bytes_are_an_equal_digest(stage: StageFolder) -> None:
    old = make(stage, stage.plan(INPUTS, UNITS))
    assert make(stage, forced_plan(stage, "run 1")).digest == old.digest


def test_another_input_is_not_forced_with_it(stage: StageFolder) -> None:
    make(stage, stage.plan(INPUTS, UNITS))
    stage.force(INPUTS, "run 1")
    assert stage.forced({"data": fingerprint("grown")}, "run 1") is None


def test_a_chain_begins_anew_and_goes_on_with_its_own_links(tmp_path: Path) -> None:
    stage = StageFolder(LocalFiles(tmp_path), ClusterSpec(num_centroids=2))

    def link(plan: StagePlan, number: int, content: bytes) -> Receipt:
        chain = Chain(stage, INPUTS, plan.attempt, 3)
        return chain.append(number, [chain.put("centroids", ".bin", content)], {})

    first = stage.plan(INPUTS, ())
    stage.seal(INPUTS, [link(first, 3, b"first")], attempt=first.attempt)
    forced = stage.plan(INPUTS, (), least_attempt=stage.force(INPUTS, "run 1"))
    assert forced.manifest is None
    assert Chain(stage, INPUTS, forced.attempt, 3).newest() is None
    begun = link(forced, 1, b"second")
    again = stage.plan(INPUTS, (), least_attempt=stage.force(INPUTS, "run 1"))
    assert Chain(stage, INPUTS, again.attempt, 3).newest() == begun
    manifest = stage.seal(INPUTS, [link(again, 3, b"third")], attempt=again.attempt)
    assert stage.plan(INPUTS, ()).manifest == manifest
