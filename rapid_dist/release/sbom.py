"""The software bill of materials of a release: CycloneDX 1.6, as JSON.

What is listed is this package and all that it requires, directly or not, as it is installed where
the release is made: names, versions, licences, and who requires whom. It is read from the packages'
own metadata. What else is installed there is nobody's business. The passport has the few versions
that shaped the training, which may have been made elsewhere.
"""

import json
import re
import uuid
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

SBOM = "sbom.json"
SPEC = "1.6"
PACKAGE = "rapid-dist"
EXTRAS = ("serve", "train")  # What a release is made with.
_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(?:\[([^\]]*)\])?")
_EXTRA = re.compile(r"""extra\s*==\s*['"]([\w.-]+)['"]""")
_LONGEST_LICENCE = 80  # Some packages put the whole text there.


def bill_of_materials(created: str, code_version: str, code_hash: str) -> dict[str, Any]:
    """Returns sbom.json of the packages that are installed here.

    Args:
      created: date, as in the passport.
      code_hash: SHA-256 of this package's files, as in the passport.
    """
    requires = _requirements()
    components = [dict(_component(name)) for name in sorted(requires) if name != PACKAGE]
    known = {PACKAGE: f"pkg:pypi/{PACKAGE}@{code_version}"}
    known |= {_canonical(one["name"]): one["bom-ref"] for one in components}
    content: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {
            "timestamp": f"{created}T00:00:00Z",
            "component": {
                "type": "application",
                "bom-ref": known[PACKAGE],
                "name": PACKAGE,
                "version": code_version,
                "purl": known[PACKAGE],
                "hashes": [{"alg": "SHA-256", "content": code_hash}],
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components,
        "dependencies": [
            {"ref": known[name], "dependsOn": sorted(known[one] for one in needed if one in known)}
            for name, needed in sorted(requires.items())
        ],
    }
    # A function of the content, so that the same release has the same number.
    number = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content, sort_keys=True))
    return {"$schema": f"http://cyclonedx.org/schema/bom-{SPEC}.schema.json",
            "serialNumber": f"urn:uuid:{number}", **content}  # fmt: skip


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns sbom.json."""
    return json.dumps(content, indent=1).encode() + b"\n"


def sbom_faults(content: Any, passport: Mapping[str, Any]) -> list[str]:
    """Returns where a bill of materials is none, or is of another release than the passport."""
    try:
        own = content["metadata"]["component"]
        refs = {own["bom-ref"], *(one["bom-ref"] for one in content["components"])}
        named = {ref for one in content["dependencies"] for ref in (one["ref"], *one["dependsOn"])}
        faults = []
        if (content["bomFormat"], content["specVersion"]) != ("CycloneDX", SPEC):
            faults.append(f"{SBOM} is not CycloneDX {SPEC}")
        if len(refs) != len(content["components"]) + 1 or not named <= refs:
            faults.append(f"{SBOM} lists a package twice, or requires one that it does not list")
        digests = [one["content"] for one in own["hashes"] if one["alg"] == "SHA-256"]
        code = passport["code"]
        if (own["version"], digests) != (code["version"], [code["sha256"]]):
            faults.append(f"{SBOM} is of other code than the passport names")
    except (KeyError, TypeError, AttributeError):
        return [f"{SBOM} is no bill of materials"]
    return faults


@lru_cache(maxsize=1)
def _requirements() -> dict[str, set[str]]:
    """Returns every installed package that this one leads to, with those that it requires."""
    found: dict[str, set[str]] = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [(PACKAGE, EXTRAS)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extras = waiting.pop()
        for extra in ("", *extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for one, more in _required(name, extra):
                try:
                    metadata.version(one)
                except metadata.PackageNotFoundError:
                    continue  # Of another platform, or optional.
                found.setdefault(name, set()).add(one)
                found.setdefault(one, set())
                waiting.append((one, more))
    found.setdefault(PACKAGE, set())
    return {name: needed - {name} for name, needed in found.items()}


def _required(name: str, extra: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields (package, extras of it) that a package requires, or that one extra of it adds."""
    try:
        texts = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return  # A checkout that is not installed.
    for text in texts:
        told, _, marker = text.partition(";")
        wanted = set(_EXTRA.findall(marker))
        parsed = _REQUIREMENT.match(told)
        if parsed is not None and (extra in wanted if extra else not wanted):
            more = (part.strip() for part in (parsed[2] or "").split(","))
            yield _canonical(parsed[1]), tuple(part for part in more if part)


@lru_cache(maxsize=1024)
def _component(name: str) -> dict[str, Any]:
    version = metadata.version(name)
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    licence = _licence(name)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        **({"licenses": [licence]} if licence else {}),
    }


def _licence(name: str) -> dict[str, Any] | None:
    told = metadata.metadata(name)
    expressions = told.get_all("License-Expression")
    if expressions:
        return {"expression": str(expressions[0])}
    kinds = [str(one).rpartition(" :: ")[2] for one in told.get_all("Classifier") or []
             if str(one).startswith("License :: ")]  # fmt: skip
    text = str((told.get_all("License") or [""])[0]).strip()
    short = text if 0 < len(text) <= _LONGEST_LICENCE and "\n" not in text else ""
    label = short or " OR ".join(kind for kind in kinds if kind != "OSI Approved")
    return {"license": {"name": label}} if label else None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
