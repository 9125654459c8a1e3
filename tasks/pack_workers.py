"""Worker processes of a pack: jobs out, results and progress back, one pipe each.

Not a pool of the standard library: a pool does not say which job killed its worker, has no way back for progress
without state in the worker, and leaves workers behind when its owner is killed. Here a worker that loses its pipe
ends, and the owner knows what each worker was doing.
"""

import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from types import TracebackType
from typing import Any, Protocol, Self

from mlcd_core.errors import MlcdError, StageFailedError, WorkerLostError
from mlcd_core.pack import OnRows


class Job(Protocol):
    """What a worker runs; it and its result travel between processes, so a partial of a module's function."""

    def __call__(self, *, on_rows: OnRows) -> Any:
        """Do the work and return its result; ``on_rows`` may be called on the way."""


@dataclass(frozen=True)
class Rows:
    """So many rows more have been read."""

    rows: int


@dataclass(frozen=True)
class Done:
    """The job of this index has ended with this result."""

    index: int
    result: Any


@dataclass(frozen=True)
class Tick:
    """Nothing was heard for a while."""


class Workers:
    """A context manager of at most ``num_workers`` processes, which start when there are jobs and end with it."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._workers: dict[Connection, SpawnProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link, process in self._workers.items():
            link.close()
            if kind is not None:  # nobody waits for what it is doing; a shard is written whole or not at all
                process.kill()
        for process in self._workers.values():
            process.join()

    def run(self, jobs: Sequence[Job], what: Callable[[int], str], *, tick_s: float) -> Iterator[Rows | Done | Tick]:
        """Run the jobs, as many at a time as there are workers, in order of their start, and tell what happens.

        what: says what a job is about. The error of a job is raised here; WorkerLostError when its worker died.
        """
        self._start(min(self._num_workers, len(jobs)))
        waiting = deque(range(len(jobs)))
        running: dict[Connection, int] = {}
        idle = list(self._workers)
        while waiting or running:
            while waiting and idle:
                link = idle.pop()
                running[link] = waiting.popleft()
                self._send(link, jobs[running[link]], what(running[link]))
            ready = set(connection.wait(list(running), timeout=tick_s))
            if not ready:
                yield Tick()
            for link in [link for link in running if link in ready]:
                message = self._receive(link, what(running[link]))
                if isinstance(message, Rows):
                    yield message
                else:
                    idle.append(link)
                    yield Done(running.pop(link), message)

    def _start(self, num_workers: int) -> None:
        context = get_context("spawn")
        while len(self._workers) < num_workers:
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # else the end of the worker would not close the pipe
            self._workers[ours] = process

    def _send(self, link: Connection, job: Job, what: str) -> None:
        try:
            link.send(job)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._lost(link, what) from error

    def _receive(self, link: Connection, what: str) -> Any:
        try:
            message = link.recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._lost(link, what) from error
        if isinstance(message, MlcdError):
            raise message
        if isinstance(message, BaseException):
            raise StageFailedError(f"{what} failed with {type(message).__name__}: {message}; run again") from message
        return message

    def _lost(self, link: Connection, what: str) -> WorkerLostError:
        process = self._workers[link]
        process.join()
        return WorkerLostError(
            f"the worker that packed {what} died ({_exit_text(process.exitcode)}); run again, finished shards are "
            "kept; with fewer --workers or a smaller --max-shard-bytes if memory ran out; a shard that dies again can "
            "be packed without --resize"
        )


def _work(link: Connection) -> None:
    """Until the other end is gone: take a job, send its rows and then its result or error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the owner gets it too and ends its workers
    try:
        while True:
            job: Job = link.recv()
            link.send(_result(job, link))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _result(job: Job, link: Connection) -> Any:
    try:
        return job(on_rows=lambda rows: link.send(Rows(rows)))
    except Exception as error:
        error.add_note(traceback.format_exc())  # a traceback does not travel, a note does
        return error


def _exit_text(exitcode: int | None) -> str:
    return f"signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"
