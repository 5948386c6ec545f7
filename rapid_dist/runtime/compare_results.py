"""What came of a comparison: means and spreads, one table, one figure, one sheet, one page.

All of it is internal (P13): files are their owner's alone.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from rapid_dist.config import Recipe
from rapid_dist.errors import BudgetError
from rapid_dist.evaluation.suite import INTERNAL
from rapid_dist.methods import artifacts, catalog
from rapid_dist.methods.compare_settings import is_shared
from rapid_dist.methods.contamination_stage import without_dropped
from rapid_dist.methods.sampling_stages import SAMPLES_FILE, class_names
from rapid_dist.methods.seal import read_table
from rapid_dist.privacy.accounting import epsilons, upper_bound
from rapid_dist.privacy.dataset_total import dataset_epsilons, declared_sweeps
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.statement import rounded_up
from rapid_dist.release.compare_page import markdown_table, render_compare
from rapid_dist.release.compare_plots import Series, quality_svg
from rapid_dist.release.plots import ImageSet, samples_png
from rapid_dist.runtime.compare_piece import AGAIN, read_book, read_mark
from rapid_dist.runtime.compare_plan import PIECES, Piece
from rapid_dist.runtime.results import versions
from rapid_dist.runtime.run_directory import Places, changes
from rapid_dist.runtime.stage_times import seconds_of_making
from rapid_dist.storage import Storage, open_storage

SHOWN = 10  # Samples a row of the sheet.
# Seconds of the yardstick, and of a question about the data that only some of the methods ask.
_NOT_THE_METHODS = ("contamination", "evaluate")


def write_results(
    recipe: Recipe,
    where: Places,
    pieces: Sequence[Piece],
    *,
    done: Sequence[Piece],
    failed: Mapping[str, str],
    whole: bool = True,
) -> dict[str, Any]:
    """Writes all results of the pieces that are done, and returns compare.json.

    Args:
      whole: no piece comes after this, so what all cost is composed exactly. Of dozens of runs that
        takes a minute and gigabytes; on the way a bound that takes none is shown.
    """
    summaries = {piece.name: _summary(piece) for piece in done}
    states = []
    for piece in pieces:
        state: dict[str, Any] = {
            "piece": piece.name,
            "row": piece.row,
            "method": piece.prepared.recipe.method,
            "promise": catalog.promise_of(piece.prepared.settings),
            "epsilon": piece.epsilon,
            "seed": piece.seed,
            "changes": recipe.compare.changes(piece.row, piece.epsilon),
            "otherwise": _otherwise(recipe, piece),
            "code": None,
            "state": "failed" if piece.name in failed else "waiting",
            "reason": failed.get(piece.name, ""),
            "figures": {},
        }
        if piece.name in summaries:
            state["state"] = "done"
            state["code"] = read_mark(piece.out).get("code")
            state["figures"] = _figures(piece, summaries[piece.name])
        states.append(state)
    rows = rows_of(states)
    quality = [_quality(piece) for piece in done]
    result: dict[str, Any] = {
        "notice": INTERNAL,
        "recipe": recipe.name,
        "dataset": recipe.data.private.name,
        "num_units": recipe.num_units,
        "delta": recipe.privacy.delta,
        "methods": list(recipe.compare.methods),
        "seeds": recipe.compare.seeds,
        "chief": "mean" if recipe.data.private.num_classes > 1 else "frechet",
        "extractors": sorted({one["extractor"] for one in quality}),
        "fidelity_label": quality[0]["fidelity_label"] if quality else "FID-like, not FID",
        "fidelity_images": sorted({one["fidelity_images"] for one in quality}),
        "images": recipe.sampling.count,
        "rows": rows,
        "pieces": states,
        "cost": _cost(recipe, where, states, whole=whole),
        "versions": versions(),
        "page": f"{where.out}/compare.html",
    }
    own = open_storage(where.out, private=True)
    sheet = _sheet(done)
    figure = quality_svg(series_of(rows, result["chief"]), result["chief"])
    if sheet:
        own.write("compare-samples.png", sheet)
    own.write("compare.svg", figure.encode())
    own.write("compare.md", markdown_table(result).encode())
    own.write("compare.html", render_compare(result, figure, sheet).encode())
    own.write("compare.json", json.dumps(result, indent=2, allow_nan=False).encode() + b"\n")
    return result


def _figures(piece: Piece, summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns everything that is known of one piece, flat and by name."""
    quality, seconds = summary["quality"], summary["seconds"]
    fidelity, near = quality["fidelity"], quality["memorisation"]
    public = _artifacts(piece)
    own = [
        float(took)
        for stage, took in seconds.items()
        if stage not in public and stage not in ("total", *_NOT_THE_METHODS)
    ]
    store = open_storage(piece.prepared.places.public)
    making = [seconds_of_making(store.child(name)) for name in public.values()]
    known = [took for took in making if took is not None]
    peak = read_book(piece.out).get("peak", {})
    return {
        **(quality["classifiers"] or {}),
        "frechet": fidelity["frechet_distance"],
        **{name: value for name, value in fidelity.items() if name != "frechet_distance"},
        "nearest_ratio": near["median_ratio"] if np.isfinite(near["median_ratio"]) else None,
        "copies": float(near["exact_copies"]),
        **(quality.get("balance") or {}),
        "private_rows": piece.private_rows,
        "nfe": summary["sampling"]["nfe"],
        "seconds": round(sum(own), 3),
        "public_seconds": round(sum(known), 3) if len(known) == len(making) else None,
        "rss_gb": peak.get("rss_gb"),
        "cuda_gb": peak.get("cuda_gb"),
        "epsilon_spent": summary["privacy"].get("epsilon"),
    }


def _otherwise(recipe: Recipe, piece: Piece) -> dict[str, Any]:
    """Returns every setting of a piece's run that is not the comparison's own."""
    found = changes(recipe, piece.prepared.recipe)
    return {
        name: now for name, (_, now) in found.items() if name != "method" and not is_shared(name)
    }


def rows_of(states: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row of means and spreads for every row and epsilon that has a figure."""
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for state in states:
        groups.setdefault((state["row"], state["epsilon"]), []).append(state)
    rows = []
    for (row, epsilon), members in groups.items():
        found = [one["figures"] for one in members if one["state"] == "done"]
        if not found:
            continue
        means: dict[str, float | None] = {}
        spreads: dict[str, float | None] = {}
        for name in found[0]:
            values = [one[name] for one in found if one.get(name) is not None]
            means[name] = mean(values) if values else None
            spreads[name] = stdev(values) if len(values) > 1 else None
        rows.append(
            {
                "row": row,
                "method": members[0]["method"],
                "promise": members[0]["promise"],
                "epsilon": epsilon,
                "seeds": len(found),
                "of": len(members),
                "mean": means,
                "spread": spreads,
            }
        )
    return rows


def series_of(rows: Sequence[Mapping[str, Any]], chief: str) -> list[Series]:
    """Returns a line a row, over its epsilons; a level where it has no budget."""
    found: dict[str, list[tuple[float | None, float, float]]] = {}
    for row in rows:
        value, spread = row["mean"].get(chief), row["spread"].get(chief)
        if value is not None:
            found.setdefault(row["row"], []).append((row["epsilon"], value, spread or 0.0))
    return [
        Series(
            name=name,
            points=tuple(sorted((e, v, s) for e, v, s in points if e is not None)),
            level=next((v for e, v, _ in points if e is None), None),
        )
        for name, points in found.items()
    ]


def _artifacts(piece: Piece) -> dict[str, str]:
    """Returns the names of a piece's public artefacts, by the stages that make them."""
    settings = without_dropped(piece.prepared.settings, open_storage(piece.out))
    return {
        stage.name: stage.artifact(settings)
        for stage in piece.prepared.stages
        if stage.artifact is not None
    }


def _cost(
    recipe: Recipe, where: Places, states: Sequence[Mapping[str, Any]], *, whole: bool
) -> dict[str, Any]:
    """Returns what the ledger says of all pieces and of the data set, in one sentence."""
    ledger = Ledger.open(where.ledger, recipe.data.private.name)
    begun = {_run(open_storage(_out_of(where, state))) for state in states}
    runs = sorted({entry.run for entry in ledger.entries() if entry.run in begun - {""}})
    delta = recipe.privacy.delta
    own = [event for run in runs for event in ledger.events(run)]
    at_most = (
        f"together cost at most epsilon {rounded_up(upper_bound(own, delta))} at delta {delta:g}, "
        f"and all that was ever charged to {recipe.data.private.name!r} at most "
        f"{rounded_up(_bound_of_all(ledger, delta))}: bounds by Rényi divergences"
    )
    if not whole:
        sentence = (
            f"So far the charged pieces of this comparison, {len(runs)}, {at_most}; the totals "
            "come with the last piece. Choosing among them by these figures is a choice made on "
            "private records, which no epsilon here covers."
        )
        return {"pieces": len(runs), "sentence": sentence}
    try:
        spent, total = epsilons(own, delta).reported, dataset_epsilons(ledger, delta).reported
    except BudgetError:  # Of very many pieces the accountants come apart.
        sentence = (
            f"The {len(runs)} charged pieces of this comparison {at_most}, for on so large a total "
            "PLD and PRV do not agree. That is no privacy any more; choosing among them by these "
            "figures is a choice made on private records besides."
        )
        return {"pieces": len(runs), "sentence": sentence}
    free = sum(state["promise"] == "none" and state["state"] != "waiting" for state in states)
    counted = "one charged piece" if len(runs) == 1 else f"{len(runs)} charged pieces"
    cost = f"The {counted} of this comparison together cost epsilon {rounded_up(spent)}"
    sentence = (
        f"{cost if runs else 'No piece of this comparison was charged anything'} at delta "
        f"{delta:g}, and all that was ever charged to {recipe.data.private.name!r} costs "
        f"{rounded_up(total)}; choosing among them by these figures is a choice made on private "
        "records, which no epsilon here covers."
    )
    if free:
        sentence += (
            f" {free} more trained on the records without any privacy: nothing covers those."
        )
    return {"pieces": len(runs), "epsilon": spent, "dataset_epsilon": total, "sentence": sentence}


def _bound_of_all(ledger: Ledger, delta: float) -> float:
    """Returns an epsilon that all that was ever charged to a data set certainly does not pass."""
    if declared_sweeps(ledger):  # Priced by Rényi divergences anyway.
        return dataset_epsilons(ledger, delta).reported
    return upper_bound(ledger.events(), delta)


def _out_of(where: Places, state: Mapping[str, Any]) -> str:
    """Returns the run directory of a piece."""
    return f"{where.out}/{PIECES}/{state['piece']}"


def _run(storage: Storage) -> str:
    if not storage.exists("run.json"):
        return ""
    restore = "Restore it from a backup: it names the run in the ledger."
    return str(read_table(storage, "run.json", restore).get("run", ""))


def _sheet(done: Sequence[Piece]) -> bytes:
    """Returns one row of samples for every row and epsilon, of its first seed."""
    names: list[str] = []
    images, labels = [], []
    for piece in done:
        name = piece.row if piece.epsilon is None else f"{piece.row} at {piece.epsilon:g}"
        if name in names:
            continue
        found, classes = _samples(piece)
        chosen = _one_of_each(classes, max(1, len(class_names(piece.prepared.settings))))
        images.append(found[chosen])
        labels.append(np.full(len(chosen), len(names)))
        names.append(name)
    if not names:
        return b""
    shown = ImageSet(images=np.concatenate(images), labels=np.concatenate(labels))
    return samples_png(shown, names, per_class=SHOWN)


def _one_of_each(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the places of the first images of class 0, 1, ..., and again, until a row is full."""
    turns = [np.flatnonzero(labels == label) for label in range(num_classes)]
    deal = [turn[round_] for round_ in range(SHOWN) for turn in turns if round_ < len(turn)]
    return np.array(deal[:SHOWN], np.int64)


def _samples(piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """Returns the samples of a piece: of a method without privacy, from its internal folder."""
    storage = open_storage(piece.out)
    inner = storage.child("internal").child(piece.prepared.recipe.method)
    return artifacts.get_images(storage if storage.exists(SAMPLES_FILE) else inner, SAMPLES_FILE)


def _summary(piece: Piece) -> dict[str, Any]:
    return read_table(open_storage(piece.out), "summary.json", AGAIN)


def _quality(piece: Piece) -> dict[str, Any]:
    otherwise = "Delete it and its stages/evaluate.json and summary.json: it is measured anew."
    return read_table(open_storage(piece.out), "internal/quality.json", otherwise)
