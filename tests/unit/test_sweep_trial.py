"""A trial whose price is that of its plan may not have asked for more."""

from pathlib import Path

import pytest

from rapid_dist.config import Recipe, load_recipe, to_tree
from rapid_dist.errors import BudgetError
from rapid_dist.privacy.accounting import plan
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.runtime.sweep_trial import TrialJob, charged_trials, require_as_planned


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("digits", ["privacy.reserve_steps=3"])


def _job(recipe: Recipe, folder: Path) -> TrialJob:
    solved = plan(recipe.privacy, recipe.num_units)
    return TrialJob(
        number=0, recipe=to_tree(recipe), plan=solved, charged=solved, out=str(folder / "run"),
        public=str(folder / "public"), ledger=str(folder / "ledger"), score_noise=10.0,
    )  # fmt: skip


def _charged(job: TrialJob, *, priors: int, steps: int) -> None:
    ledger = Ledger.open(job.ledger, "digits")
    mechanism = job.charged.dp_sgd
    assert mechanism is not None
    ledger.begin_attempt("r")
    for _ in range(priors):
        ledger.append("query", "r", attempt=1, event=job.charged.prior)
    ledger.append("step", "r", attempt=1, step=0, event=mechanism.event(steps))


@pytest.mark.parametrize("repeats", [0, 3])
def test_a_trial_within_its_plan_is_scored(recipe: Recipe, tmp_path: Path, repeats: int) -> None:
    job = _job(recipe, tmp_path)
    assert job.charged.dp_sgd is not None
    _charged(job, priors=1, steps=job.charged.dp_sgd.steps + repeats)
    require_as_planned(job, "r")


@pytest.mark.parametrize(("priors", "more"), [(2, -60), (1, 4)])
def test_a_trial_that_asked_twice_is_not(
    recipe: Recipe, tmp_path: Path, priors: int, more: int
) -> None:
    job = _job(recipe, tmp_path)
    assert job.charged.dp_sgd is not None
    _charged(job, priors=priors, steps=job.charged.dp_sgd.steps + more)
    with pytest.raises(BudgetError, match="more than its plan"):
        require_as_planned(job, "r")


def test_a_trial_that_has_lost_its_folder_is_priced_all_the_same(tmp_path: Path) -> None:
    ledger, event = Ledger.open(tmp_path, "digits"), GaussianEvent(noise_multiplier=2.0)
    for run in ("scans-sweep-1-0a1b", "scans-sweep-1-2c3d", "scans-sweep-1-2c3d-score", "other"):
        ledger.append("query", run, attempt=ledger.begin_attempt(run), event=event)
    one, two = charged_trials(ledger, "scans-sweep-1", {"scans-sweep-1-0a1b"})
    assert (one.training, one.score) == ((event,), ())
    assert (two.training, two.score) == ((event,), (event,))
    # A sweep that has lost its name has others than its trials' folders tell.
    assert charged_trials(ledger, "scans-sweep-2", {"scans-sweep-1-0a1b"}) == [one]
