"""The bill of materials lists what this package requires here, and is of one release."""

import copy
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

from rapid_dist.release.sbom import PACKAGE, bill_of_materials, sbom_faults, to_bytes

HASH = "2e" * 32
ROOT = Path(__file__).resolve().parents[2]
# Our own short form of CycloneDX 1.6: the fields that we set, as its specification has them.
_COMPONENT = {
    "type": "object",
    "required": ["type", "name", "version", "bom-ref", "purl"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["application", "library"]},
        "bom-ref": {"type": "string", "minLength": 1},
        "name": {"type": "string"},
        "version": {"type": "string", "maxLength": 1024},
        "purl": {"type": "string", "pattern": r"^pkg:pypi/[a-z0-9.-]+@[\w.!%-]+$"},
        "hashes": {
            "type": "array",
            "items": {"type": "object", "properties": {
                "alg": {"const": "SHA-256"}, "content": {"pattern": "^[0-9a-f]{64}$"}}},
        },
        "licenses": {
            "type": "array",
            "maxItems": 1,
            "items": {"oneOf": [
                {"type": "object", "required": ["expression"], "additionalProperties": False,
                 "properties": {"expression": {"type": "string"}}},
                {"type": "object", "required": ["license"], "additionalProperties": False,
                 "properties": {"license": {"type": "object", "required": ["name"]}}},
            ]},
        },
    },
}  # fmt: skip
SCHEMA = {
    "type": "object",
    "required": ["bomFormat", "specVersion", "serialNumber", "version", "metadata", "components"],
    "properties": {
        "bomFormat": {"const": "CycloneDX"},
        "specVersion": {"const": "1.6"},
        "serialNumber": {"pattern": "^urn:uuid:[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$"},
        "metadata": {"properties": {"component": _COMPONENT}},
        "components": {"type": "array", "items": _COMPONENT, "uniqueItems": True},
        "dependencies": {"type": "array", "items": {"required": ["ref", "dependsOn"]}},
    },
}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return bill_of_materials("2026-03-01", "0.1.0", HASH)


def _passport(**changes: Any) -> dict[str, Any]:
    return {"code": {"version": "0.1.0", "sha256": HASH}, **changes}


def test_it_has_the_form_of_cyclonedx(made: dict[str, Any]) -> None:
    jsonschema.validate(json.loads(to_bytes(made)), SCHEMA)
    wrong = copy.deepcopy(made)
    wrong["components"][0]["purl"] = "torch"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


def test_it_lists_what_is_required_in_the_version_that_is_installed(made: dict[str, Any]) -> None:
    listed = {one["name"]: one["version"] for one in made["components"]}
    for name in ("torch", "ray", "mlflow", "opacus", "dp-accounting", "safetensors", "boto3"):
        assert listed[name] == metadata.version(name)
    assert "sqlalchemy" in listed  # By way of mlflow.
    assert listed.keys().isdisjoint({PACKAGE, "pytest", "ruff", "moto"})  # Nothing of the tests.
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    # What is not pinned comes with the platform: its CUDA, its terminal, its Python.
    loose = {one for one in listed if one not in pinned and "nvidia" not in one}
    assert loose <= {"colorama", "setuptools"}


def test_who_requires_whom_leads_from_this_package_to_every_other(made: dict[str, Any]) -> None:
    needs = {one["ref"]: one["dependsOn"] for one in made["dependencies"]}
    reached, waiting = set(), [made["metadata"]["component"]["bom-ref"]]
    while waiting:
        one = waiting.pop()
        if one not in reached:
            reached.add(one)
            waiting += needs[one]
    assert reached == set(needs)
    assert reached >= {one["bom-ref"] for one in made["components"]}


def test_the_same_release_has_the_same_number(made: dict[str, Any]) -> None:
    assert bill_of_materials("2026-03-01", "0.1.0", HASH) == made
    assert bill_of_materials("2026-03-02", "0.1.0", HASH)["serialNumber"] != made["serialNumber"]


def test_a_bill_of_this_release_has_no_fault(made: dict[str, Any]) -> None:
    assert sbom_faults(made, _passport()) == []


@pytest.mark.parametrize(
    "code",
    [{"version": "0.1.0", "sha256": "3f" * 32}, {"version": "0.2.0", "sha256": HASH}],
)
def test_a_bill_of_another_release_is_noticed(made: dict[str, Any], code: dict[str, str]) -> None:
    assert "other code" in " ".join(sbom_faults(made, _passport(code=code)))


@pytest.mark.parametrize("spoil", [
    lambda bom: bom.update(bomFormat="SPDX"),
    lambda bom: bom["components"].append(bom["components"][0]),
    lambda bom: bom["components"].pop(),
    lambda bom: bom.pop("metadata"),
    lambda bom: bom.update(components=3),
])  # fmt: skip
def test_a_spoilt_bill_is_noticed(made: dict[str, Any], spoil: Any) -> None:
    bom = copy.deepcopy(made)
    spoil(bom)
    assert sbom_faults(bom, _passport()) != []
