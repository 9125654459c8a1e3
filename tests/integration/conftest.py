"""Fixtures of the integration tests: a Prefect server on a free port, and the ``mlcd`` command against it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.harness import Mlcd, prefect_api


@pytest.fixture(scope="session")
def prefect_server(private_home: Path) -> Iterator[str]:
    """The API address of a server of this session's own."""
    with prefect_api(private_home, os.environ) as api:
        yield api


@pytest.fixture(scope="session")
def mlcd(prefect_server: str) -> Mlcd:
    """The command against the session's server."""
    return Mlcd(prefect_server)
