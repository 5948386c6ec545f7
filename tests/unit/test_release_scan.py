"""Internal results are found in a bundle, wherever they were put."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from rapid_dist.release.scan import MODEL_FILES, RELEASE_FILES, figures_of, internal_traces

QUALITY = {"notice": "Internal: not for release.", "samples": {"accuracy": 0.918273645, "n": 0.5}}


def _traces(folder: Path) -> list[str]:
    return internal_traces(folder, [QUALITY], RELEASE_FILES)


def test_public_text_is_no_trace(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("epsilon 9.9912, 0.5 of the images, 0.918273646")
    (tmp_path / "model.json").write_text(json.dumps({"privacy": {"epsilon": 9.991234567}}))
    assert _traces(tmp_path) == []


@pytest.mark.parametrize("name", ["README.md", "passport.html", "passport.json", "model.json"])
def test_a_figure_of_quality_is_found_in(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(json.dumps({"x": [1, {"y": 0.918273645}]}))
    assert _traces(tmp_path) == [f"{name} holds 1 figures of internal results"]


@pytest.mark.parametrize("name", ["model.json", "unet/config.json", "code/rapid_dist/a.py"])
def test_a_secret_of_this_environment_is_found_in(name: str, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"x": "correct-horse-battery"}))
    assert _traces(tmp_path) == []
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse-battery")
    assert _traces(tmp_path) == [f"{name} holds a secret of this environment"]


def test_an_address_with_credentials_is_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("see postgresql://mlflow:correct-horse@db/mlflow")
    (tmp_path / "model.json").write_text(json.dumps({"x": "postgresql://***@db/mlflow"}))
    assert _traces(tmp_path) == ["README.md holds an address with credentials"]


def test_a_figure_in_a_pictures_text_is_found(tmp_path: Path) -> None:
    told = PngImagePlugin.PngInfo()
    told.add_text("accuracy", "0.918273645")
    file = io.BytesIO()
    Image.new("L", (4, 4)).save(file, format="PNG", pnginfo=told)
    path = tmp_path / "synthetic" / "images" / "000" / "000000.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(file.getvalue())
    assert _traces(tmp_path) == [
        f"{path.relative_to(tmp_path)} holds 1 figures of internal results"
    ]


def test_a_figure_in_an_arrays_name_is_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "prior.npz", **{"accuracy 0.918273645": np.zeros(2)})
    assert _traces(tmp_path) == ["prior.npz holds 1 figures of internal results"]


@pytest.mark.parametrize("field", ["quality", "controls", "neighbours", "held_out", "votes"])
def test_a_field_that_internal_results_have_is_found(field: str, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"deep": [{field: {}}]}))
    assert _traces(tmp_path) == [f"model.json has the field {field!r}"]


def test_the_notice_of_internal_files_is_found(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"- {QUALITY['notice']}")
    assert _traces(tmp_path) == ["README.md holds an internal notice"]


@pytest.mark.parametrize(
    "name", ["internal/quality.json", "notes.txt", "weights.pkl", "unet/model.bin", ".hidden"]
)
def test_a_file_that_no_bundle_has_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
    assert _traces(tmp_path) == [f"{name} is no file of a bundle"]


def test_a_run_own_bundle_may_hold_the_model_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    assert internal_traces(tmp_path, [], MODEL_FILES) == ["README.md is no file of a bundle"]


def test_numbers_that_stand_everywhere_tell_nothing() -> None:
    content = {"a": [0.5, 1, True, 12.25, "0.1234567"], "b": {"c": 0.1234567}}
    assert list(figures_of(content)) == ["0.1234567"]


def test_a_file_that_cannot_be_read_is_named_and_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{")
    assert _traces(tmp_path) == ["model.json is no JSON"]
