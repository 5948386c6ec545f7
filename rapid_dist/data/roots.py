"""Reading a named source below data.root, where that is a folder and where it is in a bucket."""

from dataclasses import replace
from pathlib import Path

from rapid_dist.confined import private_folder, write_own
from rapid_dist.data.checks import FOLDERS
from rapid_dist.data.raw import Raw, Request
from rapid_dist.data.readers import read
from rapid_dist.errors import DataError
from rapid_dist.storage import open_storage, require_reachable


def read_below(root: str | Path | None, request: Request) -> Raw:
    """Reads the request's source, its files being below ``root``.

    Those of a bucket are copied for as long as reading lasts, to a folder that nobody else may
    read. A source that brings its own path, or needs no files, is read without.
    """
    if root is None or not str(root).startswith("s3://"):
        return read(replace(request, root=None if root is None else Path(root).expanduser()))
    if request.source not in FOLDERS:
        return read(request)
    with private_folder() as folder:
        _fetch(str(root), request.source, folder)
        try:
            return read(replace(request, root=folder))
        except DataError as error:  # Nobody knows the copy by its name.
            raise DataError(str(error).replace(str(folder), str(root).rstrip("/"))) from None


def _fetch(root: str, source: str, folder: Path) -> None:
    require_reachable(root)
    storage = open_storage(root)
    names = [name for place in FOLDERS[source] for name in storage.list(f"{place}/")]
    if not names:
        raise DataError(
            f"Source {source} is not under data.root={root}: there is nothing in "
            f"{' or '.join(f'{place}/' for place in FOLDERS[source])}. Copy its folder there."
        )
    for name in names:
        content = storage.read(name)  # First: it refuses a name that would lead out of the folder.
        write_own(folder / name, content)
