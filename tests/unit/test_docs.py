"""The documents name files, functions, tests, commands and settings; every one of them exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.main import get_command

from rapid_dist.cli.main import build_app
from rapid_dist.config import parse_recipe
from rapid_dist.recipe_files import recipe_names

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ["README.md", "CHANGELOG.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
PRIVACY = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")

_NAMED = re.compile(r"`((?:rapid_dist|tests|jobs|cluster)/[\w./-]*\w)(?:::(\w+))?`")
_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)]*))?\)")
_COMMAND = re.compile(r"rapid-dist ([a-z]+)(?: ([a-z]+))?")


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _defined(path: Path) -> set[str]:
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def _missing_names(text: str) -> list[str]:
    faults = []
    for place, name in _NAMED.findall(text):
        path = ROOT / place
        if not path.exists() or (name and name not in _defined(path)):
            faults.append(f"{place}::{name}" if name else place)
    return faults


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def _broken_links(text: str, folder: Path) -> list[str]:
    faults = []
    for place, anchor in _LINK.findall(text):
        target = folder / place
        known = not place or target.exists()
        if not known or (anchor and anchor not in _anchors(target.read_text() if place else text)):
            faults.append(f"{place}#{anchor}" if anchor else place)
    return faults


def _unknown_commands(text: str) -> list[str]:
    app = get_command(build_app())
    known = set(app.commands)  # type: ignore[attr-defined]
    ledger = set(app.commands["ledger"].commands)  # type: ignore[attr-defined]
    return [
        f"{first} {second}".strip()
        for first, second in _COMMAND.findall(text)
        if first not in known or (first == "ledger" and second not in ledger)
    ]


def _untested_rows(text: str) -> Iterator[str]:
    """Yields the pitfalls of the table in section 3 that name neither a test nor a reading."""
    section = text.partition("## 3.")[2].partition("## 4.")[0]
    for row in re.findall(r"^\| .*\|$", section, re.MULTILINE)[1:]:
        pitfall, stops, test = (cell.strip() for cell in row.strip("|").split("|"))
        if "`rapid_dist/" not in stops or not ("`tests/" in test or test.startswith("by reading")):
            yield pitfall


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_function_and_test_that_is_named_exists(document: str) -> None:
    assert _missing_names(_text(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_inside_the_project_leads_somewhere(document: str) -> None:
    assert _broken_links(_text(document), (ROOT / document).parent) == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_shown_exists(document: str) -> None:
    assert _unknown_commands(_text(document)) == []


def test_every_pitfall_names_what_stops_it_and_a_test() -> None:
    assert list(_untested_rows(PRIVACY)) == []


def test_the_recipe_in_the_readme_is_a_whole_recipe() -> None:
    found = re.search(r"```yaml\n(.*?)```", _text("README.md"), re.DOTALL)
    assert found is not None
    recipe = parse_recipe(yaml.safe_load(found[1]))
    assert recipe.privacy.delta * recipe.num_units < 1


def test_the_readme_lists_the_recipes_of_the_package() -> None:
    section = _text("README.md").partition("## Recipes")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == recipe_names()


def test_what_is_not_there_is_noticed() -> None:
    assert isinstance(build_app(), typer.Typer)
    assert _missing_names("`rapid_dist/privacy/ledgers.py`") != []
    assert _missing_names("`rapid_dist/privacy/ledger.py::Legder`") != []
    assert _missing_names("`rapid_dist/privacy/ledger.py::Ledger`") == []
    assert _broken_links("[a](docs/nowhere.md)", ROOT) != []
    assert _broken_links("[a](docs/privacy.md#nowhere)", ROOT) != []
    assert _broken_links("[a](docs/privacy.md#5-choosing-settings)", ROOT) == []
    assert _unknown_commands("`rapid-dist ledger burn`") != []
    assert (
        list(_untested_rows("## 3.\n| a | b | c |\n| P0. x | `rapid_dist/a.py` | trust |\n")) != []
    )
