"""A whole run whose unit is a group: every place that states epsilon says whose it is."""

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rapid_dist.cli.main import main
from rapid_dist.errors import LedgerError
from rapid_dist.runtime import pipeline
from tests.e2e.test_run import _recipe

PATIENTS = [
    "privacy.unit=group",
    "data.private.group_column=synthetic",
    "data.private.group_name=synthetic patient",
    "data.private.num_groups=300",
    "privacy.expected_batch=100",
    "train.images_per_group=3",
    "train.multiplicity=2",
    "train.mode=surrogate",
]
UNIT = "synthetic patient"
MADE_UP = "The groups are made up"

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("runs") / "patients"
    return out, pipeline.run(_recipe("process", *PATIENTS), str(out))


def test_the_summary_counts_patients_and_names_them(finished: tuple[Path, dict[str, Any]]) -> None:
    privacy = finished[1]["privacy"]
    assert (privacy["unit"], privacy["unit_name"]) == ("group", UNIT)
    assert privacy["num_units"] == 300
    assert privacy["sample_rate"] == pytest.approx(privacy["expected_batch"] / 300)
    assert MADE_UP in privacy["unit_note"]


def test_the_report_speaks_of_patients_and_says_that_they_are_made_up(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    page = (finished[0] / "report.html").read_text()
    for said in (
        "300 private groups of images (each one synthetic patient)",
        "any one synthetic patient with all its images",
        "every other synthetic patient",
        "for one synthetic patient at the same delta",
        MADE_UP,
    ):
        assert said in page


def test_the_registered_model_and_its_bundle_are_tagged_with_the_unit(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, summary = finished
    registry = summary["registry"]
    client = MlflowClient(tracking_uri=registry["tracking_uri"])
    tags = client.get_model_version(registry["name"], str(registry["version"])).tags
    assert (tags["dp.unit"], tags["dp.unit_name"]) == ("group", UNIT)
    assert UNIT in (out / "bundle" / "model.json").read_text()


def test_the_ledger_shows_whose_epsilon_it_adds_up(
    finished: tuple[Path, dict[str, Any]], capsys: Captured
) -> None:
    arguments = [part for setting in PATIENTS for part in ("--set", setting)]
    assert main(["ledger", "show", "-r", "digits", "-o", str(finished[0]), *arguments]) == 0
    assert "for one synthetic patient, at delta" in capsys.readouterr().out


def test_a_run_by_images_is_refused_on_the_patients_ledger(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    with pytest.raises(LedgerError, match=r"'record', but run .* has 'group:synthetic-300'"):
        pipeline.run(_recipe("process"), str(finished[0].parent / "images"))
