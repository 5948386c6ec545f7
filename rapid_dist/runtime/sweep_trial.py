"""One trial of a sweep: the stages of its method on its own settings, and a score.

A trial keeps no record of its own in MLflow and registers nothing: the sweep tells of its trials,
and one model leaves at most. It runs in this process or as a trial of Ray Tune, and there either
in one process or on the workers of Ray Train.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from rapid_dist.config import Recipe, method_settings, parse_recipe
from rapid_dist.errors import BudgetError
from rapid_dist.methods import contamination_stage
from rapid_dist.methods.catalog import stages_of
from rapid_dist.methods.context import Keeper, RunContext, Stage
from rapid_dist.methods.evaluation_stage import QUALITY
from rapid_dist.methods.sweep_score import TRIES, public_score, run_score
from rapid_dist.privacy.accounting import PrivacyPlan, epsilons
from rapid_dist.privacy.dataset_total import SCORE
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent, gaussian_event
from rapid_dist.privacy.pld import pooled
from rapid_dist.privacy.selection import Candidate
from rapid_dist.privacy.settings import Budget
from rapid_dist.runtime import results
from rapid_dist.runtime.backend import KeeperMaker, open_backend, open_keeper
from rapid_dist.runtime.chosen import score_run
from rapid_dist.runtime.figures import Figures
from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.run_directory import RunDirectory
from rapid_dist.runtime.stage_times import timed
from rapid_dist.storage import open_storage


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """All that a trial needs, as plain values: it can be sent to another process."""

    number: int
    recipe: Mapping[str, Any]  # A whole recipe's tree, its private source the one to be trained on.
    plan: PrivacyPlan  # For that source.
    charged: PrivacyPlan  # What its keeper charges; another only where a stand-in is smaller.
    out: str
    public: str
    ledger: str
    score_noise: float | None  # None: measured whole, on public images.
    fractions: tuple[float, ...] = (1.0,)  # Of the training, one a rung.
    charged_as: str = ""  # How its run's name begins, in the ledger; "" = with the recipe's name.
    quiet: bool = False  # Shows nothing of itself: who sees trials can count them.
    as_planned: bool = False  # Its price is that of its plan, so it may not have cost more.


@dataclass(frozen=True, kw_only=True)
class Rung:
    """What a trial has come to after a part of its training, or after all of it."""

    fraction: float
    score: float
    seconds: dict[str, float]  # A stage each.
    run: str  # In its ledger.


def run_trial(job: TrialJob) -> Iterator[Rung]:
    """Yields the trial's score at every rung; whoever stops asking stops the trial."""
    for fraction in job.fractions:
        whole = fraction == 1.0
        at = job if whole else _shortened(job, fraction)
        yield _run(at, fraction)


def score_event(noise: float, kind: str) -> GaussianEvent:
    """Returns what one private score releases."""
    return gaussian_event(noise, "secure" if kind == "secure" else "fast")


def charged_trials(ledger: Ledger, sweep: str, runs: Collection[str]) -> list[Candidate]:
    """Returns what the ledger says of every trial of a sweep, one that failed included.

    Args:
      runs: names of trials, by their folders. The ledger knows them by that of their sweep as well:
        one that has lost its folder has still cost what it has cost.
    """
    return [
        Candidate(training=tuple(ledger.events(run)), score=tuple(ledger.events(score_run(run))))
        for run in ledger.runs()
        if (run in runs or run.startswith(f"{sweep}-")) and not run.endswith(SCORE)
    ]


def build_public(job: TrialJob) -> None:
    """Makes the public stages of a trial, before any trial asks for them."""
    with ExitStack() as open_things:
        context, stages, directory = _open(job, open_things)
        for stage in stages:
            if stage.artifact is not None:
                with timed(directory, stage, context):
                    stage.run(context)


def _shortened(job: TrialJob, fraction: float) -> TrialJob:
    def part(plan: PrivacyPlan) -> PrivacyPlan:
        if plan.dp_sgd is None:
            return plan
        steps = max(1, round(plan.dp_sgd.steps * fraction))
        return replace(plan, dp_sgd=replace(plan.dp_sgd, steps=steps))

    return replace(
        job,
        plan=part(job.plan),
        charged=part(job.charged),
        out=f"{job.out}-{fraction:.3f}",
    )


def _run(job: TrialJob, fraction: float) -> Rung:
    with ExitStack() as open_things:
        context, stages, directory = _open(job, open_things)
        for stage in stages:
            if not directory.is_done(stage.name):
                with directory.stage(stage.name):
                    stage.run(contamination_stage.effective(context))
        seconds = directory.seconds([stage.name for stage in stages])
        if job.score_noise is None:
            score = public_score(json.loads(directory.internal.read(QUALITY)))
        else:
            start = time.monotonic()
            event = score_event(job.score_noise, context.settings.privacy.noise)
            if job.as_planned:
                require_as_planned(job, directory.run)
            keeper = _score_keeper(job, directory, event)
            score = run_score(contamination_stage.effective(context), event, keeper)
            seconds["score"] = round(time.monotonic() - start, 3)
        return Rung(fraction=fraction, score=score, seconds=seconds, run=directory.run)


def require_as_planned(job: TrialJob, run: str) -> None:
    """Refuses a trial that repeats after a crash have made another mechanism than its plan.

    Within epsilon at delta it is all the same; at other orders, by which sweeps are priced, a query
    that was asked twice is more than the steps that are saved for it.
    """
    recipe = parse_recipe(job.recipe)
    charged = Ledger.open(job.ledger, recipe.data.private.name).events(run)
    planned = {(e.sample_rate, e.noise_multiplier): e.steps for e in pooled(job.charged.events)}
    for event in pooled(charged):
        if event.steps > planned.get((event.sample_rate, event.noise_multiplier), 0):
            raise BudgetError(
                "A crash made the trial ask more than its plan, on which the price of the sweep "
                "rests; it cannot be chosen."
            )


def _open(
    job: TrialJob, open_things: ExitStack
) -> tuple[RunContext, tuple[Stage, ...], RunDirectory]:
    recipe = parse_recipe(job.recipe)
    directory = RunDirectory(recipe, job.out, named=job.charged_as)
    progress = open_things.enter_context(Progress.silent() if job.quiet else Progress())
    figures = Figures(directory.storage, progress)
    maker = _maker(job, recipe, directory.run, job.charged)
    backend = open_backend(recipe.runtime, maker, figures.on_report, figures.note)
    open_things.callback(backend.close)
    context = RunContext(
        settings=method_settings(recipe),
        plan=job.plan,
        out=directory.storage,
        internal=directory.internal,
        public=open_storage(job.public),
        backend=backend,
        device=backend.device,
        memory_gb=recipe.runtime.memory_gb,
        privacy=dict,  # A trial's bundle makes no claim; the chosen one's is made anew.
        versions=results.versions(),
        report=figures.on_report,
        note=figures.note,
        run=directory.run,
    )
    return context, _stages(recipe, public=job.score_noise is None), directory


def _stages(recipe: Recipe, *, public: bool) -> tuple[Stage, ...]:
    """A trial on public images has none to look for among them; one on private ones is scored."""
    stages = stages_of(method_settings(recipe))
    left_out = "contamination" if public else "evaluate"
    return tuple(stage for stage in stages if stage.name != left_out)


def _maker(job: TrialJob, recipe: Recipe, run: str, plan: PrivacyPlan) -> KeeperMaker:
    private = recipe.data.private
    return KeeperMaker(
        ledger_uri=job.ledger, dataset=private.name, run=run, plan=plan, unit=private.unit_id
    )


def _score_keeper(job: TrialJob, directory: RunDirectory, event: GaussianEvent) -> Keeper:
    """Opens a keeper of the score alone: it is of the held-out records, in no training."""
    recipe = parse_recipe(job.recipe)
    spent = epsilons([event] * TRIES, job.charged.budget.delta)
    budget = Budget(epsilon=spent.reported, delta=job.charged.budget.delta)
    plan = PrivacyPlan(budget=budget, prior=event, dp_sgd=None, reserve_steps=0, epsilons=spent)
    maker = _maker(job, recipe, score_run(directory.run), plan)
    return open_keeper(recipe.runtime, maker)
