"""The files that start clusters: what can be checked of them without a cloud."""

import copy
import json
import re
import shlex
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


def accepted(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what `ray up` would use, refused by Ray's own schema if it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


def test_ray_accepts_the_cluster_file() -> None:
    filled = accepted(_yaml("ray-cluster.yaml"))
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
        accepted(config)


def test_nothing_of_the_providers_own_commands_is_left() -> None:
    """They install a nightly Ray and open the dashboard to every network."""
    filled = accepted(_yaml("ray-cluster.yaml"))
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
    assert "nightly" in str(accepted(config)) or "ray-wheels" in str(accepted(config))


def test_machines_are_paid_for_only_while_a_run_asks_for_their_label() -> None:
    types = _yaml("ray-cluster.yaml")["available_node_types"]
    assert {name for name, kind in types.items() if kind["labels"] == {"pool": name}} == set(types)
    assert {types[name]["min_workers"] for name in POOLS} == {0}
    is_spot = {name for name, kind in types.items() if "InstanceMarketOptions" in str(kind)}
    assert is_spot == {"spot"}  # Neither the driver, the keeper nor anything that charges.
    assert types["head"]["resources"] == {"CPU": 0}


def test_every_machine_has_a_role_for_the_bucket_and_one_image_with_a_driver() -> None:
    """Ray's own role is the head's alone, and its own image is too old for this torch."""
    types = _yaml("ray-cluster.yaml")["available_node_types"]
    for name, kind in types.items():
        role = "rapid-dist-head" if name == "head" else "rapid-dist-worker"
        assert kind["node_config"]["IamInstanceProfile"] == {"Name": role}
        assert kind["node_config"]["ImageId"] == "AMI"  # As the document's command finds it.


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
        assert f"-t {image.removeprefix('REGISTRY/')} " in dockerfile  # Your own, by the document.
        assert "-c constraints.txt" in dockerfile


def test_the_gpu_image_has_one_faiss_of_the_pinned_version() -> None:
    dockerfile = (ROOT / "cluster" / "Dockerfile.gpu").read_text()
    assert "pip uninstall -y faiss-cpu" in dockerfile
    assert re.findall(r"--no-deps faiss-gpu==(\S+)", dockerfile) == [PINS["faiss-cpu"]]
    # It refuses to be imported without these, and torch brings those of CUDA 13.
    needed = {"nvidia-cublas", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "nvidia-curand"}
    assert set(re.findall(r"([\w-]+)-cu12==\d", dockerfile)) == needed


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


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_pods_of_the_cluster_take_no_one_elses_calls(name: str) -> None:
    first, policy = yaml.safe_load_all((ROOT / name).read_text())
    assert policy["kind"] == "NetworkPolicy"
    own = policy["spec"]["podSelector"]["matchLabels"]
    if first["kind"] == "RayCluster":
        assert own == {"ray.io/cluster": first["metadata"]["name"]}
    else:  # The operator makes up the name of its cluster; the job's is the submitting pods'.
        labels = [group["template"]["metadata"]["labels"] for group in _groups(name)]
        assert all(own.items() <= one.items() for one in labels)
    peers = [peer for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    let_in = [peer["podSelector"]["matchLabels"] for peer in peers]
    # By its component: by its name every Ray pod of every namespace would be let in as well.
    assert let_in.pop() == {"app.kubernetes.io/component": "kuberay-operator"}
    assert [peer for peer in peers if "namespaceSelector" in peer] == peers[-1:]
    assert let_in == [own, *([{"job-name": first["metadata"]["name"]}] * (len(let_in) - 1))]


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
