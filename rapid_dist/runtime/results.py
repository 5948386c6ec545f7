"""What a finished run says of itself: summary.json, two reports, a registered model.

``report.html`` holds nothing that was measured against private records and may be shown with the
model; ``internal/report.html`` is the same page with those figures, and says so (P13).
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import date
from importlib import metadata
from typing import Any

import numpy as np

from rapid_dist.config import Recipe
from rapid_dist.methods import (
    artifacts,
    catalog,
    contamination_stage,
    evaluation_stage,
    private_stages,
    sampling_stages,
)
from rapid_dist.methods.context import RunContext
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.accounting import PrivacyPlan
from rapid_dist.privacy.dataset_total import has_secret
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.spend import Spend
from rapid_dist.privacy.statement import Claim
from rapid_dist.release.plots import EpsilonCurve, ImageSet, samples_png
from rapid_dist.release.registry import register_model
from rapid_dist.release.report import ReportInputs, Strips, render_report
from rapid_dist.retrieval.stats import diversity
from rapid_dist.secret import masked

VENDORS = (
    "torch", "diffusers", "opacus", "dp-accounting", "faiss-cpu", "ray", "mlflow", "numpy"
)  # fmt: skip
SPEND = "epsilon.jsonl"
STRIPS = 10
QUERIES = 64  # Public queries that say how the knowledge base answers: one block of samples.
ALIAS = "candidate"
AUDIT = "audit.json"


def versions() -> dict[str, str]:
    """Returns the versions that shaped the run."""
    found = {"python": platform.python_version()}
    for name in ("rapid-dist", *VENDORS):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # faiss-gpu stands in for faiss-cpu, a checkout for the package.
    return found


def privacy_figures(recipe: Recipe, plan: PrivacyPlan, claim: Claim) -> dict[str, Any]:
    """Returns the summary's ``privacy``: epsilon from the ledger, constants from the plan."""
    mechanism = plan.stepped
    return {
        "epsilon": claim.spent.reported,
        "delta": claim.budget.delta,
        "budget": claim.budget.epsilon,
        "relation": claim.relation,
        "unit": claim.unit,
        "unit_name": claim.unit_name,
        "unit_note": claim.unit_note,
        "accountants": {
            "pld": claim.spent.pld,
            "prv": claim.spent.prv,
            "rdp": claim.spent.rdp,
        },
        "num_units": claim.num_units,
        "steps": claim.num_steps,
        "queries": claim.num_queries,
        "sample_rate": mechanism.sample_rate if mechanism else None,
        "expected_batch": mechanism.expected_batch if mechanism else None,
        "noise_multiplier": mechanism.noise_multiplier if mechanism else None,
        "prior_noise_multiplier": plan.prior.noise_multiplier if plan.prior else None,
        "candidates_noise_multiplier": plan.candidates.noise_multiplier
        if plan.candidates
        else None,
        "contamination_noise_multiplier": (
            plan.contamination.noise_multiplier if plan.contamination else None
        ),
        # An answer's sum has a sensitivity of its own, and is divided by k.
        "max_grad_norm": None if plan.retrieval else recipe.privacy.max_grad_norm,
        **({"neighbors": plan.retrieval.neighbors} if plan.retrieval else {}),
        "run": claim.run,
        **({"stopped": claim.stopped} if claim.stopped else {}),
        "ledger_head": claim.ledger_head,
        "dataset_epsilon": claim.dataset_spent.reported,
    }


def spend_lines(spent: Spend) -> bytes:
    """Returns epsilon.jsonl: a line a release, by every accountant where all were asked."""
    lines = []
    for count, reported in enumerate(spent.reported, start=1):
        line: dict[str, float] = {"release": count, "epsilon": reported}
        if count in spent.checked:
            asked = spent.checked[count]
            line |= {"pld": asked.pld, "prv": asked.prv, "rdp": asked.rdp}
        lines.append(json.dumps(line) + "\n")
    return "".join(lines).encode()


def epsilon_curve(spent: Spend, budget: float) -> EpsilonCurve:
    """Returns what the report draws: what is claimed at every release, and RDP at a few."""
    return EpsilonCurve(
        lines={
            "reported": list(enumerate(spent.reported, start=1)),
            "rdp": [(count, asked.rdp) for count, asked in spent.checked.items()],
        },
        budget=budget,
    )


def ledger_of(ledger: Ledger, run: str) -> list[dict[str, Any]]:
    """Returns the run's entries as plain values; none where their places tell what is secret."""
    if has_secret(ledger):
        return []
    return [asdict(entry) for entry in ledger.entries() if entry.run == run]


def summarise(
    recipe: Recipe,
    *,
    seconds: Mapping[str, float],
    privacy: Mapping[str, Any],
    nfe: float,
    quality: Mapping[str, Any],
    registry: Mapping[str, Any],
    contamination: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns summary.json. ``quality`` and ``controls`` in it are internal (P13)."""
    drawing = seconds.get("generate", 0.0)
    return {
        "method": recipe.method,
        "recipe": recipe.name,
        "dataset": recipe.data.private.name,
        "debug": recipe.runtime.debug,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
        "privacy": dict(privacy),
        "contamination": dict(contamination),
        "sampling": {
            "nfe": nfe,
            "images": recipe.sampling.count,
            "images_per_second": round(recipe.sampling.count / drawing, 2) if drawing else None,
        },
        "quality": quality.get("samples", {}),
        "controls": quality.get("controls", {}),
        "registry": dict(registry),
        "versions": versions(),
    }


def register(
    context: RunContext, privacy: Mapping[str, Any], *, name: str, run_id: str, tracking_uri: str
) -> dict[str, Any]:
    """Registers the run's bundle and returns the summary's ``registry``."""
    told = ("epsilon", "delta", "relation", "unit", "unit_name", "ledger_head", "dataset_epsilon")
    tags = {f"dp.{key}": str(privacy[key]) for key in told}
    model, version = artifacts.with_folder(
        context.out.child(sampling_stages.BUNDLE),
        lambda folder: register_model(
            folder,
            run_id,
            name,
            {
                **tags,
                "dp.dataset": context.settings.private.name,
                "method": context.settings.method,
            },
            tracking_uri=tracking_uri,
            alias=ALIAS,
            description=f"{context.settings.method} generator of {context.settings.private.name}",
        ),
    )
    # Stored and printed: credentials stay in the environment, from where `connect` has them again.
    address = masked(tracking_uri)
    return {"name": model, "version": version, "aliases": [ALIAS], "tracking_uri": address}


def write_pages(
    context: RunContext,
    summary: Mapping[str, Any],
    claim: Claim,
    curve: EpsilonCurve,
    quality: Mapping[str, Any],
    *,
    price_per_hour: float | None = None,
) -> None:
    """Writes samples.png, report.html and internal/report.html."""
    settings = context.settings
    names = sampling_stages.class_names(settings)
    chosen = summary["privacy"].get("selection")
    samples = image_set(context, f"{sampling_stages.SAMPLES}/samples.npz")
    context.out.write("samples.png", samples_png(samples, names))
    inputs: dict[str, Any] = {
        "summary": summary,
        "claim": (*([chosen["sentence"]] if chosen else []), *claim.sentences),
        "created": date.today().isoformat(),
        "class_names": names,
        "samples": samples,
        "controls": {
            name: image_set(context, evaluation_stage.control_file(name))
            for name in quality.get("controls", {})
        },
        "strips": _strips(context) if _retrieves(settings) else None,
        "curve": curve,
        "audit": _audit(context),
        "price_per_hour": price_per_hour,
    }
    context.out.write("report.html", render_report(ReportInputs(**inputs)).encode())
    if quality:
        found = context.internal
        if found.exists(contamination_stage.FOUND):
            near = json.loads(found.read(contamination_stage.FOUND))
            quality = {**quality, "contamination": near}
        page = render_report(ReportInputs(**inputs, quality=quality))
        context.internal.write("report.html", page.encode())


def _retrieves(settings: MethodSettings) -> bool:
    """Whether there is a private model that may be entered at a retrieved state."""
    return catalog.has_stage(settings, "index") and catalog.has_stage(settings, "train")


def _audit(context: RunContext) -> dict[str, Any] | None:
    """Returns the audit that was made into this run directory before, if any."""
    if not context.out.exists(AUDIT):
        return None
    found: dict[str, Any] = json.loads(context.out.read(AUDIT))
    return found


def _strips(context: RunContext) -> Strips:
    """Draws a few samples the paper's way, from the public model's queries, to be looked at."""
    settings = context.settings
    num_classes = private_stages.num_classes(settings)
    labels = np.arange(QUERIES) % num_classes
    base = context.public.child(artifacts.knowledge_base_name(settings))
    path = sampling_stages.sample_by_query(
        settings,
        context.public.uri,
        context.backend.searcher(base),
        artifacts.get_denoiser(context.out.child(private_stages.PRIVATE).uri),
        labels,
        seed=settings.sampling.seed,
    )
    shown = slice(min(STRIPS, num_classes))
    samples = context.out.child(sampling_stages.SAMPLES)
    # Of all samples' queries where they were drawn by query, else of the queries made here.
    spread = artifacts.read_done(samples).get("neighbours") or asdict(diversity(path.neighbours))
    return Strips(
        queries=path.query[shown],
        surrogates=path.reference[shown],
        samples=path.sample[shown],
        labels=labels[shown],
        neighbours=spread,
    )


def image_set(context: RunContext, name: str) -> ImageSet:
    """Returns a set of images that the run has stored."""
    images, labels = artifacts.get_images(context.out, name)
    return ImageSet(images=images, labels=labels)
