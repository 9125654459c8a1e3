"""Why a stage would run: the nearest result, and every difference from it."""

from pathlib import Path
from typing import Any

import pytest

from flows.why_text import why_text, why_words
from mlcd_core.identity import fingerprint, short, spec_fingerprint
from mlcd_core.specs import LabelSpec
from mlcd_core.store import LocalFiles, StageFolder
from tasks.reasons import Change, Why, why_pending
from tasks.work import StageWork

UNITS = (fingerprint("a unit"),)
HERE, GROWN = {"embed": fingerprint("here")}, {"embed": fingerprint("grown")}


class World:
    """A root with results of the stage label."""

    def __init__(self, root: Path) -> None:
        self.files = LocalFiles(root)

    def commit(self, spec: LabelSpec, inputs: dict[str, str] = HERE) -> str:
        folder = StageFolder(self.files, spec)
        folder.open()
        plan = folder.plan(inputs, UNITS)
        for task in plan.pending:
            folder.commit(task, [folder.put("part", ".bin", b"rows", rows=1, usable=1)])
        folder.seal(inputs, folder.receipts(UNITS, plan), attempt=plan.attempt)
        return self.files.uri(folder.prefix)

    def why(self, spec: LabelSpec, inputs: dict[str, str] = HERE, own_spec: str = "") -> Why:
        return why_pending(self.files, StageWork(spec, inputs, _never, UNITS), own_spec)


def _never(_: Any) -> Any:
    raise AssertionError("a plan makes nothing")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_an_empty_root_has_nothing_to_compare_with(world: World) -> None:
    assert world.why(LabelSpec()) == Why()


def test_a_setting_that_changed_is_named_with_both_values(world: World) -> None:
    where = world.commit(LabelSpec(num_labels=8))
    assert world.why(LabelSpec(num_labels=4)) == Why(where, (Change("label.num_labels", 8, 4),))


def test_another_version_of_the_code_is_a_difference(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    where = world.commit(LabelSpec())
    monkeypatch.setattr(LabelSpec, "STAGE_VERSION", 7)
    assert world.why(LabelSpec()) == Why(where, (Change("label's code", 1, 7),))


def test_what_it_reads_is_named_by_its_role(world: World) -> None:
    where = world.commit(LabelSpec())
    both = (short(HERE["embed"]), short(GROWN["embed"]))
    assert world.why(LabelSpec(), GROWN) == Why(where, (Change("the embed it reads", *both),))
    new_role = {**HERE, "cluster": fingerprint("c")}
    assert world.why(LabelSpec(), new_role).changes == (
        Change("the cluster it reads", None, short(new_role["cluster"])),
    )


def test_the_result_with_the_fewest_differences_is_the_nearest(world: World) -> None:
    world.commit(LabelSpec(num_labels=8), GROWN)
    where = world.commit(LabelSpec(num_labels=6))
    assert world.why(LabelSpec(num_labels=4)).nearest == where


def test_between_equals_the_run_s_own_last_result_is_the_nearest(world: World) -> None:
    specs = [LabelSpec(num_labels=number) for number in (5, 6, 7)]
    places = {spec_fingerprint(spec): world.commit(spec) for spec in specs}
    for own, where in places.items():
        assert world.why(LabelSpec(num_labels=4), own_spec=own).nearest == where


def test_a_result_whose_file_is_gone_differs_in_nothing(world: World) -> None:
    where = world.commit(LabelSpec())
    for path in Path(where).glob("data/*"):
        path.unlink()
    assert world.why(LabelSpec()) == Why(where, ())


def plan(stage: str = "label", state: str = "miss", **values: Any) -> dict[str, Any]:
    empty = {"spec": "0" * 64, "units_missing": 2, "units_total": 5, "note": "", "nearest": "", "changes": []}
    return {"round": 1, "stage": stage, "plan": state, **empty, **values}


CHANGES = [{"what": f"label.{name}", "was": None, "now": number} for number, name in enumerate("abc")]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (plan(state="hit"), "label: committed, nothing to do"),
        (plan(state="waits", note="waits for embed"), "label: waits for embed"),
        (plan(), "2 of 5 units to make; no result of this stage is under this root yet"),
        (plan(nearest="/r/label/1"), "files of it are gone"),
        (plan(nearest="/r/label/1", changes=CHANGES), "/r/label/1, and different is\n  label.a - -> 0\n  label.b"),
    ],
)
def test_every_kind_of_answer_is_in_words(entry: dict[str, Any], said: str) -> None:
    assert said in why_text([entry])


def test_a_line_of_the_plan_shows_the_first_changes() -> None:
    assert why_words(plan(changes=CHANGES)) == "label.a - -> 0, label.b - -> 1, and 1 more"
    assert why_words(plan()) == ""
