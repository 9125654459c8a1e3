"""The Dockerfile, without an engine: what it copies is there, what it installs is locked, what it runs is no root."""

import importlib.metadata
import re
import tomllib
from dataclasses import dataclass
from fnmatch import fnmatch

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.unit.infra.files import REPO, locked, project, read

DOCKERFILE = "infra/docker/Dockerfile"
VARIANTS = ("cpu", "gpu")


@dataclass(frozen=True)
class Instruction:
    """One instruction, its continued lines joined."""

    name: str
    text: str


def instructions() -> list[Instruction]:
    lines = "\n".join(line for line in read(DOCKERFILE).splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [Instruction(*line.split(maxsplit=1)) for line in joined if line.strip()]


def of(name: str) -> list[str]:
    return [instruction.text for instruction in instructions() if instruction.name == name]


def copied() -> list[str]:
    """Paths that are copied from the repository, each variant's lock by its name."""
    sources = [path for text in of("COPY") if not text.startswith("--from") for path in text.split()[:-1]]
    return sorted({path.replace("${MLCD_EXTRA}", variant) for path in sources for variant in VARIANTS})


def enters_the_build(path: str) -> bool:
    """Whether the rules of the dockerignore file let a path through; the last rule that fits decides."""
    inside = True
    for rule in read(f"{DOCKERFILE}.dockerignore").splitlines():
        pattern = rule.removeprefix("!")
        if not rule.startswith("#") and (fnmatch(path, pattern) or path.startswith(f"{pattern}/")):
            inside = rule.startswith("!")
    return inside


@pytest.mark.parametrize("path", copied())
def test_what_is_copied_exists_and_enters_the_build(path: str) -> None:
    assert (REPO / path).exists()
    assert enters_the_build(path)


@pytest.mark.parametrize(
    "path", [".git", ".venv/bin/python", "tests/conftest.py", "infra/profiles/cluster.env", ".env"]
)
def test_nothing_else_enters_the_build(path: str) -> None:
    assert not enters_the_build(path)


def test_every_package_of_the_wheel_is_copied() -> None:
    wheel = tomllib.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(wheel) <= set(copied())


def test_there_is_one_base_image_with_a_tag_and_a_python_that_the_project_allows() -> None:
    stages = {text.split(" AS ")[1] for text in of("FROM") if " AS " in text}
    bases = {text.split()[0] for text in of("FROM")} - stages - {"image-${MLCD_EXTRA}"}
    assert {f"image-{variant}" for variant in VARIANTS} < stages
    [base] = bases
    version = re.fullmatch(r"python:(3\.\d+)-slim-[a-z]+", base)
    assert version
    assert version[1] in SpecifierSet(project()["requires-python"])
    assert f"python{version[1]}" in read(DOCKERFILE)


def test_the_lock_of_each_variant_has_every_dependency_of_the_project() -> None:
    # hashes come from the lock as constraints, and a package that the lock does not name would be installed without
    for variant in VARIANTS:
        needed = [
            *project()["dependencies"],
            *project()["optional-dependencies"][variant],
            *project()["optional-dependencies"]["image"],
        ]
        names = {canonicalize_name(Requirement(text).name) for text in needed}
        assert names <= set(locked(variant))
        assert {"hatchling"} <= set(locked(variant))


def test_wheels_are_installed_by_hash() -> None:
    installs = [part for text in of("RUN") for part in text.split("&&") if "pip install" in part or "uv build" in part]
    assert len(installs) == 4
    for command in installs:
        assert any(flag in command for flag in ("--require-hashes", "--verify-hashes", "--no-deps dist/*.whl")), command
    assert set(re.findall(r"^([a-z]\S*)==", read("infra/docker/uv.txt"), flags=re.MULTILINE)) == {"uv"}
    assert "--hash=sha256:" in read("infra/docker/uv.txt")


def test_the_image_runs_as_a_user_that_is_not_root() -> None:
    [user] = of("USER")
    assert user.isdigit()
    assert user != "0"
    assert f"--uid {user}" in " ".join(of("RUN"))
    assert [instruction.name for instruction in instructions()][-2:] == ["USER", "CMD"]


def test_no_secret_is_an_argument_or_variable_of_the_image() -> None:
    for text in of("ARG") + of("ENV"):
        assert not re.search(r"SECRET|TOKEN|PASSWORD|KEY|AUTH_STRING", text.upper()), text


def test_the_image_has_what_a_ray_cluster_needs_beyond_a_local_session() -> None:
    # the dashboard, which takes jobs and answers the probes of KubeRay, starts only with Ray's extra "default"
    needed = [Requirement(text) for text in importlib.metadata.requires("ray") or []]
    names = {
        canonicalize_name(requirement.name)
        for requirement in needed
        if requirement.marker and 'extra == "default"' in str(requirement.marker)
    }
    assert "aiohttp-cors" in names
    for variant in VARIANTS:
        assert names - set(locked(variant)) == set()
