"""``mlcd plan`` (what a run would do), ``why`` (what is different) and ``status`` (what a run has made).

None of them starts anything, but ``plan --probe`` runs all stages on a sample.
"""

import argparse
import json
from typing import TYPE_CHECKING

from flows.addresses import absolute
from flows.options import (
    add_labelled_options,
    add_output_options,
    add_root_options,
    add_selection_options,
    add_settings_options,
    request_of,
)

if TYPE_CHECKING:
    from flows.options import Commands


def add_parsers(commands: "Commands") -> None:
    """Add ``plan``, ``why`` and ``status``."""
    plan = commands.add_parser("plan", help="what a run would do: hit, partial or miss per stage")
    plan.set_defaults(command=_plan)
    plan.add_argument("--data", default="", help="the shards; without them operations, memory and hours are estimated")
    plan.add_argument("--rows", type=int, metavar="N", help="images to estimate for (default: those of the data)")
    plan.add_argument("--probe", action="store_true", help="first run all stages on a sample, to tell what they cost")
    plan.add_argument("--price", type=float, metavar="P", help="of an hour of the machines, to tell what a run costs")
    add_selection_options(plan)
    why = commands.add_parser("why", help="why stages would run: what differs from the nearest result")
    why.set_defaults(command=_why, rows=None)
    why.add_argument("stage", nargs="?", default="", metavar="STAGE", help="this one alone (default: all)")
    why.add_argument("--data", required=True, help="the shards, as for run")
    for parser in (plan, why):
        add_labelled_options(parser)
        add_settings_options(parser)
    status = commands.add_parser("status", help="what a run has made so far")
    status.set_defaults(command=_status)
    for parser in (plan, why, status):
        add_root_options(parser)
        add_output_options(parser)


def _plan(options: argparse.Namespace) -> int:
    from mlcd_core.errors import ConfigError
    from tasks.rounds import plan_rounds
    from tasks.run import selected_stages
    from tasks.stage import Manner

    if options.probe and not options.data:
        raise ConfigError("--probe measures the stages on a sample of the data; give --data")
    if options.price is not None and not options.data:
        raise ConfigError("--price is for hours that were measured; give --data, and --probe where nothing has run yet")
    plan = plan_rounds(
        request_of(options),
        selected_stages(only=options.only, from_stage=options.from_stage, until=options.until),
        options.rounds,
        Manner(force=frozenset(options.force)),
        num_rows=options.rows,
        with_probe=options.probe,
    )
    if options.price is not None:
        for cost in (stage["cost"] for stage in plan["stages"] if stage["cost"]):
            cost["price"] = cost["seconds"] / 3600 * options.price
    if options.json:
        print(json.dumps(plan))
    else:
        from flows.rendering import plan_text

        print(plan_text(plan["stages"], plan["estimate"]))
    return 0


def _why(options: argparse.Namespace) -> int:
    from tasks.rounds import explain_rounds
    from tasks.run import check_stage

    check_stage("the stage", options.stage)
    stages = explain_rounds(request_of(options), options.rounds)
    stages = [stage for stage in stages if options.stage in ("", stage["stage"])]
    if options.json:
        print(json.dumps({"stages": stages}))
    else:
        from flows.why_text import why_text

        print(why_text(stages))
    return 0


def _status(options: argparse.Namespace) -> int:
    from tasks.planning import run_status

    stages = run_status(absolute(options.root), options.name)
    if options.json:
        print(json.dumps({"stages": stages}))
    else:
        from flows.rendering import status_text

        print(status_text(stages))
    return 0
