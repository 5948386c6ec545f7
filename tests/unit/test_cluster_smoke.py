"""What is judged of a cluster's nodes, and what is said to be done about it."""

import stat

import pytest

from rapid_dist.runtime import cluster_smoke as smoke

ALIKE = {"python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0", "rapid-dist": "0.1.0+ab"}
FINE = {"auth": "token", "open_token": "", "gloo": "eth0", "interfaces": ["eth0"]}


def test_nodes_alike_in_versions_are_well_and_one_that_differs_is_named():
    assert not smoke.check_versions({"a": ALIKE, "b": dict(ALIKE)}).remedy
    odd = smoke.check_versions({"a": ALIKE, "b": {**ALIKE, "torch": "2.12.0"}})
    assert odd.found == "torch 2.12.0 and 2.13.0"
    assert "one image" in odd.remedy


def test_a_node_that_lacks_a_library_is_not_alike():
    assert "none" in smoke.check_versions({"a": ALIKE, "b": {"python": "3.11.2"}}).found


def test_a_gpu_that_torch_cannot_use_is_told_of():
    assert not smoke.check_devices({"a": 1.0, "b": 0.0}, {"a": ["L4"], "b": []}).remedy
    blind = smoke.check_devices({"a": 1.0}, {"a": []})
    assert "Dockerfile.gpu" in blind.remedy


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({}, ""),
        ({"auth": "disabled"}, "RAY_AUTH_MODE=token"),
        ({"open_token": "/secret/token"}, "chmod 600"),
    ],
)
def test_a_node_without_a_token_or_with_an_open_one_is_told_of(change, remedy):
    found = smoke.check_tokens({"a": FINE, "b": {**FINE, **change}})
    assert (remedy in found.remedy) if remedy else not found.remedy


def test_a_small_shared_memory_and_a_wrong_clock_are_told_of():
    assert not smoke.check_memory({"a": 8.0}).remedy
    assert "--shm-size" in smoke.check_memory({"a": 8.0, "b": 0.0625}).remedy
    assert not smoke.check_clocks({"a": 0.1, "b": -0.4}).remedy
    late = smoke.check_clocks({"a": 0.1, "b": -7.5})
    assert late.found == "b differs most, by -7.50 s"
    assert late.remedy


def test_what_is_to_fix_is_told_in_the_line_below():
    lines = smoke.check_memory({"a": 0.0625}).told().splitlines()
    assert lines[0].startswith("FIX  memory")
    assert lines[1].strip().startswith("->")
    assert smoke.check_memory({"a": 8.0}).told().startswith("ok   memory")


def test_a_probe_says_what_an_open_token_file_is(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("x")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    token.chmod(stat.S_IRUSR)
    assert smoke.Probe().facts()["open_token"] == ""
    token.chmod(stat.S_IRUSR | stat.S_IROTH)
    assert smoke.Probe().facts()["open_token"] == str(token)


def test_a_probe_reads_writes_and_creates_where_the_driver_does(tmp_path):
    probe = smoke.Probe()
    assert "StorageMissing" in probe.exchange(str(tmp_path), "name", b"x")
    (tmp_path / "name").write_bytes(b"x")
    assert probe.exchange(str(tmp_path), "name", b"x") == ""
    assert "other bytes" in probe.exchange(str(tmp_path), "name", b"y")
    assert probe.create(str(tmp_path), "once")
    assert not probe.create(str(tmp_path), "once")
