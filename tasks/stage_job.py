"""A stage as a job of a Ray cluster: what it is told, how it is carried out there, and how it says how it ended.

    python -m tasks.stage_job ORDER

It runs on a node of the cluster, and asks no Prefect. Its log is its lines on stdout, each after its level; the last
says how the stage ended.
"""

import json
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mlcd_core.config import most_workers
from mlcd_core.errors import ConfigError, MlcdError
from mlcd_core.identity import fingerprint, spec_fingerprint
from mlcd_core.specs import StageName
from tasks.progress_bar import PROGRESS, PROGRESS_NAME
from tasks.ray_session import RaySession
from tasks.run import Request, open_run
from tasks.sealed import read_manifest
from tasks.stage import Manner, StageOutcome, failed_outcome, run_stage
from tasks.work import StageWork, stage_work

LAST_LINE = "mlcd: the stage ended: "


@dataclass(frozen=True)
class Order:
    """A stage to run, as whoever asks for it sees it.

    committed: stage -> path of its manifest, for all that this one may read. spec, input: fingerprints that the stage
    must have on the cluster too. run_name: what people call the run.
    """

    stage: StageName
    request: Request
    manner: Manner
    committed: Mapping[StageName, str]
    spec: str
    input: str
    run_name: str

    def to_json(self) -> str:
        """The order as one argument of the command."""
        return json.dumps(asdict(self), default=sorted)  # of a set

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """Read an order."""
        order = json.loads(text)
        manner = Manner(**{**order["manner"], "force": frozenset(order["manner"]["force"])})
        return cls(**{**order, "request": Request(**order["request"]), "manner": manner})


@dataclass(frozen=True)
class Said:
    """What the last line of a job says of its ``StageOutcome``."""

    result: str
    units_run: int = 0
    error: str = ""
    code: str = ""

    def to_line(self) -> str:
        """The line."""
        return f"{LAST_LINE}{json.dumps(asdict(self))}"

    @classmethod
    def from_line(cls, line: str) -> "Said | None":
        """Read the line; None of any other."""
        return cls(**json.loads(line.removeprefix(LAST_LINE))) if line.startswith(LAST_LINE) else None


def main() -> int:
    """Carry out the order of the command line; exit code 1 when the stage failed."""
    logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
    logging.addLevelName(PROGRESS, PROGRESS_NAME)
    logging.getLogger("mlcd").setLevel(PROGRESS)
    outcome = carry_out(Order.from_json(sys.argv[1]))
    said = Said(outcome.result, outcome.units_run, outcome.error, outcome.code)
    sys.stdout.write(f"{said.to_line()}\n")
    return 1 if outcome.result == "failed" else 0


def carry_out(order: Order, *, ray_address: str = "auto") -> StageOutcome:
    """Run the stage of an order; an error meant for people is its outcome."""
    started = time.monotonic()
    try:
        run = open_run(order.request)
        committed = {stage: read_manifest(run.files, path) for stage, path in order.committed.items()}
        work = stage_work(order.stage, run, committed)
        _check_same(order, work)
        with RaySession(most_workers=most_workers(run.config), address=ray_address) as session:
            return run_stage(work, run, session, order.manner, run_name=order.run_name)
    except MlcdError as error:
        return failed_outcome(order.stage, error, seconds=time.monotonic() - started)


def _check_same(order: Order, work: StageWork) -> None:
    """Raise ConfigError for a stage that is another one here: it would be made, and not found by who asked for it."""
    here: dict[str, Any] = {"spec": spec_fingerprint(work.spec), "input": fingerprint(work.inputs)}
    other = [name for name, digest in here.items() if digest != getattr(order, name)]
    if other:
        raise ConfigError(
            f"the {' and the '.join(other)} of {order.stage} is on the cluster not what it is where the run was "
            "started; expected the same version of this package, the same data and the same files of weights there: "
            "bring them in line, and set no MLCD_ variables on the cluster"
        )


if __name__ == "__main__":
    sys.exit(main())
