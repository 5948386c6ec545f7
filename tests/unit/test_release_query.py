"""A generator that samples by query, from a bundle alone: its files, what they do, who checks."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rapid_dist.errors import CheckpointError, ConfigError, ReleaseError
from rapid_dist.release.assemble import assemble
from rapid_dist.release.bundle import Bundle, open_bundle, write_bundle
from rapid_dist.release.checksums import write_checksums
from rapid_dist.release.generator import Generator
from rapid_dist.release.needed import needed_files
from rapid_dist.release.query import QueryFacts, one_of
from rapid_dist.release.scan import MODEL_FILES, internal_traces
from rapid_dist.release.signing import fingerprint_of, raw_public_key, sign, to_bytes
from rapid_dist.release.verify import verify_release
from tests.bundles import tiny_bundle, tiny_facts, tiny_public_half
from tests.releases import new_key, tiny_inputs, tiny_parts, tiny_privacy

LABELS = np.arange(100) % 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("query") / "bundle"
    write_bundle(tiny_bundle(source="query"), folder)
    return folder


@pytest.fixture(scope="module")
def images(folder: Path) -> np.ndarray:
    return Generator.open(folder).generate(LABELS, seed=3)


def test_a_bundle_by_query_is_read_back_and_draws_the_same(
    folder: Path, images: np.ndarray
) -> None:
    bundle = tiny_bundle(source="query")
    opened = open_bundle(folder)
    assert opened.facts == bundle.facts
    assert opened.prior is None
    np.testing.assert_array_equal(Generator(bundle).generate(LABELS, seed=3), images)
    assert len(np.unique(images, axis=0)) == 100


def test_its_files_are_what_it_needs_and_nothing_in_them_looks_internal(folder: Path) -> None:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    model = json.loads((folder / "model.json").read_text())
    assert found == {*needed_files(model), "model.json", "checksums.json"}
    assert internal_traces(folder, (), MODEL_FILES) == []


def test_other_bundles_say_nothing_of_queries() -> None:
    for source in ("prior", "noise"):
        content = tiny_facts(source=source).to_json()
        assert "query" not in content
        assert not any("public" in name for name in needed_files(content))
        assert type(tiny_facts()).from_json(content) == tiny_facts(source=source)


def test_the_labels_the_seed_and_the_batches_do_what_they_do_for_a_prior(
    folder: Path, images: np.ndarray
) -> None:
    generator = Generator.open(folder)
    np.testing.assert_array_equal(generator.generate(LABELS, seed=3, batch_size=7), images)
    part = generator.generate(LABELS[61:70], seed=3, first_id=61)
    np.testing.assert_array_equal(part, images[61:70])
    assert (generator.generate(1 - LABELS, seed=3) != images).any(axis=(1, 2, 3)).all()
    assert (generator.generate(LABELS, seed=4) != images).any(axis=(1, 2, 3)).all()
    # Two intervals and one estimate by the public network, three intervals by the private one.
    assert generator.evaluations_per_image == 6


def test_what_is_entered_follows_the_query_and_not_the_label(folder: Path) -> None:
    generator = Generator.open(folder)
    first, second = np.full(100, -1), np.full(100, -1)
    generator.generate(LABELS, seed=3, entered=first)
    generator.generate(1 - LABELS, seed=3, entered=second)
    np.testing.assert_array_equal(first, second)
    knowledge = tiny_public_half().knowledge
    shown = generator.references(LABELS, seed=3)
    np.testing.assert_array_equal(shown, knowledge.images[knowledge.image_of_entry[first]])


def test_among_several_nearest_one_is_drawn_by_the_samples_own_seed(folder: Path) -> None:
    bundle = tiny_bundle(source="query")
    asked = QueryFacts(query_step=700, intervals=2, keys="contrast", top_m=8)
    several = replace(bundle.facts, query=asked)
    nearest, among = np.full(100, -1), np.full(100, -1)
    Generator(bundle).generate(LABELS, seed=3, entered=nearest)
    generator = Generator(replace(tiny_bundle(source="query"), facts=several))
    generator.generate(LABELS, seed=3, entered=among)
    assert (nearest != among).mean() > 0.6
    few = np.array([[5, 6, -1, -1]] * 50)
    assert set(one_of(few, 3, np.arange(50))) == {5, 6}


def test_a_public_network_that_makes_nothing_finite_is_refused() -> None:
    bundle = tiny_bundle(source="query")
    assert bundle.public is not None
    for weight in bundle.public.denoiser.parameters():
        weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        Generator(bundle).generate(LABELS[:3], seed=0)


def test_a_knowledge_base_whose_parts_do_not_fit_is_refused() -> None:
    knowledge = tiny_public_half().knowledge
    with pytest.raises(ConfigError, match="as many entries"):
        replace(knowledge, image_of_entry=np.zeros(3, np.int64))
    with pytest.raises(ConfigError, match=r"0\.\.20, there are 20"):
        replace(knowledge, image_of_entry=np.append(np.zeros(39, np.int64), 20))


@pytest.mark.parametrize("name", ["public/knowledge.npz", "public/extractor.safetensors"])
def test_a_release_by_query_verifies_and_not_without_a_part(name: str, tmp_path: Path) -> None:
    key = new_key()
    run_bundle: Bundle = tiny_bundle(source="query", privacy=tiny_privacy())
    write_bundle(run_bundle, tmp_path / "by-query")
    parts = tiny_parts(tmp_path, fingerprint_of(raw_public_key(key)))
    inputs = replace(parts.passport, facts=run_bundle.facts)
    target = tmp_path / "release"
    target.mkdir()
    verified = assemble(replace(parts, bundle=tmp_path / "by-query", passport=inputs), key, target)
    assert verified.passport["model"]["query"]["query_step"] == 700
    assert "all of those images" in (target / "passport.html").read_text()
    np.testing.assert_array_equal(
        Generator.open(target).generate(LABELS[:5], seed=1),
        Generator(run_bundle).generate(LABELS[:5], seed=1),
    )
    # Its signer has lost a part, and signed what was left.
    (target / name).unlink()
    (target / "checksums.json").unlink()
    signed = sign(write_checksums(target), key, signer="A. Officer", created=inputs.created)
    (target / "signature.json").write_bytes(to_bytes(signed))
    with pytest.raises(ReleaseError, match=f"needs {name}"):
        verify_release(target)


def test_a_passport_that_says_another_start_than_the_model_is_refused(tmp_path: Path) -> None:
    key = new_key()
    parts = tiny_parts(tmp_path, fingerprint_of(raw_public_key(key)))
    shutil.rmtree(parts.bundle)
    write_bundle(tiny_bundle(source="query", privacy=tiny_privacy()), parts.bundle)
    target = tmp_path / "release"
    target.mkdir()
    with pytest.raises(ReleaseError, match="what sampling starts from"):
        assemble(parts, key, target)
    assert tiny_inputs("0" * 64).facts.source == "prior"
