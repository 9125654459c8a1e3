"""What ``mlcd up`` starts on this machine and ``mlcd down`` stops: a Prefect server, a worker and the deployments.

Both listen on, and talk to, 127.0.0.1 alone. They outlive the command that started them, so a file remembers them. A
process is known by its number and the time it started, so one of another program that got the number later is left be.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from mlcd_core.errors import ConfigError, StageFailedError
from mlcd_core.store.holder import Holder, is_gone, process_of

HOST = "127.0.0.1"
SERVER_PORT = 4200
POOL = "mlcd-local"
REPO = Path(__file__).parents[1]
START_S, STOP_S = 180.0, 30.0
LOOK_S = 0.2
# a run that says nothing for three of these is taken for dead
HEARTBEAT_S = 30


@dataclass(frozen=True)
class Services:
    """What runs: the port of the server, and its processes in the order of their start."""

    port: int
    processes: tuple[Holder, ...]

    @property
    def api(self) -> str:
        """What PREFECT_API_URL must be for commands that talk to the server."""
        return api_of(self.port)


def api_of(port: int) -> str:
    """The address of the API of a server on this machine."""
    return f"http://{HOST}:{port}/api"


def state_folder() -> Path:
    """Where the file that remembers them and their logs lie."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlcd"


def running_services() -> Services | None:
    """What ``mlcd up`` has started, None when nothing of it runs any more; runs of a worker that was killed may."""
    try:
        found = json.loads(_record().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    processes = tuple(Holder(**process) for process in found["processes"])
    return Services(found["port"], processes) if any(_is_left(process) for process in processes) else None


def start_services(port: int, tell: Callable[[str], None]) -> Services:
    """Start server and worker, make the deployments and the automation. What was started is stopped on any failure.

    Raises ConfigError when they run already, the port is taken, or the deployments' file is not there.
    """
    running = running_services()
    if running is not None:
        raise ConfigError(f"services run already, with {running.api}; mlcd down stops them")
    if not (REPO / "prefect.yaml").is_file():
        raise ConfigError(
            f"{REPO} has no prefect.yaml, which names the deployments; run mlcd from a checkout of its code"
        )
    _check_port(port)
    state_folder().mkdir(parents=True, exist_ok=True)
    with _stopped_on_failure() as started:
        environment = _environment(port)
        server = ["server", "start", "--host", HOST, "--port", str(port)]
        started.append(_start("server", server, environment))
        _until(lambda: _answers(f"{api_of(port)}/health"), started)
        tell(f"server: http://{HOST}:{port}")
        started.append(_start("worker", ["worker", "start", "--pool", POOL, "--type", "process"], environment))
        _until(lambda: not _prefect(["work-pool", "inspect", POOL], environment).returncode, started)
        tell(f"worker: of the pool {POOL}")
        _must(_prefect(["--no-prompt", "deploy", "--name", "local"], environment))
        tell("deployments: pipeline/local, and one for each stage")
        _must(_run([sys.executable, "-m", "tasks.zombies"], environment))
        tell("automation: a run that says nothing any more is marked Crashed")
        _remember(Services(port, tuple(started)))
    return Services(port, tuple(started))


def stop_services(tell: Callable[[str], None]) -> bool:
    """Stop what runs, the last started first; False when nothing did. Runs that are under way end, and can resume."""
    running = running_services()
    if running is not None:
        for process in reversed(running.processes):
            _stop(process)
            tell(f"{process.run}: stopped")
    _record().unlink(missing_ok=True)
    return running is not None


def _record() -> Path:
    return state_folder() / "services.json"


def _remember(services: Services) -> None:
    record = {"port": services.port, "processes": [asdict(process) for process in services.processes]}
    temporary = _record().with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(_record())


@contextmanager
def _stopped_on_failure() -> Iterator[list[Holder]]:
    """A list of processes, which are stopped when anything goes wrong within."""
    started: list[Holder] = []
    try:
        yield started
    except BaseException:
        for process in reversed(started):
            _stop(process)
        raise


def _environment(port: int) -> dict[str, str]:
    return {
        **os.environ,
        "PREFECT_API_URL": api_of(port),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    }


def _start(name: str, words: list[str], environment: dict[str, str]) -> Holder:
    """Start a prefect command that goes on after this process."""
    with (state_folder() / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [_executable(), *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=state_folder(),
            start_new_session=True,
        )
    return process_of(process.pid, name)


def _executable() -> str:
    return str(Path(sys.executable).parent / "prefect")


def _prefect(words: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return _run([_executable(), *words], environment)


def _run(command: list[str], environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=REPO, timeout=START_S, check=False
    )


def _must(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise StageFailedError(
            f"{' '.join(done.args[1:])} ended with {done.returncode}: {said[-1] if said else 'it said nothing'}; "
            f"the logs of server and worker are in {state_folder()}"
        )


def _until(is_ready: Callable[[], bool], started: list[Holder]) -> None:
    """Look again and again. Raises StageFailedError when a process has ended, or it takes too long."""
    deadline = time.monotonic() + START_S
    while not is_ready():
        gone = [process.run for process in started if is_gone(process)]
        if gone or time.monotonic() > deadline:
            why = f"the {gone[0]} ended while it started" if gone else f"nothing was ready in {START_S:.0f} s"
            raise StageFailedError(f"{why}; what it said is in {state_folder()}")
        time.sleep(LOOK_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # it asks for a password
    except (OSError, http.client.HTTPException):
        return False


def _check_port(port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} of {HOST} is taken ({error.strerror}); choose another with --port"
            ) from error


def _stop(process: Holder) -> None:
    """SIGTERM to all that was started by it, then SIGKILL to what is left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _is_left(process):
            return
        os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_S
        while _is_left(process) and time.monotonic() < deadline:
            time.sleep(LOOK_S)


def _is_left(process: Holder) -> bool:
    """Whether anything runs that belongs to it: the process, or, when that was killed alone, what it had started.

    A group's number is given to no other process while the group has members.
    """
    now = process_of(process.pid, "")
    if now.machine != process.machine:
        return False  # the machine has started anew since
    if not is_gone(process):
        return True
    is_other = now.started not in ("", process.started)
    return not is_other and _has_members(process.pid)


def _has_members(group: int) -> bool:
    """Whether processes of that group run; those that have ended and wait for their parent do not count."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # fields 3 (state) and 5 (group) of proc(5), after a name that may hold spaces and brackets
            state, _, of_group, *_ = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        if int(of_group) == group and state not in {"Z", "X"}:
            return True
    return False
