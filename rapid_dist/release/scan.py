"""Looks for internal results, and for secrets, in what is about to be released (P13).

Three ways, since each alone is easily passed: no file of a name that is not expected, no field of
a name that internal results have, and no *number* that stands in them. The last finds a figure
wherever somebody has put it: a card, a picture's text, an array's name. A secret is a value of this
environment (``secret.py`` has the names), or an address with credentials.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from rapid_dist.release.checksums import CHECKSUMS, SIGNATURE
from rapid_dist.release.passport import PAGE, PASSPORT
from rapid_dist.release.sbom import SBOM
from rapid_dist.secret import has_credentials, secrets_of

# Of the model itself, then what a release puts beside it. * does not stop at a slash.
MODEL_FILES = (
    CHECKSUMS,
    "model.json",
    "denoiser.json",
    "prior.npz",
    "references.npz",
    "answers.npz",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "public/denoiser.json",
    "public/unet/config.json",
    "public/unet/diffusion_pytorch_model.safetensors",
    "public/vae/config.json",
    "public/vae/diffusion_pytorch_model.safetensors",
    "public/extractor.json",
    "public/extractor.safetensors",
    "public/knowledge.npz",
)
RELEASE_FILES = (
    *MODEL_FILES,
    SIGNATURE,
    PASSPORT,
    PAGE,
    "README.md",
    "passport.schema.json",
    SBOM,
    "sampler.py",
    "synthetic/index.html",
    "synthetic/synthetic.npz",
    "synthetic/images/*.png",
    "code/rapid_dist/*.py",
    "code/rapid_dist/*.yaml",
    "code/rapid_dist/*.json",
    "code/rapid_dist/py.typed",
)
INTERNAL_FIELDS = {
    "quality", "controls", "memorisation_distances", "classifiers", "fidelity", "frechet",
    "held_out", "votes", "near", "by_hash", "by_features", "neighbours", "losses", "internal",
}  # fmt: skip
_CODE = "code/"  # Names its fields and its notices, and holds no figure of a run.
_TEXT = {".json", ".md", ".html", ".txt", ".yaml"}
_MOST_NAMED = 5


def internal_traces(
    directory: Path, internal: Sequence[Mapping[str, Any]], allowed: Sequence[str] = RELEASE_FILES
) -> list[str]:
    """Returns what in a folder looks like an internal result, each with its file.

    Args:
      internal: the internal files of the run, as plain values: their figures are looked for.
      allowed: patterns of the files that may be there.
    """
    figures = {written for content in internal for written in figures_of(content)}
    notices = {str(content["notice"]) for content in internal if content.get("notice")}
    found = []
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = path.relative_to(directory).as_posix()
        if not any(fnmatch(name, pattern) for pattern in allowed):
            found.append(f"{name} is no file of a bundle")
            continue
        data = path.read_bytes()
        if any(value.encode() in data for value in secrets_of()):
            found.append(f"{name} holds a secret of this environment")
        if name.startswith(_CODE):
            continue
        if path.suffix == ".json":
            try:
                named = sorted(set(_fields(json.loads(data))) & INTERNAL_FIELDS)
                found += [f"{name} has the field {field!r}" for field in named[:_MOST_NAMED]]
            except ValueError:
                found.append(f"{name} is no JSON")
        if path.suffix not in _TEXT:
            # Arrays and weights are bytes of any kind; what can be read in them is their names.
            data = b" ".join(re.findall(rb"[\x20-\x7e]{6,}", data))
        text = data.decode("utf-8", errors="replace")
        if has_credentials(text):
            found.append(f"{name} holds an address with credentials")
        written = figures & set(re.findall(r"(?<![\w.])\d+\.\d{6,}(?:e-?\d+)?", text))
        if written:
            found.append(f"{name} holds {len(written)} figures of internal results")
        found += [f"{name} holds an internal notice" for notice in notices if notice in text]
    return found


def figures_of(content: Any) -> Iterator[str]:
    """Yields every number that tells one result from another, as JSON writes it."""
    if isinstance(content, Mapping):
        for value in content.values():
            yield from figures_of(value)
    elif isinstance(content, list | tuple):
        for value in content:
            yield from figures_of(value)
    elif isinstance(content, float):
        text = json.dumps(content)
        if re.fullmatch(r"\d+\.\d{6,}(?:e-?\d+)?", text):  # 0.5 stands in many places.
            yield text


def _fields(content: Any) -> Iterator[str]:
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield str(name)
            yield from _fields(value)
    elif isinstance(content, list):
        for value in content:
            yield from _fields(value)
