"""From a tiny run to a released bundle, its verification by a stranger, and its withdrawal."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from rapid_dist.audit.result import CheckResult
from rapid_dist.cli.main import main
from rapid_dist.config import Recipe, load_recipe
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.accounting import plan
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.release.checksums import write_checksums
from rapid_dist.release.gate import QUESTIONS
from rapid_dist.release.generator import Generator
from rapid_dist.release.registry import (
    candidate_of,
    promote,
    register_model,
    released_versions,
    run_of,
)
from rapid_dist.runtime import pipeline, releasing
from rapid_dist.runtime.audit import audit_content
from rapid_dist.runtime.recorded_commands import record_audit
from rapid_dist.storage import open_storage

# MLflow's own: SQLAlchemy 2.1 deprecates a strategy that MLflow 3.17 maps its tables with.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TINY = [
    "data.public.0.count=600", "network.widths=[16, 16]", "pretrain.steps=4", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", "privacy.steps=4", "privacy.expected_batch=512",
    "sampling.count=40", "sampling.late_intervals=3", "sampling.early_intervals=2",
    "evaluation.classifiers.steps=5", "evaluation.classifiers.logistic_iterations=5",
    "evaluation.controls=false", "runtime.backend=process", "release.synthetic=12",
]  # fmt: skip
PASSED = [
    CheckResult(check="noise", question="?", statistic="1.0", bound="1", false_alarm=0, passed=True)
]
# Nothing of the training may be needed to verify.
VERIFY = """
import sys
from rapid_dist.cli.main import main
code = main(["release", "verify", *sys.argv[1:]])
heavy = {"ray", "mlflow", "torch", "opacus", "faiss", "dp_accounting"} & set(sys.modules)
sys.exit(code or (9 if heavy else 0))
"""


def _recipe(*more: str) -> Recipe:
    return load_recipe("digits", [*TINY, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with an audit of this code and its recipe; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    recipe = _recipe()
    pipeline.run(recipe, str(out))
    content = audit_content(recipe, plan(recipe.privacy, recipe.num_units), "quick", PASSED)
    (out / "audit.json").write_text(json.dumps(content))
    assert record_audit(open_storage(out), content) == ""
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy to do something to: run, ledger and public store; the registry is the first one's."""
    for name in ("digits", "ledger", "public"):
        shutil.copytree(finished.parent / name, tmp_path / "runs" / name)
    return tmp_path / "runs" / "digits"


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _reasons(out: Path, *more: str) -> dict[str, str]:
    """The gate's reasons; asking for them has changed no file."""
    before = _files(out.parent)
    with pytest.raises(releasing.Refused) as refusal:
        releasing.check(_recipe(*more), str(out), date.today())
    assert _files(out.parent) == before
    return refusal.value.reasons


def _edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _cut_last_entry(out: Path) -> None:
    max((out.parent / "ledger" / "digits").iterdir()).unlink()


def _cut_anothers_entries(out: Path) -> None:
    """The run's own charges stay; what a later run has spent is cut off."""
    ledger = Ledger.open(out.parent / "ledger", "digits")
    ledger.begin_attempt("later")
    (out / "release.json").write_text(json.dumps({"ledger_head": ledger.head}))
    _cut_last_entry(out)


def _edit_config(out: Path) -> None:
    text = (out / "config.yaml").read_text()
    assert "epsilon: 10.0" in text
    (out / "config.yaml").write_text(text.replace("epsilon: 10.0", "epsilon: 12.0"))


def _edit_weights(out: Path) -> None:
    """Checksums are made anew, as by somebody who knows of them."""
    path = out / "bundle" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    write_checksums(out / "bundle")


def _link_internal(out: Path) -> None:
    (out / "bundle" / "extra.json").symlink_to(out / "internal" / "quality.json")


def _chosen_among_a_secret_number(out: Path) -> None:
    """A sweep's price is there, and the bundle still states what all runs cost together."""
    price = {"promise": "repeat_and_select", "epsilon": 9.99, "sentence": "The best of a few."}
    (out / "selection.json").write_text(json.dumps(price))


def _quality_in_bundle(out: Path) -> None:
    quality = json.loads((out / "internal" / "quality.json").read_text())
    model = json.loads((out / "bundle" / "model.json").read_text())
    model["privacy"]["quality"] = quality["samples"]
    (out / "bundle" / "model.json").write_text(json.dumps(model))


@pytest.mark.parametrize(
    ("harm", "more", "reasons"),
    [
        (_cut_last_entry, (), {"ledger_verifies": "lacks 1 of 4 steps"}),
        (_cut_anothers_entries, (), {"ledger_verifies": "entries were cut off"}),
        (lambda out: _edit_json(out / "audit.json", code_hash="0" * 64), (),
         {"audit_of_this_code": "other code"}),
        (lambda out: (out / "audit.json").unlink(), (), {"audit_passed": "no audit"}),
        (_edit_config, (), {"recipe_unchanged": "privacy.epsilon"}),
        (_edit_weights, (), {"bundle_whole": "not the one that the run registered"}),
        (_link_internal, (),
         {"bundle_whole": "extra.json is unlisted", "bundle_not_internal": "no file of a bundle"}),
        (lambda out: (out / "bundle" / "model.json").write_text("{"), (),
         {"bundle_whole": "model.json has changed", "bundle_not_internal": "no JSON"}),
        (_quality_in_bundle, (),
         {"bundle_whole": "model.json has changed", "bundle_not_internal": "figures"}),
        (_chosen_among_a_secret_number, (),
         {"bundle_whole": "states dataset_epsilon", "selection_priced": "states no price"}),
        (lambda out: None, ("release.noise=secure",), {"noise_as_demanded": "5 of 5 releases"}),
        (lambda out: None, ("release.dataset_epsilon=1",), {"dataset_budget_kept": "are 1 "}),
        (lambda out: None, ("runtime.debug=true",), {"mode_not_debug": "runtime.debug"}),
        (lambda out: (out / "internal" / "quality.json").write_text("{"), (),
         {"run_finished": "internal/quality.json missing"}),
        (lambda out: (out / "summary.json").unlink(), (),
         {"run_finished": "summary.json", "versions_known": "torch"}),
    ],
)  # fmt: skip
def test_a_run_that_was_tampered_with_is_refused(
    harm: Callable[[Path], object], more: tuple[str, ...], reasons: dict[str, str], out: Path
) -> None:
    harm(out)
    found = _reasons(out, *more)
    assert found.keys() == reasons.keys()
    assert [name for name, said in reasons.items() if said not in found[name]] == []


def test_a_recipe_that_was_changed_with_its_config_is_not_the_ledgers(out: Path) -> None:
    """Recipe and config.yaml agree, and the audit is of them; the charges say otherwise."""
    _edit_config(out)
    recipe = _recipe("privacy.epsilon=12")
    content = audit_content(recipe, plan(recipe.privacy, recipe.num_units), "quick", PASSED)
    (out / "audit.json").write_text(json.dumps(content))
    found = _reasons(out, "privacy.epsilon=12")
    assert "not for this recipe" in found["recipe_unchanged"]
    assert "other constants" in found["charged_as_planned"]


def test_a_refusal_is_exit_4_with_all_reasons_and_nothing_is_registered(
    out: Path, finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _edit_config(out)
    (out / "audit.json").unlink()
    assert main(["release", "keygen", "--key", str(tmp_path / "key")]) == 0
    capsys.readouterr()
    sets = [part for one in TINY for part in ("--set", one)]
    before = _files(out.parent)
    arguments = ["-r", "digits", *sets, "-o", str(out), "--signer", "A. Officer"]
    code = main(["release", *arguments, "--key", str(tmp_path / "key"), "--json"])
    said = capsys.readouterr()
    assert code == 4
    assert "for 2 reasons" in said.err
    told = json.loads(said.out.splitlines()[-1])
    assert (told["released"], list(told["reasons"])) == (
        False, ["recipe_unchanged", "audit_passed"],
    )  # fmt: skip
    assert _files(out.parent) == before
    assert not (out / "release").exists()


def test_a_run_is_released_verified_listed_and_withdrawn(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key, out = tmp_path / "key", finished
    uri = f"sqlite:///{finished.parent}/mlflow.db"
    sets = [part for one in TINY for part in ("--set", one)]
    assert main(["release", "keygen", "--key", str(key)]) == 0
    release = ["release", "-r", "digits", *sets, "-o", str(out), "--json"]
    assert main([*release, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] == list(QUESTIONS)
    signed = [*release, "--key", str(key), "--signer", "A. Officer"]
    assert main(signed) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (told["version"], told["released"]) == (2, True)  # The first is the run's candidate.
    assert main(signed) == 0  # Once more: it is found, and no third version made.
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told

    _stranger_verifies(out / "release", Path(f"{key}.pub"), tmp_path)
    labels = np.arange(10)
    np.testing.assert_array_equal(
        Generator.open(out / "release").generate(labels, seed=3),
        Generator.open(out / "bundle").generate(labels, seed=3),
    )
    passport = json.loads((out / "release" / "passport.json").read_text())
    assert passport["gate"] == list(QUESTIONS)
    assert passport["ledger"]["head"] == Ledger.open(out.parent / "ledger", "digits").head
    assert passport["synthetic"]["images"] == 12
    assert "root" not in passport["recipe"]["settings"]["data"]

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    name = told["name"]
    assert client.get_registered_model(name).aliases == {"released": 2}
    version = client.get_model_version(name, "2")
    assert version.tags["release.status"] == "released"
    assert version.tags["bundle.sha256"] == told["sha256"]
    assert passport["claim"]["sentence"] in (version.description or "")

    _recorded_below_the_run(client, run_of(uri, name, 2), told)

    assert main(["release", "list", "--tracking-uri", uri, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (listed["version"], listed["aliases"]) == (2, ["released"])
    back = ["release", "withdraw", "--tracking-uri", uri, "--name", name, "--version"]
    assert main([*back, "1", "--reason", "x"]) == 2  # It was never released.
    assert main([*back, "2", "--reason", " "]) == 2
    assert main([*back, "2", "--reason", "a faulty scanner"]) == 0
    assert main([*back, "2", "--reason", "again"]) == 0  # The first reason stays.
    (gone,) = released_versions(uri)
    assert (gone.status, gone.aliases) == ("withdrawn", ())
    assert gone.tags["withdrawn.reason"] == "a faulty scanner"
    assert main(signed) == 4  # What was withdrawn does not come back by the same command.
    assert "withdrawn" in capsys.readouterr().err

    draw = ["generate", "--tracking-uri", uri, "--out", str(tmp_path / "drawn"), "--model"]
    assert main([*draw, f"models:/{name}@released"]) == 2
    assert "no alias released" in capsys.readouterr().err
    client.set_registered_model_alias(name, "released", "2")  # Somebody puts it back by hand.
    for model in (f"models:/{name}@released", f"models:/{name}/2"):
        assert main([*draw, model]) == 4
        assert "was withdrawn: a faulty scanner" in capsys.readouterr().err
    assert not (tmp_path / "drawn").exists()


def _recorded_below_the_run(client: MlflowClient, parent: str, told: dict[str, Any]) -> None:
    """Audit and release are children of the run, as its stages are; nothing is left open."""
    experiment = client.get_run(parent).info.experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [r.info.run_id for r in runs if "mlflow.parentRunId" not in r.data.tags] == [parent]
    below = {r.info.run_name: r for r in runs if r.info.run_id != parent}
    assert {"pretrain", "train", "evaluate", "audit", "release"} <= below.keys()
    assert below["audit"].data.metrics["audit.questions"] == 1
    assert below["release"].data.tags["release.version"] == str(told["version"])
    files = {file.path for file in client.list_artifacts(below["release"].info.run_id)}
    assert files == {"passport.json", "passport.html"}


def _stranger_verifies(bundle: Path, public: Path, scratch: Path) -> None:
    """Another place, another process, another copy; and nothing of the training is loaded."""
    copy = shutil.copytree(bundle, scratch / "copy")
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(copy), "--key", str(public)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "which is the key that was given" in done.stdout
    (copy / "README.md").write_text("epsilon 0.1")
    done = subprocess.run(
        [sys.executable, "-c", VERIFY, str(copy), "--key", str(public)],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 4
    assert "README.md has changed" in done.stderr


def test_another_runs_candidate_keeps_waiting(finished: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{finished.parent}/mlflow.db"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    registry = json.loads((finished / "registry.json").read_text())
    run_id = client.get_model_version(registry["name"], "1").run_id
    for _ in range(2):
        tags = {f"dp.{key}": "1" for key in ("epsilon", "delta", "relation", "unit", "ledger_head")}
        register_model(
            finished / "bundle", run_id, "two", tags, tracking_uri=uri, alias="candidate"
        )
    assert candidate_of(uri, "two") == 2
    promote(uri, "two", 1, waiting=2)
    assert client.get_registered_model("two").aliases == {"candidate": 2, "released": 1}
    promote(uri, "two", 2)
    assert client.get_registered_model("two").aliases == {"released": 2}
    assert [(one.version, one.status) for one in released_versions(uri, "two")] == [
        (1, "superseded"), (2, "released"),
    ]  # fmt: skip


def test_the_gate_refuses_a_place_without_a_run_and_leaves_it_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        releasing.check(_recipe(), str(tmp_path / "nowhere"), date.today())
    assert list(tmp_path.iterdir()) == []
