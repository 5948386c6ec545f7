"""Puts a bundle into an MLflow model registry.

Models-from-code: what MLflow stores is the bundle as it is, this package's source and three
lines that join them. No object is pickled, and nothing is left to defaults of the working
directory: every address is an argument. Nothing private passes here; tags are the statement's.
"""

import importlib.metadata
import warnings
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import open_bundle, verify_bundle
from rapid_dist.release.model_code import MODEL_CODE

# The name of the one artifact. Again in pyfunc_model.py, for importing that makes MLflow warn.
BUNDLE = "bundle"
PACKAGE = Path(__file__).parent.parent  # rapid_dist/
REQUIRED_TAGS = ("dp.epsilon", "dp.delta", "dp.relation", "dp.unit", "dp.ledger_head")
# What drawing images needs; the training's vendors are not among it.
REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "numpy", "pandas")


def register_model(
    bundle_dir: Path,
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    *,
    tracking_uri: str,
    alias: str = "candidate",
    description: str = "",
) -> tuple[str, int]:
    """Registers a bundle as the next version of a model and returns (name, version).

    Guarantees: the version carries every tag before the alias points to it, and the tag
    ``bundle.sha256``, the checksum of the bundle's checksums.

    Args:
      bundle_dir: what ``write_bundle`` wrote; a changed one is refused.
      run_id: an existing run of this tracking server, to which the model belongs.
      tags: at least the ``dp.*`` tags.
    """
    missing = [tag for tag in REQUIRED_TAGS if not tags.get(tag)]
    if missing:
        raise ConfigError(
            f"A registered model states its privacy, but {', '.join(missing)} is missing from its "
            "tags. Take them from summary.json."
        )
    digest = verify_bundle(bundle_dir)
    denoiser = open_bundle(bundle_dir).denoiser
    client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
    all_tags = {**tags, "bundle.sha256": digest}
    logged = client.create_logged_model(
        client.get_run(run_id).info.experiment_id,
        name=name,
        source_run_id=run_id,
        tags=all_tags,
        model_type="generator",
    )
    with TemporaryDirectory() as scratch:
        model = Model(run_id=run_id, model_id=logged.model_id)
        model_dir = Path(scratch, "model")
        _save_model(bundle_dir, model, model_dir, signature(denoiser.channels, denoiser.size))
        client.log_model_artifacts(logged.model_id, str(model_dir))
    client.finalize_logged_model(logged.model_id, "READY")
    _ensure_registered(client, name, description)
    version = client.create_model_version(
        name,
        # Not models:/ID, which a local registry would look up at the global tracking address.
        source=logged.artifact_location,
        run_id=run_id,
        model_id=logged.model_id,
        tags=all_tags,
        description=description,
    ).version
    client.set_registered_model_alias(name, alias, str(version))
    return name, int(version)


def signature(channels: int, size: int) -> ModelSignature:
    """Returns what goes in and comes out, for images of [channels, size, size]."""
    return ModelSignature(
        inputs=Schema([ColSpec("long", "label")]),
        outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, channels, size, size))]),
        params=ParamSchema([ParamSpec("seed", "long", 0), ParamSpec("first_id", "long", 0)]),
    )


def pinned_requirements() -> list[str]:
    """Returns the installed version of every package that drawing needs."""
    versions = {name: importlib.metadata.version(name) for name in REQUIREMENTS}
    # A local part ("+cpu") names a build, which a package index may not have.
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]


def _save_model(bundle_dir: Path, model: Model, path: Path, inputs: ModelSignature) -> None:
    with TemporaryDirectory() as scratch, warnings.catch_warnings():
        # MLflow warns of a type hint of its own, and that the given signature has no example.
        warnings.filterwarnings("ignore", ".*(inferred as AnyType|input example)", UserWarning)
        code = Path(scratch, "model_code.py")
        code.write_text(MODEL_CODE)
        mlflow.pyfunc.save_model(
            path=path,
            mlflow_model=model,
            python_model=str(code),
            artifacts={BUNDLE: str(bundle_dir)},
            code_paths=[str(PACKAGE)],
            pip_requirements=pinned_requirements(),
            signature=inputs,
        )


def _ensure_registered(client: MlflowClient, name: str, description: str) -> None:
    try:
        client.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
