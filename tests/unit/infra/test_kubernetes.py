"""Manifests and Helm values, without a cluster: fields, images, security, and what they say of each other."""

import copy
import json
import re
from typing import Any

import jsonschema
import pytest

from tasks.ray_jobs import OTHER_ADDRESSES
from tests.unit.infra.files import containers, image, load, locked, profile

SCHEMA = load("tests/unit/infra/kuberay.schema.yaml")
CLUSTER, JOB = load("infra/k8s/raycluster.yaml"), load("infra/k8s/rayjob.yaml")
WORKER = load("infra/k8s/prefect-worker.values.yaml")["worker"]
TEMPLATE = json.loads(WORKER["config"]["baseJobTemplate"]["configuration"])
FLOW_POD = TEMPLATE["job_configuration"]["job_manifest"]["spec"]["template"]
# Prefect asks for them inside the pod, where Kubernetes knows no such fields
PREFECT_ONLY = ("parallelism", "completions")
SPEC = CLUSTER["spec"]
RAY_PODS = [SPEC["headGroupSpec"]["template"], *(group["template"] for group in SPEC["workerGroupSpecs"])]
PODS = [*RAY_PODS, FLOW_POD]


def fails(manifest: Any) -> bool:
    return not jsonschema.Draft202012Validator(SCHEMA).is_valid(manifest)


@pytest.mark.parametrize("manifest", [CLUSTER, JOB], ids=["raycluster", "rayjob"])
def test_manifests_follow_the_schema(manifest: Any) -> None:
    jsonschema.validate(manifest, SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_schema_finds_a_misspelt_field_and_a_wrong_type() -> None:
    assert fails({**CLUSTER, "spec": {**SPEC, "authOption": {"mode": "token"}}})
    assert fails({**CLUSTER, "spec": {**SPEC, "authOptions": {"mode": "tokens"}}})
    head = {**SPEC["headGroupSpec"], "rayStartParams": {"num-cpus": 0}}
    assert fails({**CLUSTER, "spec": {**SPEC, "headGroupSpec": head}})


def test_the_pod_of_a_flow_run_follows_the_schema() -> None:
    pod = {key: value for key, value in FLOW_POD["spec"].items() if key not in PREFECT_ONLY}
    schema = {**{key: value for key, value in SCHEMA.items() if key != "oneOf"}, "$ref": "#/$defs/pod"}
    jsonschema.validate(pod, schema, cls=jsonschema.Draft202012Validator)
    assert [FLOW_POD["spec"][key] for key in PREFECT_ONLY] == [1, 1]


def test_a_job_brings_the_same_cluster_whose_head_may_ask_prefect() -> None:
    theirs = copy.deepcopy(JOB["spec"]["rayClusterSpec"])
    [head] = containers(theirs["headGroupSpec"]["template"])
    assert head["envFrom"].pop() == {"secretRef": {"name": "mlcd-server", "optional": True}}
    assert theirs == SPEC


def test_ray_is_the_locked_one_and_asks_for_a_token() -> None:
    assert SPEC["rayVersion"] == locked("gpu")["ray"]
    assert SPEC["authOptions"] == {"mode": "token"}


def test_every_pod_runs_the_gpu_image() -> None:
    assert {container["image"] for template in RAY_PODS for container in containers(template)} == {image("gpu")}
    assert TEMPLATE["variables"]["properties"]["image"]["default"] == image("gpu")


@pytest.mark.parametrize("template", PODS, ids=["head", "workers", "flow run"])
def test_pods_have_no_rights_that_they_do_not_need(template: Any) -> None:
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    [container] = containers(template)
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("template", PODS, ids=["head", "workers", "flow run"])
def test_pods_take_secrets_from_the_cluster_and_ask_for_fixed_resources(template: Any) -> None:
    [container] = containers(template)
    # only a flow asks Prefect, so workers of Ray get no password of it
    own = [{"secretRef": {"name": "mlcd-server"}}] if template is FLOW_POD else []
    assert container["envFrom"] == [{"secretRef": {"name": "mlcd-env"}}, *own]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    for variable in container.get("env", []):
        if re.search(r"SECRET|TOKEN|PASSWORD|AUTH_STRING", variable["name"]):
            assert "value" not in variable


def test_a_flow_run_reaches_the_standing_cluster_with_its_token() -> None:
    name = CLUSTER["metadata"]["name"]
    [container] = containers(FLOW_POD)
    variables = {variable["name"]: variable for variable in container["env"]}
    [dashboard] = [port for port in containers(RAY_PODS[0])[0]["ports"] if port["name"] == "dashboard"]
    deployed = [one for one in load("prefect.yaml")["deployments"] if one["name"] == "k8s"]
    assert {one["work_pool"]["name"] for one in deployed} == {WORKER["config"]["workPool"]}
    # KubeRay's names: the head's service, and the secret that holds the token
    [address] = {one["parameters"]["ray_address"] for one in deployed}
    assert address == f"http://{name}-head-svc:{dashboard['containerPort']}"
    # the client would take theirs for the address that it is given
    assert not set(OTHER_ADDRESSES) & set(variables)
    assert variables["RAY_AUTH_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": name, "key": "auth_token"}}
    assert variables["RAY_AUTH_MODE"]["value"] == "token"


def test_every_placeholder_of_the_template_is_a_variable_of_it() -> None:
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(TEMPLATE["variables"]["properties"])


def test_the_worker_is_the_locked_prefect_and_asks_with_a_secret() -> None:
    assert WORKER["image"]["prefectTag"].split("-")[0] == locked("gpu")["prefect"]
    assert WORKER["selfHostedServerApiConfig"]["basicAuth"] == {"enabled": True, "existingSecret": "mlcd-prefect"}


def test_a_job_runs_a_command_that_exists_with_settings_that_exist() -> None:
    from flows.command import command_parser
    from mlcd_core.config import load_config

    program, *arguments = JOB["spec"]["entrypoint"].split()
    assert program == "mlcd"
    options = command_parser().parse_args(arguments)
    config = load_config(
        options.preset, environment={}, overrides=dict(setting.split("=", 1) for setting in options.set)
    )
    [workers] = SPEC["workerGroupSpecs"]
    gpus = int(containers(workers["template"])[0]["resources"]["limits"]["nvidia.com/gpu"])
    assert config.train.workers == config.embed.workers == workers["replicas"] * gpus


def test_the_profile_of_a_cluster_names_secrets_and_does_not_hold_them() -> None:
    values = profile("cluster")
    assert {name for name, value in values.items() if value is None} == {
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    }
    server = profile("prefect")
    assert {name for name, value in server.items() if value is None} == {"PREFECT_API_URL", "PREFECT_API_AUTH_STRING"}
