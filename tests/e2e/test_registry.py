"""A bundle goes into a registry and comes out, in another process, as the same generator."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.release.bundle import verify_bundle, write_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.registry import register_model
from tests.bundles import tiny_bundle

# MLflow's own: SQLAlchemy 2.1 deprecates a strategy that MLflow 3.17 maps its tables with.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

TAGS = {
    "dp.epsilon": "9.97",
    "dp.delta": "1e-05",
    "dp.relation": "zero_out",
    "dp.unit": "record",
    "dp.ledger_head": "ab" * 32,
}
LABELS = [1, 0, 1, 1]

# Runs where neither this checkout nor its working directory can be imported from.
FRESH_PROCESS = """
import json, sys
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@candidate")
images = model.predict(pandas.DataFrame({"label": json.loads(sys.argv[2])}), params={"seed": 5})
unwanted = {"ray", "faiss", "opacus", "dp_accounting", "sklearn"} & set(sys.modules)
print(json.dumps({"images": images.tolist(), "dtype": str(images.dtype),
                  "unwanted": sorted(unwanted)}))
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A sqlite registry with one run, and one bundle that was registered in it as "tiny"."""

    root: Path
    uri: str
    run_id: str
    bundle: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def register(self, name: str, bundle: Path, tags: dict[str, str]) -> tuple[str, int]:
        return register_model(bundle, self.run_id, name, tags, tracking_uri=self.uri)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    root = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(root / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    server = Server(root=root, uri=uri, run_id=run_id, bundle=root / "bundle")
    write_bundle(tiny_bundle(), server.bundle)
    (root / "elsewhere").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root / "elsewhere")
        assert server.register("tiny", server.bundle, TAGS) == ("tiny", 1)
    return server


def test_a_fresh_process_draws_the_same_images_from_the_registered_model(server: Server) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH_PROCESS, server.uri, json.dumps(LABELS)],
        cwd=server.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    expected = Generator.open(server.bundle).generate(np.array(LABELS), seed=5)
    assert answer["dtype"] == "uint8"
    np.testing.assert_array_equal(np.array(answer["images"], np.uint8), expected)
    assert answer["unwanted"] == []


def test_the_registered_version_states_its_privacy(server: Server) -> None:
    version = server.client.get_model_version_by_alias("tiny", "candidate")
    assert version.run_id == server.run_id
    assert TAGS.items() <= version.tags.items()
    assert version.tags["bundle.sha256"] == verify_bundle(server.bundle)


def test_what_is_stored_has_safetensors_and_no_pickle(server: Server) -> None:
    stored = [path for path in (server.root / "artifacts").rglob("*") if path.is_file()]
    assert [path.name for path in stored if path.suffix == ".safetensors"]
    assert [path for path in stored if path.suffix in {".pkl", ".pickle", ".pt", ".pth"}] == []
    assert [path for path in stored if path.read_bytes()[:1] == b"\x80"] == []  # PROTO opcode.


def test_the_model_brings_its_own_code(server: Server) -> None:
    stored = {path.name for path in (server.root / "artifacts").rglob("code/rapid_dist/**/*.py")}
    assert {"generator.py", "sampler.py", "prior.py"} <= stored


def test_registering_writes_nothing_into_the_working_directory(server: Server) -> None:
    assert list((server.root / "elsewhere").iterdir()) == []


def test_registering_again_makes_a_second_version_and_moves_the_alias(server: Server) -> None:
    server.register("twice", server.bundle, TAGS)
    assert server.register("twice", server.bundle, TAGS) == ("twice", 2)
    assert int(server.client.get_model_version_by_alias("twice", "candidate").version) == 2


def test_a_tampered_bundle_is_not_registered(server: Server, tmp_path: Path) -> None:
    tampered = tmp_path / "bundle"
    shutil.copytree(server.bundle, tampered)
    weights = next((tampered / "unet").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="safetensors has changed"):
        server.register("tampered", tampered, TAGS)
    assert server.client.search_registered_models("name = 'tampered'") == []


def test_a_model_without_its_epsilon_is_not_registered(server: Server) -> None:
    tags = {key: value for key, value in TAGS.items() if key != "dp.epsilon"}
    with pytest.raises(ConfigError, match=r"dp\.epsilon"):
        server.register("silent", server.bundle, tags)
