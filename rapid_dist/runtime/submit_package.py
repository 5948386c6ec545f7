"""What of a working directory is sent with a job: code and settings, by their endings, and no data.

Whatever is sent lies in the cluster's memory and on its nodes' disks, for as long as Ray likes. So
a file has to be of a kind that is asked for, rather than not of a kind that is forbidden: no image,
array, archive, table, key or database can come along because nobody thought of its name.
"""

import fnmatch
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rapid_dist.errors import ConfigError

KINDS = (".py", ".yaml", ".yml", ".toml")
EXTRA = ("passport.schema.json", "constraints.txt")  # Of other kinds, and part of the code.
LEFT_OUT = (  # Folders that no job needs. Those with a leading dot are left out as well.
    "benchmarks", "build", "dist", "docs", "generated", "internal", "mlruns", "node_modules",
    "runs", "services", "tests", "venv", "__pycache__", "*.egg-info",
)  # fmt: skip
MOST_BYTES = 16 * 2**20


@dataclass(frozen=True, kw_only=True)
class Package:
    """The files of a working directory that are sent, by their names in it."""

    folder: Path
    names: tuple[str, ...]
    num_bytes: int

    def copy_to(self, place: Path) -> None:
        """Copies the files, and nothing else, to an empty folder."""
        for name in self.names:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / name, place / name)


def package_of(folder: Path, excludes: Sequence[str] = ()) -> Package:
    """Returns what is sent of a working directory.

    Args:
      excludes: further names to leave out, of files or folders, as the shell writes them
        (``*.local.yaml``), or paths below ``folder`` (``recipes/old``).

    Raises:
      ConfigError: there is no such folder, or what is left is larger than code ever is.
    """
    if not folder.is_dir():
        raise ConfigError(f"--working-dir {folder} is not a folder. Name the one with your code.")
    found = sorted(_walk(folder, (*LEFT_OUT, *excludes)))
    sizes = {name: (folder / name).stat().st_size for name in found}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ConfigError(
            f"{folder} holds {total / 2**20:.0f} MB of code and settings, at most "
            f"{MOST_BYTES // 2**20} are sent; the largest is {largest}. Leave something out with "
            "--exclude, or name another --working-dir."
        )
    return Package(folder=folder, names=tuple(found), num_bytes=total)


def _walk(folder: Path, excludes: Sequence[str]) -> Iterator[str]:
    for place, folders, files in os.walk(folder):  # Follows no link out of the folder.
        here = Path(place).relative_to(folder)
        folders[:] = [name for name in folders if not _is_left_out(here / name, excludes)]
        for name in files:
            wanted = Path(name).suffix in KINDS or name in EXTRA
            is_own = not (folder / here / name).is_symlink()
            if wanted and is_own and not _is_left_out(here / name, excludes):
                yield (here / name).as_posix()


def _is_left_out(path: Path, excludes: Sequence[str]) -> bool:
    if path.name.startswith("."):
        return True
    return any(
        fnmatch.fnmatch(path.name, one) or fnmatch.fnmatch(path.as_posix(), one.strip("/"))
        for one in excludes
    )
