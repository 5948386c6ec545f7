"""The pieces of a comparison: which rows at which epsilons by which seeds, each a checked run.

A piece is the ordinary pipeline under a recipe that is put together in this order: what all rows
change at a budget, what makes it this method, what the row is, and what all rows share.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rapid_dist.config import Recipe, method_settings, parse_recipe, to_tree
from rapid_dist.errors import ConfigError, RapidError
from rapid_dist.methods import catalog
from rapid_dist.methods.presets import presets_of
from rapid_dist.privacy.accounting import plan
from rapid_dist.recipe_files import override, set_at
from rapid_dist.runtime import pipeline
from rapid_dist.runtime.compare_piece import PieceJob
from rapid_dist.runtime.run_directory import Places, places, shaping

PIECES = "pieces"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One row at one epsilon by one seed."""

    row: str
    epsilon: float | None  # None: the method has no budget, and is run once for all of them.
    seed: int
    prepared: pipeline.Prepared

    @property
    def name(self) -> str:
        return _name(self.row, self.epsilon, self.seed)

    @property
    def out(self) -> str:
        return self.prepared.places.out

    @property
    def job(self) -> PieceJob:
        return PieceJob(name=self.name, recipe=to_tree(self.prepared.recipe), out=self.out)

    @property
    def identity(self) -> str:
        """A hash of all that shapes the piece's figures."""
        kept = shaping(to_tree(self.prepared.recipe))
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

    @property
    def private_rows(self) -> float | None:
        """Rows of private training as they are to be expected: steps, batch and draws together."""
        settings, step = self.prepared.settings, self.prepared.plan.dp_sgd
        if catalog.promise_of(settings) == "none":  # Of the plan's shape alone.
            step = plan(settings.privacy, self.prepared.recipe.num_units).dp_sgd
        if step is None:
            return None
        return step.steps * step.expected_batch * settings.train.rows_per_record

    def described(self) -> dict[str, Any]:
        """Returns the piece and its plan as plain values."""
        recipe = self.prepared.recipe
        return {
            "piece": self.name,
            "row": self.row,
            "method": recipe.method,
            "promise": catalog.promise_of(self.prepared.settings),
            "epsilon": self.epsilon,
            "seed": self.seed,
            "plan": asdict(self.prepared.plan),
            "multiplicity": recipe.train.multiplicity,
            "private_rows": self.private_rows,
            "stages": [stage.name for stage in self.prepared.stages],
            "out": self.out,
        }


@dataclass(frozen=True, kw_only=True)
class PreparedCompare:
    """A comparison that has been checked as far as it can be without starting anything."""

    recipe: Recipe
    places: Places
    pieces: tuple[Piece, ...]

    def described(self) -> dict[str, Any]:
        """Returns the configuration, and every piece with its plan."""
        return {
            "recipe": to_tree(self.recipe),
            "places": asdict(self.places),
            "pieces": [piece.described() for piece in self.pieces],
        }


def prepare_compare(recipe: Recipe, out: str) -> PreparedCompare:
    """Checks every piece and solves its plan; raises ConfigError or BudgetError in one line."""
    where, compare = places(recipe, out), recipe.compare
    if recipe.runtime.debug:
        raise ConfigError(
            "runtime.debug may log private values, and a comparison has many runs. Set it to false."
        )
    pieces: dict[str, Piece] = {}
    for row in compare.methods:
        for epsilon in compare.epsilons or (recipe.privacy.epsilon,):
            for seed in range(compare.first_seed, compare.first_seed + compare.seeds):
                piece = _piece(recipe, where, row, epsilon, seed)
                pieces.setdefault(piece.name, piece)
    ordered = sorted(pieces.values(), key=lambda piece: piece.seed)  # A whole table first.
    return PreparedCompare(recipe=recipe, places=where, pieces=tuple(ordered))


def _piece(recipe: Recipe, where: Places, row: str, epsilon: float, seed: int) -> Piece:
    try:
        at: float | None = epsilon
        own = recipe_of(recipe, where, row, at, seed)
        if catalog.promise_of(method_settings(own)) != "charged":
            at = None
            own = recipe_of(recipe, where, row, at, seed)
        out = f"{where.out}/{PIECES}/{_name(row, at, seed)}"
        return Piece(row=row, epsilon=at, seed=seed, prepared=pipeline.prepare(own, out))
    except RapidError as error:
        raise type(error)(f"Row {row!r} at epsilon {epsilon:g}: {error}") from None


def recipe_of(recipe: Recipe, where: Places, row: str, epsilon: float | None, seed: int) -> Recipe:
    """Returns the recipe of a piece: what all rows share, what the row is, what all rows share."""
    compare = recipe.compare
    if row not in catalog.METHODS and row not in compare.variants:
        raise ConfigError(
            f"It is neither a method nor a name of compare.variants. Methods are "
            f"{', '.join(catalog.METHODS)}."
        )
    changes = compare.row(row, epsilon)
    method = str(changes.pop("method", row if row in catalog.METHODS else recipe.method))
    tree = to_tree(recipe)
    del tree["compare"]  # One piece has nothing to do with the others.
    if epsilon is not None:
        _set_all(tree, {**compare.at(epsilon), "privacy.epsilon": epsilon})
    tree["method"] = method
    for text in presets_of(method) if method != recipe.method else ():
        override(tree, text, ())  # After what all rows change: it is what makes it this method.
    _set_all(tree, changes)
    shared = {
        "sampling.seed": seed,
        "evaluation.seed": seed,
        "evaluation.controls": compare.controls,
        "evaluation.class_balance": compare.class_balance,
        "evaluation.classifiers.validation_share": compare.validation_share,
        "runtime.public_dir": where.public,
        "runtime.ledger_dir": where.ledger,
        "tracking.register_models": False,
        "tracking.experiment": f"{recipe.tracking.experiment}-compare",
    }
    _set_all(tree, shared)
    return parse_recipe(tree)


def _set_all(tree: dict[str, Any], settings: Mapping[str, Any]) -> None:
    for dotted, value in settings.items():
        set_at(tree, dotted, value)


def _name(row: str, epsilon: float | None, seed: int) -> str:
    return f"{row}-{'any' if epsilon is None else f'{epsilon:g}'}-{seed}"
