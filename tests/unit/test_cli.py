"""The command line: exit codes, JSON that a script can read; bad input is in test_bad_input.py."""

import json
from pathlib import Path

import pytest
import typer

from rapid_dist.cli.main import build_app, main
from rapid_dist.cli.printing import print_summary
from rapid_dist.cli.stages import STAGES
from rapid_dist.errors import BudgetError, LedgerError, RapidError, ReleaseError
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import GaussianEvent

Captured = pytest.CaptureFixture[str]


def _last_json(captured: Captured) -> dict[str, object]:
    found: dict[str, object] = json.loads(captured.readouterr().out.splitlines()[-1])
    return found


def test_a_plan_without_privacy_says_no_epsilon_not_even_zero(capsys: Captured) -> None:
    said = {}
    for method in ("nonprivate", "public", "dpdm"):
        assert main(["plan", "-r", "digits", "-s", f"method={method}", "--json"]) == 0
        found = capsys.readouterr().out
        said[method] = (json.loads(found.splitlines()[-1]), found)
    assert "none: method nonprivate has no epsilon" in said["nonprivate"][1]
    assert said["nonprivate"][0]["promise"] == "none"
    assert "epsilons" not in said["nonprivate"][0]
    assert said["public"][0]["epsilons"]["pld"] == 0.0
    assert "nothing is charged" in said["public"][1]
    assert said["dpdm"][0]["epsilons"]["pld"] > 9  # The twin: what is charged is told.


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BudgetError("spent"), 3),
        (ReleaseError("kept"), 4),
        (LedgerError("torn"), 1),
        (RapidError("other"), 1),
    ],
)
def test_each_refusal_has_its_exit_code(error: RapidError, code: int, capsys: Captured) -> None:
    assert main([], app=_broken(error)) == code
    assert capsys.readouterr().err == f"rapid-dist: {error}\n"


def _broken(error: BaseException) -> typer.Typer:
    """Returns a command line whose one command fails."""
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def broken(debug: bool = False) -> None:
        raise error

    return app


def test_an_unforeseen_error_does_not_quote_its_message(capsys: Captured) -> None:
    """It may hold private values, such as the row that could not be converted (P9)."""
    assert main([], app=_broken(ValueError("could not convert 'Jane Doe'"))) == 1
    error = capsys.readouterr().err
    assert "ValueError in broken" in error
    assert "Jane Doe" not in error
    assert "--debug" in error


def test_debug_shows_the_traceback(capsys: Captured) -> None:
    assert main(["--debug"], app=_broken(ValueError("could not convert 'Jane Doe'"))) == 1
    assert "Jane Doe" in capsys.readouterr().err


def test_ctrl_c_is_exit_1_with_the_way_on(capsys: Captured) -> None:
    assert main([], app=_broken(KeyboardInterrupt())) == 1
    assert "Run the same command again" in capsys.readouterr().err


def test_plan_prints_every_accountant_and_ends_in_json(capsys: Captured) -> None:
    assert main(["plan", "-r", "digits", "--json"]) == 0
    text = capsys.readouterr().out
    assert [name for name in ("pld", "prv", "rdp") if f"\n{name} " not in text] == []
    plan = json.loads(text.splitlines()[-1])
    assert plan["epsilons"]["pld"] <= plan["budget"]["epsilon"]


def test_plan_says_whose_epsilon_it_is_and_that_made_up_patients_are_made_up(
    capsys: Captured,
) -> None:
    assert main(["plan", "-r", "pneumonia", "--json"]) == 0
    text = capsys.readouterr().out
    assert "one synthetic patient of 1,600. The groups are made up" in text
    plan = json.loads(text.splitlines()[-1])
    assert (plan["unit"], plan["unit_name"], plan["num_units"]) == (
        "group", "synthetic patient", 1600,
    )  # fmt: skip
    assert plan["dp_sgd"]["num_records"] == 1600


def test_a_dry_run_prints_everything_and_writes_nothing(capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["run", "-r", "digits", "-o", str(out), "--dry-run", "--json"]) == 0
    described = _last_json(capsys)
    assert described.keys() == {
        "recipe", "promise", "plan", "places", "stages", "resources", "placement",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_ledger_is_shown_and_verified(capsys: Captured, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger", "digits")
    attempt = ledger.begin_attempt("a")
    ledger.append("query", "a", attempt=attempt, event=GaussianEvent(noise_multiplier=3.0))
    arguments = ["-r", "digits", "-o", str(tmp_path / "run"), "--json"]
    assert main(["ledger", "show", *arguments]) == 0
    shown = _last_json(capsys)
    assert shown["head"] == ledger.head
    assert shown["entries"] == 2
    assert main(["ledger", "verify", *arguments, "--head", ledger.head]) == 0
    assert _last_json(capsys)["verified"] is True


def test_the_ledger_is_shown_with_its_own_unit_not_with_the_recipes(
    capsys: Captured, tmp_path: Path
) -> None:
    ledger = Ledger.open(tmp_path / "ledger", "digits")
    attempt = ledger.begin_attempt("a", "unit=group:clinic epsilon=1")
    ledger.append("query", "a", attempt=attempt, event=GaussianEvent(noise_multiplier=3.0))
    assert main(["ledger", "show", "-r", "digits", "-o", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "for one group:clinic, at delta" in shown
    assert "record" not in shown


def test_a_changed_ledger_does_not_verify(capsys: Captured, tmp_path: Path) -> None:
    ledger = Ledger.open(tmp_path / "ledger", "digits")
    ledger.begin_attempt("a")
    entry = next((tmp_path / "ledger" / "digits").iterdir())
    entry.write_bytes(entry.read_bytes().replace(b'"a"', b'"b"'))
    assert main(["ledger", "verify", "-r", "digits", "-o", str(tmp_path / "run")]) == 1
    assert entry.name in capsys.readouterr().err


def test_a_head_that_was_cut_off_does_not_verify(capsys: Captured, tmp_path: Path) -> None:
    arguments = ["-r", "digits", "-o", str(tmp_path / "run"), "--head", "0" * 64]
    assert main(["ledger", "verify", *arguments]) == 1
    assert "head" in capsys.readouterr().err


def test_a_ledger_without_an_entry_verifies_nothing_and_is_said_to_be_empty(
    capsys: Captured, tmp_path: Path
) -> None:
    arguments = ["-r", "digits", "-o", str(tmp_path / "nowhere" / "run")]
    assert main(["ledger", "verify", *arguments]) == 1
    said = capsys.readouterr().err
    assert f"There is no entry at {tmp_path}/nowhere/ledger/digits, so nothing was verified" in said
    assert main(["ledger", "show", *arguments]) == 0
    said = capsys.readouterr().out
    assert f"Nothing was ever charged at {tmp_path}/nowhere/ledger/digits" in said


def test_every_job_is_a_command_and_short() -> None:
    jobs = Path(__file__).resolve().parents[2] / "jobs"
    names = {path.stem: path.read_text() for path in jobs.glob("*.py") if path.stem != "__init__"}
    stages = {"pipeline" if name == "run" else name for name in STAGES}
    assert names.keys() >= stages | {"generate", "audit"}
    app = build_app()
    commands = {one.name for one in app.registered_commands}
    commands |= {one.name for one in app.registered_groups}
    for name, text in names.items():
        command = "run" if name == "pipeline" else name
        assert command in commands
        assert f'run_command("{command}")' in text
        assert text.count("\n") < 60


def test_no_printed_epsilon_is_rounded_towards_a_stronger_claim(
    capsys: pytest.CaptureFixture[str],
) -> None:
    privacy = {"epsilon": 1.00001, "delta": 1e-5, "relation": "zero_out", "unit": "record",
               "dataset_epsilon": 2.00001}  # fmt: skip
    summary = {"privacy": privacy, "registry": {}, "dataset": "faces", "seconds": {"total": 1.0}}
    print_summary(summary, "runs/faces")
    said = capsys.readouterr().out
    assert "1.0001 at delta" in said
    assert "together 2.0001" in said
