"""Recipes as text: YAML files, dotted overrides, and how a fault in either is said.

What comes out is a plain tree; which settings there are, and which values they take, is for
``config.py`` to say.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rapid_dist.errors import ConfigError
from rapid_dist.secret import masked


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with the package."""
    folder = resources.files("rapid_dist").joinpath("recipes")
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_tree(path: Path) -> dict[str, Any]:
    """Returns the tree of that file, or of the packaged recipe of that name."""
    packaged = resources.files("rapid_dist").joinpath("recipes", f"{path}.yaml")
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if not path.is_file():
            raise ConfigError(f"There is no recipe file {path}. Give a file or one of: {_known()}.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"Recipe {path} cannot be read as text ({type(error).__name__}). Give a YAML file "
                f"or one of: {_known()}."
            ) from None
    elif re.fullmatch(r"[\w-]+", str(path)) and packaged.is_file():
        text = packaged.read_text(encoding="utf-8")
    else:
        raise ConfigError(f"There is no recipe {str(path)!r}. Give a file or one of: {_known()}.")
    return parse_tree(text, f"Recipe {path}")


def parse_tree(text: str, where: str = "The recipe") -> dict[str, Any]:
    """Returns the plain tree of a recipe's YAML, its settings unchecked."""
    tree = _parse_yaml(text, where)
    if not isinstance(tree, dict):
        raise ConfigError(f"{where} must be a mapping of settings, got {shown(tree)}.")
    return tree


def written(tree: Mapping[str, Any]) -> str:
    """Returns a tree as YAML; ``parse_tree`` undoes it."""
    return yaml.safe_dump(dict(tree), sort_keys=False, width=100)


def override(tree: dict[str, Any], text: str, known: Iterable[str]) -> None:
    """Applies one ``a.b=value`` to a tree, the value read as YAML.

    Args:
      known: the dotted names of all settings, to name one that may have been meant.
    """
    dotted, equals, after = text.partition("=")
    if not equals or not all(dotted.strip().split(".")):
        raise ConfigError(f"An override must read a.b=value, got {text!r}.")
    set_at(tree, dotted.strip(), _parse_yaml(after, f"The value of override {text!r}"), known)


def set_at(tree: dict[str, Any], dotted: str, value: Any, known: Iterable[str] = ()) -> None:
    """Sets one setting of a tree by its dotted name, making the sections on its way.

    Args:
      dotted: ``a.b``; a number is a place in a list.
      known: the dotted names of all settings, to name one that may have been meant.
    """
    keys = dotted.split(".")
    node: Any = tree
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(
                    f"{dotted}={shown(value)}: {'.'.join(keys[:depth])} is a list of {len(node)}; "
                    f"use an index in 0..{len(node) - 1} instead of {key!r}."
                )
            position: Any = int(key)
        elif isinstance(node, dict):
            position = key
            if not last and node.get(key) is None:
                node[key] = {}
        else:
            raise ConfigError(
                f"{dotted}={shown(value)}: {'.'.join(keys[:depth])} is {shown(node)} and has no "
                f"settings inside. {nearest(dotted, known)}"
            )
        if last:
            node[position] = value
        node = node[position]


def shown(value: Any) -> str:
    """Returns a value as an error quotes it: on one line, masked, and not all of a long one."""
    text = masked(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(dotted: str, known: Iterable[str]) -> str:
    """Returns a sentence that names the setting of ``known`` most like ``dotted``."""
    known = list(known)
    generic = re.sub(r"\.\d+(?=\.|$)", "", dotted)
    by_last = {key.rpartition(".")[2]: key for key in known}
    close = difflib.get_close_matches(generic, known, n=1, cutoff=0.6) or [
        by_last[name]
        for name in difflib.get_close_matches(generic.rpartition(".")[2], list(by_last), n=1)
    ]
    sections = [key for key in known if "." not in key]
    return f"Did you mean {close[0]}?" if close else f"There are: {', '.join(sections)}."


def _known() -> str:
    return ", ".join(recipe_names()) or "(none installed)"


class _Loader(yaml.SafeLoader):
    """YAML in which a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise ConfigError(
                    f"The recipe gives {key!r} twice in one place, the second time on line "
                    f"{key_node.start_mark.line + 1}. Keep one."
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str, where: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise ConfigError(f"{where} is not YAML: {problem}. Mend it there.") from None
    finally:
        loader.dispose()
