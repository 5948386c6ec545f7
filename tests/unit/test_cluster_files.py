"""The files that start clusters: what can be checked of them without a cloud."""

import copy
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from rapid_dist.config import load_recipe
from rapid_dist.runtime.cluster import HEAD_ENVIRONMENT
from rapid_dist.runtime.placement_roles import misfit, phases
from rapid_dist.runtime.submit_command import Command

ROOT = Path(__file__).resolve().parents[2]
# Our own extract of the fields of KubeRay's resources, by its published types (v1.7): those that we
# set, their types, and no others. It is no copy of the operator's schema and knows less than that.
KUBERAY = json.loads(Path(__file__).with_name("kuberay_fields.json").read_text())
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)
POOLS = {"train", "memory", "spot"}
MANIFESTS = ("cluster/raycluster.yaml", "cluster/rayjob.yaml")


def _yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = next(yaml.safe_load_all((ROOT / name).read_text()))
    return content


def _cluster_of(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = _yaml(name)["spec"]
    inner: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return inner


def _groups(name: str) -> list[dict[str, Any]]:
    cluster = _cluster_of(name)
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def _containers(name: str) -> list[dict[str, Any]]:
    return [one for group in _groups(name) for one in group["template"]["spec"]["containers"]]


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what `ray up` would use, refused by Ray's own schema if it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


def test_ray_accepts_the_cluster_file() -> None:
    filled = _filled(_yaml("ray-cluster.yaml"))
    assert filled["head_node_type"] == "head"
    assert set(filled["available_node_types"]) == {"head"} | POOLS


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("autoscaling_speed",), 1),
        (("head_node_type",), "heads"),
        (("available_node_types", "train", "resources", "CPU"), 0.5),
        (("available_node_types", "train", "min_workers"), 17),
        (("available_node_types", "spot", "label"), {}),
    ],
)
def test_ray_refuses_a_wrong_cluster_file(where: tuple[str, ...], wrong: object) -> None:
    config = _yaml("ray-cluster.yaml")
    node = config
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = wrong
    with pytest.raises(Exception, match=re.escape(where[-1]) + "|heads|0.5"):
        _filled(config)


def test_nothing_of_the_providers_own_commands_is_left() -> None:
    """They install a nightly Ray and open the dashboard to every network."""
    filled = _filled(_yaml("ray-cluster.yaml"))
    commands = " ".join(
        str(command)
        for key, value in filled.items()
        if key.endswith("_commands")
        for command in value
    )
    assert "ray start --head" in commands
    assert "--dashboard-host=127.0.0.1" in commands
    assert "pip install" not in commands
    assert "0.0.0.0" not in commands
    starts = commands.count("ray start")
    assert commands.count("RAY_AUTH_MODE=token") == starts
    assert commands.count("chmod 600 ~/.ray/auth_token") == starts


def test_without_our_own_commands_the_providers_would_be_there() -> None:
    config = _yaml("ray-cluster.yaml")
    del config["setup_commands"], config["head_start_ray_commands"]
    assert "nightly" in str(_filled(config)) or "ray-wheels" in str(_filled(config))


def test_machines_are_paid_for_only_while_a_run_asks_for_their_label() -> None:
    types = _yaml("ray-cluster.yaml")["available_node_types"]
    assert {name for name, kind in types.items() if kind["labels"] == {"pool": name}} == set(types)
    assert {types[name]["min_workers"] for name in POOLS} == {0}
    is_spot = {name for name, kind in types.items() if "InstanceMarketOptions" in str(kind)}
    assert is_spot == {"spot"}  # Neither the driver, the keeper nor anything that charges.
    assert types["head"]["resources"] == {"CPU": 0}


@pytest.mark.parametrize("kind", ["ray-cluster.yaml", "cluster/raycluster.yaml"])
def test_a_run_that_asks_by_labels_fits_the_machines_of_the_files(kind: str) -> None:
    asked = [f"runtime.{role}_labels.pool={pool}" for role, pool in
             (("worker", "train"), ("search", "memory"), ("trajectory", "spot"))]  # fmt: skip
    recipe = load_recipe("mnist", [*asked, "runtime.device=cuda", "runtime.memory_gb=8"])
    if kind == "ray-cluster.yaml":
        types = _yaml(kind)["available_node_types"].items()
        sizes = {name: one["resources"] for name, one in types}
    else:
        sizes = {}
        for group in _groups(kind):
            (container,) = group["template"]["spec"]["containers"]
            limits = container["resources"]["limits"]
            sizes[group["labels"]["pool"]] = {
                "CPU": int(group.get("resources", {}).get("CPU", limits["cpu"])),
                "GPU": int(limits.get("nvidia.com/gpu", 0)),
            }
    nodes = [
        {
            "Alive": True,
            "Labels": {"pool": pool},
            "NodeManagerAddress": f"{pool}-{number}",
            "Resources": {**size, "memory": 14 * 2**30},
        }
        for pool, size in sizes.items()
        for number in range(2)
    ]
    assert misfit(phases(recipe.runtime), nodes) is None
    assert misfit(phases(recipe.runtime), nodes[:1]) is not None


def test_every_node_runs_the_image_of_its_kind_with_the_pinned_ray() -> None:
    types = _yaml("ray-cluster.yaml")
    cpu = types["docker"]["image"]
    gpu = types["available_node_types"]["train"]["docker"]["worker_image"]
    for name in MANIFESTS:
        assert _cluster_of(name)["rayVersion"] == PINS["ray"]
        for container in _containers(name):
            has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            assert container["image"] == (gpu if has_gpu else cpu)
    for kind, image in (("cpu", cpu), ("gpu", gpu)):
        dockerfile = (ROOT / "cluster" / f"Dockerfile.{kind}").read_text()
        base = re.findall(rf"^FROM rayproject/ray:(\S+)-py311-{kind}$", dockerfile, re.M)
        assert base == [PINS["ray"]]
        assert f"-t {image} " in dockerfile
        assert "-c constraints.txt" in dockerfile


def test_the_gpu_image_has_one_faiss_of_the_pinned_version() -> None:
    dockerfile = (ROOT / "cluster" / "Dockerfile.gpu").read_text()
    assert "pip uninstall -y faiss-cpu" in dockerfile
    assert re.findall(r"--no-deps faiss-gpu==(\S+)", dockerfile) == [PINS["faiss-cpu"]]


@pytest.mark.parametrize(
    "name",
    ["cluster/Dockerfile.cpu", "cluster/Dockerfile.gpu", "cluster/up.sh", "ray-cluster.yaml"],
)
def test_every_head_has_the_patience_and_the_silence_of_the_one_of_the_tests(name) -> None:
    text = (ROOT / name).read_text()
    found = {setting: re.findall(rf"\b{setting}=([\w.:/]+)", text) for setting in HEAD_ENVIRONMENT}
    assert found == {setting: [value] for setting, value in HEAD_ENVIRONMENT.items()}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_an_image_gets_every_file_it_copies(kind: str) -> None:
    dockerfile = (ROOT / "cluster" / f"Dockerfile.{kind}").read_text()
    copied = [
        name
        for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", dockerfile, re.M)
        for name in line.split()
    ]
    assert {"pyproject.toml", "constraints.txt", "rapid_dist", "jobs"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_sets_no_field_that_kuberay_does_not_know(name: str) -> None:
    content = _yaml(name)
    schema = {"$ref": f"#/definitions/{content['kind']}", **KUBERAY}
    jsonschema.validate(content, schema)
    for spoil in ("headGroupSpecs", "autoscaling"):
        wrong = copy.deepcopy(content)
        wrong["spec"][spoil] = {}
        with pytest.raises(jsonschema.ValidationError, match=spoil):
            jsonschema.validate(wrong, schema)


def test_a_wrong_type_deep_in_a_manifest_is_noticed() -> None:
    content = _yaml("cluster/raycluster.yaml")
    schema = {"$ref": "#/definitions/RayCluster", **KUBERAY}
    content["spec"]["workerGroupSpecs"][0]["rayStartParams"] = {"num-cpus": 0}  # Must be a string.
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_kubernetes_node_goes_without_a_token_limits_or_labels(name: str) -> None:
    cluster = _cluster_of(name)
    assert cluster["authOptions"] == {"mode": "token"}
    head, *workers = _groups(name)
    assert head["resources"] == {"CPU": "0"}
    assert head["serviceType"] == "ClusterIP"
    for container in _containers(name):
        assert container["resources"]["limits"] == container["resources"]["requests"]
        told = {one["name"]: one["value"] for one in container["env"]}
        assert told["GLOO_SOCKET_IFNAME"] == told["NCCL_SOCKET_IFNAME"] == "eth0"
        assert not [one for one in told if "KEY" in one or "PASSWORD" in one]  # Those are secrets.
    for group in workers:
        assert group["labels"] == {"pool": group["groupName"]}
        assert "labels" not in group["rayStartParams"]  # KubeRay refuses them there.


def test_the_pods_of_the_cluster_take_no_one_elses_calls() -> None:
    documents = list(yaml.safe_load_all((ROOT / "cluster" / "raycluster.yaml").read_text()))
    (policy,) = [one for one in documents if one["kind"] == "NetworkPolicy"]
    name = _yaml("cluster/raycluster.yaml")["metadata"]["name"]
    assert policy["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    assert all(rule.get("from") for rule in policy["spec"]["ingress"])


def test_the_job_of_the_manifest_is_a_command_whose_labels_its_groups_have() -> None:
    spec = _yaml("cluster/rayjob.yaml")["spec"]
    python, script, *options = shlex.split(spec["entrypoint"])
    assert python == "python"
    assert (ROOT / "jobs" / Path(script).name).exists()
    command = Command(words=("run", *options))
    assert command.recipe is not None
    runtime = load_recipe(command.recipe, command.overrides).runtime
    pools = {group["labels"]["pool"] for group in _groups("cluster/rayjob.yaml")}
    for labels in (runtime.worker_labels, runtime.search_labels, runtime.trajectory_labels):
        assert labels["pool"] in pools
    (train,) = [g for g in _groups("cluster/rayjob.yaml") if g.get("groupName") == "train"]
    assert train["minReplicas"] == train["maxReplicas"] == runtime.workers
    assert spec["backoffLimit"] == 0


def _up(tmp_path: Path, *words: str) -> tuple[int, str, list[str]]:
    """Runs up.sh with an ssh that writes down what it was asked; returns how that ended."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncat > /dev/null\nprintf "%s\\n" "$*" >> "$(dirname "$0")/asked"\n')
    ssh.chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROOT / "cluster" / "up.sh"), *words],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAPID_SSH": str(ssh)},
        capture_output=True,
        text=True,
        check=False,
    )
    asked = tmp_path / "asked"
    return done.returncode, done.stderr, asked.read_text().splitlines() if asked.exists() else []


def test_bare_metal_hosts_get_the_token_before_ray_and_the_first_one_is_the_head(tmp_path) -> None:
    code, said, asked = _up(tmp_path, "10.0.0.1", "10.0.0.2:train", "10.0.0.3:memory")
    assert code == 0, said
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text().strip()) == 64
    assert not [line for line in asked if token.read_text().strip() in line]  # On stdin alone.
    starts = [line for line in asked if "ray start" in line]
    assert [line.split()[0] for line in starts] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    head, train, memory = starts
    assert "--head" in head
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert "pool=train" in train
    assert "pool=memory" in memory
    for line in (train, memory):
        assert "--address=10.0.0.1:6379" in line
    for line in starts:
        assert "RAY_AUTH_MODE=token" in line
        assert f"--node-ip-address={line.split()[0]}" in line
    for host in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        theirs = [line for line in asked if line.startswith(host)]
        assert "auth_token" in theirs[0]
        assert "ray start" in theirs[1]


def test_bare_metal_hosts_are_left_by_the_process_that_was_started_there(tmp_path) -> None:
    code, said, asked = _up(tmp_path, "--down", "10.0.0.1", "10.0.0.2:train")
    assert code == 0, said
    assert [line.split()[0] for line in asked] == ["10.0.0.2", "10.0.0.1"]  # The head last.
    assert not [line for line in asked if "ray stop" in line]  # That would end everybody's Ray.


def test_without_a_host_nothing_is_started(tmp_path) -> None:
    code, said, asked = _up(tmp_path)
    assert (code, asked) == (2, [])
    assert "HEAD" in said
