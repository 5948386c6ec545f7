"""The page of a sweep: the price as it was found, and what each trial's plan solved."""

from typing import Any

from rapid_dist.release.sweep_page import own_columns, render_sweep, scored

PRICE = {"epsilon": 44.30744, "delta": 1e-4, "trial_epsilon": 10.0, "sentence": "Because."}


def _trial(number: int, steps: int, noise: float, state: str = "done") -> dict[str, Any]:
    return {
        "number": number,
        "point": {"split.split_step": 300 + number, "privacy.steps": steps},
        "state": state,
        "reason": "",
        "score": 100.0 + number,
        "steps": steps,
        "noise_multiplier": noise,
        "seconds": {"train": 2.0},
    }


TRIALS = [_trial(0, 4, 0.7211), _trial(1, 8, 0.8207), _trial(2, 8, 0.8207, "failed")]
RESULT = {
    "name": "digits-sweep-1",
    "recipe": "digits",
    "dataset": "digits",
    "promise": "per_trial",
    "search": "grid",
    "proxy": None,
    "price": PRICE,
    "winner": {"score": 101.0},
}


def test_the_page_rounds_the_price_up_and_never_down() -> None:
    page = render_sweep(RESULT, TRIALS, winner=1)
    assert "44.3075" in page
    assert "44.3074" not in page


def test_quality_is_drawn_against_the_noise_that_the_plans_solved() -> None:
    page = render_sweep(RESULT, TRIALS, winner=1)
    for setting in ("split.split_step", "privacy.noise_multiplier", "privacy.steps"):
        assert f"<h3>{setting}</h3>" in page
    same = [_trial(0, 4, 0.7), _trial(1, 4, 0.7)]
    assert "privacy.noise_multiplier" not in scored(same, winner=None)[0].point


def test_only_whole_trainings_are_drawn_and_no_column_stands_twice() -> None:
    assert [trial.number for trial in scored(TRIALS, winner=1)] == [0, 1]
    assert own_columns(TRIALS) == ["split.split_step"]
