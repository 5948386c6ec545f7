"""The gate: everything that keeps a run from being released, all of it said at once.

Each question takes the evidence and answers with what is wrong, or with nothing. None of them
looks at what was measured against private records, but the one that makes sure that no such figure
leaves: a gate that opened for good quality would be a release that nobody paid for (P13).

    refusals = refused(evidence)  # {} if the run may be released
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from rapid_dist.installed import SHORT
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.mechanism import Event, GaussianEvent
from rapid_dist.privacy.statement import Claim, rounded_up
from rapid_dist.release.passport_content import PublicData
from rapid_dist.release.settings import PROFILES, ReleaseConfig

VERSIONS = ("python", "rapid-dist", "torch", "diffusers", "numpy", "opacus", "dp-accounting")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run that asks to be released."""

    config: ReleaseConfig
    today: date
    run: str  # Its name in the ledger, which ends in the hash of its recipe.
    unfinished: Sequence[str]  # Stages that are not done, and files that are not there.
    debug: bool  # Of the recipe, of config.yaml or of the summary.
    recipe_hash: str
    recipe_changes: Sequence[str]  # Settings in which the recipe is not config.yaml.
    code_hash: str  # Of the installed code.
    charged_codes: Sequence[str]  # Version and hash in the run's charges, each once.
    ledger_fault: str  # Why the ledger cannot be believed, or nothing.
    claim: Claim | None  # None only with a fault.
    events: Sequence[Event]  # What the run has released.
    plan: PrivacyPlan
    audit: Mapping[str, Any] | None
    versions: Mapping[str, str]
    public_data: Sequence[PublicData]
    contamination: Mapping[str, Any]  # Policy and, if there was one, decision; {} = not looked for.
    looks_for_duplicates: bool  # Whether the method has the stage.
    never_released: str = ""  # Why no run of the method is ever released, or nothing.
    selection: Mapping[str, Any] | None
    stated_selection: Mapping[str, Any] | None  # What the bundle says of the same.
    trial_fault: str  # Why a sweep's trial has no claim of its own, or nothing.
    bundle_fault: str  # Why the bundle is not the run's own, or nothing.
    traces: Sequence[str]  # Of internal results in the bundle.

    @property
    def dataset_budget(self) -> float:
        """The most that all runs on the data set may have cost together."""
        own = self.plan.budget.epsilon
        return own if self.config.dataset_epsilon is None else self.config.dataset_epsilon


Question = Callable[[Evidence], str]


def run_finished(evidence: Evidence) -> str:
    if not evidence.unfinished:
        return ""
    return (
        f"The run is not finished: {', '.join(evidence.unfinished)} missing. Give `rapid-dist run` "
        "again."
    )


def method_may_leave(evidence: Evidence) -> str:
    """Controls have no model of their own, and a run without privacy stays inside for ever."""
    return evidence.never_released


def mode_not_debug(evidence: Evidence) -> str:
    if not evidence.debug:
        return ""
    return (
        "runtime.debug is or was true: the run may have logged private values. It can never be "
        "released; begin another without it."
    )


def recipe_unchanged(evidence: Evidence) -> str:
    if evidence.recipe_changes:
        return (
            f"The recipe is not the one in config.yaml: {', '.join(evidence.recipe_changes)}. Give "
            "the run's own config.yaml."
        )
    if not evidence.run.endswith(f"-{evidence.recipe_hash[:SHORT]}"):
        return (
            f"The ledger's charges to {evidence.run!r} are not for this recipe, whose hash is "
            f"{evidence.recipe_hash[:SHORT]}: config.yaml was changed after the run began, or the "
            "run is of a version that did not say. It cannot be released."
        )
    return ""


def ledger_verifies(evidence: Evidence) -> str:
    return evidence.ledger_fault


def charged_as_planned(evidence: Evidence) -> str:
    """The constants in the ledger are those of the plan, so of the recipe."""
    step = evidence.plan.stepped.event(1) if evidence.plan.stepped else None
    odd = sum(
        event not in evidence.plan.queries
        if isinstance(event, GaussianEvent)
        else step is None or replace(event, steps=1) != step
        for event in evidence.events
    )
    if not odd:
        return ""
    return (
        f"{odd} of the run's {len(evidence.events)} charges have other constants than the recipe's "
        "plan. Find out what made them."
    )


def budget_kept(evidence: Evidence) -> str:
    claim = evidence.claim
    if claim is None or claim.within_budget:
        return ""
    return (
        f"The run spent epsilon {rounded_up(claim.spent.reported)}, its budget is "
        f"{claim.budget.epsilon:g} at delta {claim.budget.delta:g}. It cannot be released."
    )


def dataset_budget_kept(evidence: Evidence) -> str:
    claim, budget = evidence.claim, evidence.dataset_budget
    if claim is None or claim.dataset_spent.reported <= budget:
        return ""
    return (
        f"All runs on {claim.dataset!r} together spent epsilon "
        f"{rounded_up(claim.dataset_spent.reported)}, allowed are {budget:g} (release."
        "dataset_epsilon). Have whoever answers for the data decide whether to allow more."
    )


def selection_priced(evidence: Evidence) -> str:
    """A model that a sweep chose costs what choosing cost; one that it did not choose stays."""
    if evidence.trial_fault:
        return evidence.trial_fault
    selection = evidence.selection
    if (evidence.stated_selection or None) != selection:
        stated = "another price" if evidence.stated_selection else "no price"
        if selection is None:
            return (
                "The bundle states the price of a choice, and no sweep has chosen this run. Give "
                "`rapid-dist run` into another --out."
            )
        return (
            f"Of the sweep's choice the bundle states {stated}, not that of selection.json, for "
            "which the ledger vouches. Make the bundle anew with `rapid-dist run`."
        )
    if selection is None:
        return ""
    if not selection.get("sentence") or "promise" not in selection:
        return "selection.json does not say which promise the sweep made. Run the sweep again."
    epsilon = selection.get("epsilon")
    if selection["promise"] == "public_proxy" or (
        epsilon is not None and epsilon <= evidence.dataset_budget
    ):
        return ""
    spent = "an unknown epsilon" if epsilon is None else f"epsilon {rounded_up(epsilon)}"
    return (
        f"Choosing this model costs {spent} (promise {selection['promise']}), allowed are "
        f"{evidence.dataset_budget:g} (release.dataset_epsilon)."
    )


def noise_as_demanded(evidence: Evidence) -> str:
    claim = evidence.claim
    if evidence.config.noise == "any" or claim is None or claim.num_discrete == claim.num_entries:
        return ""
    return (
        f"release.noise is 'secure', but {claim.num_entries - claim.num_discrete} of "
        f"{claim.num_entries} releases had fast noise. Train with privacy.noise=secure."
    )


def code_known(evidence: Evidence) -> str:
    """The run was charged by the installed code, all of it."""
    installed = evidence.code_hash[:SHORT]
    others = [code for code in evidence.charged_codes if code.partition("+")[2] != installed]
    if not others:
        return ""
    return (
        f"The run was trained by code {', '.join(others)}, installed is {installed}. Release with "
        "the code that trained: install it, audit it, and try again."
    )


def audit_passed(evidence: Evidence) -> str:
    audit = evidence.audit
    if audit is None:
        return "There is no audit of this run's code and recipe. Give `rapid-dist audit`."
    results = audit.get("results") or []
    wrong = [line["check"] for line in results if not line["passed"]]
    if wrong or not results or audit.get("passed") is not True:
        named = ", ".join(dict.fromkeys(wrong)) or "it holds no answers"
        return f"The audit did not pass: {named}. Do not rely on this code."
    return ""


def audit_of_this_code(evidence: Evidence) -> str:
    audit = evidence.audit
    if audit is None or audit.get("code_hash") == evidence.code_hash:
        return ""
    return (
        f"The audit is of other code ({str(audit.get('code_hash', 'unknown'))[:SHORT]}, installed "
        f"is {evidence.code_hash[:SHORT]}). Give `rapid-dist audit` again."
    )


def audit_of_this_recipe(evidence: Evidence) -> str:
    audit = evidence.audit
    if audit is None or audit.get("recipe_hash") == evidence.recipe_hash:
        return ""
    return (
        f"The audit is of another recipe ({str(audit.get('recipe_hash', 'unknown'))[:SHORT]}, this "
        f"one is {evidence.recipe_hash[:SHORT]}). Give `rapid-dist audit` with this one."
    )


def audit_recent(evidence: Evidence) -> str:
    if evidence.audit is None:
        return ""
    try:
        days = (evidence.today - date.fromisoformat(evidence.audit["created"])).days
    except (KeyError, TypeError, ValueError):
        return "The audit has no date. Give `rapid-dist audit` again."
    if 0 <= days <= evidence.config.audit_days:
        return ""
    return (
        f"The audit is {days} days old, allowed are 0 to {evidence.config.audit_days} (release."
        "audit_days). Give `rapid-dist audit` again."
    )


def audit_thorough(evidence: Evidence) -> str:
    audit, least = evidence.audit, evidence.config.audit_profile
    if audit is None:
        return ""
    profile = audit.get("profile")
    if profile in PROFILES and PROFILES.index(profile) >= PROFILES.index(least):
        return ""
    return (
        f"The audit has the profile {profile!r}, release.audit_profile demands {least!r}. Give "
        f"`rapid-dist audit --profile {least}`."
    )


def versions_known(evidence: Evidence) -> str:
    missing = [name for name in VERSIONS if not evidence.versions.get(name)]
    if not missing:
        return ""
    return (
        f"The summary does not know the version of {', '.join(missing)}. Install the package "
        "instead of importing it from a folder, and run again."
    )


def licences_recorded(evidence: Evidence) -> str:
    missing = [one.source for one in evidence.public_data if not one.licence]
    if not missing:
        return ""
    return (
        f"No licence is recorded for the public source {', '.join(dict.fromkeys(missing))}. Say it "
        "in release.licences."
    )


def contamination_met(evidence: Evidence) -> str:
    told = evidence.contamination
    if not evidence.looks_for_duplicates:
        return ""
    if not told:
        return "Near-duplicates were not looked for in the public data. Give `rapid-dist run`."
    decided = "noised" in told
    if told["policy"] != "accept" and not decided:
        return f"contamination.policy is {told['policy']!r}, but nothing was decided by it."
    if told["policy"] == "refuse" and told["condemned"]:
        return "contamination.policy is 'refuse', and public sources were refused."
    if evidence.config.contamination == "decided" and not decided:
        return (
            "release.contamination is 'decided', but contamination.policy 'accept' decides nothing."
            " Train with policy 'refuse' or 'drop'."
        )
    return ""


def bundle_whole(evidence: Evidence) -> str:
    return evidence.bundle_fault


def bundle_not_internal(evidence: Evidence) -> str:
    if not evidence.traces:
        return ""
    return (
        f"The bundle holds what looks internal: {'; '.join(evidence.traces)}. Remove it, and find "
        "out how it came there."
    )


QUESTIONS: dict[str, Question] = {
    question.__name__: question
    for question in (
        run_finished,
        method_may_leave,
        mode_not_debug,
        recipe_unchanged,
        ledger_verifies,
        charged_as_planned,
        budget_kept,
        dataset_budget_kept,
        selection_priced,
        noise_as_demanded,
        code_known,
        audit_passed,
        audit_of_this_code,
        audit_of_this_recipe,
        audit_recent,
        audit_thorough,
        versions_known,
        licences_recorded,
        contamination_met,
        bundle_whole,
        bundle_not_internal,
    )
}


def refused(evidence: Evidence) -> dict[str, str]:
    """Returns every reason against a release, by the name of its question."""
    answers = {name: question(evidence) for name, question in QUESTIONS.items()}
    return {name: answer for name, answer in answers.items() if answer}
