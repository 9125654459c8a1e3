"""What a stage hands to ``run_stage``: its identity, what it reads, its units, and how to make the pending ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlcd_core.config import stage_runtime, stage_spec
from mlcd_core.events import Report
from mlcd_core.runtimes import Runtime
from mlcd_core.specs import StageName, StageSpec
from mlcd_core.store import Chain, Manifest, Receipt, StageFolder, StagePlan, open_files
from tasks.ray_session import RaySession
from tasks.run import Run

Committed = Mapping[StageName, Manifest]


@dataclass(frozen=True)
class Made:
    """What a stage made: its receipts in order, metrics for the manifest, and notes for its provenance."""

    receipts: Sequence[Receipt]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """Everything ``StageWork.make`` needs: where to commit, what is pending, Ray and a reporter."""

    folder: StageFolder
    plan: StagePlan
    session: RaySession
    report: Report


@dataclass(frozen=True)
class StageWork:
    """One stage of one run, before it is decided whether anything must run.

    units: identities in order; ``()`` for a chain, which has a ``last_number`` instead. inputs: role -> digest.
    note: one line for ``plan`` on what is special about the inputs.
    """

    spec: StageSpec
    inputs: dict[str, str]
    make: Callable[[Job], Made]
    units: tuple[str, ...] = ()
    last_number: int = 0
    expected_rows: int | None = None
    note: str = ""

    def links(self, job: Job) -> "ChainAddress":
        """Where the links of a chain stage are."""
        return ChainAddress(job.folder.files.uri(""), self.spec, self.inputs, job.plan.attempt, self.last_number)


@dataclass(frozen=True)
class ChainAddress:
    """Names the links of a chain stage, so that worker processes can open them."""

    root: str
    spec: StageSpec
    inputs: dict[str, str]
    attempt: int
    last_number: int

    def open(self) -> Chain:
        """The chain, on this process's own view of the storage."""
        return Chain(StageFolder(open_files(self.root), self.spec), self.inputs, self.attempt, self.last_number)


UPSTREAM: dict[StageName, tuple[StageName, ...]] = {
    "embed": (),
    "cluster": ("embed",),
    "label": ("embed", "cluster"),
    "train": ("label",),
    "evaluate": ("embed", "cluster", "label", "train"),
}


def stage_work(stage: StageName, run: Run, committed: Committed) -> StageWork:
    """Describe a stage whose upstream stages are all in ``committed``. Starts nothing."""
    from tasks import cluster, embed, evaluate, label, train

    makers: dict[StageName, Callable[[Run, Committed], StageWork]] = {
        "embed": embed.embed_work,
        "cluster": cluster.cluster_work,
        "label": label.label_work,
        "train": train.train_work,
        "evaluate": evaluate.evaluate_work,
    }
    return makers[stage](run, committed)


def settings(run: Run, stage: StageName) -> tuple[StageSpec, Runtime]:
    """Spec and runtime of a stage as configured."""
    return stage_spec(run.config, stage), stage_runtime(run.config, stage)
