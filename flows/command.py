"""The ``mlcd`` command. Each subcommand is a file ``*_command.py`` beside this one.

Only the standard library is loaded until a command needs more, so ``--help`` answers at once. Results go to stdout,
everything else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 75 another run makes the same,
130 interrupted, 143 terminated.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from flows import (
    doctor_command,
    fit_codebook_command,
    inspect_command,
    pack_command,
    plan_command,
    retry_command,
    run_command,
    up_command,
)

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run the command, and exit with its code."""
    options = command_parser().parse_args(arguments)
    _quiet_libraries()
    # an exit instead of the default death, so that servers and Ray started by this process are stopped on the way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    sys.exit(_explained(options.command, options))


def command_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``command`` of what it parses is the function to call."""
    parser = argparse.ArgumentParser(
        prog="mlcd",
        description="Pre-train a vision encoder from images alone: embed, cluster, label, train, evaluate.",
        epilog=f"exit codes: 0 done, {FAILED} failed, {USAGE} usage, {run_command.HELD} another run makes the same, "
        f"{INTERRUPTED} interrupted, {TERMINATED} terminated",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run_command.add_parsers(commands)
    retry_command.add_parser(commands)
    plan_command.add_parsers(commands)
    pack_command.add_parser(commands)
    fit_codebook_command.add_parser(commands)
    inspect_command.add_parser(commands)
    doctor_command.add_parser(commands)
    up_command.add_parsers(commands)
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
