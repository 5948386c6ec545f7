"""The files that start clusters: what can be checked of them without a cloud."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if not line.startswith("#")
)


def _yaml(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


def _filled(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what `ray up` would use, refused by Ray's own schema if it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    filled: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


def test_ray_accepts_the_cluster_file() -> None:
    filled = _filled(_yaml("ray-cluster.yaml"))
    assert filled["head_node_type"] == "head"
    assert set(filled["available_node_types"]) == {"head", "cpu"}


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("autoscaling_speed",), 1),
        (("head_node_type",), "heads"),
        (("available_node_types", "cpu", "resources", "CPU"), 0.5),
        (("available_node_types", "cpu", "min_workers"), 3),
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
    assert "pip install" not in commands
    assert "0.0.0.0" not in commands
    assert commands.count("RAY_AUTH_MODE=token") == commands.count("ray start")


def test_without_our_own_commands_the_providers_would_be_there() -> None:
    config = _yaml("ray-cluster.yaml")
    del config["setup_commands"], config["head_start_ray_commands"]
    assert "nightly" in str(_filled(config)) or "ray-wheels" in str(_filled(config))


def test_every_node_runs_the_same_image_with_the_pinned_ray() -> None:
    cluster = _yaml("cluster/raycluster.yaml")["spec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {
        container["image"]
        for group in groups
        for container in group["template"]["spec"]["containers"]
    }
    assert images == {_yaml("ray-cluster.yaml")["docker"]["image"]}
    assert cluster["rayVersion"] == PINS["ray"]
    dockerfile = (ROOT / "cluster" / "Dockerfile.cpu").read_text()
    assert re.findall(r"^FROM rayproject/ray:(\S+)-py311-cpu$", dockerfile, re.M) == [PINS["ray"]]


def test_the_image_gets_every_file_it_copies() -> None:
    dockerfile = (ROOT / "cluster" / "Dockerfile.cpu").read_text()
    copied = [
        name
        for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", dockerfile, re.M)
        for name in line.split()
    ]
    assert {"pyproject.toml", "constraints.txt", "rapid_dist", "jobs"} <= set(copied)
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_no_kubernetes_node_goes_without_a_token_or_limits() -> None:
    cluster = _yaml("cluster/raycluster.yaml")["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
