"""``mlcd doctor``: what this machine, the storage and the data are fit for, before anything is started.

Each check gives findings: ok, a warning (it runs, but something is worth knowing) or an error (a run would fail).
Nothing secret is looked up: addresses are shown without users and passwords, and credentials not at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from mlcd_core.errors import MlcdError
from mlcd_core.objects import is_s3
from tasks.doctor_data import check_data
from tasks.doctor_findings import Finding
from tasks.doctor_machine import check_gpus, check_machine, check_packages
from tasks.doctor_prefect import check_prefect
from tasks.doctor_storage import check_disk, check_store


def diagnose(root: str, data: str = "", *, image_column: str = "auto", environment: Mapping[str, str]) -> list[Finding]:
    """Check everything, and the first shard of ``data`` that can be read if it is given.

    root: an absolute path or ``s3://`` address. It is written to, and left as it was. image_column: of ``data``.
    """
    return list(_checks(root, data, image_column, environment))


def _checks(root: str, data: str, image_column: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    yield from check_packages()
    yield from check_machine()
    yield from check_gpus()
    yield from check_prefect(environment)
    yield from _storage_and_data(root, data, image_column)


def _storage_and_data(root: str, data: str, image_column: str = "auto") -> Iterator[Finding]:
    storage = list(_explained("storage", lambda: check_store(root)))
    yield from storage
    if not is_s3(root):
        yield check_disk(Path(root))
    if data and is_s3(data) and any(finding.state == "error" for finding in storage):
        yield Finding("data", "warning", "not looked at: the storage does not answer")
    elif data:
        yield from _explained("data", lambda: check_data(data, image_column=image_column))


def _explained(subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check found, until an error meant for people ended it."""
    try:
        yield from check()
    except MlcdError as error:
        yield Finding(subject, "error", str(error))
