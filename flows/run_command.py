"""``mlcd demo`` and ``mlcd run``: the flow ``pipeline``, and its result on stdout."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from flows.options import (
    add_labelled_options,
    add_output_options,
    add_root_options,
    add_selection_options,
    add_settings_options,
    request_of,
)

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.options import Commands
    from tasks.run import Request

DONE, FAILED, HELD = 0, 1, 75
LEASE_CODES = {"lease-held", "lease-lost"}  # another run makes the same, and this one may not wait, or lost its turn


def add_parsers(commands: "Commands") -> None:
    """Add ``demo`` and ``run``."""
    demo = commands.add_parser("demo", help="the whole pipeline on composed digit scenes, no data needed")
    demo.set_defaults(command=run, data="demo", eval_data="", label_column="")
    _add_stage_options(demo)
    add_run_options(commands.add_parser("run", help="the whole pipeline, or some stages, on your image shards"))


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Everything that a run of one's own data takes."""
    parser.set_defaults(command=run)
    parser.add_argument("--data", required=True, help="Parquet shards: file, folder or quoted pattern; or demo")
    add_labelled_options(parser)
    _add_stage_options(parser)


def run(options: argparse.Namespace, *, retry_failed: bool = False) -> int:
    """Run the flow; what can be known to be wrong is said before a server is started."""
    from mlcd_core.errors import ConfigError
    from tasks.adopted import adopted_text, check_adopted_run
    from tasks.pin import resolve_pins
    from tasks.ray_session import check_ray_address
    from tasks.rounds import check_rounds
    from tasks.run import check_force, open_run, selected_stages
    from tasks.summary import RunFailedError
    from tasks.train import check_train

    request = request_of(options)
    selected = selected_stages(only=options.only, from_stage=options.from_stage, until=options.until)
    if retry_failed and "embed" not in selected:
        raise ConfigError(
            f"retry-failed makes units of embed again, but the stages are {', '.join(selected)}; expected embed among "
            "them: leave out --only and --from-stage, or give --only embed"
        )
    check_rounds(request, selected, options.rounds)
    check_ray_address(options.ray_address)
    check_force(options.force, selected, request)
    opened = open_run(request)
    resolve_pins(opened)
    if "embed" in selected:
        adopted = check_adopted_run(opened)
        if adopted is not None and not options.json:
            print(adopted_text(adopted), file=sys.stderr)
    if "train" in selected:
        check_train(opened)

    state = _flow_state(request, options, retry_failed=retry_failed)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BaseException) and not isinstance(result, RunFailedError):
        raise result
    summary = result.summary if isinstance(result, RunFailedError) else result
    _show(summary, options, root=request.root)
    if any(stage.get("code") in LEASE_CODES for stage in summary["stages"]):
        return HELD
    return DONE if state.is_completed() else FAILED


def _flow_state(request: "Request", options: argparse.Namespace, *, retry_failed: bool) -> "State[Any]":
    """Run the flow to its end. Raises StageFailedError where the Prefect server is lost, which must be told the end."""
    import httpx

    from flows.pipeline import pipeline
    from mlcd_core.errors import StageFailedError

    try:
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
            force=options.force,
            retry_failed=retry_failed,
            wait_s=options.wait,
            ray_address=options.ray_address,
            return_state=True,
        )
    except httpx.HTTPError as error:
        raise StageFailedError(
            f"the Prefect server does not answer any more ({error}), and does not know how this run has ended; "
            "expected it until the end: start it again, or unset PREFECT_API_URL, and run the same again, since what "
            "was made is committed"
        ) from error
    return state


def _add_stage_options(parser: argparse.ArgumentParser) -> None:
    add_root_options(parser)
    add_output_options(parser)
    add_settings_options(parser)
    add_selection_options(parser)
    parser.add_argument(
        "--ray-address",
        default="",
        metavar="ADDRESS",
        help="Ray cluster that this machine is a node of: auto, or host:port of its head; or http://host:port of any "
        "cluster's dashboard, where each stage runs as a job (default: this machine alone)",
    )
    parser.add_argument(
        "--wait",
        type=float,
        default=-1.0,
        metavar="SECONDS",
        help="for another run that makes the same stage, then exit code 75 (default: as long as it takes)",
    )


def _show(summary: dict[str, Any], options: argparse.Namespace, *, root: str) -> None:
    if options.json:
        print(json.dumps(summary))
        return
    from flows.rendering import run_text

    print(run_text(summary, root=root, demo=options.data == "demo"))
