"""Makes a privacy passport from a claim, a plan, an audit and what is declared."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rapid_dist.errors import ReleaseError
from rapid_dist.privacy.accounting import MOST_DISAGREEMENT, PrivacyPlan
from rapid_dist.privacy.statement import Claim
from rapid_dist.release.bundle import BundleFacts
from rapid_dist.release.passport import FORMAT, MEMORISATION, lower_bound, schema_faults


@dataclass(frozen=True, kw_only=True)
class PublicData:
    """One public source that the model has seen or carries."""

    source: str
    licence: str
    used_for: str
    images: int | None  # As declared; None = all that the source has.


@dataclass(frozen=True, kw_only=True)
class PassportInputs:
    """What a passport is made of; all of it is public."""

    created: str
    facts: BundleFacts
    shape: tuple[int, int]  # Channels, pixels a side.
    claim: Claim
    plan: PrivacyPlan
    noise: str
    max_grad_norm: float
    ledger_entries: int | None  # None where it is secret.
    dataset_budget: float
    audit: Mapping[str, Any]  # audit.json
    contamination: Mapping[str, Any]
    public_data: Sequence[PublicData]
    code_version: str
    code_hash: str
    recipe: str
    recipe_hash: str
    settings: Mapping[str, Any]  # The recipe's tree, without places.
    environment: Mapping[str, str]
    signer: str
    key: str  # Fingerprint.
    selection: Mapping[str, Any] | None = None  # Promise and price of the sweep that chose it.
    synthetic: Mapping[str, Any] | None = None
    checked: Sequence[str] = field(default_factory=tuple)  # Names of the gate's questions.


def passport_of(inputs: PassportInputs) -> dict[str, Any]:
    """Returns passport.json, checked against its schema."""
    facts, secret = inputs.facts, is_secret(inputs.selection)
    channels, size = inputs.shape
    content = {
        "format": FORMAT,
        "created": inputs.created,
        "model": {
            "name": facts.name,
            "method": facts.method,
            "classes": list(facts.class_names),
            "channels": channels,
            "size": size,
            "starts_from": facts.source,
            "from_step": facts.from_step,
            "intervals": facts.intervals,
            **({"query": asdict(facts.query)} if facts.query else {}),
        },
        "claim": _claim(inputs.claim, inputs.selection),
        "mechanism": _mechanism(inputs),
        "selection": dict(inputs.selection) if inputs.selection else None,
        "ledger": {
            "dataset": inputs.claim.dataset,
            "run": inputs.claim.run,
            "head": inputs.claim.ledger_head,
            "entries": None if secret else inputs.ledger_entries,
            "dataset_epsilon": None if secret else inputs.claim.dataset_spent.reported,
            "dataset_budget": inputs.dataset_budget,
        },
        "audit": _audit(inputs.audit),
        "memorisation": {"status": "internal", "said": MEMORISATION},
        "contamination": dict(inputs.contamination),
        "public_data": [asdict(one) for one in inputs.public_data],
        "code": {
            "package": "rapid-dist",
            "version": inputs.code_version,
            "sha256": inputs.code_hash,
        },
        "recipe": {
            "name": inputs.recipe,
            "sha256": inputs.recipe_hash,
            "settings": dict(inputs.settings),
        },
        "environment": dict(inputs.environment),
        "synthetic": dict(inputs.synthetic) if inputs.synthetic else None,
        "signer": {"name": inputs.signer, "algorithm": "Ed25519", "key": inputs.key},
        "gate": list(inputs.checked),
    }
    stored: dict[str, Any] = json.loads(json.dumps(content, allow_nan=False))  # No tuples.
    faults = schema_faults(stored)
    if faults:
        raise ReleaseError(
            f"The passport is not complete: {'; '.join(faults)}. Nothing is released."
        )
    return stored


def is_secret(selection: Mapping[str, Any] | None) -> bool:
    """Whether the number of runs on the ledger may not be told: the sweep's price rests on it."""
    return bool(selection) and (selection or {}).get("promise") == "repeat_and_select"


def _claim(claim: Claim, selection: Mapping[str, Any] | None) -> dict[str, Any]:
    """The claim of the model: what its run cost, or what it cost because a sweep chose it."""
    epsilon, sentences = claim.spent.reported, list(claim.sentences)
    if selection and selection["promise"] != "public_proxy":
        epsilon = max(epsilon, float(selection["epsilon"]))
        if is_secret(selection):  # What all runs cost together tells how many there were.
            sentences = [one for one in sentences if not one.startswith("All runs ever charged")]
        by_itself = f"Of its run alone, had nobody chosen it: {sentences[0]}"
        sentences = [str(selection["sentence"]), by_itself, *sentences[1:]]
    return {
        "sentence": sentences[0],
        "sentences": sentences,
        "epsilon": epsilon,
        "run_epsilon": claim.spent.reported,
        "delta": claim.budget.delta,
        "budget": claim.budget.epsilon,
        "relation": claim.relation,
        "unit": claim.unit,
        "unit_name": claim.unit_name,
        "unit_note": claim.unit_note,
        "units": claim.num_units,
        "accountants": {
            "pld": claim.spent.pld,
            "prv": claim.spent.prv,
            "rdp": claim.spent.rdp,
            "largest_disagreement": MOST_DISAGREEMENT,
        },
    }


def _mechanism(inputs: PassportInputs) -> dict[str, Any]:
    plan, claim = inputs.plan, inputs.claim
    steps = plan.stepped
    return {
        "noise": inputs.noise,
        "steps": claim.num_steps,
        "queries": claim.num_queries,
        "planned_steps": steps.steps if steps else 0,
        "reserve_steps": plan.reserve_steps,
        "sample_rate": steps.sample_rate if steps else None,
        "expected_batch": steps.expected_batch if steps else None,
        "noise_multiplier": steps.noise_multiplier if steps else None,
        "max_grad_norm": inputs.max_grad_norm if plan.dp_sgd else None,
        "prior_noise_multiplier": plan.prior.noise_multiplier if plan.prior else None,
        **_where_there_is(plan),
        "contamination_noise_multiplier": (
            plan.contamination.noise_multiplier if plan.contamination else None
        ),
    }


def _where_there_is(plan: PrivacyPlan) -> dict[str, Any]:
    """What most plans do not have: passports of before know nothing of it."""
    found: dict[str, Any] = {}
    if plan.candidates is not None:
        found["candidates_noise_multiplier"] = plan.candidates.noise_multiplier
    if plan.retrieval is not None:
        found["neighbors"] = plan.retrieval.neighbors
    return found


def _audit(audit: Mapping[str, Any]) -> dict[str, Any]:
    results = audit["results"]
    return {
        "created": audit["created"],
        "profile": audit["profile"],
        "passed": audit["passed"],
        "questions": len(results),
        "checks": list(dict.fromkeys(line["check"] for line in results)),
        "false_alarm": audit["false_alarm"],
        "code_sha256": audit["code_hash"],
        "recipe_sha256": audit["recipe_hash"],
        "epsilon_lower_bound": lower_bound(audit),
    }
