"""The suite, its file, its table and its section: what failed is said, and nothing else is lost."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from rapid_dist.audit.markers import random_markers
from rapid_dist.audit.result import CheckResult, failed
from rapid_dist.audit.silence import Pipeline, check_pipeline_silence
from rapid_dist.audit.suite import Check, Suite, run_suite, to_json
from rapid_dist.cli.audit import print_audit, refuse_failed
from rapid_dist.cli.main import main
from rapid_dist.collective import SingleProcess
from rapid_dist.config import load_recipe, method_settings
from rapid_dist.errors import ConfigError, DataError
from rapid_dist.methods.audit_subject import audit_subject
from rapid_dist.privacy.accounting import plan
from rapid_dist.private.per_example import clipped_sum
from rapid_dist.private.step import ClippedSum
from rapid_dist.release.report_audit import audit_section, with_audit
from tests.faults.subjects import small_subject

GOOD = CheckResult(
    check="noise", question="Is it noise?", statistic="p = 0.3", bound="p > 1e-7",
    false_alarm=1e-7, passed=True,
)  # fmt: skip
BAD = replace(GOOD, check="contribution", statistic="8.0 C <b>", bound="1 C", passed=False,
              false_alarm=0.0)  # fmt: skip


class _Fixed(Suite):
    """A suite of three checks, the last of which ends by an error."""

    def checks(self) -> dict[str, Check]:
        def broken() -> list[CheckResult]:
            raise ValueError("of Jane Doe")

        return {"noise": lambda: [GOOD], "contribution": lambda: [BAD], "sampling": broken}


def test_a_failed_check_and_one_that_breaks_down_fail_the_audit() -> None:
    heard: list[str] = []
    suite = _Fixed(subject=small_subject(), pipeline=None, profile="quick")
    results = run_suite(suite, lambda name, lines, seconds: heard.append(name))
    assert heard == ["noise", "contribution", "sampling"]
    assert failed(results) == ["contribution", "sampling"]
    content = to_json(results)
    assert content["passed"] is False
    assert content["failed"] == ["contribution", "sampling"]
    assert "Jane Doe" not in json.dumps(content)  # An error's message is anybody's.
    assert to_json([GOOD])["passed"] is True


def test_the_suite_has_the_seven_checks_in_order() -> None:
    names = list(Suite(subject=small_subject(), pipeline=None, profile="quick").checks())
    assert names == [
        "contribution", "noise", "sampling", "accounting", "control flow", "silence",
        "empirical epsilon",
    ]  # fmt: skip


@pytest.mark.parametrize(("results", "code"), [([GOOD], 0), ([GOOD, BAD], 1)])
def test_a_failed_check_is_exit_1_and_a_line(
    results: list[CheckResult], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    app = typer.Typer()

    @app.command()
    def audit() -> None:
        print_audit(results)
        refuse_failed(results)

    assert main([], app=app) == code
    said = capsys.readouterr()
    assert all(result.statistic in said.out for result in results)
    refusals = "rapid-dist: contribution failed: 8.0 C <b>; the bound is 1 C.\n"
    assert said.err == (refusals if code else "")


def test_a_dry_run_audits_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "-r", "digits", "-o", str(tmp_path / "a"), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["recipe"]["name"] == "digits"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_profile_is_a_wrong_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "-r", "digits", "--profile", "thorough"]) == 2
    assert "quick" in capsys.readouterr().err


def _audit(*results: CheckResult) -> dict[str, object]:
    facts = {"profile": "quick", "created": "2026-01-02", "code": "1"}
    mechanism = {
        "num_records": 1000, "expected_batch": 125.0, "steps": 70, "noise_multiplier": 1.5816844,
        "noise": "fast",
    }  # fmt: skip
    return {**facts, "mechanism": mechanism, **to_json(list(results))}


def test_the_section_shows_every_answer_and_what_failed() -> None:
    body = audit_section(_audit(GOOD, BAD)).body
    assert "These checks failed: contribution" in body
    assert "8.0 C &lt;b&gt;" in body
    assert body.count("FAILED") == 2  # The verdict, and the row.
    assert "FAILED" not in audit_section(_audit(GOOD)).body


def test_the_section_says_which_constants_were_tried_for_they_may_not_be_the_runs() -> None:
    body = audit_section(_audit(GOOD)).body
    assert "70 steps of DP-SGD, sample rate 0.125, noise multiplier 1.582 and fast noise" in body


def test_a_page_gets_its_section_in_the_place_of_the_one_it_has() -> None:
    from rapid_dist.release.markup import Section, card

    none, other = audit_section(None), Section(key="other", title="Other", body="<p>kept</p>")
    assert "No audit" in none.body
    page = card(none) + card(other)
    once = with_audit(page, _audit(GOOD))
    assert "No audit" not in once
    assert once == with_audit(once, _audit(GOOD))
    assert once.endswith(card(other))


def _pipeline(write: Callable[[Path, bytes], None], refusal: str = "A file is torn.") -> Pipeline:
    markers = random_markers(40, (1, 8, 8), 3, np.random.default_rng(0))

    def run(folder: Path, engine: ClippedSum) -> None:
        for place in ("source", "internal", "bundle"):
            (folder / place).mkdir()
        (folder / "source" / f"{markers.names[0]}.png").write_bytes(markers.images[0].tobytes())
        (folder / "internal" / "nearest.json").write_text(str(markers.images[0].tolist()))
        write(folder, markers.images[1].tobytes())

    def run_broken(folder: Path) -> None:
        raise DataError(refusal.format(name=markers.names[7]))

    return Pipeline(
        markers=markers, run=run, run_broken=run_broken, source="source", internal="internal"
    )


def _discreet(folder: Path, secret: bytes) -> None:
    (folder / "bundle" / "model.json").write_text("{}")


def _loose(folder: Path, secret: bytes) -> None:
    (folder / "bundle" / "references.npz").write_bytes(secret)


def _hidden(folder: Path, secret: bytes) -> None:
    """In a folder that is called internal, and leaves with the bundle."""
    (folder / "bundle" / "internal").mkdir()
    (folder / "bundle" / "internal" / "cache.npz").write_bytes(secret)


def test_a_run_is_silent_if_only_its_source_and_its_internal_folder_hold_secrets() -> None:
    assert failed(check_pipeline_silence(_pipeline(_discreet), clipped_sum)) == []


@pytest.mark.parametrize(
    "pipeline",
    [_pipeline(_loose), _pipeline(_hidden), _pipeline(_discreet, "Cannot read {name}.png.")],
)
def test_a_run_that_leaks_and_a_refusal_that_names_are_noticed(pipeline: Pipeline) -> None:
    assert failed(check_pipeline_silence(pipeline, clipped_sum)) == ["silence"]


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["train.mode=late"],
        ["train.surrogate=query"],
        ["privacy.noise=secure"],
        ["train.mode=surrogate", "autoencoder.network.widths=[8, 8]", "train.trainable=lora"],
    ],
)
def test_a_subject_takes_a_step_of_its_recipe_on_public_stand_ins(changes: list[str]) -> None:
    recipe = load_recipe("digits", changes)
    solved = plan(recipe.privacy, recipe.num_units)
    with audit_subject(method_settings(recipe), solved) as subject:
        assert solved.dp_sgd is not None
        assert subject.mechanism.sample_rate == pytest.approx(solved.dp_sgd.sample_rate)
        assert subject.mechanism.noise_multiplier == solved.dp_sgd.noise_multiplier
        step = subject.step(SingleProcess(), subject.new_key())
        released = step.noised_gradient(subject.denoiser(), 0)
        assert bool(torch.isfinite(released).all())
        assert released.abs().sum() > 0


def test_a_recipe_without_training_has_nothing_to_audit() -> None:
    recipe = load_recipe("digits", ["privacy.prior_share=1"])
    solved = plan(recipe.privacy, recipe.num_units)
    with (
        pytest.raises(ConfigError, match="prior_share"),
        audit_subject(method_settings(recipe), solved),
    ):
        pass
