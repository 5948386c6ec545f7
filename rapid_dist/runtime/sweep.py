"""``rapid-dist sweep``: many trials at one epsilon, one chosen, and what the choice itself costs.

    DIR/config.yaml     the recipe with its section ``sweep``; another one is refused
    DIR/sweep.json      what came of it, price included
    DIR/winner.yaml     the chosen recipe, for `rapid-dist run`
    DIR/chosen/         of a sweep on private data: the chosen model's run directory
    DIR/sweep.html      table and plots
    DIR/trials/         the book, and a folder a trial
    DIR/proxy/          the public images that play the private part

In promise ``public_proxy`` no private image is opened. In ``repeat_and_select`` nothing but the
chosen model and the price may be seen: book, trials, table and page lie in ``internal/``.
"""

import json
import os
import secrets
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rapid_dist.config import Recipe, method_settings, to_tree, to_yaml
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.methods.evaluation_stage import require_features
from rapid_dist.methods.seal import read_table
from rapid_dist.methods.sweep_proxy import Proxy, make_proxy
from rapid_dist.methods.sweep_settings import Point, random_point, variants
from rapid_dist.privacy.dataset_total import declare, declare_fixed, declared_sweeps
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.selection import (
    Price,
    price_composition,
    price_public,
    price_selection,
)
from rapid_dist.recipe_files import parse_tree
from rapid_dist.runtime.chosen import hand_over, note_chosen, score_run
from rapid_dist.runtime.cluster import cluster_resources, session
from rapid_dist.runtime.lock import locked
from rapid_dist.runtime.needs import Needs, needs
from rapid_dist.runtime.progress import Progress
from rapid_dist.runtime.room import searchers_beside
from rapid_dist.runtime.run_directory import Places, places, require_writable, shaping
from rapid_dist.runtime.signals import stop_on_sigterm
from rapid_dist.runtime.sweep_book import Book, Trial
from rapid_dist.runtime.sweep_planner import Planner, check_sweep, space_of
from rapid_dist.runtime.sweep_results import PAGE, record_sweep, write_page
from rapid_dist.runtime.sweep_search import Listed, Proposer, Space, proposer_of
from rapid_dist.runtime.sweep_trial import build_public, charged_trials, run_trial
from rapid_dist.runtime.sweep_tune import describe_failure, run_on_tune
from rapid_dist.storage import AlreadyExists, Storage, StorageMissing, open_storage

CHOSEN = "chosen"
DRAWN = "internal/drawn.json"  # How many runs, and which: secret, kept so that a sweep can go on.
_MOST_REDRAWN = 1_000


@dataclass(frozen=True, kw_only=True)
class PreparedSweep:
    """A sweep that has been checked as far as it can be without starting anything."""

    recipe: Recipe
    places: Places
    space: Space

    def described(self) -> dict[str, Any]:
        """Returns the configuration, and the price where it is known beforehand."""
        price = self.price_beforehand()
        return {
            "recipe": to_tree(self.recipe),
            "space": to_tree(self.recipe)["sweep"]["space"] or self.space,
            "places": asdict(self.places),
            "price": None if price is None else {**asdict(price), "sentence": price.sentence},
        }

    def price_beforehand(self) -> Price | None:
        """Returns the price where it does not depend on the trials that there will be."""
        recipe = self.recipe
        if recipe.sweep.promise == "public_proxy":
            return price_public(
                recipe.privacy.epsilon, recipe.privacy.delta, recipe.sweep.num_trials
            )
        if recipe.sweep.promise == "repeat_and_select":
            return price_selection(
                _planner(self, None).possible(self.space),
                recipe.sweep.runs,
                recipe.privacy.delta,
                trial_epsilon=recipe.privacy.epsilon,
            )
        return None


def prepare_sweep(recipe: Recipe, out: str) -> PreparedSweep:
    """Checks a sweep without starting it; raises ConfigError in one line."""
    if recipe.runtime.debug:
        raise ConfigError(
            "runtime.debug may log private values, and a sweep compares many runs. Set it to false."
        )
    if recipe.sweep.scheduler == "asha" and recipe.runtime.backend == "process":
        raise ConfigError(
            "sweep.scheduler=asha is Ray Tune's, but runtime.backend is 'process'. Set it to ray, "
            "with sweep.runner=process for trials of one process each."
        )
    space = space_of(recipe)
    check_sweep(recipe, space)
    return PreparedSweep(recipe=recipe, places=places(recipe, out), space=space)


def run_sweep(recipe: Recipe, out: str, *, progress: Progress | None = None) -> dict[str, Any]:
    """Runs what is left of a sweep, and returns sweep.json.

    The same command goes on where the last one stopped: trials that ended are not run again, and
    what a private trial has charged stands.
    """
    prepared = prepare_sweep(recipe, out)
    if recipe.sweep.promise == "public_proxy":  # A private score has no features.
        require_features(method_settings(recipe))
    require_writable(prepared.places)
    with locked(prepared.places.out), ExitStack() as open_things:
        storage = open_storage(prepared.places.out)
        _admit(recipe, storage)
        finished = _read(storage, "sweep.json")
        if finished:
            return finished
        progress = open_things.enter_context(progress or Progress())
        if recipe.runtime.backend == "ray":
            open_things.enter_context(session(_needs(recipe)))
        open_things.enter_context(stop_on_sigterm())
        proxy = _proxy(prepared)
        name = _declare(prepared, storage)
        planner = _planner(prepared, proxy, name)
        home = _home(prepared)
        proposer = _proposer(prepared, planner)
        book = Book(home.child("trials"), planner, proposer)
        _make_public_stages(prepared, planner, progress)
        _run_trials(prepared, book, progress)
        result, winner = _conclude(prepared, planner, book, name)
        write_page(home, result, book.trials(), winner)
        record_sweep(prepared.places.out, recipe, result, book.trials(), winner)
        storage.write("sweep.json", json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
        return result


def _run_trials(prepared: PreparedSweep, book: Book, progress: Progress) -> None:
    recipe = prepared.recipe
    secret = recipe.sweep.promise == "repeat_and_select"

    def changed() -> None:
        trials = book.trials()
        ended = sum(trial.state != "started" for trial in trials)
        if not secret:  # Their number would be seen.
            progress.update("trials", ended, max(len(trials), recipe.sweep.num_trials))

    if recipe.runtime.backend == "ray":
        beside = searchers_beside(method_settings(recipe), recipe.runtime)
        run_on_tune(book, recipe.sweep, recipe.runtime, cluster_resources(), changed, beside=beside)
    else:
        while (job := book.next()) is not None:
            try:
                for rung in run_trial(job):
                    book.rung(job.number, rung)
            except Exception as error:
                book.failed(job.number, describe_failure(error))
            changed()
    if any(trial.state == "started" for trial in book.trials()):
        raise RapidError("The sweep was cut off. Run the same command again to go on.")


def _conclude(
    prepared: PreparedSweep, planner: Planner, book: Book, name: str
) -> tuple[dict[str, Any], int]:
    """Chooses, prices the choice and writes the chosen recipe; returns sweep.json and who won."""
    recipe, trials = prepared.recipe, book.trials()
    done = [trial for trial in trials if trial.state == "done" and trial.score is not None]
    if not done:
        if recipe.sweep.promise == "repeat_and_select":  # Saying how many failed says how many ran.
            raise RapidError("No model can leave this sweep: none of its secret runs has a score.")
        raise RapidError(
            f"None of {len(trials)} trials has a score. The last one: {trials[-1].reason}"
            if trials
            else "The sweep has no trial. Widen sweep.space."
        )
    best = max(done, key=lambda trial: (trial.score, -trial.number))
    price = _price(prepared, planner, trials)
    chosen = planner.chosen(best.number, best.point)
    told = {**asdict(price), "sentence": price.sentence}
    place = None
    if planner.proxy is None:
        place = f"{prepared.places.out}/{CHOSEN}"
        ledger = Ledger.open(prepared.places.ledger, recipe.data.private.name)
        note_chosen(ledger, _runs(planner, best)[0], name, told)
        hand_over(planner.job(best.number, best.point).out, place, told)
    # Not before it is in the ledger: who knows these settings knows the choice.
    storage = open_storage(prepared.places.out)
    storage.write("winner.yaml", to_yaml(chosen).encode())
    secret = recipe.sweep.promise == "repeat_and_select"
    result = {
        "name": name,
        "recipe": recipe.name,
        "dataset": recipe.data.private.name,
        "promise": recipe.sweep.promise,
        "search": recipe.sweep.search,
        "scheduler": recipe.sweep.scheduler,
        "proxy": None if planner.proxy is None else planner.proxy.told,
        "price": told,
        "winner": {
            "number": None if secret else best.number,
            "point": best.point,
            "score": best.score,
            "steps": best.steps,
            "noise_multiplier": best.noise_multiplier,
            "expected_batch": best.expected_batch,
            "recipe": f"{prepared.places.out}/winner.yaml",
            "run": place,  # Of a private trial: its run directory, without what lost.
        },
        "page": f"{planner.home}/{PAGE}",
        "trials": None if secret else [asdict(trial) for trial in trials],
    }
    return result, best.number


def _price(prepared: PreparedSweep, planner: Planner, trials: list[Trial]) -> Price:
    recipe = prepared.recipe
    privacy, sweep = recipe.privacy, recipe.sweep
    price = prepared.price_beforehand()
    if sweep.promise == "repeat_and_select":
        assert price is not None
        return price
    started = [trial for trial in trials if trial.state != "pruned"]
    if sweep.promise == "public_proxy":
        return price_public(privacy.epsilon, privacy.delta, len(started))
    ledger = Ledger.open(prepared.places.ledger, recipe.data.private.name)
    return price_composition(
        charged_trials(ledger, planner.name, {_runs(planner, trial)[0] for trial in started}),
        privacy.delta,
        trial_epsilon=privacy.epsilon,
        possible=planner.possible(prepared.space) if sweep.search == "optuna" else (),
    )


def _runs(planner: Planner, trial: Trial) -> tuple[str, str]:
    """Returns the names under which the ledger has a trial and its score."""
    content = _read(open_storage(f"{planner.folder(trial.number)}/run"), "run.json")
    run = str(content.get("run", ""))
    return run, score_run(run)


def _proposer(prepared: PreparedSweep, planner: Planner) -> Proposer:
    recipe = prepared.recipe
    if recipe.sweep.promise != "repeat_and_select":
        return proposer_of(recipe.sweep, prepared.space, seed=recipe.seed)
    return Listed(_drawn(prepared, planner))


def _drawn(prepared: PreparedSweep, planner: Planner) -> list[Point]:
    """Draws, once, how many runs there are and each of their points, apart and alike.

    A point that no budget can meet is drawn again, which no data has a part in.
    """
    own = open_storage(prepared.places.out, private=True)
    content = _read(own, DRAWN)
    if not content:
        key = SecretKey.generate()
        generator = key.generator("points of a sweep")
        number = prepared.recipe.sweep.runs.draw(key)
        points = [_possible_point(prepared.space, planner, generator) for _ in range(number)]
        with suppress(AlreadyExists):  # A second driver drew first: its draw is the sweep's.
            own.create(DRAWN, json.dumps({"points": points}).encode())
        content = _read(own, DRAWN)
    points = content["points"]
    assert isinstance(points, list)
    return points


def _possible_point(space: Space, planner: Planner, generator: np.random.Generator) -> Point:
    for _ in range(_MOST_REDRAWN):
        point = random_point(space, generator)
        try:
            planner.plan_of(point)
        except RapidError:
            continue
        return point
    raise ConfigError(f"Of {_MOST_REDRAWN} points of sweep.space none is possible. Change it.")


def _make_public_stages(prepared: PreparedSweep, planner: Planner, progress: Progress) -> None:
    """Makes the public stages of all points, so that no two trials make the same at once."""
    for number, point in enumerate(variants(prepared.space, public=True)):
        build_public(planner.public_job(number, point))
        progress.note(f"public stages of {point or 'all trials'} are there")


def _proxy(prepared: PreparedSweep) -> Proxy | None:
    recipe = prepared.recipe
    if recipe.sweep.promise != "public_proxy":
        return None
    settings = method_settings(recipe)
    return make_proxy(
        recipe.sweep.proxy,
        settings.private,
        settings.public,
        settings.data_root,
        open_storage(prepared.places.out).child("proxy"),
        seed=recipe.seed,
    )


def _planner(prepared: PreparedSweep, proxy: Proxy | None, name: str = "") -> Planner:
    secret = prepared.recipe.sweep.promise == "repeat_and_select"
    home = f"{prepared.places.out}/internal" if secret else prepared.places.out
    return Planner(
        recipe=prepared.recipe, places=prepared.places, home=home, proxy=proxy, name=name
    )


def _home(prepared: PreparedSweep) -> Storage:
    """Returns where book, table and page lie: for the owner alone where their number is secret."""
    if prepared.recipe.sweep.promise == "repeat_and_select":
        return open_storage(prepared.places.out, private=True).child("internal")
    return open_storage(prepared.places.out)


def _needs(recipe: Recipe) -> Needs:
    if recipe.sweep.runner == "process":
        return Needs(cpus=max(recipe.runtime.threads_per_worker, os.cpu_count() or 1))
    return needs(recipe.runtime, beside=searchers_beside(method_settings(recipe), recipe.runtime))


def _declare(prepared: PreparedSweep, storage: Storage) -> str:
    """Names the sweep and, where it is on private data, tells the ledger of it before any trial."""
    recipe = prepared.recipe
    name = str(_read(storage, "name.json").get("name", ""))
    if not name:
        name = f"{recipe.name}-sweep-{secrets.token_hex(4)}"
        with suppress(AlreadyExists):
            storage.create("name.json", json.dumps({"name": name}).encode())
        name = str(_read(storage, "name.json")["name"])
    if recipe.sweep.promise == "public_proxy":
        return name
    ledger = Ledger.open(prepared.places.ledger, recipe.data.private.name)
    if any(entry.run == name for entry in ledger.entries()):
        return name
    if any(sweep.has(name) for sweep in declared_sweeps(ledger)):
        raise ConfigError(
            f"The name {recipe.name!r} begins with that of a sweep on the ledger, whose runs these "
            "would be taken for. Give the recipe another name."
        )
    secret = recipe.sweep.promise == "repeat_and_select"
    if secret or recipe.sweep.search == "optuna":
        possible = _planner(prepared, None).possible(prepared.space)
        declare(ledger, name, recipe.sweep.runs if secret else None, possible)
    else:
        declare_fixed(ledger, name, recipe.sweep.promise)
    return name


def _admit(recipe: Recipe, storage: Storage) -> None:
    """Begins a sweep's directory, or goes on with it; refuses one of another sweep."""
    text = to_yaml(recipe).encode()
    try:
        storage.create("config.yaml", text)
    except AlreadyExists:
        before = parse_tree(storage.read("config.yaml").decode(), f"{storage.uri}/config.yaml")
        if _shaping(before) != _shaping(to_tree(recipe)):
            raise ConfigError(
                f"{storage.uri} was begun by another sweep. Use another --out, or the settings in "
                "its config.yaml."
            ) from None


def _shaping(tree: dict[str, Any]) -> dict[str, Any]:
    """What may not change while a sweep goes on: all but where it runs; its ledger must stay."""
    kept = shaping(tree, but=("sweep",))
    how_many = {"concurrent", "runner"}
    kept["sweep"] = {k: v for k, v in tree["sweep"].items() if k not in how_many}
    return {**kept, "ledger_dir": tree["runtime"]["ledger_dir"]}


def _read(storage: Storage, name: str) -> dict[str, Any]:
    """Returns a JSON file of the sweep, empty if there is none yet."""
    try:
        return read_table(storage, name, "Restore it from a backup, or use another --out.")
    except StorageMissing:
        return {}
