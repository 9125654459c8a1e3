"""The ``mlcd`` command: ``demo``, ``run``, ``plan``, ``status``.

Only the standard library is loaded until a command needs more, so ``--help`` answers at once. Results go to stdout,
everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted, 143 terminated.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.run import Request

DEFAULT_ROOT = "mlcd-data"
FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run the command, and exit with its code."""
    options = _parser().parse_args(arguments)
    _quiet_libraries()
    # an exit instead of the default death, so that servers and Ray started by this process are stopped on the way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(_explained(options.command, options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlcd", description="Pre-train a vision encoder from images alone: embed, cluster, label, train, evaluate."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    demo = commands.add_parser("demo", help="the whole pipeline on composed digit scenes, no data needed")
    run = commands.add_parser("run", help="the whole pipeline, or some stages, on your image shards")
    plan = commands.add_parser("plan", help="what a run would do: hit, partial or miss per stage")
    status = commands.add_parser("status", help="what a run has made so far")
    for command, function in ((demo, _run), (run, _run), (plan, _plan), (status, _status)):
        command.set_defaults(command=function)
        command.add_argument("--root", default=DEFAULT_ROOT, help=f"folder of everything made (default {DEFAULT_ROOT})")
        command.add_argument("--name", default="default", help="name of the run's record (default: default)")
        command.add_argument("--json", action="store_true", help="one JSON object on stdout")
        command.add_argument("--debug", action="store_true", help="show tracebacks")
    for command in (demo, run, plan):
        command.add_argument("--preset", default="laptop", help="settings to start from (default laptop)")
        command.add_argument(
            "--rounds", type=int, default=1, metavar="N", help="rounds, each with the tower of the one before (1)"
        )
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="for example train.epochs=3"
        )
        command.add_argument(
            "--pin",
            action="append",
            default=[],
            metavar="cluster=RUN_OR_DIGEST",
            help="use the centroids of another run, or of this digest, as they are",
        )
    run.add_argument("--data", required=True, help="Parquet shards: file, folder or quoted pattern; or demo")
    plan.add_argument("--data", default="", help="the shards; without them only the cost of clustering is estimated")
    plan.add_argument("--rows", type=int, metavar="N", help="images to estimate for (default: those of the data)")
    for command in (run, plan):
        command.add_argument("--eval-data", default="", help="labelled shards that only evaluation reads")
        command.add_argument("--label-column", default="", help="column of an int, or a list of ints, per row")
    demo.set_defaults(data="demo", eval_data="", label_column="")
    for command in (demo, run):
        command.add_argument("--only", default="", metavar="STAGE", help="run this stage alone")
        command.add_argument("--from-stage", default="", metavar="STAGE", help="run from this stage on")
        command.add_argument("--until", default="", metavar="STAGE", help="run up to this stage")
    return parser


def _quiet_libraries() -> None:
    """No telemetry, and no log lines but those of the run itself."""
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # the temporary server needs 12 s on two idle cores, 20 s (the default limit) is too near on busy ones
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def _explained(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Run a command; an error meant for people is one line on stderr, and its traceback only with ``--debug``."""
    from mlcd_core.errors import ConfigError, MlcdError

    try:
        return command(options)
    except MlcdError as error:
        if options.debug:
            raise
        print(f"mlcd: {type(error).__name__}: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        print("mlcd: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if options.debug:
            raise
        print(f"mlcd: unexpected {type(error).__name__}: {error}; --debug shows where", file=sys.stderr)
        return FAILED


def _request(options: argparse.Namespace) -> "Request":
    from flows.addresses import absolute
    from tasks.run import Request

    data = options.data if options.data == "demo" else absolute(options.data)
    return Request(
        root=absolute(options.root),
        preset=options.preset,
        name=options.name,
        data=data,
        eval_data=absolute(options.eval_data),
        label_column=options.label_column,
        overrides=_assignments("--set", options.set),
        pin=_assignments("--pin", options.pin),
    )


def _assignments(option: str, given: list[str]) -> dict[str, str]:
    from mlcd_core.errors import ConfigError

    for assignment in given:
        if "=" not in assignment:
            raise ConfigError(f"{option} {assignment} has no value; write {option} {assignment}=VALUE")
    return dict(assignment.split("=", 1) for assignment in given)


def _run(options: argparse.Namespace) -> int:
    from tasks.pin import resolve_pins
    from tasks.rounds import check_rounds
    from tasks.run import open_run, selected_stages
    from tasks.train import check_train

    request = _request(options)
    # what can be known to be wrong is said before a server is started
    selected = selected_stages(only=options.only, from_stage=options.from_stage, until=options.until)
    check_rounds(request, selected, options.rounds)
    run = open_run(request)
    resolve_pins(run)
    if "train" in selected:
        check_train(run)

    from prefect.client.schemas.objects import State

    from flows.pipeline import pipeline

    state: State[Any] = pipeline(  # type: ignore[assignment]  # prefect types every flow as possibly async
        root=request.root,
        data=request.data,
        eval_data=request.eval_data,
        label_column=request.label_column,
        preset=request.preset,
        name=request.name,
        only=options.only,
        from_stage=options.from_stage,
        until=options.until,
        overrides=dict(request.overrides),
        pin=dict(request.pin),
        rounds=options.rounds,
        return_state=True,
    )
    summary = state.result(raise_on_failure=False)
    if isinstance(summary, BaseException):
        raise summary
    if options.json:
        print(json.dumps(summary))
    else:
        from flows.rendering import run_text

        print(run_text(summary, root=request.root, demo=request.data == "demo"))
    return 0 if state.is_completed() else FAILED


def _plan(options: argparse.Namespace) -> int:
    from tasks.rounds import plan_rounds

    plan = plan_rounds(_request(options), options.rounds, num_rows=options.rows)
    if options.json:
        print(json.dumps(plan))
    else:
        from flows.rendering import plan_text

        print(plan_text(plan["stages"], plan["estimate"]))
    return 0


def _status(options: argparse.Namespace) -> int:
    from flows.addresses import absolute
    from tasks.planning import run_status

    stages = run_status(absolute(options.root), options.name)
    if options.json:
        print(json.dumps({"stages": stages}))
    else:
        from flows.rendering import status_text

        print(status_text(stages))
    return 0
