"""The run directory: what one run has done so far, on a disk or in a bucket.

    config.yaml     the whole resolved recipe
    run.json        the run's name in the ledger, drawn once; it ends in the recipe's hash
    stages/         one marker a finished stage: its seconds
    metrics.jsonl   public figures, a line each
    summary.json    written last; a run that has one is complete

A directory belongs to one recipe. What has cost privacy is never made again because a setting
has changed: such a run is refused and told to go elsewhere. Samples and figures cost nothing, so
they are dropped and made again. A setting that is newer than the directory has not changed: what
config.yaml leaves out had its default, so a new setting's default must be what was done before.
"""

import json
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rapid_dist.config import Recipe, parse_recipe, recipe_hash, to_tree, to_yaml
from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.installed import SHORT
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.recipe_files import parse_tree
from rapid_dist.secret import require_plain
from rapid_dist.storage import AlreadyExists, Storage, StorageMissing, open_storage

# What changes no result.
FREE = ("runtime", "tracking", "release", "sweep", "compare", "data.root")
# Sections that shape only what can be made again for nothing, and what then has to go.
REMADE = {
    "sampling": ("samples/", "bundle/", "internal/", "stages/generate", "stages/evaluate"),
    "evaluation": ("internal/", "stages/evaluate"),
}
# Shaped by neither of them.
KEPT = (
    "internal/contamination.json",
    *(f"internal/nonprivate/{part}/" for part in ("adapted", "private", "checkpoints")),
)
# What to do about a torn file of the run, by how its name begins.
_WITHOUT = {
    "run.json": "Restore it from a backup: it names the run in the ledger. Or use another --out.",
    "stages/": "Delete it: the stage then looks for its result and makes what is lacking.",
    "summary.json": "Delete it and run the same command again: it is written anew.",
    "registry.json": "Delete it and run again: the model is then registered as a new version.",
    "internal/quality.json": "Delete it and stages/evaluate.json: it is measured anew.",
}
INTERNAL = "Measured against private records without a privacy mechanism. Not for release.\n"
FINAL = ("summary.json", "registry.json", "report.html", "samples.png")


@dataclass(frozen=True, kw_only=True)
class Places:
    """The three stores of a run, as addresses that mean the same on every node."""

    out: str
    public: str
    ledger: str


def places(recipe: Recipe, out: str) -> Places:
    """Returns where a run writes; public stages and ledgers are shared with the runs beside it."""
    out = _absolute(require_plain(out, "--out"))
    parent = out.rpartition("/")[0] if "://" in out else str(Path(out).parent)
    runtime = recipe.runtime
    return Places(
        out=out,
        public=_absolute(runtime.public_dir) if runtime.public_dir else f"{parent}/public",
        ledger=_absolute(runtime.ledger_dir) if runtime.ledger_dir else f"{parent}/ledger",
    )


def require_writable(where: Places) -> None:
    """Makes the local folders of a run; one that cannot be made is a ``ConfigError`` now.

    The ledger's above all: its first entry is written when hours of public stages are done.
    """
    if "://" not in where.out:  # Where the others are too, unless a setting says otherwise.
        require_folder(str(Path(where.out).parent), "--out")
    require_folder(where.ledger, "runtime.ledger_dir")
    require_folder(where.public, "runtime.public_dir")
    require_folder(where.out, "--out")


def require_folder(address: str, setting: str) -> None:
    """Makes a local folder, or refuses its setting; a bucket has no folders."""
    if "://" in address:
        return
    try:
        _make_folder(Path(address))
        with tempfile.TemporaryFile(dir=address):
            pass
    except OSError as error:
        raise ConfigError(
            f"{address} cannot be written ({error.strerror}). Choose another {setting}."
        ) from None


def _make_folder(path: Path) -> None:
    """Makes a folder that a crash cannot lose, with all that is durable in it."""
    made = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        opened = os.open(folder.parent, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def open_ledger(recipe: Recipe, out: str) -> Ledger:
    """Returns the ledger of the recipe's private data set."""
    return Ledger.open(places(recipe, out).ledger, recipe.data.private.name)


def _absolute(address: str) -> str:
    if "://" in address:
        return address.rstrip("/")
    return str(Path(address).expanduser().resolve())


class RunDirectory:
    """One run's directory, opened for one recipe."""

    def __init__(self, recipe: Recipe, out: str, *, named: str = "") -> None:
        """Begins or goes on with a run; refuses a directory that another recipe has begun.

        Args:
          named: how a new run's name in the ledger begins; by default with the recipe's.
        """
        self.storage: Storage = open_storage(out)
        # Not for everybody on this machine: internal results may not leave (P13).
        self._own: Storage = open_storage(out, private=True)
        self.internal: Storage = self._own.child("internal")
        self._admit(recipe)
        self.internal.write("README.txt", INTERNAL.encode())  # First, so that the folder is ours.
        self.run = self._run_name(recipe, named or recipe.name)

    def is_complete(self) -> bool:
        return self.storage.exists("summary.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Returns a JSON file of the run, empty if there is none yet.

        Raises:
          CheckpointError: it is torn; says what becomes of the run without it.
        """
        try:
            content = json.loads(self.storage.read(name))
        except StorageMissing:
            return {}
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.storage.uri}/{name} is torn. {_without(name)}")
        return content

    def need_json(self, name: str) -> dict[str, Any]:
        """Returns a JSON file that a finished stage has written; a missing one is an error too."""
        content = self.read_json(name)
        if not content:
            raise CheckpointError(f"{self.storage.uri}/{name} is missing. {_without(name)}")
        return content

    def write_json(self, name: str, content: Mapping[str, Any], *, private: bool = False) -> None:
        """Writes a JSON file of the run, ``private`` for what holds internal figures as well."""
        text = json.dumps(content, indent=2, allow_nan=False)
        (self._own if private else self.storage).write(name, text.encode() + b"\n")

    def is_done(self, stage: str) -> bool:
        marker = self.read_json(f"stages/{stage}.json")
        if marker.get("run", self.run) != self.run:
            raise CheckpointError(
                f"{self.storage.uri}/stages/{stage}.json is of run {marker['run']!r}, this is "
                f"{self.run!r}. {_WITHOUT['stages/']}"
            )
        return bool(marker.get("done"))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage, over all its attempts, and marks it as done if it ends well."""
        marker = f"stages/{name}.json"
        before = float(self.read_json(marker).get("seconds", 0.0))
        start, done = monotonic(), False
        try:
            yield
            done = True
        finally:
            seconds = round(before + monotonic() - start, 3)
            self.write_json(marker, {"done": done, "seconds": seconds, "run": self.run})

    def seconds(self, stages: list[str]) -> dict[str, float]:
        """Returns the time that each of these stages took, as far as it is known."""
        markers = {name: self.read_json(f"stages/{name}.json") for name in stages}
        return {name: marker["seconds"] for name, marker in markers.items() if marker}

    def _admit(self, recipe: Recipe) -> None:
        text = to_yaml(recipe).encode()
        if self.storage.exists("run.json") and not self.storage.exists("config.yaml"):
            raise CheckpointError(
                f"{self.storage.uri} holds a run, but not the config.yaml that it was begun with. "
                "Restore it from a backup, or use another --out."
            )
        try:
            self.storage.create("config.yaml", text)
            return
        except AlreadyExists:
            before = begun_with(self.storage, recipe)
        stale: set[str] = set()
        for key, (was, now) in changes(before, recipe).items():
            section = key.partition(".")[0]
            if section not in REMADE and not _is_free(key, was):
                raise ConfigError(
                    f"{self.storage.uri} was begun with {key}={was!r}, now it is "
                    f"{now!r}. Use another --out, or the setting it was begun with."
                )
            stale.update(REMADE.get(section, ()))
        if stale:
            for prefix in sorted(stale | set(FINAL)):
                for name in self.storage.list(prefix):
                    if not name.startswith(KEPT):
                        self.storage.delete(name)
        self.storage.write("config.yaml", text)

    def _run_name(self, recipe: Recipe, named: str) -> str:
        """Returns the run's name in the ledger: the same whenever the run goes on.

        The recipe's hash in it binds every charge to the recipe: ``release`` compares them.
        """
        fresh = {"run": f"{named}-{secrets.token_hex(4)}-{recipe_hash(recipe)[:SHORT]}"}
        try:
            self.storage.create("run.json", json.dumps(fresh).encode())
        except AlreadyExists:
            name = self.read_json("run.json").get("run")
            if not isinstance(name, str):
                raise CheckpointError(
                    f"{self.storage.uri}/run.json names no run. {_WITHOUT['run.json']}"
                ) from None
            return name
        return fresh["run"]


def shaping(tree: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns a recipe's tree without what changes no result, the sections in ``but`` excepted."""
    free = set(FREE) - set(but)
    kept = {name: value for name, value in tree.items() if name not in free}
    for section, _, name in (one.partition(".") for one in free if "." in one):
        kept[section] = {key: value for key, value in kept[section].items() if key != name}
    return kept


def begun_with(storage: Storage, recipe: Recipe) -> Recipe:
    """Returns what a run's config.yaml describes, newer settings than it at their defaults."""
    place = f"{storage.uri}/config.yaml"
    text = storage.read("config.yaml").decode()
    if not text.endswith("\n"):  # What is lacking would be taken for defaults.
        raise CheckpointError(f"{place} is torn. {_without('config.yaml')}")
    tree, now = parse_tree(text, place), to_tree(recipe)
    for section in set(FREE) & tree.keys():  # What changes no result may also go.
        tree[section] = {k: v for k, v in tree[section].items() if k in now[section]}
    try:
        return parse_recipe(tree)
    except ConfigError as error:
        raise ConfigError(
            f"{place} is of a version with other settings: {error} Use another --out, or go on "
            "with the version that began it."
        ) from None


def changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """Returns every setting that differs, by its dotted name, as it was and as it is."""
    old, new = _flat(to_tree(before)), _flat(to_tree(now))
    return {
        key: (old.get(key), new.get(key))
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
    }


def refused_changes(before: Recipe, now: Recipe) -> list[str]:
    """Returns the settings that differ and may not while the run's results stand."""
    return [key for key, (was, _) in changes(before, now).items() if not _is_free(key, was)]


def _is_free(key: str, before: Any) -> bool:
    """Whether a setting may change while its run goes on."""
    if key == "runtime.ledger_dir":
        return False  # What is charged already stands there; elsewhere the budget would be whole.
    if key == "runtime.debug":
        return not before  # What a debug run has logged stays logged: it is never released (P9).
    return bool({key.partition(".")[0], key} & set(FREE))


def _without(name: str) -> str:
    known = (text for part, text in _WITHOUT.items() if name.startswith(part))
    return next(known, "Restore it from a backup, or use another --out.")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        parts = [_flat(value, f"{prefix}.{name}".lstrip(".")) for name, value in tree.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: tree}
