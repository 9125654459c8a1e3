"""Over all files of infra/: every variable is a real one, telemetry is off, and no secret is written there."""

import re
from pathlib import Path

import pytest

from tests.unit.infra.files import REPO, profile, read

FILES = sorted(
    str(path.relative_to(REPO))
    for folder in ("docker", "compose", "k8s", "ray", "profiles")
    for path in (REPO / "infra" / folder).rglob("*")
    if path.is_file()
)
PREFECT = sorted({name for path in FILES for name in re.findall(r"\bPREFECT_[A-Z_]+[A-Z]\b", read(path))})


def test_prefect_knows_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    values = {"DRIVER": "postgresql+asyncpg", "FREQUENCY": "30"}
    for name in PREFECT:
        monkeypatch.setenv(name, values.get(name.rpartition("_")[2], "1"))
    # a name that Prefect does not know is ignored, and does not come back
    assert set(PREFECT) - set(Settings().to_environment_variables(exclude_unset=True)) == set()
    assert {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_SERVER_DATABASE_HOST"} < set(PREFECT)


def test_ray_knows_the_variables() -> None:
    import ray

    folder = Path(ray.__file__).parent
    sources = [folder / "_raylet.so", folder / "_private/ray_constants.py", folder / "_common/usage/usage_constants.py"]
    known = b"".join(source.read_bytes() for source in sources)
    # the launcher sets this one for the commands of its file
    used = {name for path in FILES for name in re.findall(r"\bRAY_[A-Z_]+\b", read(path))} - {"RAY_HEAD_IP"}
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} < used
    assert {name for name in used if name.encode() not in known} == set()


def test_telemetry_is_off_wherever_variables_are_set() -> None:
    off = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    for name in ("laptop", "cluster"):
        assert off.items() <= {key: value for key, value in profile(name).items() if value}.items()
    for path in ("infra/docker/Dockerfile", "infra/compose/compose.yaml", "infra/dev"):
        assert {name for name in off if name not in read(path)} == set(), path


SECRET_NAME = r"\b[A-Z_]*(?:SECRET|TOKEN|PASSWORD|AUTH_STRING|ACCESS_KEY)[A-Z_]*"
DRAWN = r"(?<!sha256:)\b(?:[0-9a-f]{20,}|AKIA[0-9A-Z]{12,}|(?=\w*[a-z])(?=\w*[A-Z])(?=\w*\d)\w{24,})\b"


def secrets(text: str) -> list[str]:
    """Words that look drawn at random, and values beside the name of a secret; a variable in its place is none."""
    return re.findall(DRAWN, text) + re.findall(rf"{SECRET_NAME}[\"']?\s*[=:]\s*[\"']?([\w/+-]+)", text)


@pytest.mark.parametrize("path", FILES)
def test_no_file_holds_a_secret(path: str) -> None:
    assert secrets(read(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI",
        "RAY_AUTH_TOKEN: hunter2",
        'POSTGRES_PASSWORD: "postgres"',
        "key: 8f2b1c9d7e6a4f3b5c0d1e2f",
    ],
)
def test_a_secret_would_be_found(text: str) -> None:
    assert secrets(text)


def test_no_image_is_whatever_is_newest() -> None:
    for path in FILES:
        assert ":latest" not in read(path), path
