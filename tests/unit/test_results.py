"""What a finished run says of itself, from stages that were not trained."""

import json

import pytest

from rapid_dist.methods import evaluation_stage, sampling_stages
from rapid_dist.methods.context import RunContext
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.spend import spend
from rapid_dist.privacy.statement import claim
from rapid_dist.runtime import results
from tests.fakes import FakeClock, MemoryStorage
from tests.untrained import UntrainedRun


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> UntrainedRun:
    run = UntrainedRun(tmp_path_factory.mktemp("run"))
    context = run.context([])
    sampling_stages.run_generate(context)
    evaluation_stage.run_evaluate(context)
    return run


def _write_pages(run: UntrainedRun, price_per_hour: float | None) -> RunContext:
    ledger = Ledger.open(MemoryStorage(), "digits", clock=FakeClock())
    attempt = ledger.begin_attempt("run-1")
    ledger.append("query", "run-1", attempt=attempt, event=GaussianEvent(noise_multiplier=2.0))
    context, recipe = run.context([]), run.recipe
    claimed = claim(recipe.privacy, recipe.num_units, ledger, "run-1")
    quality = json.loads(context.internal.read("quality.json"))
    summary = results.summarise(
        recipe,
        seconds={"train": 90.0},
        privacy=results.privacy_figures(recipe, context.plan, claimed),
        nfe=5,
        quality=quality,
        registry={},
        contamination={"policy": "accept"},
    )
    curve = results.epsilon_curve(spend(ledger.events("run-1"), 1e-4), 10.0)
    results.write_pages(context, summary, claimed, curve, quality, price_per_hour=price_per_hour)
    return context


def test_the_price_of_the_cluster_gives_the_report_the_cost_of_every_stage(
    run: UntrainedRun,
) -> None:
    without = _write_pages(run, None).out.read("report.html").decode()
    priced = _write_pages(run, 400.0).out.read("report.html").decode()
    assert ">10.00<" in priced  # 90 seconds at 400 an hour.
    assert ">10.00<" not in without


def test_quality_stands_on_the_internal_page_alone(run: UntrainedRun) -> None:
    context = _write_pages(run, None)
    notice = "Internal document."
    assert notice not in context.out.read("report.html").decode()
    assert notice in context.internal.read("report.html").decode()
    assert context.out.read("samples.png").startswith(b"\x89PNG")
