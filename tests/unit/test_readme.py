"""What the README tells people to type exists: commands parse, settings are real, files are there."""

import re
import shlex
from pathlib import Path

import pytest

from flows.command import command_parser
from mlcd_core.config import all_keys, load_config

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")
PAGES = "\n".join([README, *(path.read_text(encoding="utf-8") for path in sorted((REPO / "docs").glob("*.md")))])


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def typed_commands() -> list[list[str]]:
    """Every command of the README's shell blocks as words, continued lines joined, comments dropped."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


MLCD = [words[2:] for words in typed_commands() if words[:2] == ["infra/dev", "mlcd"]]


@pytest.mark.parametrize("words", MLCD, ids=" ".join)
def test_mlcd_commands_parse_and_their_settings_load(words: list[str]) -> None:
    options = vars(command_parser().parse_args(words))
    overrides = dict(assignment.split("=", 1) for assignment in options.get("set", []))
    load_config(options.get("preset", "laptop"), environment={}, overrides=overrides)


def test_there_are_commands_to_test() -> None:
    assert len(MLCD) >= 3
    assert {"demo", "test"} <= {words[1] for words in typed_commands() if words[0] == "infra/dev"}


def test_every_setting_that_is_named_exists() -> None:
    named = set(re.findall(r"\b((?:embed|cluster|label|train|evaluate)\.[a-z_]+)\b", README))
    assert {name for name in named if not name.endswith((".py", ".md"))} <= set(all_keys())


def test_every_file_and_link_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPO / target).exists(), target
    for path in re.findall(r"`((?:mlcd_core|tasks|flows|infra|tests|docs|benchmarks)/[\w/.-]+)`", README):
        assert (REPO / path).exists(), path


def test_deployment_commands_name_real_deployments_and_parameters() -> None:
    import yaml

    from flows.pipeline import pipeline

    typed = re.findall(r"prefect deployment run '(\S+)'(.*)", PAGES)
    deployments = yaml.safe_load((REPO / "prefect.yaml").read_text())["deployments"]
    names = {f"{deployment['entrypoint'].split(':')[1]}/{deployment['name']}" for deployment in deployments}
    assert len(typed) >= 3
    for name, options in typed:
        assert name in names
        assert set(re.findall(r"-p (\w+)=", options)) <= set(pipeline.parameters.properties)
