"""Options that several commands share, and the request they spell."""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.run import Request

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT_ROOT = "mlcd-data"


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--debug``, which every command has."""
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")


def add_root_options(parser: argparse.ArgumentParser) -> None:
    """Which run of which root."""
    parser.add_argument(
        "--root", default=DEFAULT_ROOT, help=f"folder or s3:// address of everything made (default {DEFAULT_ROOT})"
    )
    parser.add_argument("--name", default="default", help="name of the run's record (default: default)")


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """The settings of a run, without its data."""
    parser.add_argument("--preset", default="laptop", help="settings to start from (default laptop)")
    parser.add_argument(
        "--rounds", type=int, default=1, metavar="N", help="rounds, each with the tower of the one before (1)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for example train.epochs=3")
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="cluster=RUN_OR_DIGEST",
        help="use the centroids of another run, or of this digest, as they are",
    )


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """Which stages."""
    parser.add_argument("--only", default="", metavar="STAGE", help="run this stage alone")
    parser.add_argument("--from-stage", default="", metavar="STAGE", help="run from this stage on")
    parser.add_argument("--until", default="", metavar="STAGE", help="run up to this stage")
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="make this stage again, though it is committed; what is committed stays valid until then",
    )


def add_labelled_options(parser: argparse.ArgumentParser) -> None:
    """What evaluation reads."""
    parser.add_argument("--eval-data", default="", help="labelled shards that only evaluation reads")
    parser.add_argument("--label-column", default="", help="column of an int, or a list of ints, per row")


def request_of(options: argparse.Namespace) -> "Request":
    """The request that the options spell. Raises ConfigError for a setting without a value."""
    from flows.addresses import absolute
    from tasks.run import Request

    return Request(
        root=absolute(options.root),
        preset=options.preset,
        name=options.name,
        data=options.data if options.data == "demo" else absolute(options.data),
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
