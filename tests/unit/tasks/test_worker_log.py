"""What a worker's log sends and what not, in a process of its own: a worker's ends with its log."""

import json
import subprocess
import sys

SCRIPT = """
import json, logging, os, warnings
from tasks.worker_log import MOST_LINES, send_log

lines = []
send_log("rank 3", lines.append)
{code}
print(os.getpid(), json.dumps(lines))
"""


def logged_by(code: str) -> tuple[int, list[dict[str, object]]]:
    """The process, and what it sends: the first line says where it is."""
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(code=code)], capture_output=True, text=True, check=True)
    pid, _, lines = done.stdout.partition(" ")
    return int(pid), json.loads(lines)


def texts(code: str) -> list[object]:
    _, [_, *lines] = logged_by(code)
    return [line["text"] for line in lines]


def test_the_first_line_says_who_and_where() -> None:
    pid, [line] = logged_by("")
    assert (line["who"], line["level"]) == ("rank 3", 20)
    assert str(line["text"]).startswith(f"process {pid} on ")


def test_own_lines_travel_from_info_on_and_those_of_others_from_warning_on() -> None:
    code = """
for name in ("mlcd_core.objects.retries", "tasks.embed", "botocore"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING):
        logging.getLogger(name).log(level, "%s at %d", name, level)
"""
    own = [
        "mlcd_core.objects.retries at 20",
        "mlcd_core.objects.retries at 30",
        "tasks.embed at 20",
        "tasks.embed at 30",
    ]
    assert texts(code) == [*own, "botocore at 30"]


def test_warnings_of_python_travel() -> None:
    [text] = texts("warnings.warn('beta is deprecated')")
    assert "UserWarning: beta is deprecated" in str(text)


def test_ray_is_not_heard_since_it_carries_the_lines() -> None:
    assert texts("logging.getLogger('ray.data').error('no')") == []


def test_a_flood_ends_with_a_line_that_says_so_and_hides_no_error() -> None:
    flood = "for number in range(10 * MOST_LINES): logging.getLogger('PIL').warning('%d', number)"
    found = texts(f"{flood}\nlogging.getLogger('PIL').error('broken')")
    assert found[:-2] == [str(number) for number in range(99)]
    assert found[-2:] == ["99 (no more lines of level WARNING come from here)", "broken"]


def test_an_error_travels_with_its_traceback() -> None:
    code = """
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("tasks").exception("no mean")
"""
    [text] = texts(code)
    assert str(text).startswith("no mean\nTraceback")
    assert "ZeroDivisionError" in str(text)


def test_a_line_that_cannot_be_made_or_sent_ends_nothing() -> None:
    assert texts("logging.getLogger('PIL').warning('%d', 'one'); logging.getLogger('PIL').warning('two')") == ["two"]
    closed = "send_log('rank 4', lambda line: 1 / 0); logging.getLogger('PIL').warning('two')"
    assert texts(closed)[-1] == "two"


def test_warnings_stand_in_the_log_of_the_worker_too() -> None:
    script = SCRIPT.format(code="logging.getLogger('PIL').warning('slow'); logging.getLogger('tasks').info('begun')")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "slow\n"
