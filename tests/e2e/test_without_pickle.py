"""With every way to unpickle switched off, models open, images are drawn and runs go on (P16).

In processes of their own, in which ``pickle``, ``torch.load`` and ``joblib`` raise from the first
line on. A process in which they are left on is the twin: there the same payload runs.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from rapid_dist.environment import SILENT
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.release.bundle import verify_bundle, write_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.registry import register_model
from tests.bundles import tiny_bundle

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TAGS = {
    "dp.epsilon": "9.97",
    "dp.delta": "1e-05",
    "dp.relation": "zero_out",
    "dp.unit": "record",
    "dp.ledger_head": "ab" * 32,
}
# Nothing is imported before it but the standard library; ``copy`` and the like need no pickle.
SWITCHED_OFF = """
import pickle, _pickle, sys

class Unpickled(Exception):
    pass

def refuse(*args, **named):
    raise Unpickled("something was unpickled")

class Refuses(pickle._Unpickler):  # joblib makes one of its own from it, on import.
    def __init__(self, *args, **named):
        refuse()

    load = refuse

for module in (pickle, _pickle):
    module.load = module.loads = refuse
    module.Unpickler = Refuses
pickle._load = pickle._loads = refuse
pickle._Unpickler = Refuses

def switch_off_vendors():
    import joblib, torch
    torch.load = joblib.load = torch.jit.load = refuse
"""
# Draws from every model that is named, as a program that uses the package does.
DRAW = (
    SWITCHED_OFF
    + """
import json
switch_off_vendors()
import numpy as np
from mlflow.telemetry import get_telemetry_client
from rapid_dist.release.pull import open_model
loud = get_telemetry_client() is not None
drawn = []
for name in sys.argv[2:]:
    generator = open_model(f"models:/{name}@candidate", sys.argv[1])
    drawn.append(generator.generate(np.array([1, 0, 1, 1]), seed=5).tolist())
print(json.dumps({"drawn": drawn, "telemetry": [loud, get_telemetry_client() is not None]}))
"""
)
TRY = """
import pickle, io
for read in (lambda: pickle.loads(pickle.dumps("x")),
             lambda: pickle.load(io.BytesIO(pickle.dumps("x"))),
             lambda: pickle.Unpickler(io.BytesIO(pickle.dumps("x"))).load()):
    try:
        read()
    except Exception as error:
        print(type(error).__name__)
    else:
        print("read")
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A sqlite registry with a bundle that was registered in it as "tiny"."""

    root: Path
    uri: str
    bundle: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    write_bundle(tiny_bundle(), root / "bundle")
    register_model(root / "bundle", run_id, "tiny", TAGS, tracking_uri=uri)
    return Server(root=root, uri=uri, bundle=root / "bundle")


def _start(code: str, *words: str, cache: Path) -> "subprocess.Popen[str]":
    """Starts code in a process, quiet by its own means and not by pytest's."""
    told = {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    loud = {*SILENT, "CI", "PYTEST_CURRENT_TEST", "PYTEST_VERSION"}
    plain = {name: value for name, value in os.environ.items() if name not in loud}
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env={**plain, **told},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(code: str, *words: str, cache: Path) -> tuple[int, str, str]:
    """Runs code to its end; returns its exit code, stdout and stderr."""
    process = _start(code, *words, cache=cache)
    said, complained = process.communicate()
    return process.returncode, said, complained


class _Payload:
    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self._marker,))


def _plant(server: Server, planted: Path, marker: Path) -> None:
    """Registers a version whose code, pickle and MLmodel would run in MLflow."""
    client = MlflowClient(tracking_uri=server.uri, registry_uri=server.uri)
    before = client.get_model_version("tiny", "1")
    bundle = planted / "artifacts" / "bundle"
    write_bundle(tiny_bundle(), bundle)
    evil = f"import os\nos.mkdir({str(marker)!r})\n"
    (planted / "code" / "rapid_dist").mkdir(parents=True)
    (planted / "code" / "rapid_dist" / "__init__.py").write_text(evil)
    (planted / "model_code.py").write_text(evil)
    (planted / "python_model.pkl").write_bytes(pickle.dumps(_Payload(marker)))
    (planted / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: mlflow.pyfunc.model\n"
        "    python_model: python_model.pkl\n    code: code\n"
    )
    tags = {**before.tags, "bundle.sha256": verify_bundle(bundle)}
    client.create_registered_model("planted")
    client.create_model_version("planted", planted.as_uri(), run_id=before.run_id, tags=tags)
    client.set_registered_model_alias("planted", "candidate", "1")


def test_registered_models_draw_without_pickle_and_a_planted_one_runs_nothing(
    server: Server, tmp_path: Path
) -> None:
    marker = tmp_path / "it-ran"
    _plant(server, tmp_path / "planted", marker)
    code, printed, complained = _run(DRAW, server.uri, "tiny", "planted", cache=tmp_path / "cache")
    assert code == 0, complained
    said = json.loads(printed.splitlines()[-1])
    expected = Generator.open(server.bundle).generate(np.array([1, 0, 1, 1]), seed=5)
    for drawn in said["drawn"]:
        np.testing.assert_array_equal(np.array(drawn, np.uint8), expected)
    assert not marker.exists()
    assert said["telemetry"] == [True, False]  # MLflow would; after the first question it does not.
    pickle.loads((tmp_path / "planted" / "python_model.pkl").read_bytes())
    assert marker.exists()  # The twin: the payload is a live one.


def test_where_it_is_switched_off_nothing_can_be_unpickled(tmp_path: Path) -> None:
    _, off, complained = _run(f"{SWITCHED_OFF}\n{TRY}", cache=tmp_path)
    assert off.split() == ["Unpickled"] * 3, complained
    _, on, _ = _run(TRY, cache=tmp_path)
    assert on.split() == ["read"] * 3


STEPS = 300
TINY = [
    "data.public.0.count=300", "network.widths=[16, 16]", "pretrain.steps=2", "contrast.steps=2",
    "knowledge_base.clusters=20", "adapt.steps=2", f"privacy.steps={STEPS}",
    "privacy.expected_batch=32", "train.checkpoint_every=50", "sampling.count=24",
    "sampling.late_intervals=2", "sampling.early_intervals=2", "evaluation.controls=false",
    "evaluation.classifiers.steps=2", "evaluation.classifiers.logistic_iterations=2",
    "runtime.backend=process",
]  # fmt: skip
COMMAND = (
    SWITCHED_OFF
    + """
switch_off_vendors()
from rapid_dist.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
)


def _steps(out: Path) -> int:
    ledger = Ledger.open(out.parent / "ledger", "digits")
    return sum(entry.kind == "step" for entry in ledger.entries())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_is_stopped_goes_on_from_its_checkpoint_and_draws_without_pickle(
    tmp_path: Path,
) -> None:
    out, cache = tmp_path / "runs" / "digits", tmp_path / "cache"
    options = [word for change in TINY for word in ("--set", change)]
    options += ["--recipe", "digits", "--out", str(out)]
    first = _start(COMMAND, "run", *options, cache=cache)
    while _steps(out) < 3:
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    assert "Stopped." in first.communicate()[1]
    stopped_at = _steps(out)
    assert stopped_at < STEPS
    assert list((out / "checkpoints").rglob("step-*.safetensors"))
    code, _, complained = _run(COMMAND, "run", *options, cache=cache)
    assert code == 0, complained
    assert _steps(out) == STEPS  # It has read the checkpoint: no step was taken again.
    code, _, complained = _run(
        COMMAND, "generate", "--model", str(out / "bundle"), "--count", "4", "--out",
        str(tmp_path / "drawn"), cache=cache,
    )  # fmt: skip
    assert code == 0, complained
    with np.load(tmp_path / "drawn" / "images.npz", allow_pickle=False) as found:
        assert found["images"].shape == (4, 1, 8, 8)
