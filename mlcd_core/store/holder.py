"""Who holds a lease, and whether that process is known to have ended.

Only a process that this one can see may be judged: same host name, same boot, same process namespace (containers of one
machine share the first two, and still do not see each other's processes). Of any other nothing is known, so it counts
as living and only the lack of its heartbeat tells.
"""

import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlcd_core.store.files import is_alive

BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True)
class Holder:
    """One claim of one process. ``since``, by the clock of its host, and ``run`` are for people.

    machine: boot and process namespace, empty where the system does not tell. started: of the process, in ticks since
    the boot; it tells the process from a later one with the same number.
    """

    id: str
    run: str
    host: str
    machine: str
    pid: int
    started: str
    since: str


def this_process(run: str) -> Holder:
    """A new claim of the process that calls; ``run`` is what people call what it does."""
    return process_of(os.getpid(), run)


def process_of(pid: int, run: str) -> Holder:
    """The same for another process of this machine."""
    stat = _read_stat(pid)
    return Holder(
        id=uuid.uuid4().hex,
        run=run,
        host=socket.gethostname(),
        machine=_machine(),
        pid=pid,
        started=stat.started if stat else "",
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def is_gone(holder: Holder) -> bool:
    """Whether the holder's process has ended for certain; False where that cannot be told."""
    if not holder.machine or (holder.host, holder.machine) != (socket.gethostname(), _machine()):
        return False
    if not is_alive(holder.pid):
        return True
    stat = _read_stat(holder.pid)
    return stat is not None and (stat.started != holder.started or stat.has_ended)


@dataclass(frozen=True)
class _Stat:
    started: str
    has_ended: bool


def _read_stat(pid: int) -> _Stat | None:
    """What the system says of a process, or None where it says nothing (some hide those of other users)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # fields 3 (state), 20 (threads) and 22 (start) of proc(5); the name before them may hold spaces and brackets
    fields = text.rpartition(")")[2].split()
    # killed, and nobody has asked for its exit status yet; but other threads of it may still be writing
    return _Stat(started=fields[19], has_ended=fields[0] in {"Z", "X"} and int(fields[17]) <= 1)


def _machine() -> str:
    try:
        return f"{BOOT.read_text(encoding='ascii').strip()} {NAMESPACE.readlink()}"
    except OSError:
        return ""
