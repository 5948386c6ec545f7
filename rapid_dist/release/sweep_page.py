"""``sweep.html``: what was tried at one epsilon, what was chosen, and what choosing cost."""

from collections.abc import Mapping, Sequence
from typing import Any

from rapid_dist.privacy.statement import rounded_up
from rapid_dist.release.markup import Section, escape, facts, page, paragraph, table
from rapid_dist.release.report_style import STYLE
from rapid_dist.release.sweep_plots import ScoredTrial, parallel_svg, quality_svg, seconds_svg

_SHOWN_FIRST = ("split.split_step", "privacy.noise_multiplier")
# What a plan solves, and has a column of its own: setting -> its name in the book.
_PLANNED = {"privacy.steps": "steps", "privacy.noise_multiplier": "noise_multiplier"}


def score_name(promise: str) -> str:
    """Returns what the scores of a sweep are called."""
    return "score on public images" if promise == "public_proxy" else "right answers, noised"


def scored(trials: Sequence[Mapping[str, Any]], winner: int | None) -> list[ScoredTrial]:
    """Returns what can be drawn: the trials whose whole training was scored.

    A trial's point is then what was set *and* what its plan solved, where trials differ in it.
    """
    done = [trial for trial in trials if trial["state"] == "done"]
    planned = {
        setting: name for setting, name in _PLANNED.items() if len({t[name] for t in done}) > 1
    }
    return [
        ScoredTrial(
            number=trial["number"],
            point={**trial["point"], **{s: trial[name] for s, name in planned.items()}},
            score=trial["score"],
            seconds=sum(trial["seconds"].values()),
            chosen=trial["number"] == winner,
        )
        for trial in done
    ]


def own_columns(trials: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the settings that a table shows beside the steps and the noise of every plan."""
    return [setting for setting in trials[0]["point"] if setting not in _PLANNED]


def render_sweep(
    result: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], winner: int
) -> str:
    """Returns the page.

    Args:
      result: sweep.json, as plain values.
      trials: the whole book, whatever of it sweep.json may say.
      winner: the number of the chosen trial.
    """
    drawn, name = scored(trials, winner), score_name(result["promise"])
    price = result["price"]
    sections = [
        Section(
            key="choice",
            title="The choice, and what it cost",
            style="claim",
            body=paragraph(price["sentence"], "sentence")
            + facts(
                [
                    ("epsilon because it was chosen", rounded_up(price["epsilon"])),
                    ("epsilon of one trial", f"{price['trial_epsilon']:.4g}"),
                    ("delta", f"{price['delta']:g}"),
                    ("promise", result["promise"]),
                    ("score", f"{result['winner']['score']:.4g}"),
                ]
            )
            + (paragraph(f"On public images: {result['proxy']}.") if result["proxy"] else ""),
        ),
        Section(key="trials", title="Trials", body=_table(trials, winner, name)),
    ]
    if drawn:
        settings = sorted(drawn[0].point, key=lambda name: (name not in _SHOWN_FIRST, name))
        pictures = "".join(
            f"<h3>{escape(setting)}</h3>{quality_svg(drawn, setting, name)}" for setting in settings
        )
        sections += [
            Section(
                key="quality",
                title=f"Quality at epsilon {price['trial_epsilon']:g}",
                body=pictures,
            ),
            Section(key="together", title="All settings together", body=parallel_svg(drawn, name)),
            Section(key="time", title="Time of each trial", body=seconds_svg(drawn)),
        ]
    banner = ""
    if result["promise"] == "repeat_and_select":
        banner = (
            '<div class="banner" role="note"><p><strong>Internal.</strong> How many runs there '
            "were, and which, is secret: it is what the price rests on. Not for release.</p></div>"
        )
    return page(
        title=f"Sweep of {result['recipe']}",
        lead=f"{result['name']}: {result['search']} search on {result['dataset']}.",
        banner=banner,
        sections=sections,
        style=STYLE,
    )


def trial_rows(trials: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> list[list[str]]:
    """Returns the table of a sweep: number, settings, steps, noise, score, seconds, state."""
    return [
        [
            str(trial["number"]),
            *(_shown(trial["point"].get(name)) for name in settings),
            _shown(trial["steps"]),
            _shown(trial["noise_multiplier"]),
            _shown(trial["score"]),
            f"{sum(trial['seconds'].values()):.1f}",
            trial["state"] + (f": {trial['reason']}" if trial["reason"] else ""),
        ]
        for trial in trials
    ]


def _table(trials: Sequence[Mapping[str, Any]], winner: int, name: str) -> str:
    settings = own_columns(trials)
    last = [setting.rpartition(".")[2] for setting in settings]
    return table(
        "",
        ["trial", *last, "steps", "noise", name, "seconds", "state"],
        trial_rows(trials, settings),
        styles=["own" if trial["number"] == winner else "" for trial in trials],
    )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
