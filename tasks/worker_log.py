"""What worker processes log, brought to the log of the run: which worker said it, and what.

Ray keeps the log of a worker in a file on the worker's machine, where nobody looks. Here records travel as events: all
that this package logs, and the warnings of what it uses, with those of Python's ``warnings``. What is printed, and the
last words of a process that crashes, stay in Ray's files.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping

from mlcd_core.events import Value

LOG_EVENT = "log"
OWN = ("mlcd", "mlcd_core", "tasks")
# a warning for every image must not become a line for every image
MOST_LINES = 100

Send = Callable[[Mapping[str, Value]], None]


class WorkerLog(logging.Handler):
    """Sends at most 100 records as values of the event ``log``: ``who`` says it, its ``level`` and ``text``."""

    def __init__(self, who: str, send: Send) -> None:
        super().__init__()
        self._who = who
        self._send = send
        self._lines = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record travels; those of Ray do not, since sending is Ray's work."""
        package = record.name.partition(".")[0]
        least = logging.INFO if package in OWN else logging.WARNING
        return package != "ray" and record.levelno >= least and self._lines < MOST_LINES

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record, and after the last one where the others are."""
        self._lines += 1
        more = "" if self._lines < MOST_LINES else " (the last line from here; Ray's own log files have the rest)"
        self._send({"who": self._who, "level": record.levelno, "text": record.getMessage() + more})


def send_log(who: str, send: Send) -> None:
    """Send what this process logs from now on until it ends, and a first line that says where it is."""
    logging.getLogger().addHandler(WorkerLog(who, send))
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger(OWN[0]).info("process %d on %s", os.getpid(), socket.gethostname())
