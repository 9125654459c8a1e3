"""The two pages: what they tell people to type exists, and the figures on paper are those of the plan."""

import re
import shlex

import pytest
import yaml

from benchmarks import paper_plan
from tests.unit.infra.files import PAGE, REPO, image, read

PAPER = "docs/laion-400m-on-paper.md"


def commands() -> list[list[str]]:
    """Every command of the page's shell blocks as words, continued lines joined, comments dropped."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", read(PAGE), flags=re.DOTALL))
    lines = blocks.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def after(*start: str) -> list[list[str]]:
    """What follows ``start`` in the commands that begin with it, or hold it behind another program."""
    found = []
    for words in commands():
        for first in range(len(words)):
            if tuple(words[first : first + len(start)]) == start:
                found.append(words[first + len(start) :])
    return found


MLCD = [*after("infra/dev", "mlcd"), *after("worker", "mlcd")]


@pytest.mark.parametrize("words", MLCD, ids=" ".join)
def test_mlcd_commands_parse_and_their_settings_load(words: list[str]) -> None:
    from flows.command import command_parser
    from mlcd_core.config import load_config

    options = command_parser().parse_args(words)
    overrides = dict(setting.split("=", 1) for setting in getattr(options, "set", []))
    load_config(getattr(options, "preset", "laptop"), environment={}, overrides=overrides)


def test_there_are_commands_of_every_step_to_test() -> None:
    assert {words[0] for words in MLCD} >= {"doctor", "pack", "plan", "run"}
    assert any("s3://my-bucket/mlcd" in words for words in MLCD)
    for start in (["docker", "compose"], ["kubectl"], ["ray", "up"], ["helm", "upgrade"]):
        assert after(*start)


def test_deployment_commands_name_real_deployments_pools_and_parameters() -> None:
    from flows.pipeline import pipeline

    deployed = yaml.safe_load(read("prefect.yaml"))["deployments"]
    names = {f"{one['entrypoint'].split(':')[1]}/{one['name']}" for one in deployed}
    runs = after("prefect", "deployment", "run")
    assert len(runs) == 3
    for words in runs:
        assert words[0] in names
        given = {words[i + 1].split("=")[0] for i, word in enumerate(words) if word == "-p"}
        assert given <= set(pipeline.parameters.properties)
        assert "--watch-timeout" in words  # without a worker, --watch waits for ever
    [worker] = after("prefect", "worker", "start")
    assert worker[worker.index("--pool") + 1] in {one["work_pool"]["name"] for one in deployed}


def test_every_file_and_service_that_a_command_names_exists() -> None:
    for words in commands():
        for word in words:
            path = word.split("=", 1)[-1].rstrip(";")
            if path.startswith(("infra/", "docs/")):
                assert (REPO / path).exists(), path
    services = yaml.safe_load(read("infra/compose/compose.yaml"))["services"]
    assert {words[0] for words in after("exec") if not words[0].startswith("infra/")} <= set(services)


@pytest.mark.parametrize("page", [PAGE, PAPER])
def test_every_link_and_path_exists(page: str) -> None:
    text = read(page)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    headings = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert (REPO / page).parent.joinpath(target).exists(), target
    for path in re.findall(r"`((?:infra|tests|docs|benchmarks)/[\w/.-]+)`", text):
        assert (REPO / path).exists(), path


def test_the_ports_of_the_page_are_those_of_compose() -> None:
    published = re.findall(r'"127\.0\.0\.1:(\d+):\d+"', read("infra/compose/compose.yaml"))
    assert sorted(re.findall(r"^\| (\d{4}) \|", read(PAGE), flags=re.MULTILINE)) == sorted(published)


def test_images_have_one_name() -> None:
    assert set(re.findall(r"\bmlcd:[\w.-]+\w", read(PAGE))) == {image("gpu")}


def test_the_page_says_what_never_ran() -> None:
    assert read(PAPER).count("Nothing on this page was run.") == 1
    assert "no image was ever built" in read(PAGE)


def test_the_figures_on_paper_are_those_of_the_plan() -> None:
    from tasks.planning import plan_run
    from tasks.run import Request

    plan = plan_run(Request(root="/nowhere", preset=paper_plan.PRESET, data=""), num_rows=None)
    assert read(PAPER) == paper_plan.page(plan["estimate"])


def test_the_page_on_paper_changes_with_the_plan() -> None:
    from tasks.planning import plan_run
    from tasks.run import Request

    plan = plan_run(Request(root="/nowhere", preset=paper_plan.PRESET, data=""), num_rows=10_000_000)
    assert "10,000,000" in paper_plan.page(plan["estimate"])
