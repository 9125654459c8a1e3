"""What worker processes log, brought to the log of the run: which worker said it, and what.

Ray keeps the log of a worker in a file on the worker's machine, where nobody looks. Here records travel as events: all
that this package logs, and the warnings of what it uses, with those of Python's ``warnings``. Warnings stand in Ray's
files, too, and there alone what is printed, and the last words of a process that crashes.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping

from mlcd_core.events import Value

LOG_EVENT = "log"
OWN = ("mlcd", "mlcd_core", "tasks")
# a warning for every image must not become a line for every image, nor hide an error
MOST_LINES = 100

Send = Callable[[Mapping[str, Value]], None]


class WorkerLog(logging.Handler):
    """Sends at most 100 records of each level as values of the event ``log``: ``who`` says it, ``level``, ``text``."""

    def __init__(self, who: str, send: Send) -> None:
        super().__init__()
        self._who = who
        self._send = send
        self._lines = Counter[int]()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record travels; those of Ray do not, since sending is Ray's work."""
        package = record.name.partition(".")[0]
        least = logging.INFO if package in OWN else logging.WARNING
        return package != "ray" and record.levelno >= least and self._lines[record.levelno] < MOST_LINES

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record with its traceback, and with the last one of its level a word about that."""
        self._lines[record.levelno] += 1
        is_last = self._lines[record.levelno] == MOST_LINES
        more = f" (no more lines of level {record.levelname} come from here)" if is_last else ""
        try:
            self._send({"who": self._who, "level": record.levelno, "text": self.format(record) + more})
        except Exception:  # as the handlers of the library: what cannot be logged must not end the work
            self.handleError(record)


def send_log(who: str, send: Send) -> None:
    """Send what this process logs from now on until it ends, and a first line that says where it is."""
    root = logging.getLogger()
    root.addHandler(WorkerLog(who, send))
    to_stderr = logging.StreamHandler()
    to_stderr.setLevel(logging.WARNING)
    root.addHandler(to_stderr)
    for name in OWN:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.getLogger(OWN[0]).info("process %d on %s", os.getpid(), socket.gethostname())
