"""A release small enough to be made and tampered with in a test, and evidence for a gate."""

from dataclasses import replace
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from rapid_dist.installed import hash_of
from rapid_dist.privacy.accounting import PrivacyPlan, epsilons, plan
from rapid_dist.privacy.settings import PrivacyConfig
from rapid_dist.privacy.statement import Claim
from rapid_dist.release.assemble import Parts
from rapid_dist.release.bundle import write_bundle
from rapid_dist.release.gate import VERSIONS, Evidence
from rapid_dist.release.passport_content import PassportInputs, PublicData
from rapid_dist.release.settings import ReleaseConfig
from tests.bundles import tiny_bundle, tiny_denoiser, tiny_facts

TODAY = date(2026, 3, 1)
RECIPE_HASH, CODE_HASH, HEAD = "1f" * 32, "2e" * 32, "3d" * 32
RUN = f"tiny-0a1b2c3d-{RECIPE_HASH[:16]}"
UNITS = 500


@cache
def tiny_plan() -> PrivacyPlan:
    config = PrivacyConfig(epsilon=5.0, delta=1e-4, expected_batch=50, steps=20)
    return plan(config, UNITS)


def tiny_claim(**changes: Any) -> Claim:
    """Returns the claim of a run that spent its plan, but for ``changes``."""
    planned = tiny_plan()
    values: dict[str, Any] = {
        "dataset": "faces", "run": RUN, "num_units": UNITS, "relation": "zero_out",
        "unit": "record", "unit_name": "record", "unit_note": "", "budget": planned.budget,
        "spent": planned.epsilons, "dataset_spent": planned.epsilons, "num_steps": 20,
        "num_queries": 1, "num_discrete": 0, "num_entries": 21, "ledger_head": HEAD,
    }  # fmt: skip
    return Claim(**{**values, **changes})


def tiny_audit(**changes: Any) -> dict[str, Any]:
    """Returns an audit.json of two questions that were passed."""
    line = {"question": "?", "bound": "?", "false_alarm": 0.05, "passed": True, "detail": ""}
    content = {
        "recipe": "tiny", "recipe_hash": RECIPE_HASH, "profile": "quick", "created": "2026-02-20",
        "code": "0.1.0", "code_hash": CODE_HASH, "passed": True, "failed": [], "false_alarm": 0.1,
        "results": [
            {**line, "check": "noise", "statistic": "1.0 of the claimed stddev"},
            {**line, "check": "empirical epsilon",
             "statistic": "epsilon > 1.25: 900 of 1000 guesses right, 5000 canaries",
             "value": 1.25},
        ],
    }  # fmt: skip
    return {**content, **changes}


def tiny_evidence(**changes: Any) -> Evidence:
    """Returns evidence that nothing speaks against, but for ``changes``."""
    planned = tiny_plan()
    values: dict[str, Any] = {
        "config": ReleaseConfig(), "today": TODAY, "run": RUN, "unfinished": (), "debug": False,
        "recipe_hash": RECIPE_HASH, "recipe_changes": (), "code_hash": CODE_HASH,
        "charged_codes": (f"0.1.0+{CODE_HASH[:16]}",), "ledger_fault": "", "claim": tiny_claim(),
        "events": planned.events, "plan": planned, "audit": tiny_audit(),
        "versions": dict.fromkeys(VERSIONS, "1"), "public_data": (tiny_source(),),
        "contamination": {"policy": "accept"}, "looks_for_duplicates": True, "selection": None,
        "stated_selection": changes.get("selection"), "trial_fault": "", "bundle_fault": "",
        "traces": (),
    }  # fmt: skip
    return Evidence(**{**values, **changes})


def tiny_source(**changes: Any) -> PublicData:
    values = {"source": "letters", "licence": "OFL", "used_for": "pretraining", "images": 600}
    return PublicData(**{**values, **changes})


def tiny_inputs(key: str, **changes: Any) -> PassportInputs:
    """Returns what a passport is made of; ``key`` is the signer's fingerprint."""
    values: dict[str, Any] = {
        "created": TODAY.isoformat(), "facts": tiny_facts(), "shape": (1, 8),
        "claim": tiny_claim(), "plan": tiny_plan(), "noise": "fast", "max_grad_norm": 1.0,
        "ledger_entries": 23, "dataset_budget": 5.0, "audit": tiny_audit(),
        "contamination": {"policy": "accept"}, "public_data": (tiny_source(),),
        "code_version": "0.1.0", "code_hash": CODE_HASH, "recipe": "tiny",
        "recipe_hash": RECIPE_HASH, "settings": {"name": "tiny"},
        "environment": {"python": "3.11.9", "platform": "Linux", "torch": "2", "numpy": "2"},
        "signer": "A. Officer", "key": key, "checked": ("budget_kept",),
    }  # fmt: skip
    return PassportInputs(**{**values, **changes})


def tiny_privacy() -> dict[str, Any]:
    """Returns what the run's bundle states of privacy."""
    claim = tiny_claim()
    return {
        "epsilon": claim.spent.reported, "delta": claim.budget.delta, "relation": "zero_out",
        "unit": "record", "run": RUN, "ledger_head": HEAD,
    }  # fmt: skip


def tiny_parts(folder: Path, key: str, **changes: Any) -> Parts:
    """Returns the parts of a release whose code is one small file of its own."""
    package = folder / "package"
    package.mkdir()
    (package / "sampler.py").write_text("pass\n")
    write_bundle(tiny_bundle(privacy=tiny_privacy()), folder / "run-bundle")
    values: dict[str, Any] = {
        "bundle": folder / "run-bundle", "public_network": tiny_denoiser(), "internal": (),
        "passport": tiny_inputs(key, code_hash=hash_of(package)), "package": package,
    }  # fmt: skip
    return Parts(**{**values, **changes})


def over_budget() -> Claim:
    """Returns the claim of a run that spent more than it may."""
    return replace(tiny_claim(), spent=epsilons(tiny_plan().events * 2, 1e-4))


def new_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()
