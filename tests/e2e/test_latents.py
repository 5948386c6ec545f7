"""Whole runs in the latents of a public autoencoder: DP-LDM, and RAPID."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import AutoencoderKL, UNet2DModel

from rapid_dist.audit.result import failed
from rapid_dist.config import load_recipe
from rapid_dist.release.bundle import open_bundle, verify_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.scan import MODEL_FILES, internal_traces
from rapid_dist.release.verify import verify_release
from rapid_dist.runtime import pipeline, releasing
from rapid_dist.runtime.audit import run_audit
from tests.releases import new_key

TINY = [
    "data.public.0.count=400",
    "autoencoder.steps=5",
    "autoencoder.batch_size=32",
    "autoencoder.network.widths=[8, 8]",
    "network.widths=[16, 16]",
    "network.attention=[false, true]",
    "pretrain.steps=3",
    "contrast.steps=2",
    "knowledge_base.clusters=10",
    "adapt.steps=2",
    "privacy.steps=3",
    "privacy.expected_batch=16",
    "sampling.count=70",
    "sampling.late_intervals=2",
    "sampling.early_intervals=2",
    "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2",
    "runtime.backend=process",
]
METHODS = {
    "dp_ldm": ["method=dp_ldm", "train.multiplicity=2", "train.trainable=lora"],
    "rapid": ["train.mode=surrogate", "autoencoder.posterior=sample"],
}

Finished = tuple[Path, dict[str, Any]]

# MLflow's own: SQLAlchemy 2.1 deprecates a strategy that MLflow 3.17 maps its tables with.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy"),
]


@pytest.fixture(scope="module", params=METHODS)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp(request.param) / "run"
    return out, pipeline.run(load_recipe("digits", [*TINY, *METHODS[request.param]]), str(out))


def test_a_run_in_latents_claims_what_it_spent(finished: Finished) -> None:
    _, summary = finished
    assert "autoencode" in summary["seconds"]
    assert 0 < summary["privacy"]["epsilon"] <= 10
    assert summary["privacy"]["steps"] == 3
    assert summary["privacy"]["queries"] == (0 if summary["method"] == "dp_ldm" else 1)


def test_the_bundle_has_both_networks_in_diffusers_layout_and_no_trace_of_adapters(
    finished: Finished,
) -> None:
    folder = finished[0] / "bundle"
    verify_bundle(folder)
    assert internal_traces(folder, [], MODEL_FILES) == []
    vae = AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
    unet = UNet2DModel.from_pretrained(folder / "unet", local_files_only=True)
    assert unet.config.in_channels == vae.config.latent_channels == 4
    assert not [name for name in unet.state_dict() if ".down.weight" in name or ".base." in name]
    assert open_bundle(folder).denoiser.image_shape == (1, 8, 8)


def test_a_sample_is_the_same_image_for_any_batch_and_any_split(finished: Finished) -> None:
    folder, labels = finished[0] / "bundle", np.arange(70) % 10
    whole = Generator.open(folder).generate(labels, seed=3)
    parts = Generator.open(folder)
    apart = [
        parts.generate(labels[:5], seed=3, batch_size=2),
        parts.generate(labels[5:], seed=3, first_id=5, batch_size=9),
    ]
    assert whole.shape == (70, 1, 8, 8)
    np.testing.assert_array_equal(whole, np.concatenate(apart))
    assert not np.array_equal(whole, Generator.open(folder).generate(labels, seed=4))


def test_a_run_in_latents_passes_its_audit_and_the_gate_and_what_is_released_draws(
    finished: Finished,
) -> None:
    out, summary = finished
    method = summary["method"]
    recipe, today = load_recipe("digits", [*TINY, *METHODS[method]]), date.today()
    audit = run_audit(recipe, str(out), "quick")
    assert failed(audit.results) == [], [one for one in audit.results if not one.passed]
    signer = releasing.Signer(name="A. Officer", key=new_key())
    releasing.release(recipe, str(out), signer, today)
    passport = verify_release(out / "release").passport
    assert passport["model"]["method"] == method
    assert passport["audit"]["passed"]
    assert (out / "release" / "vae" / "config.json").is_file()
    labels = np.arange(12) % 10
    np.testing.assert_array_equal(
        Generator.open(out / "release").generate(labels, seed=5),
        Generator.open(out / "bundle").generate(labels, seed=5),
    )


def test_the_autoencoder_is_among_what_the_model_was_made_of(finished: Finished) -> None:
    lineage = json.loads((finished[0] / "lineage.json").read_text())
    assert lineage["artifacts"]["autoencoder"]["folder"].startswith("autoencoder-")
    assert lineage["public"]
