"""The file of ``ray up``, by the code that reads it there."""

import re

import pytest

from tests.unit.infra.files import REPO, load, locked

LAUNCHER = load("infra/ray/aws.yaml")
START = [command for kind in ("head", "worker") for command in LAUNCHER[f"{kind}_start_ray_commands"]]


@pytest.fixture(scope="module")
def prepared() -> dict[str, object]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, object] = prepare_config(LAUNCHER)
    validate_config(config)
    return config


def test_ray_accepts_the_file_and_adds_no_command_of_its_own(prepared: dict[str, object]) -> None:
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == LAUNCHER["setup_commands"]
    assert prepared["head_start_ray_commands"] == LAUNCHER["head_start_ray_commands"]
    assert "boto3" in locked("gpu")  # which the command left out would have installed


def test_a_misspelt_field_is_found() -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**LAUNCHER, "setup_command": []}))


def test_ray_asks_for_its_token_and_every_machine_has_it() -> None:
    starts = [command for command in START if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    home = f"/home/{LAUNCHER['auth']['ssh_user']}"
    assert LAUNCHER["file_mounts"][f"{home}/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)


def test_commands_use_what_is_in_the_repository() -> None:
    [mounted] = [there for there, here in LAUNCHER["file_mounts"].items() if here == "."]
    used = set(re.findall(rf"{mounted}/(\S+)", " ".join([*LAUNCHER["setup_commands"], *START])))
    assert used == {"infra/dev", ".venv/bin/ray"}
    assert (REPO / "infra" / "dev").exists()


def test_the_dashboard_is_of_the_ray_that_is_locked() -> None:
    [install] = [command for command in LAUNCHER["setup_commands"] if "ray[default]" in command]
    assert f"'ray[default]=={locked('gpu')['ray']}'" in install
    assert (REPO / install.partition("--constraints ")[2].split()[0]).exists()


def test_every_node_type_has_an_image_a_disk_and_a_profile_instead_of_keys() -> None:
    assert LAUNCHER["head_node_type"] in LAUNCHER["available_node_types"]
    for node in LAUNCHER["available_node_types"].values():
        assert {"InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings"} <= set(node["node_config"])
        assert node["node_config"]["MetadataOptions"] == {"HttpTokens": "required"}
