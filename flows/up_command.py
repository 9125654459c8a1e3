"""``mlcd up`` and ``mlcd down``: a Prefect server with a worker and the deployments on this machine, and their end."""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flows.options import add_output_options

if TYPE_CHECKING:
    from flows.options import Commands

DONE = 0


def add_parsers(commands: "Commands") -> None:
    """Add ``up`` and ``down``."""
    up = commands.add_parser("up", help="start a Prefect server, a worker and the deployments on this machine")
    up.add_argument("--port", type=int, metavar="N", help="of the server, on 127.0.0.1 (default 4200)")
    up.set_defaults(command=_up)
    down = commands.add_parser("down", help="stop what up has started; runs under way end and can be resumed")
    down.set_defaults(command=_down)
    for parser in (up, down):
        add_output_options(parser)


def _up(options: argparse.Namespace) -> int:
    from tasks.services import SERVER_PORT, start_services

    services = start_services(SERVER_PORT if options.port is None else options.port, _tell)
    if options.json:
        print(json.dumps({"api": services.api, "pids": [process.pid for process in services.processes]}))
    else:
        print(
            f"export PREFECT_API_URL={services.api}\n"
            f"{_shown('prefect')} deployment run 'pipeline/local' -p data=demo -p root=$PWD/mlcd-data --watch\n"
            f"{_shown('mlcd')} down"
        )
    return DONE


def _shown(command: str) -> str:
    """What to type for a command of this environment: its name, or its path where the shell does not find it."""
    own = str(Path(sys.executable).parent / command)
    return command if shutil.which(command) == own else own


def _down(options: argparse.Namespace) -> int:
    from tasks.services import stop_services

    stopped = stop_services(_tell)
    if options.json:
        print(json.dumps({"stopped": stopped}))
    elif not stopped:
        print("mlcd: nothing that mlcd up has started runs on this machine", file=sys.stderr)
    return DONE


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
