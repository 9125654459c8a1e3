"""The compose files, without an engine: the published schema, and what the parts say of each other."""

import importlib.resources
import json
import re
from typing import Any

import jsonschema
import pytest

from tests.unit.infra.files import PAGE, image, load, locked, profile, read

FILE = "infra/compose/compose.yaml"
COMPOSE = load(FILE)
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
SECRETS = {
    "MLCD_POSTGRES_PASSWORD",
    "PREFECT_API_AUTH_STRING",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "RAY_AUTH_TOKEN",
}


def variables(text: str) -> dict[str, str]:
    """Name -> what follows it, ``:?message`` or ``:-default``, for every variable that a text asks for."""
    return dict(re.findall(r"\$\{([A-Z_]+)(:[?-][^}]*)?\}", text))


def words(service: dict[str, Any]) -> str:
    return " ".join(service["command"])


@pytest.mark.parametrize("path", [FILE, "infra/compose/gpu.yaml"])
def test_files_follow_the_schema_of_compose(path: str) -> None:
    schema = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(load(path), json.loads(schema.read_text(encoding="utf-8")))


def test_the_parts_are_there_and_wait_for_parts_that_are() -> None:
    assert set(SERVICES) == {"postgres", "prefect", "s3", "ray-head", "ray-worker", "worker"}
    for service in SERVICES.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in SERVICES[name]
    assert set(load("infra/compose/gpu.yaml")["services"]) == {"ray-worker"}


def test_ports_are_published_on_loopback_only() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert sorted(published) == ["127.0.0.1:4200:4200", "127.0.0.1:8265:8265", "127.0.0.1:8333:8333"]
    assert not any("network_mode" in service for service in SERVICES.values())


def test_each_published_port_is_the_one_that_its_part_listens_on() -> None:
    assert "--port 4200" in words(SERVICES["prefect"])
    assert "--dashboard-port=8265" in words(SERVICES["ray-head"])
    assert SERVICES["worker"]["environment"]["AWS_ENDPOINT_URL"] == "http://s3:8333"


def test_the_laptop_profile_and_the_browser_find_the_server() -> None:
    address = SERVICES["prefect"]["environment"]["PREFECT_SERVER_UI_API_URL"]
    assert address == profile("laptop")["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert SERVICES["worker"]["environment"]["PREFECT_API_URL"] == "http://prefect:4200/api"


def test_every_secret_is_required_and_has_no_default() -> None:
    asked = variables(read(FILE))
    assert {name for name, rest in asked.items() if rest.startswith(":?")} == SECRETS
    assert set(asked) - SECRETS == {"MLCD_IMAGE", "MLCD_EXTRA"}
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"SECRET|TOKEN|PASSWORD|AUTH_STRING|ACCESS_KEY", name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), name


def test_the_page_says_how_to_make_every_secret() -> None:
    page = read(PAGE)
    assert {name for name in SECRETS if f"export {name}=" not in page} == set()


def test_our_parts_run_one_image_that_compose_can_build() -> None:
    assert set(OURS) == {"prefect", "ray-head", "ray-worker", "worker"}
    assert {service["image"] for service in OURS.values()} == {f"${{MLCD_IMAGE:-{image('cpu')}}}"}
    assert {service["build"]["dockerfile"] for service in OURS.values()} == {"infra/docker/Dockerfile"}
    assert image("gpu") in read("infra/compose/gpu.yaml")


def test_our_parts_have_no_rights_that_they_do_not_need() -> None:
    for service in OURS.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_ray_asks_for_its_token_everywhere() -> None:
    for name in ("ray-head", "ray-worker", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert "RAY_AUTH_TOKEN" in environment


def test_the_prefect_server_asks_for_its_password_and_guards_forms() -> None:
    server = SERVICES["prefect"]["environment"]
    assert server["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true"
    assert variables(server["PREFECT_SERVER_API_AUTH_STRING"]).keys() == {"PREFECT_API_AUTH_STRING"}
    assert server["PREFECT_SERVER_DATABASE_PASSWORD"] == SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"]


def test_the_worker_serves_a_pool_that_deployments_use() -> None:
    pool = re.search(r"--pool (\S+)", words(SERVICES["worker"]))
    assert pool
    assert f"name: {pool[1]}" in read("prefect.yaml")


def test_foreign_images_have_a_tag() -> None:
    for name in set(SERVICES) - set(OURS):
        assert re.fullmatch(r"[a-z/]+:\d[\w.-]+", SERVICES[name]["image"])


def test_the_prefect_server_finds_its_database(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings

    database = SERVICES["postgres"]["environment"]
    for name, value in SERVICES["prefect"]["environment"].items():
        monkeypatch.setenv(name, "a@b/c" if "${" in value else value)
    address = Settings().server.database.connection_url
    assert address
    expected = f"postgresql+asyncpg://{database['POSTGRES_USER']}:a%40b%2Fc@postgres/{database['POSTGRES_DB']}"
    assert address.get_secret_value().replace(":5432", "") == expected
    assert "asyncpg" in locked("cpu")
