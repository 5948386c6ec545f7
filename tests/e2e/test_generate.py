"""Images from a released model: over HTTP, without the training, on any number of workers."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rapid_dist.cli.main import main
from rapid_dist.errors import CheckpointError, ConfigError, RapidError
from rapid_dist.release.bundle import write_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.pull import Registry, open_model
from rapid_dist.release.registry import register_model
from rapid_dist.runtime.drawing import Model, Request, draw, generate_images
from rapid_dist.runtime.drawing_workers import Drawing
from rapid_dist.runtime.services import Services
from tests.bundles import tiny_bundle
from tests.serve_site import make_site, required, run_in_site
from tests.servers import client_of, on_services, services

__all__ = ["on_services", "services"]  # Fixtures.

TAGS = {
    "dp.epsilon": "9.97",
    "dp.delta": "1e-05",
    "dp.relation": "zero_out",
    "dp.unit": "record",
    "dp.ledger_head": "ab" * 32,
}
COUNT = 300  # More than one chunk: several workers have something to do.
TRAINING = {"ray", "opacus", "faiss-cpu", "dp-accounting", "boto3", "torchvision", "scikit-learn"}


@dataclass(frozen=True, kw_only=True)
class Released:
    """A tiny model, registered twice; version 1 is released, version 2 a candidate."""

    uri: str
    bundle: Path


@pytest.fixture(scope="module")
def released(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Released:
    bundle = tmp_path_factory.mktemp("released") / "bundle"
    write_bundle(tiny_bundle(), bundle)
    client = client_of(services)
    run = client.create_run(client.create_experiment("released")).info.run_id
    for alias in ("released", "candidate"):
        register_model(bundle, run, "tiny", TAGS, tracking_uri=services.tracking_uri, alias=alias)
    return Released(uri=services.tracking_uri, bundle=bundle)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rapid-dist" / "models"


def _images(folder: Path) -> np.ndarray:
    with np.load(folder / "images.npz", allow_pickle=False) as found:
        images: np.ndarray = found["images"]
    return images


def _expected(released: Released, labels: list[int], seed: int, first_id: int = 0) -> np.ndarray:
    generator = Generator.open(released.bundle)
    return generator.generate(np.array(labels), seed=seed, first_id=first_id)


def test_three_lines_pull_and_sample_with_the_serve_extra_alone(
    released: Released, tmp_path: Path
) -> None:
    assert TRAINING & required("serve") == set()
    assert required("train") >= TRAINING  # It would be noticed.
    site = make_site(tmp_path / "site")
    write_bundle(tiny_bundle(source="query"), tmp_path / "by-query")
    script = """
import json, numpy as np, sys
from rapid_dist.release.pull import open_model
generator = open_model("models:/tiny@released")
images = generator.generate(np.array([1, 0, 1, 1]), seed=5)
asked = open_model("by-query").generate(np.array([1, 0, 1]), seed=5)  # Searches without FAISS.
print(json.dumps([images.tolist(), asked.tolist()]))
"""
    environment = {"MLFLOW_TRACKING_URI": released.uri, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = run_in_site(site, "-c", script, cwd=tmp_path, **environment)
    drawn, asked = (np.array(part, np.uint8) for part in json.loads(said.splitlines()[-1]))
    np.testing.assert_array_equal(drawn, _expected(released, [1, 0, 1, 1], 5))
    by_query = Generator.open(tmp_path / "by-query").generate(np.array([1, 0, 1]), seed=5)
    np.testing.assert_array_equal(asked, by_query)
    # The command as well, in several processes of that Python.
    words = ["generate", "--model", "models:/tiny@released", "--count", str(COUNT)]
    words += ["--seed", "7", "--workers", "2", "--class", "one", "--out", "drawn", "--json"]
    said = run_in_site(site, "-m", "rapid_dist.cli", *words, cwd=tmp_path, **environment)
    told = json.loads(said.splitlines()[-1])
    assert told["model"]["registered"] == "tiny"
    assert (told["model"]["version"], told["classes"]) == (1, {"one": COUNT})
    np.testing.assert_array_equal(_images(tmp_path / "drawn"), _expected(released, [1] * COUNT, 7))


@pytest.mark.usefixtures("cache")
def test_any_number_of_processes_draws_the_same_images(released: Released, tmp_path: Path) -> None:
    model = Model.find("models:/tiny/1", released.uri)
    request = Request(count=COUNT, seed=3, first_id=70)  # The first block is not whole.
    drawn: list[dict[str, Any]] = []
    for workers in (1, 2, 3):
        drawn.append(generate_images(model, request, tmp_path / str(workers), workers=workers))
    labels = [number % 2 for number in range(70, 70 + COUNT)]
    expected = _expected(released, labels, 3, 70)
    for workers in (1, 2, 3):
        np.testing.assert_array_equal(_images(tmp_path / str(workers)), expected)
    assert drawn[0]["classes"] == {"zero": 150, "one": 150}
    assert 0 < drawn[0]["seconds_to_first_image"] <= drawn[0]["seconds"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "cache")
def test_workers_of_a_ray_cluster_draw_the_same_images(released: Released, tmp_path: Path) -> None:
    model = Model.find("models:/tiny@released", released.uri)
    request = Request(count=600, seed=3)
    generate_images(model, request, tmp_path / "ray", workers=2, backend="ray")
    labels = [number % 2 for number in range(600)]
    np.testing.assert_array_equal(_images(tmp_path / "ray"), _expected(released, labels, 3))
    # The synthetic set of a release as well, and from a bundle that samples by query.
    write_bundle(tiny_bundle(source="query"), tmp_path / "by-query")
    asked = Drawing(bundle=tmp_path / "by-query", labels=np.array(labels[:300]), seed=3)
    np.testing.assert_array_equal(draw(asked, 2, "ray"), draw(asked, 1, "process"))


@pytest.mark.usefixtures("cache")
def test_a_folder_is_not_drawn_into_twice_and_another_request_is_refused(
    released: Released, tmp_path: Path
) -> None:
    model = Model.find(str(released.bundle), None)
    out = tmp_path / "drawn"
    first = generate_images(model, Request(count=5), out, files=True)
    assert sorted(path.name for path in (out / "png" / "class-1").iterdir()) == [
        "0000001.png",
        "0000003.png",
    ]
    assert generate_images(model, Request(count=5), out) == first
    with pytest.raises(ConfigError, match="holds something else already"):
        generate_images(model, Request(count=5, seed=1), out)


def test_a_series_can_be_drawn_in_parts(released: Released, tmp_path: Path) -> None:
    model = Model.find(str(released.bundle), None)
    generate_images(model, Request(count=101, seed=2), tmp_path / "whole")
    generate_images(model, Request(count=37, seed=2), tmp_path / "a")
    generate_images(model, Request(count=64, seed=2, first_id=37), tmp_path / "b")
    parts = [_images(tmp_path / name) for name in ("a", "b")]
    np.testing.assert_array_equal(np.concatenate(parts), _images(tmp_path / "whole"))


def test_what_there_is_is_said_when_something_else_is_asked_for(
    released: Released, cache: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    registry = Registry(released.uri)
    with pytest.raises(ConfigError, match=r"no alias champion; it has candidate \(version 2\)"):
        registry.find("models:/tiny@champion")
    with pytest.raises(ConfigError, match=r"no model small in .* It holds: .*tiny"):
        registry.find("models:/small")
    with pytest.raises(ConfigError, match="no version 9"):
        registry.find("models:/tiny/9")
    with pytest.raises(ConfigError, match=r"models:/NAME@released"):
        registry.find("models:/tiny@a@b")
    words = ["generate", "--model", "models:/tiny", "--tracking-uri", released.uri]
    assert main([*words, "--class", "two", "--out", str(tmp_path / "x")]) == 2
    assert "no class 'two'. The classes are zero, one" in capsys.readouterr().err
    assert main(["generate"]) == 2
    assert "--model" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_registry_that_does_not_answer_is_one_line_at_once() -> None:
    with pytest.raises(RapidError, match=r"http://127.0.0.1:9 does not answer") as caught:
        open_model("models:/tiny", "http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_a_kept_bundle_is_used_again_and_one_that_was_touched_is_fetched_again(
    released: Released, cache: Path
) -> None:
    registry = Registry(released.uri)
    version = registry.find("models:/tiny@released")
    kept = registry.fetch(version)
    assert kept.parent == cache
    made = kept.stat().st_ino
    assert registry.fetch(version).stat().st_ino == made
    (kept / "prior.npz").write_bytes(b"tampered")
    again = registry.fetch(version)
    assert (again / "prior.npz").read_bytes() == (released.bundle / "prior.npz").read_bytes()
    assert os.listdir(cache) == [kept.name]


def test_files_that_are_not_what_was_registered_are_refused(
    released: Released, services: Services, cache: Path
) -> None:
    client = client_of(services)
    run = client.create_run(client.create_experiment("swapped")).info.run_id
    register_model(released.bundle, run, "swapped", TAGS, tracking_uri=released.uri)
    client.set_model_version_tag("swapped", "1", "bundle.sha256", "0" * 64)
    registry = Registry(released.uri)
    with pytest.raises(CheckpointError, match="not what was registered"):
        registry.fetch(registry.find("models:/swapped/1"))
    assert list(cache.iterdir()) == []
