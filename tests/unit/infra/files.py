"""What the tests of infra/ read: the repository's files, parsed, and facts that several of them repeat."""

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).parents[3]
PAGE = "docs/from-laptop-to-cluster.md"


def read(path: str) -> str:
    """A file of the repository as text."""
    return (REPO / path).read_text(encoding="utf-8")


def load(path: str) -> Any:
    """A YAML file of the repository."""
    return yaml.safe_load(read(path))


def project() -> dict[str, Any]:
    """The section ``project`` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads(read("pyproject.toml"))["project"]
    return found


def locked(variant: str = "gpu") -> dict[str, str]:
    """Package -> version of the lock of an image."""
    lock = read(f"infra/locks/image-{variant}.txt")
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", lock, flags=re.MULTILINE))


def image(variant: str) -> str:
    """The name that a variant of the image has everywhere."""
    return f"mlcd:{project()['version']}-{variant}"


def profile(name: str) -> dict[str, str | None]:
    """Name -> value of a profile; None where the name stands alone."""
    lines = [line for line in read(f"infra/profiles/{name}.env").splitlines() if line and not line.startswith("#")]
    return {key: value if sign else None for key, sign, value in (line.partition("=") for line in lines)}


def containers(template: Any) -> list[dict[str, Any]]:
    """The containers of a pod template."""
    found: list[dict[str, Any]] = template["spec"]["containers"]
    return found
