"""The policies, advisories and commands of docs/security.md say what they are said to say."""

import json
import re
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ADVISORIES = (ROOT / "advisories.txt").read_text(encoding="utf-8")
_ADVISORY = re.compile(r"(?:CVE|GHSA|PYSEC)-\S+\s+([\w.-]+)\s+until (\d{4}-\d\d-\d\d)\s+\S.{20,}")


def _policies() -> dict[str, dict[str, Any]]:
    found = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", TEXT, re.DOTALL)]
    return dict(zip(("trainer", "reader", "auditor"), found, strict=True))


def _allows(
    policy: dict[str, Any], action: str, key: str, *, creates: bool = False, prefix: str = ""
) -> bool:
    """Whether a policy lets somebody do it; a denial wins, as at Amazon's."""
    resource = f"arn:aws:s3:::BUCKET{f'/{key}' if key else ''}"

    def applies(statement: dict[str, Any]) -> bool:
        condition = statement.get("Condition", {})
        wanted = condition.get("StringLike", {}).get("s3:prefix")
        return (
            action in statement["Action"]
            and any(fnmatchcase(resource, one) for one in statement["Resource"])
            and (wanted is None or any(fnmatchcase(prefix, one) for one in wanted))
            and ("Null" not in condition or creates)
        )

    effects = {one["Effect"] for one in policy["Statement"] if applies(one)}
    return effects == {"Allow"}


def test_every_policy_is_whole_and_none_is_wide() -> None:
    for policy in _policies().values():
        assert policy["Version"] == "2012-10-17"
        for one in policy["Statement"]:
            assert one.keys() <= {"Sid", "Effect", "Action", "Resource", "Condition"}
            assert one["Effect"] in ("Allow", "Deny")
            assert all(re.fullmatch(r"(?:s3|kms):[A-Z]\w+", action) for action in one["Action"])
            assert all(re.fullmatch(r"arn:aws:\S+", place) for place in one["Resource"])
            if one["Effect"] == "Allow":
                assert "arn:aws:s3:::BUCKET/*" not in one["Resource"]


RUN = "runs/digits"
DONE = [  # (action, key, is a create): what a run does at its storage.
    ("s3:GetObject", "data/MNIST/x", False),
    ("s3:PutObject", "public/denoiser-1/done.json", False),
    ("s3:GetObject", f"{RUN}/checkpoints/step-1", False),
    ("s3:DeleteObject", f"{RUN}/checkpoints/step-1", False),
    ("s3:PutObject", f"{RUN}/internal/quality.json", False),
    ("s3:PutObject", f"{RUN}/release/model.json", False),
    ("s3:GetObject", "ledger/digits/000000001.json", False),
    ("s3:PutObject", "ledger/digits/000000001.json", True),
]


def test_a_trainer_can_do_what_a_run_does() -> None:
    trainer = _policies()["trainer"]
    assert [did for did in DONE if not _allows(trainer, did[0], did[1], creates=did[2])] == []
    for prefix in ("ledger/digits/", "runs/digits/", "public/", "data/MNIST/"):
        assert _allows(trainer, "s3:ListBucket", "", prefix=prefix)


@pytest.mark.parametrize(
    ("who", "action", "key"),
    [
        ("trainer", "s3:DeleteObject", "ledger/digits/000000001.json"),
        ("trainer", "s3:PutObject", "ledger/digits/000000001.json"),  # Where it is already.
        ("trainer", "s3:PutObject", "data/MNIST/x"),
        ("trainer", "s3:DeleteBucket", ""),
        ("reader", "s3:GetObject", f"{RUN}/internal/quality.json"),
        ("reader", "s3:GetObject", f"{RUN}/summary.json"),
        ("reader", "s3:GetObject", f"{RUN}/checkpoints/step-1"),
        ("reader", "s3:GetObject", "ledger/digits/000000001.json"),
        ("reader", "s3:PutObject", f"{RUN}/release/model.json"),
        ("auditor", "s3:GetObject", f"{RUN}/internal/quality.json"),
        ("auditor", "s3:GetObject", f"{RUN}/summary.json"),
        ("auditor", "s3:PutObject", "ledger/digits/000000001.json"),
        ("auditor", "s3:GetObject", "data/MNIST/x"),
    ],
)
def test_nobody_can_do_what_is_not_theirs(who: str, action: str, key: str) -> None:
    assert not _allows(_policies()[who], action, key)


def test_a_reader_gets_the_bundle_and_an_auditor_the_ledger_as_well() -> None:
    policies = _policies()
    for who in ("reader", "auditor"):
        assert _allows(policies[who], "s3:GetObject", f"{RUN}/release/model.json")
    assert _allows(policies["auditor"], "s3:GetObject", "ledger/digits/000000001.json")


def _advisories(text: str) -> list[str]:
    """Returns the lines that are no explained advisory of a package that is pinned."""
    pins = {line.partition("==")[0].lower()
            for line in (ROOT / "constraints.txt").read_text().splitlines()}  # fmt: skip
    faults = []
    for line in text.splitlines():
        found = _ADVISORY.fullmatch(line)
        if line.startswith("#") or not line.strip():
            continue
        if (
            found is None
            or found[1].lower() not in pins
            or date.fromisoformat(found[2]).year < 2026
        ):
            faults.append(line)
    return faults


def test_every_advisory_that_is_passed_over_is_explained() -> None:
    assert _advisories(ADVISORIES) == []
    assert (
        _advisories("GHSA-aaaa-bbbb-cccc ray until 2027-01-01 the dashboard is not reachable") == []
    )


@pytest.mark.parametrize(
    "line",
    [
        "GHSA-aaaa-bbbb-cccc ray",
        "GHSA-aaaa-bbbb-cccc ray until 2027-01-01 no",
        "GHSA-aaaa-bbbb-cccc no-such-package until 2027-01-01 the dashboard is not reachable",
        "ray until 2027-01-01 the dashboard is not reachable",
    ],
)
def test_an_advisory_without_its_reason_is_noticed(line: str) -> None:
    assert _advisories(line) == [line]


def test_the_page_is_linked_from_where_people_begin() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"):
        assert "docs/security.md" in (ROOT / name).read_text(encoding="utf-8")
