"""The end of a run that has charged nothing: no claim, no registered model, an internal page.

Of a control that reads no private record epsilon is 0. Of a run without privacy there is none: its
samples lie below ``internal/`` and nothing that was made of its weights is shown, logged or sent
anywhere. MLflow learns how long it took, and in the internal store how it measured.
"""

import json
from datetime import date
from typing import Any

from rapid_dist.config import Recipe
from rapid_dist.errors import ReleaseError
from rapid_dist.methods import artifacts, catalog, nonprivate, sampling_stages
from rapid_dist.methods.context import Promise, RunContext
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.release.plots import samples_png
from rapid_dist.release.report_unclaimed import render_unclaimed
from rapid_dist.runtime import results
from rapid_dist.runtime.lineage import lineage_of
from rapid_dist.runtime.recording import record_figures, record_lineage
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.runtime.tracking import TrackedRun


def finish_unclaimed(
    recipe: Recipe,
    directory: RunDirectory,
    context: RunContext,
    tracked: TrackedRun,
    ledger: Ledger,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Writes the internal page and returns the summary; nothing is registered.

    Raises:
      ReleaseError: the ledger has charges of this run, which makes no claim.
    """
    ledger.refresh()
    if ledger.events(directory.run):
        raise ReleaseError(
            f"Run {directory.run!r} of method {recipe.method} has charges in the ledger, though it "
            "makes no claim. Find out what made them."
        )
    promise = catalog.promise_of(context.settings)
    held = nonprivate.inside(context) if promise == "none" else context
    quality = json.loads(directory.internal.read("quality.json"))
    summary = results.summarise(
        recipe,
        seconds=seconds,
        privacy=unclaimed_figures(recipe, promise, directory.run),
        nfe=artifacts.read_done(held.out.child(sampling_stages.SAMPLES))["nfe"],
        quality=quality,
        registry={},
        contamination={},
    )
    names = sampling_stages.class_names(context.settings)
    samples = results.image_set(held, sampling_stages.SAMPLES_FILE)
    held.out.write("samples.png", samples_png(samples, names))
    written = render_unclaimed(
        summary,
        sentence=summary["privacy"]["sentence"],
        created=date.today().isoformat(),
        class_names=names,
        samples=samples,
        quality=quality,
    )
    context.internal.write("report.html", written.encode())
    record_lineage(directory, tracked, lineage_of(context, ledger, directory.run), {})
    record_figures(directory, tracked, summary)
    return summary


def unclaimed_figures(recipe: Recipe, promise: Promise, run: str) -> dict[str, Any]:
    """Returns the summary's ``privacy``: epsilon 0 where nothing private is read, else null."""
    said = {
        "public": (
            f"Method {recipe.method} reads no private record before its evaluation, so nothing of "
            "them is in what it makes (epsilon 0). Its quality is measured against them: internal."
        ),
        "none": (
            f"No privacy: method {recipe.method} trains on private records without clip and noise. "
            "There is no epsilon; its weights and samples are as private as the records."
        ),
    }
    private = recipe.data.private
    return {
        "promise": promise,
        "sentence": said[promise],
        "epsilon": 0.0 if promise == "public" else None,
        "delta": recipe.privacy.delta,
        "unit": recipe.privacy.unit,
        "unit_name": private.unit_name,
        "relation": recipe.privacy.relation,
        "num_units": recipe.num_units,
        "steps": 0,
        "queries": 0,
        "run": run,
    }
