"""The keeper: nothing is released that is not charged, nothing is charged past the budget."""

import pickle
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace

import pytest

from rapid_dist.errors import BudgetError, LedgerError
from rapid_dist.privacy.accounting import PrivacyPlan, plan
from rapid_dist.privacy.keeper import LedgerKeeper, totals
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.settings import Budget, PrivacyConfig
from rapid_dist.privacy.statement import claim, require_charged
from rapid_dist.storage import Storage
from tests.fakes import FakeClock, FullDiskStorage, MemoryStorage

NUM_RECORDS = 1_000
CONFIG = PrivacyConfig(
    epsilon=3.0, delta=1e-4, prior_share=0.2, expected_batch=100, steps=12, reserve_steps=3
)


def _plan() -> PrivacyPlan:
    return plan(CONFIG, NUM_RECORDS)


def _ledger(storage: Storage) -> Ledger:
    return Ledger.open(storage, "faces", clock=FakeClock())


def _keeper(
    storage: Storage, run: str = "run-1", epsilon: float = 3.0, unit: str = "record"
) -> LedgerKeeper:
    planned = _plan()
    assert planned.dp_sgd is not None
    budget = Budget(epsilon=epsilon, delta=CONFIG.delta)
    return LedgerKeeper(
        _ledger(storage), run, budget, planned.dp_sgd.event(), planned.dp_sgd.steps, 3, unit
    )


def _charge_prior(keeper: LedgerKeeper) -> None:
    prior = _plan().prior
    assert prior is not None
    keeper.charge_query(prior, "prior")


def test_a_charge_is_in_the_ledger_before_it_returns() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    for step in range(3):
        keeper.charge(step)
        entries = _ledger(storage).entries()  # A stranger's view, from the files alone.
        assert [entry.step for entry in entries if entry.kind == "step"] == list(range(step + 1))


def test_a_charge_that_cannot_be_written_raises_and_is_counted_as_spent() -> None:
    storage = FullDiskStorage()
    keeper = _keeper(storage)
    affordable = keeper.begin_attempt().affordable_steps
    storage.full = True
    with pytest.raises(OSError, match="No space"):
        keeper.charge(0)
    assert keeper.affordable_steps() == affordable - 1
    storage.full = False
    keeper.charge(0)
    assert [entry.step for entry in _ledger(storage).entries()] == [None, 0]


def test_a_checkpoint_that_the_ledger_did_not_pay_for_is_refused_and_no_attempt_begins() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    keeper.charge(0)
    keeper.charge(1)
    before = dict(storage.files)
    for attempt, done in ((1, 3), (2, 2)):  # A step too many, and an attempt that never was.
        with pytest.raises(LedgerError, match=rf"lacks step {done - 1} of attempt {attempt}"):
            _keeper(storage).begin_attempt((attempt, done))
    with pytest.raises(LedgerError, match="lacks step 1"):
        _keeper(storage, run="other").begin_attempt((1, 2))
    assert storage.files == before
    assert _keeper(storage).begin_attempt((1, 2)).number == 2


def test_the_plan_is_affordable_to_the_last_step_and_no_step_further() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    _charge_prior(keeper)
    assert keeper.affordable_steps() == 15
    for step in [*range(12), 9, 10, 11]:
        keeper.charge(step)
    before = dict(storage.files)
    with pytest.raises(BudgetError, match="would pass epsilon=3"):
        keeper.charge(11)
    assert storage.files == before  # The refused step left no entry.
    assert keeper.spent().reported <= CONFIG.epsilon


def test_epsilon_from_the_ledger_is_the_plans() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    _charge_prior(keeper)
    for step in [*range(12), 9, 10, 11]:
        keeper.charge(step)
    assert keeper.spent() == _plan().epsilons


def test_the_comparison_with_the_plan_would_notice_a_step_that_was_not_charged() -> None:
    keeper = _keeper(MemoryStorage())
    keeper.begin_attempt()
    _charge_prior(keeper)
    for step in [*range(12), 9, 10]:
        keeper.charge(step)
    assert keeper.spent() != _plan().epsilons


def test_a_restart_pays_for_its_repeated_steps_out_of_the_reserve() -> None:
    storage = MemoryStorage()
    first = _keeper(storage)
    assert first.begin_attempt().number == 1
    _charge_prior(first)
    for step in range(8):
        first.charge(step)
    second = _keeper(storage)
    attempt = second.begin_attempt()
    assert (attempt.number, attempt.affordable_steps) == (2, 7)
    for step in range(5, 12):  # Steps 5, 6 and 7 are repeated.
        second.charge(step)
    with pytest.raises(BudgetError):
        second.charge(11)
    assert second.spent() == _plan().epsilons


def test_an_older_attempt_can_charge_no_more() -> None:
    storage = MemoryStorage()
    old = _keeper(storage)
    old.begin_attempt()
    old.charge(0)
    _keeper(storage).begin_attempt()
    before = dict(storage.files)
    with pytest.raises(LedgerError, match="fenced"):
        old.charge(1)
    with pytest.raises(LedgerError, match="fenced"):
        _charge_prior(old)
    assert storage.files == before


def test_a_query_that_would_pass_the_budget_leaves_no_entry() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    before = dict(storage.files)
    with pytest.raises(BudgetError, match=r"'class counts'.*Give the query more noise"):
        keeper.charge_query(GaussianEvent(noise_multiplier=0.5), "class counts")
    assert storage.files == before


def test_a_query_takes_its_price_from_the_steps() -> None:
    keeper = _keeper(MemoryStorage())
    assert keeper.begin_attempt().affordable_steps == 15
    _charge_prior(keeper)
    _charge_prior(keeper)
    assert keeper.affordable_steps() < 15


def test_nothing_is_charged_before_an_attempt_or_beyond_the_planned_steps() -> None:
    keeper = _keeper(MemoryStorage())
    with pytest.raises(LedgerError, match="begin_attempt first"):
        keeper.charge(0)
    keeper.begin_attempt()
    for step in (-1, 12):
        with pytest.raises(BudgetError, match="not among the 12 planned"):
            keeper.charge(step)


def test_other_runs_of_the_data_set_add_to_its_total_and_not_to_the_run() -> None:
    storage = MemoryStorage()
    for run in ("run-1", "run-2"):
        keeper = _keeper(storage, run)
        keeper.begin_attempt()
        _charge_prior(keeper)
        for step in range(12):
            keeper.charge(step)
    found = totals(_ledger(storage), CONFIG.delta)
    assert found.runs["run-1"] == found.runs["run-2"]
    one = found.runs["run-1"].reported
    assert one < found.dataset.reported < 2 * one  # Composition is better than adding up.


def test_runs_that_count_images_and_runs_that_count_patients_share_no_ledger() -> None:
    storage = MemoryStorage()
    _keeper(storage, "unused", unit="group").begin_attempt()  # Has released nothing: no matter.
    images = _keeper(storage, "run-1")
    images.begin_attempt()
    images.charge(0)
    before = dict(storage.files)
    with pytest.raises(LedgerError, match=r"has 'record'.*Set privacy\.unit .* to 'record'"):
        _keeper(storage, "run-2", unit="group:patient").begin_attempt()
    assert storage.files == before
    assert _keeper(storage, "run-2").begin_attempt().number == 1
    assert totals(_ledger(storage), CONFIG.delta).unit == "record"


def test_runs_that_count_patients_and_runs_that_count_clinics_share_no_ledger() -> None:
    storage = MemoryStorage()
    patients = _keeper(storage, "run-1", unit="group:patient")
    patients.begin_attempt()
    assert totals(_ledger(storage), CONFIG.delta).unit is None  # Nothing was released yet.
    patients.charge(0)
    with pytest.raises(LedgerError, match="'group:clinic', but run 'run-1'"):
        _keeper(storage, "run-2", unit="group:clinic").begin_attempt()
    assert _keeper(storage, "run-2", unit="group:patient").begin_attempt().number == 1
    assert totals(_ledger(storage), CONFIG.delta).unit == "group:patient"


def test_the_claim_states_what_the_ledger_holds() -> None:
    storage = MemoryStorage()
    for run in ("run-1", "run-2"):
        keeper = _keeper(storage, run)
        keeper.begin_attempt()
        _charge_prior(keeper)
        for step in range(5):
            keeper.charge(step)
    ledger = _ledger(storage)
    said = claim(CONFIG, NUM_RECORDS, ledger, "run-1")
    assert (said.num_steps, said.num_queries, said.ledger_head) == (5, 1, ledger.head)
    assert said.spent == keeper.spent()
    assert said.within_budget
    assert "1,000 private records of 'faces'" in said.sentence
    assert "0.0001)-differentially private under replacing any one record" in said.sentence
    assert float(said.sentence.split("is (")[1].split(",")[0]) >= said.spent.reported
    assert any(ledger.head in sentence for sentence in said.sentences)
    assert "5 Poisson-sampled Gaussian steps and 1 Gaussian query of this run" in said.sentences[1]


def test_the_claim_is_for_the_unit_and_names_it() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage, unit="group:case")
    keeper.begin_attempt()
    _charge_prior(keeper)
    grouped = replace(CONFIG, unit="group")
    # N counts units: 1,000 patients are not 1,000 images.
    plain = claim(grouped, NUM_RECORDS, _ledger(storage), "run-1")
    assert "1,000 private groups of images of 'faces'" in plain.sentence
    assert "replacing any one group with all its images by nothing" in plain.sentence
    named = claim(
        grouped, NUM_RECORDS, _ledger(storage), "run-1",
        unit_name="synthetic patient", unit_note="The groups are made up.",
    )  # fmt: skip
    assert "groups of images (each one synthetic patient) of 'faces'" in named.sentence
    assert "replacing any one synthetic patient with all its images by nothing" in named.sentence
    assert "The groups are made up." in named.sentences
    assert any("for one synthetic patient" in sentence for sentence in named.sentences)
    assert not any("record" in sentence for sentence in (plain.sentence, named.sentence))
    assert "" not in plain.sentences


def test_a_run_over_its_budget_is_said_to_be_over_it() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage, epsilon=6.0)
    keeper.begin_attempt()
    keeper.charge_query(GaussianEvent(noise_multiplier=0.9), "counts")
    said = claim(CONFIG, NUM_RECORDS, _ledger(storage), "run-1")
    assert not said.within_budget
    assert "0 Poisson-sampled Gaussian steps and 1 Gaussian query" in said.sentences[1]
    assert "ABOVE the run's budget" in said.sentences[1]


def test_nothing_is_claimed_of_a_run_the_ledger_does_not_know() -> None:
    with pytest.raises(LedgerError, match="no release of run 'run-9'"):
        claim(CONFIG, NUM_RECORDS, _ledger(MemoryStorage()), "run-9")


@pytest.mark.parametrize(
    ("prior", "steps", "lacking"),
    [
        (True, range(12), ""),
        (True, [*range(12), 11, 4], ""),
        (False, range(12), "lacks the prior's query of it"),
        (True, range(6, 12), "lacks 6 of 12 steps"),  # Resumed on another ledger.
        (True, range(11), "lacks 1 of 12 steps"),  # Cut at its end.
        (True, [*range(11), 10], "lacks 1 of 12 steps"),  # A repeated step stands for no other.
    ],
)
def test_a_ledger_that_lacks_what_a_run_released_is_refused(
    prior: bool, steps: Iterable[int], lacking: str
) -> None:
    storage = MemoryStorage()
    for run, wanted in (("run-1", steps), ("run-2", range(12))):
        keeper = _keeper(storage, run)
        keeper.begin_attempt()
        if prior or run == "run-2":  # Another run's charges are no substitute.
            _charge_prior(keeper)
        for step in wanted:
            keeper.charge(step)
    require_charged(_plan(), _ledger(storage), "run-2")
    with pytest.raises(LedgerError, match=lacking) if lacking else nullcontext():
        require_charged(_plan(), _ledger(storage), "run-1")


def test_steps_that_a_run_left_out_for_its_budget_are_not_missed_and_others_are() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    _charge_prior(keeper)
    for step in range(10):
        keeper.charge(step)
    with pytest.raises(LedgerError, match="lacks 2 of 12 steps"):
        require_charged(_plan(), _ledger(storage), "run-1")
    keeper.stop_short(10)
    require_charged(_plan(), _ledger(storage), "run-1")
    assert keeper.spent() == _keeper(storage).spent()  # Saying so costs nothing.
    cut = {
        name: data
        for name, data in storage.files.items()
        if data != storage.files[max(storage.files)]
    }
    with pytest.raises(LedgerError, match="lacks 2 of 12 steps"):
        require_charged(_plan(), _ledger(MemoryStorage(cut)), "run-1")


def test_a_claim_says_where_a_run_stopped_short() -> None:
    storage = MemoryStorage()
    keeper = _keeper(storage)
    keeper.begin_attempt()
    keeper.charge(0)
    before = claim(CONFIG, NUM_RECORDS, _ledger(storage), "run-1")
    assert not any("stopped" in sentence for sentence in before.sentences)
    keeper.stop_short(1)
    after = claim(CONFIG, NUM_RECORDS, _ledger(storage), "run-1")
    said = "The run stopped after step 1 of 12, for the budget pays for no more."
    assert said in after.sentences
    with pytest.raises(LedgerError, match="fenced"):
        keeper.stop_short(1, attempt=7)


@pytest.mark.parametrize("second", ["counts", "prior histogram"])
def test_a_query_that_was_asked_twice_stands_for_no_other(second: str) -> None:
    query = GaussianEvent(noise_multiplier=50.0)
    planned = replace(_plan(), contamination=query)
    ledger = _ledger(MemoryStorage())
    attempt = ledger.begin_attempt("run-1")
    for purpose in ("counts", second):
        ledger.append("query", "run-1", attempt=attempt, event=query, note=purpose)
    assert planned.dp_sgd is not None
    for step in range(planned.dp_sgd.steps):
        ledger.append("step", "run-1", attempt=attempt, step=step, event=planned.dp_sgd.event())
    refused = pytest.raises(LedgerError, match="a planned query")
    with refused if second == "counts" else nullcontext():
        require_charged(planned, ledger, "run-1")


def test_what_the_keeper_returns_can_travel_between_processes() -> None:
    keeper = _keeper(MemoryStorage())
    attempt = keeper.begin_attempt()
    assert pickle.loads(pickle.dumps(attempt)) == attempt
    assert pickle.loads(pickle.dumps(keeper.spent())) == keeper.spent()
