"""``rapid-dist generate --model ...``: images from a released model, in files.

images.npz       images uint8 [n, C, S, S], labels int64 [n]; no pickle
samples.png      the first of them, a row a class
png/<class>/     each as a file of its own, if asked for
generated.json   which model, seed, ids and classes, and what the model claims; written last
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, Literal

import numpy as np
from PIL import Image

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import verify_bundle
from rapid_dist.release.pull import Registry, Version
from rapid_dist.release.tiles import tiled_png
from rapid_dist.retrieval.arrays import pack_arrays
from rapid_dist.runtime.drawing_workers import Drawing, draw_here, draw_in_processes
from rapid_dist.runtime.progress import Progress

FACTS, IMAGES, SHEET, FILES = "generated.json", "images.npz", "samples.png", "png"
SHOWN = 10  # Images of a class on the sheet.

Backend = Literal["process", "ray"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn; the images depend on nothing that is not here."""

    count: int
    seed: int = 0
    first_id: int = 0
    classes: tuple[str, ...] = ()  # Names or numbers; none = all, in turn.

    def __post_init__(self) -> None:
        if self.count < 1 or self.seed < 0 or self.first_id < 0:
            raise ConfigError(
                f"--count must be at least 1, --seed and --first-id at least 0, got {self.count}, "
                f"{self.seed} and {self.first_id}."
            )

    def labels(self, class_names: Sequence[str]) -> Int64Array:
        """Returns the class of every image, int64 [count]: those asked for, in turn.

        The turn goes by id, so that a series can be drawn in parts.
        """
        number_of = {name: number for number, name in enumerate(class_names)}
        chosen = []
        for asked in self.classes:
            by_number = int(asked) if asked.isdecimal() else -1
            number = number_of.get(asked, by_number)  # A name that is a number is a name.
            if not 0 <= number < len(class_names):
                raise ConfigError(
                    f"There is no class {asked!r}. The classes are "
                    f"{', '.join(class_names) or 'none: leave --class out'}."
                )
            chosen.append(number)
        among = np.array(chosen or range(max(1, len(class_names))), np.int64)
        labels: Int64Array = among[(self.first_id + np.arange(self.count)) % len(among)]
        return labels


@dataclass(frozen=True, kw_only=True)
class Model:
    """An opened source of images: a registered version, or a folder."""

    bundle: Path
    digest: str  # SHA-256 of its checksums.
    facts: Mapping[str, Any]  # model.json
    version: Version | None = None

    @classmethod
    def find(cls, model: str, tracking_uri: str | None) -> "Model":
        """Returns what ``models:/...`` or a folder's path names, once every file is checked."""
        version = None
        if model.startswith("models:/"):
            registry = Registry(tracking_uri)
            version = registry.find(model)
            bundle = registry.fetch(version)
        else:
            bundle = Path(model).expanduser()
        digest = verify_bundle(bundle)
        facts = json.loads((bundle / "model.json").read_text())
        return cls(bundle=bundle, digest=digest, facts=facts, version=version)

    @property
    def name(self) -> str:
        if self.version is None:
            return str(self.facts["name"])
        return f"{self.version.name}-{self.version.version}"

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.facts["class_names"])


def generate_images(
    model: Model,
    request: Request,
    out: Path,
    *,
    workers: int = 1,
    backend: Backend = "process",
    device: str = "cpu",
    files: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draws what is asked for into a folder and returns generated.json.

    A folder that holds the same already is left as it is.

    Raises:
      ConfigError: the folder holds something else, or the model has no such class.
    """
    labels = request.labels(model.class_names)
    told = {
        "model": {"name": model.facts["name"], "bundle_sha256": model.digest, **_named(model)},
        "count": request.count,
        "seed": request.seed,
        "first_id": request.first_id,
        "classes": _counts(labels, model.class_names),
        "privacy": model.facts.get("privacy", {}),
    }
    before = _finished(out)
    if before is not None and all(before.get(key) == value for key, value in told.items()):
        return before
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} holds something else already. Give another --out.")
    started = monotonic()
    first_image: list[float] = []
    drawn = 0
    with progress or Progress() as shown:

        def on_drawn(count: int) -> None:
            nonlocal drawn
            drawn += count
            first_image.append(monotonic() - started)
            shown.update("generate", drawn, request.count)

        asked = Drawing(
            bundle=model.bundle,
            labels=labels,
            seed=request.seed,
            first_id=request.first_id,
            device=device,
            on_drawn=on_drawn,
        )
        images = draw(asked, workers, backend)
    seconds = monotonic() - started
    told |= {
        "seconds": round(seconds, 3),
        "seconds_to_first_image": round(first_image[0], 3),
        "workers": workers,
        "backend": backend,
    }
    _write(out, images, labels, model.class_names, told, files=files)
    return told


def draw(asked: Drawing, workers: int, backend: Backend) -> UInt8Array:
    """Draws in this process, in several, or on Ray: the same images, uint8 [n, C, S, S]."""
    if workers < 1:
        raise ConfigError(f"--workers must be at least 1, got {workers}.")
    if backend == "ray":
        try:
            from rapid_dist.runtime.drawing_pool import draw_on_ray
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--backend ray needs {error.name}, which is not installed. Install "
                "'rapid-dist[train]', or draw with --backend process."
            ) from None
        return draw_on_ray(asked, workers)
    return draw_in_processes(asked, workers) if workers > 1 else draw_here(asked)


def _write(
    out: Path,
    images: UInt8Array,
    labels: Int64Array,
    class_names: Sequence[str],
    told: Mapping[str, Any],
    *,
    files: bool,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / IMAGES).write_bytes(pack_arrays({"images": images, "labels": labels}))
    rows = [images[labels == label][:SHOWN] for label in np.unique(labels)]
    (out / SHEET).write_bytes(tiled_png(rows))
    if files:
        shutil.rmtree(out / FILES, ignore_errors=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            # By number: a class's name may be anything.
            folder = out / FILES / (f"class-{label}" if class_names else "images")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
            Image.fromarray(pixels).save(folder / f"{told['first_id'] + number:07}.png")
    (out / FACTS).write_text(json.dumps(told, indent=2) + "\n")


def _finished(out: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads((out / FACTS).read_text())
    except (OSError, ValueError):
        return None
    return content


def _named(model: Model) -> dict[str, Any]:
    if model.version is None:
        return {}
    return {"registered": model.version.name, "version": model.version.version}


def _counts(labels: Int64Array, class_names: Sequence[str]) -> dict[str, int]:
    found = np.bincount(labels, minlength=max(1, len(class_names)))
    names = class_names or ("images",)
    return {name: int(count) for name, count in zip(names, found, strict=True) if count}
