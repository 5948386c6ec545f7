"""The audit of a recipe, as the command runs it."""

import json
from pathlib import Path

import pytest

from rapid_dist.cli.main import main


@pytest.mark.slow
def test_the_installed_code_passes_the_audit_of_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "-r", "digits", "-o", str(tmp_path / "digits"), "--json"]) == 0
    content = json.loads((tmp_path / "digits" / "audit.json").read_text())
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == content
    assert content["passed"]
    assert len({result["check"] for result in content["results"]}) == 7
