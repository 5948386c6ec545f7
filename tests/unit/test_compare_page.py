"""What the table, the page and the figure of a comparison say."""

from pathlib import Path
from typing import Any

import numpy as np

from rapid_dist.config import load_recipe
from rapid_dist.release.compare_page import USEFUL, markdown_table, table_rows
from rapid_dist.release.compare_plots import HEIGHT, Series, quality_svg
from rapid_dist.release.compare_rows import differences, held_equal
from rapid_dist.runtime.compare_plan import prepare_compare
from rapid_dist.runtime.compare_results import _otherwise


def _row(name: str, epsilon: float | None, value: float, spread: float | None) -> dict[str, Any]:
    return {
        "row": name, "method": name, "promise": "charged", "epsilon": epsilon, "seeds": 2, "of": 3,
        "mean": {"mean": value, "best": value}, "spread": {"mean": spread, "best": None},
    }  # fmt: skip


def test_a_table_has_mean_and_spread_and_says_what_best_means() -> None:
    rows = [_row("a", 1.0, 0.5, 0.01), _row("b", None, 0.25, None)]
    cells = table_rows(rows, USEFUL[:1])
    assert cells == [["a", "1", "2 of 3", "50.0% ± 1.0"], ["b", "-", "2 of 3", "25.0%"]]
    text = markdown_table(
        {
            "rows": rows,
            "notice": "Internal: x",
            "extractors": ["pixels"],
            "fidelity_images": [40],
            "fidelity_label": "FID-like, not FID",
            "cost": {"sentence": "It cost much."},
            "recipe": "digits",
            "pieces": [{**_piece("c", 1.0, "c"), "state": "failed", "reason": "no budget"}],
        }
    )
    assert text.startswith("**Internal: x**")
    assert "a choice made on private records" in text
    assert "stands beside no published figure" in text
    assert "Failed: c-1-0: no budget" in text
    assert "- c (c): none" in text


def _piece(row: str, epsilon: float | None, method: str, **otherwise: Any) -> dict[str, Any]:
    at = "any" if epsilon is None else f"{epsilon:g}"
    return {
        "piece": f"{row}-{at}-0", "row": row, "method": method, "epsilon": epsilon,
        "otherwise": otherwise,
    }  # fmt: skip


def test_a_page_lists_each_rows_own_settings_and_at_which_budget() -> None:
    slow = {"train.learning_rate": 0.001, "network.attention": [True, False]}
    pieces = [
        _piece("rapid", 1.0, "rapid", **{"privacy.prior_share": 0.4, "train.mode": "late"}),
        _piece("rapid", 10.0, "rapid", **{"train.mode": "late"}),
        _piece("slow", 1.0, "dpdm", **slow),
        _piece("slow", 10.0, "dpdm", **slow),
        _piece("references", 1.0, "references", **{"prior.nearest": 3}),
        _piece("references", None, "references", **{"prior.nearest": 1}),
        _piece("public", None, "public"),
    ]
    assert differences({"pieces": pieces}) == [
        ["rapid", "rapid", "train.mode=late; at 1: privacy.prior_share=0.4"],
        ["slow", "dpdm", "train.learning_rate=0.001; network.attention=[true, false]"],
        ["references", "references", "at 1: prior.nearest=3; without a budget: prior.nearest=1"],
        ["public", "public", "none"],
    ]


def test_what_a_method_sets_is_said_in_place_of_the_budgets_setting(tmp_path: Path) -> None:
    recipe = load_recipe(
        "digits",
        [
            "compare.methods=[rapid, dpdm]",
            "compare.epsilons=[1]",
            "compare.budgets={1: {privacy.prior_share: 0.4}}",
            "runtime.backend=process",
        ],
    )
    pieces = prepare_compare(recipe, str(tmp_path / "c")).pieces
    said = {piece.row: _otherwise(recipe, piece) for piece in pieces}
    assert said["rapid"] == {"privacy.prior_share": 0.4}  # No seed, folder or epsilon.
    assert said["dpdm"]["privacy.prior_share"] == 0
    assert said["dpdm"]["train.multiplicity"] == 32


def test_unequal_training_is_said_and_equal_training_is_not() -> None:
    def said(draws: float, promise: str = "charged") -> str:
        rows = [_row("rapid", 1.0, 0.5, None), _row("dpdm", 1.0, 0.5, None) | {"promise": promise}]
        rows[0]["mean"]["private_rows"], rows[1]["mean"]["private_rows"] = 1000.0, draws
        return held_equal({"recipe": "digits", "rows": [*rows, _row("public", 1.0, 0.1, None)]})

    assert "At epsilon 1 the rows that train do not train with the same number" in said(32000.0)
    assert "rapid 1,000, dpdm 32,000" in said(32000.0)
    assert "same number" not in said(1000.0)
    assert "same number" not in said(32000.0, promise="none")  # It is a ceiling, and no rival.


def test_names_at_the_ends_of_lines_stand_apart_and_inside_the_figure() -> None:
    many = [Series(name=f"m{n}", points=((1.0, 0.5, 0.0), (10.0, 0.5, 0.1))) for n in range(12)]
    figure = quality_svg([*many, Series(name="<low>", points=(), level=0.1)], "mean")
    ends = [float(part.split('y="')[1].split('"')[0]) for part in figure.split("<text class=")[1:]]
    assert len(ends) == 13
    gaps = np.diff(sorted(ends))
    assert gaps.min() > 14
    assert max(ends) < HEIGHT
    assert "&lt;low&gt; (no budget)" in figure
    assert figure.count("<polyline") == 12


def test_a_figure_without_pieces_says_so() -> None:
    assert "No piece is done yet" in quality_svg([], "mean")
    assert "<circle" in quality_svg([Series(name="a", points=((1.0, 0.5, 0.0),))], "frechet")
