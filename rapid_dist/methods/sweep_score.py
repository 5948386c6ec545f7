"""A trial's score: whole figures on public images, one noised, charged number on private ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rapid_dist.collective import Collective
from rapid_dist.data.sources import load_private
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.classifiers import train_and_predict
from rapid_dist.methods import artifacts
from rapid_dist.methods.context import Keeper, Report, RunContext
from rapid_dist.methods.sampling_stages import SAMPLES_FILE
from rapid_dist.methods.seal import read_table
from rapid_dist.methods.settings import MethodSettings
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import GaussianEvent
from rapid_dist.private.score import noised_score
from rapid_dist.storage import open_storage

SCORE = "score.json"  # Of a private trial: noised, so it may be seen wherever its model may.
TRIES = 2  # A crash between charge and score asks again; both are priced.


def public_score(quality: Mapping[str, Any]) -> float:
    """Returns the figure to choose by, of quality.json: the higher the better.

    Mean accuracy of the three classifiers; without labels the negative distance of the features.
    """
    samples = quality["samples"]
    if samples["classifiers"] is not None:
        return float(samples["classifiers"]["mean"])
    return -float(samples["fidelity"]["frechet_distance"])


@dataclass(frozen=True, kw_only=True)
class ScoreTask:
    """Scores samples on held-out private records, once, with noise; one worker does it."""

    settings: MethodSettings
    out_uri: str
    event: GaussianEvent
    keeper: Keeper

    def __call__(self, collective: Collective, report: Report) -> None:
        settings, event = self.settings, self.event
        _, held_out = load_private(settings.private, settings.data_root)
        out = open_storage(self.out_uri)
        images, labels = artifacts.get_images(out, SAMPLES_FILE)
        predicted = train_and_predict(
            images,
            labels,
            held_out,
            settings.private.num_classes,
            settings.seed,
            settings.evaluation.classifiers,
        )
        attempt = self.keeper.begin_attempt().number
        self.keeper.charge_query(event, "score on held-out records")
        score = noised_score(
            held_out,
            predicted,
            noise_multiplier=event.noise_multiplier,
            key=SecretKey.generate(),
            attempt=attempt,
            noise=settings.privacy.noise,
        )
        out.write(SCORE, json.dumps({"noised_right_answers": score}).encode())


def run_score(context: RunContext, event: GaussianEvent, keeper: Keeper) -> float:
    """Scores the samples of a trial, or reads the score that it has."""
    if not context.out.exists(SCORE):
        task = ScoreTask(
            settings=context.settings, out_uri=context.out.uri, event=event, keeper=keeper
        )
        context.backend.workers.run(task, name="score", num_workers=1)
    found = read_table(context.out, SCORE, "Restore it from a backup: what it says was charged.")
    return float(found["noised_right_answers"])


def require_scorable(settings: MethodSettings, promise: str) -> None:
    """Refuses a private score of images without labels: a distance has no noised form here."""
    if settings.private.num_classes < 2:
        raise ConfigError(
            f"sweep.promise={promise} scores by classes, but data.private.num_classes is "
            f"{settings.private.num_classes}. Sweep on public_proxy, whose scores cost nothing."
        )
