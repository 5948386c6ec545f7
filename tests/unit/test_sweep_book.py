"""The book of a sweep: what is pruned, gone on with, given up, and never tried twice."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rapid_dist.config import load_recipe
from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.methods.sweep_proxy import Proxy
from rapid_dist.methods.sweep_settings import Point
from rapid_dist.privacy.dataset_total import declare
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.privacy.selection import Candidate, RunsConfig
from rapid_dist.runtime import sweep
from rapid_dist.runtime.run_directory import Places
from rapid_dist.runtime.sweep import PreparedSweep, _declare, _drawn
from rapid_dist.runtime.sweep_book import Book
from rapid_dist.runtime.sweep_planner import Planner, check_sweep, space_of
from rapid_dist.runtime.sweep_search import Listed
from rapid_dist.runtime.sweep_trial import Rung
from rapid_dist.storage import LocalStorage, Storage

SOLVED = ["sweep.solve=noise_multiplier", "privacy.expected_batch=32", "privacy.epsilon=1"]


@dataclass
class Listening(Listed):
    """A list that remembers what it was told."""

    points: list[Point]
    told: dict[int, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__(self.points)

    def tell(self, number: int, point: Point, score: float | None) -> None:
        assert number not in self.told, "Told twice."
        self.told[number] = score


def _planner(tmp_path: Path, *overrides: str, proxy: Proxy | None = None) -> Planner:
    recipe = load_recipe("digits", [*SOLVED, *overrides])
    where = Places(out=str(tmp_path), public=f"{tmp_path}/public", ledger=f"{tmp_path}/ledger")
    return Planner(recipe=recipe, places=where, home=str(tmp_path), proxy=proxy)


def _rung(score: float, fraction: float = 1.0) -> Rung:
    return Rung(fraction=fraction, score=score, seconds={"train": 2.0}, run="r")


def _steps(*values: int) -> list[dict[str, Any]]:
    return [{"privacy.steps": value} for value in values]


def test_an_impossible_point_is_pruned_with_its_reason_and_never_starts(tmp_path: Path) -> None:
    points: list[Point] = [{"split.split_step": 900}, {"train.learning_rat": 1}, *_steps(3)]
    book = Book(LocalStorage(tmp_path / "b"), _planner(tmp_path), Listening(points))
    job = book.next()
    assert job is not None
    assert job.number == 2
    assert [trial.state for trial in book.trials()] == ["pruned", "pruned", "started"]
    assert "split.split_step must lie between" in book.trials()[0].reason
    assert "train.learning_rat" in book.trials()[1].reason
    assert book.next() is None


def test_every_trial_meets_the_budget_whatever_its_point(tmp_path: Path) -> None:
    planner = _planner(tmp_path)
    for point in _steps(3, 12):
        solved = planner.plan_of(point)
        assert solved.dp_sgd is not None
        assert solved.dp_sgd.steps == point["privacy.steps"]
        assert 0.99 < solved.epsilons.reported <= 1


def test_a_trial_that_would_take_too_long_is_pruned(tmp_path: Path) -> None:
    planner = _planner(tmp_path, "sweep.solve=steps", "sweep.most_steps=20")
    with pytest.raises(ConfigError, match=r"sweep\.most_steps is 20"):
        planner.plan_of({"privacy.noise_multiplier": 2.0})


def test_a_book_that_is_opened_again_goes_on_with_what_was_cut_off(tmp_path: Path) -> None:
    planner, storage = _planner(tmp_path), LocalStorage(tmp_path / "b")
    first = Book(storage, planner, Listening(_steps(3, 4, 5, 6)))
    for _ in range(4):
        assert first.next() is not None
    first.rung(1, _rung(0.5))
    first.failed(2, "its process died")
    first.rung(3, _rung(0.2, fraction=0.5))
    storage.write("000/run/config.json", b"{}")  # What a trial itself has written.
    again = Listening(_steps(3, 4, 5, 6))
    book = Book(storage, planner, again)
    assert again.told == {1: 0.5, 2: None}
    jobs = [book.next(), book.next()]
    assert [job.number for job in jobs if job] == [0, 3]
    assert book.next() is None
    book.rung(0, _rung(0.4))
    book.rung(0, _rung(0.4))  # Tune tells of the last result twice.
    book.stopped(3)
    assert [trial.state for trial in book.trials()] == ["done", "done", "failed", "stopped"]
    assert again.told == {0: 0.4, 1: 0.5, 2: None, 3: None}


def test_a_line_of_the_book_that_is_torn_is_named_and_one_that_is_gone_is_its_own_again(
    tmp_path: Path,
) -> None:
    planner, storage = _planner(tmp_path), LocalStorage(tmp_path / "b")
    first = Book(storage, planner, Listening(_steps(3, 4, 5)))
    for number in range(3):
        assert first.next() is not None
        first.rung(number, _rung(0.5))
    line = storage.read("001.json")
    storage.write("001.json", line[:40])
    with pytest.raises(CheckpointError, match=r"b/001\.json is torn\. Restore it"):
        Book(storage, planner, Listening(_steps(3, 4, 5)))
    storage.delete("001.json")
    job = Book(storage, planner, Listening(_steps(3, 4, 5))).next()
    assert job is not None
    assert job.number == 1  # And no other trial's line is written over.


def test_of_two_drivers_of_one_sweep_both_go_by_the_first_ones_draw_and_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("digits", [*SOLVED, "privacy.steps=3", "sweep.promise=repeat_and_select"])
    where = Places(out=f"{tmp_path}/s", public=f"{tmp_path}/p", ledger=f"{tmp_path}/ledger")
    prepared = PreparedSweep(recipe=recipe, places=where, space={"split.split_step": [100, 200]})
    planner = _planner(tmp_path, "privacy.steps=3", "sweep.promise=repeat_and_select")
    storage = LocalStorage(tmp_path / "s")
    first = (_declare(prepared, storage), _drawn(prepared, planner))
    read, seen = sweep._read, set[str]()

    def late(storage: Storage, name: str) -> dict[str, Any]:
        """The second driver looks just before the first one writes."""
        if name in seen:
            return read(storage, name)
        seen.add(name)
        return {}

    monkeypatch.setattr(sweep, "_read", late)
    assert (_declare(prepared, storage), _drawn(prepared, planner)) == first
    assert len(seen) == 2


def test_one_failed_trial_does_not_end_the_sweep(tmp_path: Path) -> None:
    book = Book(LocalStorage(tmp_path / "b"), _planner(tmp_path), Listening(_steps(3, 4)))
    assert book.next() is not None
    book.failed(0, "ValueError")
    job = book.next()
    assert job is not None
    assert job.number == 1


def test_what_a_sweep_needs_beside_its_unknown_is_asked_for(tmp_path: Path) -> None:
    recipe = load_recipe("digits", ["sweep.space={split.split_step: [300]}"])
    with pytest.raises(ConfigError, match=r"name privacy\.noise_multiplier in sweep\.space"):
        check_sweep(recipe, space_of(recipe))
    default = load_recipe("digits")
    check_sweep(default, space_of(default))


def test_a_secret_run_has_no_number_in_its_name(tmp_path: Path) -> None:
    secret = _planner(tmp_path, "sweep.promise=repeat_and_select").job(7, {"privacy.steps": 3})
    assert secret.recipe["name"] == "digits-chosen"
    assert "7" not in str(secret.recipe["name"])
    assert _planner(tmp_path, "sweep.promise=per_trial").job(7, {"privacy.steps": 3}).recipe[
        "name"
    ].endswith("007")  # fmt: skip


@pytest.mark.slow
def test_a_mechanism_that_only_some_points_allow_is_priced_as_well(tmp_path: Path) -> None:
    """Without a prior samples cannot come from one; a point that says so can be drawn."""
    planner = _planner(tmp_path, "sweep.promise=repeat_and_select", "privacy.steps=4")
    space = {"privacy.prior_share": [0, 0.2], "sampling.source": ["uniform", "prior"]}
    with pytest.raises(ConfigError, match=r"sampling\.source"):
        planner.plan_of({"privacy.prior_share": 0})
    assert planner.plan_of({"privacy.prior_share": 0, "sampling.source": "uniform"})
    assert len(planner.possible(space)) == 2


def test_a_secret_number_of_runs_does_not_decide_by_near_duplicates() -> None:
    policy = ["contamination.policy=drop", "privacy.contamination_noise=20"]
    shared = [*SOLVED, "privacy.steps=4", *policy, "sweep.score_noise=5"]
    with pytest.raises(ConfigError, match=r"contamination\.policy=drop has each secret run leave"):
        check_sweep(load_recipe("digits", [*shared, "sweep.promise=repeat_and_select"]), {})
    check_sweep(load_recipe("digits", [*shared, "sweep.promise=per_trial"]), {})  # Seen anyway.


def test_a_sweep_whose_runs_would_be_taken_for_anothers_is_refused_before_it_is_declared(
    tmp_path: Path,
) -> None:
    ledger = Ledger.open(tmp_path / "ledger", "digits")
    event = GaussianEvent(noise_multiplier=2.0)
    declare(ledger, "scans", RunsConfig(mean=4.0), [Candidate(training=(event,), score=(event,))])
    entries = len(ledger.entries())

    def declared(name: str) -> str:
        recipe = load_recipe("digits", [*SOLVED, f"name={name}", "sweep.promise=per_trial"])
        where = Places(out=str(tmp_path), public=f"{tmp_path}/p", ledger=f"{tmp_path}/ledger")
        prepared = PreparedSweep(recipe=recipe, places=where, space={})
        return _declare(prepared, LocalStorage(tmp_path / name))

    with pytest.raises(ConfigError, match="begins with that of a sweep on the ledger"):
        declared("scans-again")
    assert len(Ledger.open(tmp_path / "ledger", "digits").entries()) == entries
    assert declared("scan-again").startswith("scan-again-sweep-")
