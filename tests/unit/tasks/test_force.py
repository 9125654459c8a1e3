"""Stages that a run forces: made again once, also when the run is killed or retried, and what may be forced."""

from pathlib import Path
from typing import Any

import pytest

from mlcd_core.config import load_config
from mlcd_core.errors import ConfigError
from mlcd_core.identity import fingerprint
from mlcd_core.specs import STAGES, EmbedSpec, StageName
from mlcd_core.store import LocalFiles, StageFolder
from tasks.run import Request, Run, check_force
from tasks.stage import Manner, run_stage
from tasks.work import Job, Made, StageWork

INPUTS = {"data": "0" * 64}
UNITS = tuple(fingerprint(name) for name in "abc")


class KilledError(Exception):
    """Stands for what ends a process."""


class World:
    """A root with one stage of three units; ``made`` counts the units that were done."""

    def __init__(self, root: Path) -> None:
        files = LocalFiles(root)
        self.folder = StageFolder(files, EmbedSpec())
        self.made = 0
        self.killed_after = 99
        self._work = StageWork(EmbedSpec(), INPUTS, self._make, UNITS)
        self._run = Run(Request(str(root)), files, load_config("laptop", environment={}, overrides={}), (), (), "")

    def run(self, token: str = "", *force: StageName) -> tuple[str, int]:
        """The result of the stage and its manifest's attempt."""
        manner = Manner(force=frozenset(force), token=token)
        outcome = run_stage(self._work, self._run, None, manner, run_name="default")  # type: ignore[arg-type]  # needs no Ray
        assert outcome.manifest is not None
        return outcome.result, outcome.manifest.attempt

    def _make(self, job: Job) -> Made:
        for number, task in enumerate(job.plan.pending):
            if number == self.killed_after:
                raise KilledError
            part = job.folder.put(task.unit[:12], ".arrow", task.unit.encode(), rows=1, usable=1)
            job.folder.commit(task, [part])
            self.made += 1
        return Made(job.folder.receipts(UNITS, job.plan), {"status": {"ok": 0}, "failed_units": []})


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "root")


def test_a_committed_stage_is_made_again_once_for_each_run_that_forces_it(world: World) -> None:
    assert world.run() == ("ran", 1)
    assert world.run("run 1", "embed") == ("ran", 2)
    assert world.run("run 1", "embed") == ("cached", 2)
    assert world.run("run 2", "embed") == ("ran", 3)
    assert world.run() == ("cached", 3)
    assert world.made == 3 * len(UNITS)


def test_a_stage_that_was_never_made_is_made_once(world: World) -> None:
    assert world.run("run 1", "embed") == ("ran", 1)
    assert world.run("run 1", "embed") == ("cached", 1)
    assert world.made == len(UNITS)


def test_a_forced_run_that_is_killed_leaves_the_old_result_and_goes_on_when_retried(world: World) -> None:
    world.run()
    world.killed_after = 2
    with pytest.raises(KilledError):
        world.run("run 1", "embed")
    assert world.run() == ("cached", 1)
    world.killed_after = 99
    assert world.run("run 1", "embed") == ("ran", 2)
    assert world.made == 2 * len(UNITS)


def test_another_stage_that_is_forced_leaves_this_one_alone(world: World) -> None:
    world.run()
    assert world.run("run 1", "label") == ("cached", 1)


@pytest.mark.parametrize(
    ("force", "selected", "pin", "said"),
    [
        (["trian"], STAGES, {}, "did you mean train?"),
        (["cluster"], STAGES, {"cluster": "default"}, "a pinned stage never runs"),
        (["embed"], ("train", "evaluate"), {}, "only train, evaluate would run"),
    ],
)
def test_what_cannot_be_forced_is_refused(force: list[str], selected: Any, pin: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_force(force, selected, Request("/root", pin=pin))
