"""A Python that has the `serve` extra and nothing else, without installing anything.

A folder of links to the installed packages that pyproject.toml's extra asks for, and to what those
ask for in turn; a process started with ``-S`` and that folder sees no other package.
"""

import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def required(extra: str) -> set[str]:
    """Returns the installed distributions that the package with one extra needs, all the way."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [*project["dependencies"], *project["optional-dependencies"][extra]]
    found: set[tuple[str, str]] = set()
    while waiting:
        wanted = Requirement(waiting.pop())
        for asked in ("", *wanted.extras):
            name = canonicalize_name(wanted.name)
            if (name, asked) in found:
                continue
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # For another platform; importing would tell.
            found.add((name, asked))
            for text in needs:
                one = Requirement(text)
                if one.marker is None or one.marker.evaluate({"extra": asked}):
                    waiting.append(text)
    return {name for name, _ in found}


def make_site(folder: Path, extra: str = "serve") -> Path:
    """Fills a folder with links to those packages and to this checkout's."""
    folder.mkdir()
    (folder / "rapid_dist").symlink_to(ROOT / "rapid_dist")
    for name in required(extra):
        distribution = metadata.distribution(name)
        for file in distribution.files or []:
            top = file.parts[0]
            if top in ("..", "bin", "__pycache__") or (folder / top).exists():
                continue
            place = Path(str(distribution.locate_file(top)))
            if place.exists():
                (folder / top).symlink_to(place)
    return folder


def run_in_site(site: Path, *words: str, cwd: Path, **environment: str) -> str:
    """Runs Python with those words where only the site can be imported; returns its stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-S", *words],
        cwd=cwd,
        env={**kept, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
