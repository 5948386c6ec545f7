"""Secrets that can be met nowhere by chance, a tiny run that is given them, and a search for them.

The run is a process of its own, so that its every word is known. All its processes, Ray's workers
among them, write down the keys that they make, for these are looked for as well.
"""

import base64
import io
import os
import secrets
import subprocess
import sys
import urllib.parse
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rapid_dist.secret import SECRET_VARIABLES

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "data.public.0.count=300", "network.widths=[16, 16]", "pretrain.steps=2", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", "privacy.steps=3", "privacy.expected_batch=32",
    "sampling.count=24", "sampling.late_intervals=2", "sampling.early_intervals=2",
    "evaluation.controls=false", "evaluation.classifiers.steps=2",
    "evaluation.classifiers.logistic_iterations=2", "runtime.workers=1",
]  # fmt: skip
# Python runs it at the start of every process, before anybody takes hold of ``generate``.
_WATCH = """
import os
from rapid_dist.privacy.keys import SecretKey
make = SecretKey.generate.__func__

def generate(cls):
    key = make(cls)
    with open(os.environ["PLANTED_KEYS"], "a") as file:
        file.write(key.reveal().hex() + "\\n")
    return key

SecretKey.generate = classmethod(generate)
"""
# argv: where Ray's session is to stay ("" = no Ray), and the command line.
_RUN = """
import sys
if sys.argv[1]:
    import ray
    from rapid_dist.runtime import cluster
    cluster._prepare_environment(local=True)
    ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=sys.argv[1])
from rapid_dist.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


def planted_environment() -> dict[str, str]:
    """Returns a secret of its own for every variable that may hold one."""
    return {name: f"planted{secrets.token_hex(20)}" for name in SECRET_VARIABLES}


@dataclass(frozen=True, kw_only=True)
class PlantedRun:
    """What a run has said and left, and the secrets that it must not have told."""

    done: "subprocess.CompletedProcess[str]"
    folder: Path
    keys: tuple[bytes, ...]  # That its processes have made.
    planted: tuple[bytes, ...]

    def searched(self, *more: Path) -> "Search":
        """Looks for everything that was planted, and for the keys, in all that there is."""
        texts = {"stdout": self.done.stdout, "stderr": self.done.stderr}
        folders = [self.folder / "runs", self.folder / "home", *more]
        found = search([*self.planted, *self.keys], texts, folders)
        print(found.told())
        return found


def planted_run(
    folder: Path, environment: Mapping[str, str], *, planted: Iterable[str] = (), session: str = ""
) -> PlantedRun:
    """Runs a whole tiny recipe with secrets in its environment.

    Args:
      environment: beside this process's; every value that ``planted_environment`` made is looked
        for.
      planted: further secrets, as of an address.
      session: a short path where Ray's session stays; without it the run has no Ray.
    """
    watch, keys = folder / "watch", folder / "keys.txt"
    for place in (watch, folder / "home"):
        place.mkdir(parents=True)
    (watch / "sitecustomize.py").write_text(_WATCH)
    keys.touch()
    changes = [*TINY, f"runtime.backend={'ray' if session else 'process'}"]
    options = [word for change in changes for word in ("--set", change)]
    words = ["run", "--recipe", "digits", *options, "--out", str(folder / "runs" / "digits")]
    own = {
        "HOME": str(folder / "home"),
        "PLANTED_KEYS": str(keys),
        "PYTHONPATH": f"{watch}{os.pathsep}{ROOT}",
        "RAY_agent_register_timeout_ms": "900000",  # However busy the machine is.
        "RAY_raylet_start_wait_time_s": "900",
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN, session, *words, "--json"],
        env={**os.environ, **environment, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    secret = [value for name, value in environment.items() if name in SECRET_VARIABLES]
    return PlantedRun(
        done=done,
        folder=folder,
        keys=tuple(bytes.fromhex(line) for line in keys.read_text().split()),
        planted=tuple(text.encode() for text in (*secret, *planted)),
    )


def forms_of(secret: bytes) -> set[bytes]:
    """Returns a secret as it is, in hexadecimal, in base64 at any place of a text, and in a URL."""
    whole = {secret, secret.hex().encode(), urllib.parse.quote(secret).encode()}
    coded = set()
    for skip in range(3):
        part = secret[skip : skip + (len(secret) - skip) // 3 * 3]
        coded |= {base64.b64encode(part), base64.urlsafe_b64encode(part)}
    return whole | coded


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search has come by."""

    bytes_searched: int
    places: int
    bytes_found: int
    where: tuple[str, ...]

    def told(self) -> str:
        return (
            f"{self.bytes_found} bytes of secrets in {self.bytes_searched / 2**20:.1f} MiB of "
            f"{self.places} files and texts{': ' if self.where else ''}{', '.join(self.where)}"
        )


def search(planted: Iterable[bytes], texts: Mapping[str, str], folders: Iterable[Path]) -> Search:
    """Looks for every form of every secret in texts, and in all files below some folders."""
    forms = {form for secret in planted for form in forms_of(secret)}
    contents = [(name, text.encode()) for name, text in texts.items()]
    size, places, found, where = 0, 0, 0, []
    for name, data in [*contents, *(one for folder in folders for one in _files(folder))]:
        size, places = size + len(data), places + 1
        here = sum(len(form) * data.count(form) for form in forms)
        if here:
            found += here
            where.append(name)
    return Search(bytes_searched=size, places=places, bytes_found=found, where=tuple(where))


def _files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name, data = str(path.relative_to(folder.parent)), path.read_bytes()
            yield name, name.encode() + data
            if data.startswith(b"PK\x03\x04"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    for inner in archive.namelist():
                        yield f"{name}!{inner}", inner.encode() + archive.read(inner)
