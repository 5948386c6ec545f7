"""The gate: nothing is said against a sound run, and every reason by its own name."""

from dataclasses import replace

import pytest

from rapid_dist.privacy.mechanism import DpSgdEvent, GaussianEvent
from rapid_dist.release.gate import QUESTIONS, Evidence, refused
from rapid_dist.release.settings import ReleaseConfig
from tests.releases import (
    CODE_HASH,
    over_budget,
    tiny_audit,
    tiny_claim,
    tiny_evidence,
    tiny_plan,
    tiny_source,
)

DECIDED = {"policy": "drop", "noised": [3.0, 900.0], "condemned": [1], "sources": ["a", "b"]}
BAD_LINE = {**tiny_audit()["results"][0], "passed": False}
SECURE = ReleaseConfig(noise="secure")
CHOSEN = {"promise": "per_trial", "sentence": "Eight runs, all of them priced.", "epsilon": 4.9}

# Question, what is changed of sound evidence, and what the reason has to say.
REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("run_finished", {"unfinished": ["train", "summary.json"]}, "train, summary.json missing"),
    ("method_may_leave", {"never_released": "It is a control."}, "It is a control."),
    ("mode_not_debug", {"debug": True}, "runtime.debug"),
    ("recipe_unchanged", {"recipe_changes": ["privacy.epsilon"]}, "privacy.epsilon"),
    ("recipe_unchanged", {"run": "tiny-0a1b2c3d-" + "9" * 16}, "config.yaml was changed"),
    ("recipe_unchanged", {"run": "tiny-0a1b2c3d"}, "a version that did not say"),
    ("recipe_unchanged", {"run": ""}, "not for this recipe"),
    ("ledger_verifies", {"ledger_fault": "Entry 7 was changed.", "claim": None}, "Entry 7"),
    ("charged_as_planned", {"events": [GaussianEvent(noise_multiplier=0.1)]}, "1 of the run"),
    ("charged_as_planned",
     {"events": [DpSgdEvent(sample_rate=0.1, noise_multiplier=0.5, steps=1)]}, "constants"),
    ("budget_kept", {"claim": over_budget()}, "its budget is 5"),
    ("dataset_budget_kept",
     {"claim": replace(tiny_claim(), dataset_spent=over_budget().spent)}, "dataset_epsilon"),
    ("dataset_budget_kept", {"config": ReleaseConfig(dataset_epsilon=1.0)}, "allowed are 1 "),
    ("selection_priced", {"selection": {**CHOSEN, "epsilon": 5.1}}, "5.1000 (promise per_trial)"),
    ("selection_priced", {"selection": {**CHOSEN, "epsilon": None}}, "unknown epsilon"),
    ("selection_priced", {"selection": {"promise": "public_proxy"}}, "selection.json"),
    # The bundle and the ledger tell of different choices.
    ("selection_priced", {"selection": CHOSEN, "stated_selection": None}, "states no price"),
    ("selection_priced",
     {"selection": CHOSEN, "stated_selection": {**CHOSEN, "epsilon": 3.0}}, "another price"),
    ("selection_priced", {"stated_selection": CHOSEN}, "no sweep has chosen"),
    ("selection_priced", {"trial_fault": "It was a trial."}, "It was a trial."),
    ("noise_as_demanded", {"config": SECURE}, "21 of 21 releases had fast noise"),
    ("noise_as_demanded",
     {"config": SECURE, "claim": replace(tiny_claim(), num_discrete=20)}, "1 of 21"),
    ("code_known", {"charged_codes": ["0.1.0"]}, "trained by code 0.1.0"),
    ("code_known", {"charged_codes": [f"0.1.0+{CODE_HASH[:16]}", "0.1.0+" + "0" * 16]}, "0000"),
    ("audit_passed", {"audit": None}, "There is no audit"),
    ("audit_passed", {"audit": tiny_audit(passed=False)}, "did not pass"),
    ("audit_passed", {"audit": tiny_audit(results=[])}, "no answers"),
    # Somebody has written a verdict over the answers.
    ("audit_passed", {"audit": tiny_audit(results=[BAD_LINE])}, "did not pass: noise"),
    ("audit_of_this_code", {"audit": tiny_audit(code_hash="0" * 64)}, "other code (0000"),
    ("audit_of_this_recipe", {"audit": tiny_audit(recipe_hash="0" * 64)}, "another recipe (0000"),
    ("audit_recent", {"audit": tiny_audit(created="2026-01-20")}, "40 days old"),
    ("audit_recent", {"audit": tiny_audit(created="2026-03-02")}, "-1 days old"),
    ("audit_recent", {"audit": tiny_audit(created="yesterday")}, "no date"),
    ("audit_thorough", {"config": ReleaseConfig(audit_profile="full")}, "demands 'full'"),
    ("audit_thorough", {"audit": tiny_audit(profile="none")}, "profile 'none'"),
    ("versions_known", {"versions": {"python": "3.11"}}, "torch, diffusers"),
    ("licences_recorded", {"public_data": [tiny_source(licence="")]}, "source letters"),
    ("contamination_met", {"contamination": {}}, "not looked for"),
    ("contamination_met", {"contamination": {"policy": "drop"}}, "nothing was decided"),
    ("contamination_met", {"contamination": {**DECIDED, "policy": "refuse"}}, "were refused"),
    ("contamination_met", {"config": ReleaseConfig(contamination="decided")}, "'decided'"),
    ("bundle_whole", {"bundle_fault": "prior.npz has changed"}, "prior.npz"),
    ("bundle_not_internal", {"traces": ["README.md holds 3 figures"]}, "README.md holds 3"),
]  # fmt: skip


def test_nothing_is_said_against_a_sound_run() -> None:
    assert refused(tiny_evidence()) == {}


@pytest.mark.parametrize(("question", "changes", "said"), REFUSED)
def test_a_run_is_refused_by(question: str, changes: dict[str, object], said: str) -> None:
    reasons = refused(tiny_evidence(**changes))
    assert list(reasons) == [question]
    assert said in reasons[question]
    assert "\n" not in reasons[question]


def test_every_question_of_the_gate_has_a_run_that_it_refuses() -> None:
    assert {question for question, _, _ in REFUSED} == set(QUESTIONS)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": ReleaseConfig(dataset_epsilon=20.0),
         "claim": replace(tiny_claim(), dataset_spent=over_budget().spent)},
        {"config": SECURE, "claim": replace(tiny_claim(), num_discrete=21)},
        {"config": ReleaseConfig(audit_days=40), "audit": tiny_audit(created="2026-01-20")},
        {"config": ReleaseConfig(audit_profile="full"), "audit": tiny_audit(profile="full")},
        {"config": ReleaseConfig(contamination="decided"), "contamination": DECIDED},
        {"contamination": {}, "looks_for_duplicates": False},
        {"selection": {**CHOSEN, "promise": "public_proxy", "epsilon": None}},
        {"selection": CHOSEN},
        {"public_data": ()},
    ],
)  # fmt: skip
def test_what_the_settings_allow_is_not_refused(changes: dict[str, object]) -> None:
    assert refused(tiny_evidence(**changes)) == {}


def test_every_reason_is_said_at_once() -> None:
    evidence: Evidence = tiny_evidence(
        debug=True, audit=None, traces=["x"], claim=over_budget(), bundle_fault="gone"
    )
    assert list(refused(evidence)) == [
        "mode_not_debug", "budget_kept", "audit_passed", "bundle_whole", "bundle_not_internal",
    ]  # fmt: skip


def test_charges_that_a_crash_made_twice_are_still_those_of_the_plan() -> None:
    planned = tiny_plan()
    assert refused(tiny_evidence(events=planned.events * 2)) == {}
