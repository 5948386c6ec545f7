"""Driver and nodes run the same versions, or one line says which node has which."""

from rapid_dist.runtime.cluster import refusal
from rapid_dist.runtime.same_versions import mismatch, versions_here

OWN = {"python": "3.11.9", "ray": "2.60.0", "torch": "2.11.0", "numpy": "2.4.0"}


def test_nodes_of_the_same_versions_are_no_mismatch() -> None:
    assert mismatch(OWN, {"10.0.0.1": OWN, "10.0.0.2": dict(OWN)}) is None


def test_another_build_of_torch_is_the_same_version() -> None:
    assert mismatch(OWN, {"10.0.0.2": {**OWN, "torch": "2.11.0+cu130"}}) is None


def test_a_node_with_another_version_or_without_a_package_is_named() -> None:
    bare = {name: version for name, version in OWN.items() if name != "numpy"}
    said = mismatch(OWN, {"10.0.0.3": bare, "10.0.0.2": {**OWN, "torch": "2.12.0"}})
    assert said is not None
    assert "10.0.0.2 has torch 2.12.0; 10.0.0.3 has numpy none" in said
    assert "torch 2.11.0" in said
    assert "constraints.txt" in said
    assert "\n" not in said


def test_this_process_knows_its_own_versions() -> None:
    here = versions_here()
    assert "none" not in here.values()
    assert mismatch(here, {"here": here}) is None


def test_another_ray_or_python_and_a_missing_token_are_one_line_with_a_remedy() -> None:
    ray = "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n"
    said = refusal("10.0.0.1:6379", RuntimeError(ray))
    assert said is not None
    assert "10.0.0.1:6379" in said
    assert "Ray: 2.59.0 Python: 3.12.1" in said
    assert "constraints.txt" in said
    assert "\n" not in said
    said = refusal("10.0.0.1:6379", RuntimeError("Unauthenticated: Invalid or missing\ntoken"))
    assert said is not None
    assert "~/.ray/auth_token" in said
    assert "\n" not in said
    assert refusal("10.0.0.1:6379", RuntimeError("something else")) is None
