"""A bundle comes back as it was written, or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.release.bundle import Bundle, open_bundle, verify_bundle, write_bundle
from rapid_dist.release.checksums import CHECKSUMS
from rapid_dist.release.query import QueryFacts
from rapid_dist.retrieval.prior import TrajectoryPrior
from tests.bundles import tiny_bundle, tiny_denoiser, tiny_facts, tiny_prior, tiny_references

FILES = [
    "denoiser.json",
    "model.json",
    "prior.npz",
    "references.npz",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    bundle = tiny_bundle(privacy={"epsilon": 1.0, "delta": 1e-5})
    digest = write_bundle(bundle, tmp_path / "b")
    assert verify_bundle(tmp_path / "b") == digest
    opened = open_bundle(tmp_path / "b")
    assert opened.facts == bundle.facts
    assert opened.prior is not None
    assert opened.references is not None
    assert opened.references.to_bytes() == tiny_references().to_bytes()
    assert opened.prior.to_bytes() == tiny_prior().to_bytes()
    for name, weight in bundle.denoiser.state_dict().items():
        assert weight.equal(opened.denoiser.state_dict()[name])


def test_a_bundle_has_these_files_and_no_other(tmp_path: Path) -> None:
    write_bundle(tiny_bundle(), tmp_path / "b")
    found = [p.relative_to(tmp_path / "b").as_posix() for p in (tmp_path / "b").rglob("*.*")]
    assert sorted(found) == sorted([CHECKSUMS, *FILES])


@pytest.mark.parametrize("name", FILES)
def test_a_bundle_with_one_changed_byte_is_refused(name: str, tmp_path: Path) -> None:
    write_bundle(tiny_bundle(), tmp_path / "b")
    path = tmp_path / "b" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=f"{name} has changed"):
        open_bundle(tmp_path / "b")


def test_a_bundle_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    write_bundle(tiny_bundle(), tmp_path / "b")
    (tmp_path / "b" / "prior.npz").unlink()
    with pytest.raises(CheckpointError, match=r"prior\.npz is missing"):
        open_bundle(tmp_path / "b")


def test_a_bundle_with_a_file_that_nobody_listed_is_refused(tmp_path: Path) -> None:
    write_bundle(tiny_bundle(), tmp_path / "b")
    (tmp_path / "b" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match=r"model\.bin is unlisted"):
        open_bundle(tmp_path / "b")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no bundle"):
        open_bundle(tmp_path)


def test_a_bundle_from_a_numpy_that_draws_other_noise_is_refused(tmp_path: Path) -> None:
    write_bundle(tiny_bundle(), tmp_path / "b")
    content = json.loads((tmp_path / "b" / "model.json").read_text())
    type(tiny_facts()).from_json(content)  # As it is, it is accepted.
    with pytest.raises(CheckpointError, match="NumPy"):
        type(tiny_facts()).from_json({**content, "noise_check": "0" * 64})


def test_a_bundle_is_not_written_into_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "private.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="not empty"):
        write_bundle(tiny_bundle(), tmp_path)


def test_pruning_drops_what_cannot_be_drawn_and_nothing_else() -> None:
    bundle = tiny_bundle()
    pruned = bundle.pruned()
    assert bundle.prior is not None
    assert bundle.references is not None
    assert pruned.prior is not None
    assert pruned.references is not None
    assert len(pruned.references.images) == 3
    labels, ids = np.arange(400) % 2, np.arange(400)
    before = bundle.references.image_of_entry[bundle.prior.draw(labels, 0, ids)]
    after = pruned.references.image_of_entry[pruned.prior.draw(labels, 0, ids)]
    np.testing.assert_array_equal(bundle.references.images[before], pruned.references.images[after])
    np.testing.assert_array_equal(bundle.references.hashes[before], pruned.references.hashes[after])


def test_an_image_that_two_entries_share_is_kept_once() -> None:
    references = replace(tiny_references(), image_of_entry=np.array([2, 0, 2, 1]))
    kept = references.keep(np.array([0, 2, 3]))
    np.testing.assert_array_equal(kept.image_of_entry, [1, 1, 0])
    np.testing.assert_array_equal(kept.images, references.images[[1, 2]])
    np.testing.assert_array_equal(kept.seed_of_entry, [0, 2, 3])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": "uniform"}, "source='uniform'"),
        ({"source": "query", "query": None}, "how queries are made"),
        ({"query": QueryFacts(query_step=700, intervals=2, keys="pixels")}, "how queries are made"),
        ({"source": "query", "from_step": 700}, "got 700 and 700"),
        ({"source": "query", "noise": "entry"}, "no noise of its entries"),
    ],
)
def test_facts_that_cannot_be_drawn_by_are_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        replace(tiny_facts(source=changes.get("source", "prior")), **changes)


def test_parts_that_do_not_belong_together_are_refused() -> None:
    parts = {"denoiser": tiny_denoiser(), "references": tiny_references()}
    short = TrajectoryPrior(np.array([0]), np.array([[1.0], [1.0]]))
    with pytest.raises(ConfigError, match="1 entries, the references 4"):
        Bundle(facts=tiny_facts(), prior=short, **parts)
    with pytest.raises(ConfigError, match="source='noise'"):
        Bundle(facts=tiny_facts(source="noise"), prior=tiny_prior(), **parts)
    with pytest.raises(ConfigError, match="exactly if its source is 'query'"):
        Bundle(facts=tiny_facts(source="query"), denoiser=tiny_denoiser())
    with pytest.raises(ConfigError, match="1 names for 2 classes"):
        Bundle(facts=tiny_facts(class_names=("zero",)), prior=tiny_prior(), **parts)
