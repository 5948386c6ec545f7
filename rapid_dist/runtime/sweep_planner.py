"""From a point of a sweep to a trial that meets the budget, or the reason why there is none.

Of the mechanism's constants one is left open, ``sweep.solve``, and solved for the recipe's budget
and the declared N of the private data. On a stand-in the same mechanism is rehearsed: its steps,
noise and batch are those that the private data would get, whatever the stand-in's own size.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from rapid_dist.config import Recipe, method_settings, parse_recipe, to_tree
from rapid_dist.errors import BudgetError, ConfigError
from rapid_dist.methods.catalog import check_method, require_releasable, require_training
from rapid_dist.methods.sweep_proxy import Proxy
from rapid_dist.methods.sweep_score import TRIES, require_scorable
from rapid_dist.methods.sweep_settings import Point, default_space, variants
from rapid_dist.privacy.accounting import PrivacyPlan, epsilons, plan
from rapid_dist.privacy.selection import Candidate
from rapid_dist.recipe_files import set_at
from rapid_dist.runtime.run_directory import Places
from rapid_dist.runtime.sweep_search import Space
from rapid_dist.runtime.sweep_trial import TrialJob, score_event
from rapid_dist.storage import open_storage


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Turns points into trials of one sweep."""

    recipe: Recipe
    places: Places  # Of the sweep.
    home: str  # The folder that holds its trials.
    proxy: Proxy | None  # None: trials are on the private data.
    name: str = ""  # Of the sweep: the ledger has private trials by it.

    def recipe_of(self, point: Point) -> Recipe:
        """Returns the recipe of a point, for the private data, and its plan's unknown left open."""
        tree = to_tree(self.recipe)
        for name, value in point.items():
            set_at(tree, name, value)
        tree["privacy"][self.recipe.sweep.solve] = None
        return parse_recipe(tree)

    def plan_of(self, point: Point) -> PrivacyPlan:
        """Returns the plan of a point, for the private data.

        Raises:
          ConfigError, BudgetError: no trial at this point can meet the budget.
        """
        recipe = self.recipe_of(point)
        settings = method_settings(recipe)
        require_releasable(settings, "sweep")  # A point may name another method.
        require_training(settings, "a sweep")
        check_method(settings)
        return _planned(recipe)

    def job(self, number: int, point: Point) -> TrialJob:
        """Returns the trial at a point; raises as ``plan_of`` does."""
        recipe, solved = self.recipe_of(point), self.plan_of(point)
        folder = self.folder(number)
        return TrialJob(
            number=number,
            recipe=self._tree(recipe, number),
            plan=solved if self.proxy is None else _rehearsed(solved, self.proxy),
            charged=solved,
            out=f"{folder}/run",
            public=self.places.public,
            ledger=self.places.ledger if self.proxy is None else f"{folder}/ledger",
            score_noise=recipe.sweep.score_noise if self.proxy is None else None,
            fractions=recipe.sweep.fractions,
            charged_as=self.name if self.proxy is None else "",
            quiet=recipe.sweep.promise == "repeat_and_select",
            as_planned=recipe.sweep.promise == "repeat_and_select"
            or recipe.sweep.search == "optuna",
        )

    def public_job(self, number: int, point: Point) -> TrialJob:
        """Returns what makes the public stages of a point; it has no plan, for it charges nothing.

        They do not depend on the split step, so any that goes with the query step will do.
        """
        whole = to_tree(self.recipe)
        for name, value in {**point, "split.split_step": 1}.items():
            set_at(whole, name, value)
        tree = self._tree(parse_recipe(whole), number)
        tree["runtime"]["backend"] = self.recipe.runtime.backend
        privacy = self.recipe.privacy
        nothing = PrivacyPlan(
            budget=privacy.budget,
            prior=None,
            dp_sgd=None,
            reserve_steps=0,
            epsilons=epsilons((), privacy.delta),
        )
        return TrialJob(
            number=number,
            recipe=tree,
            plan=nothing,
            charged=nothing,
            out=f"{self.home}/public-stages/{number:03d}",
            public=self.places.public,
            ledger=self.places.ledger,
            score_noise=None,
        )

    def folder(self, number: int) -> str:
        return f"{self.home}/trials/{number:03d}"

    def clear(self, number: int) -> None:
        """Removes what a trial on public images left when it was cut off; it starts again."""
        assert self.proxy is not None, "What was charged is never made again."
        storage = open_storage(self.folder(number))
        for name in storage.list():
            storage.delete(name)

    def chosen(self, number: int, point: Point) -> Recipe:
        """Returns the recipe to hand on: of a private trial the one that its folder was made by."""
        if self.proxy is None:
            tree = self._tree(self.recipe_of(point), number)
            whole = to_tree(self.recipe)
            tree |= {name: whole[name] for name in ("evaluation", "tracking", "release")}
            tree["runtime"] = {
                **whole["runtime"],
                "public_dir": self.places.public,
                "ledger_dir": self.places.ledger,
            }
            return parse_recipe(tree)
        tree = to_tree(self.recipe_of(point))
        tree["name"] = f"{self.recipe.name}-chosen"
        return parse_recipe(tree)

    def possible(self, space: Space) -> list[Candidate]:
        """Returns everything that one private trial may charge, whatever its point."""
        found = []
        for point in variants(space, mechanism=True):
            try:
                # By the mechanism alone: other settings of a point decide whether it is possible.
                solved = _planned(self.recipe_of(point))
            except (ConfigError, BudgetError):
                continue  # No trial is there to price.
            found.append(self.candidate(solved))
        return found

    def candidate(self, solved: PrivacyPlan) -> Candidate:
        recipe = self.recipe
        score = score_event(recipe.sweep.score_noise, recipe.privacy.noise)
        return Candidate(training=tuple(solved.events), score=(score,) * TRIES)

    def _tree(self, recipe: Recipe, number: int) -> dict[str, Any]:
        """Returns the tree of a trial's own recipe."""
        tree = to_tree(recipe)
        secret = recipe.sweep.promise == "repeat_and_select"  # Then a number would tell of others.
        tree["name"] = f"{recipe.name}-{'chosen' if secret else f'trial-{number:03d}'}"
        tree["sweep"], tree["tracking"] = {}, {}
        tree["evaluation"]["controls"] = False
        if recipe.sweep.runner == "process":
            tree["runtime"]["backend"] = "process"
        tree["runtime"] |= {"public_dir": self.places.public, "ledger_dir": self.places.ledger}
        if self.proxy is not None:
            tree["data"] |= {
                "private": asdict(self.proxy.private),
                "public": [asdict(self.proxy.public)],
                "more_references": [],
            }
            tree["contamination"]["policy"] = "accept"  # Nothing private is there to look for.
            tree["privacy"]["contamination_noise"] = None
        elif recipe.privacy.reserve_steps:
            # A crash then repeats a step at most, and the reserve pays for as many crashes.
            tree["train"]["checkpoint_every"] = 1
        return tree


def space_of(recipe: Recipe) -> Space:
    """Returns the space of a recipe; one that names none gets that of its own plan."""
    if recipe.sweep.space:
        return recipe.sweep.space
    solved = plan(recipe.privacy, recipe.num_units)
    if solved.dp_sgd is None:
        raise ConfigError(
            f"privacy.prior_share={recipe.privacy.prior_share} leaves no training to sweep over. "
            "Name what to try in sweep.space."
        )
    return default_space(recipe.split.query_step, solved.dp_sgd.noise_multiplier)


def check_sweep(recipe: Recipe, space: Space) -> None:
    """Refuses a sweep none of whose trials could be planned.

    Raises:
      ConfigError: something beside the unknown is open, or private images have no classes.
    """
    require_releasable(method_settings(recipe), "sweep")
    require_training(method_settings(recipe), "a sweep")
    solve = recipe.sweep.solve
    for name in ("noise_multiplier", "steps", "expected_batch"):
        given = f"privacy.{name}" in space or getattr(recipe.privacy, name) is not None
        if name != solve and not given:
            raise ConfigError(
                f"sweep.solve={solve} leaves privacy.{solve} open, and privacy.{name} is null. "
                f"Give it a value, or name privacy.{name} in sweep.space."
            )
    if recipe.sweep.promise == "repeat_and_select" and recipe.contamination.policy != "accept":
        raise ConfigError(
            f"contamination.policy={recipe.contamination.policy} has each secret run leave public "
            "stages of its own outside of the sweep, which can be counted. Look for "
            "near-duplicates by a run before, and set it to accept for this sweep."
        )
    if recipe.sweep.promise != "public_proxy":
        require_scorable(method_settings(recipe), recipe.sweep.promise)


def _planned(recipe: Recipe) -> PrivacyPlan:
    """Returns the plan, unless it would take more steps than a trial may."""
    solved = plan(recipe.privacy, recipe.num_units)
    most = recipe.sweep.most_steps
    if solved.dp_sgd is not None and solved.dp_sgd.steps > most:
        raise ConfigError(
            f"The budget pays for {solved.dp_sgd.steps} steps here, sweep.most_steps is {most}."
        )
    return solved


def _rehearsed(solved: PrivacyPlan, proxy: Proxy) -> PrivacyPlan:
    """Returns the plan for a stand-in of another size: the same steps, noise and batch."""
    if solved.dp_sgd is None:
        return solved
    units = proxy.private.num_groups or proxy.private.num_records
    batch = min(solved.dp_sgd.expected_batch, float(units))
    return replace(solved, dp_sgd=replace(solved.dp_sgd, num_records=units, expected_batch=batch))
