"""A folder that a run cannot write outside of unseen, and everything that it wrote or said there.

Temporary files go into the folder as well. What is removed, renamed over or emptied while the run
lasts is kept aside first, by Python's own audit events; so a file that lived for a second is still
there to be searched. What native code writes elsewhere, or removes, is not seen.
"""

import contextlib
import io
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_KEPT = "kept-aside"
_ASIDE = re.compile(rf"^{_KEPT}/\d+/")  # Before the place that a kept file had.
_GOING: dict[str, int] = {"os.remove": 0, "os.rename": 1, "shutil.rmtree": 0}  # Which argument.


@dataclass(kw_only=True)
class Contained:
    """What came of a run: its words now, its files in ``root`` afterwards."""

    root: Path
    lines: list[str] = field(default_factory=list)  # Of every logger.
    printed: str = ""  # stdout and stderr.

    def files(self, *, exempt: tuple[str, ...] = ()) -> dict[str, Path]:
        """Returns every file by its place below the root, the exempt ones left out."""
        found = {path.relative_to(self.root).as_posix(): path for path in self.root.rglob("*")}
        return {
            name: path
            for name, path in sorted(found.items())
            if path.is_file() and not _is_in(_ASIDE.sub("", name), exempt)
        }


def _is_in(name: str, folders: tuple[str, ...]) -> bool:
    return any(f"{name}/".startswith(f"{folder}/") for folder in folders)


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.name}: {self.format(record)}")


@contextlib.contextmanager
def contained(root: Path) -> Iterator[Contained]:
    """Runs what is inside with its temporary files in ``root`` and its words caught."""
    said, handler = Contained(root=root), None
    temporary, aside = root / "tmp", root / _KEPT
    temporary.mkdir(parents=True, exist_ok=True)
    handler = _Lines(said.lines)
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    logging.getLogger().addHandler(handler)
    text = io.StringIO()
    try:
        caught = contextlib.redirect_stdout(text), contextlib.redirect_stderr(text)
        with _keeping(root, aside), caught[0], caught[1]:
            yield said
    finally:
        logging.getLogger().removeHandler(handler)
        tempfile.tempdir = before
        said.printed = text.getvalue()


class _Keeper:
    """Copies what is about to go. A hook of the interpreter stays for good, so it can be idle."""

    def __init__(self) -> None:
        self.root: Path | None = None
        self.aside = Path()
        self._busy = False
        self.count = 0

    def __call__(self, event: str, args: tuple[object, ...]) -> None:
        if self.root is None or self._busy or event not in _GOING:
            return
        place = args[_GOING[event]]
        if not isinstance(place, str | os.PathLike):
            return
        path = Path(os.fspath(place)).absolute()
        if self.root not in path.parents or self.aside in path.parents:
            return
        self._busy = True
        try:
            self._keep(path)
        finally:
            self._busy = False

    def _keep(self, path: Path) -> None:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        for file in files:
            assert self.root is not None
            # Its place stays part of the name, so that an exempt folder's files stay exempt.
            kept = self.aside / str(self.count) / file.relative_to(self.root)
            self.count += 1
            kept.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(file, kept)


_HOOKS: list[_Keeper] = []


@contextlib.contextmanager
def _keeping(root: Path, aside: Path) -> Iterator[None]:
    if not _HOOKS:
        _HOOKS.append(_Keeper())
        sys.addaudithook(_HOOKS[0])
    keeper = _HOOKS[0]
    keeper.count, keeper.root, keeper.aside = 0, root.absolute(), aside.absolute()
    try:
        yield
    finally:
        keeper.root = None
