"""Puts a bundle into an MLflow model registry.

Models-from-code: what MLflow stores is the bundle as it is, this package's source and three
lines that join them. No object is pickled, and nothing is left to defaults of the working
directory: every address is an argument. Nothing private passes here; tags are the statement's.
"""

import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from rapid_dist.errors import ConfigError
from rapid_dist.release.bundle import open_bundle, verify_bundle
from rapid_dist.release.model_code import MODEL_CODE
from rapid_dist.release.server import connect, in_one_line
from rapid_dist.secret import masked

# The name of the one artifact. Again in pyfunc_model.py, for importing that makes MLflow warn.
BUNDLE = "bundle"
CANDIDATE, RELEASED = "candidate", "released"  # Aliases.
STATUS = "release.status"  # A tag of every version that went through a release.
_PAGE = 200
PACKAGE = Path(__file__).parent.parent  # rapid_dist/
REQUIRED_TAGS = ("dp.epsilon", "dp.delta", "dp.relation", "dp.unit", "dp.ledger_head")
# What drawing images needs; the training's vendors are not among it.
REQUIREMENTS = ("mlflow", "torch", "diffusers", "safetensors", "numpy", "pandas")


@in_one_line
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
    client = connect(tracking_uri, existing=True)
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
        _save_model(bundle_dir, model, model_dir, signature(*denoiser.image_shape[:2]))
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


@dataclass(frozen=True, kw_only=True)
class Released:
    """One version of the registry that was released, or once was."""

    name: str
    version: int
    status: str  # "candidate", "released", "superseded" or "withdrawn".
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


@in_one_line
def candidate_of(tracking_uri: str, name: str) -> int | None:
    """Returns the version that waits to be released, if one does."""
    return _aliases(connect(tracking_uri, existing=True), name).get(CANDIDATE)


@in_one_line
def promote(tracking_uri: str, name: str, version: int, waiting: int | None = None) -> None:
    """Makes a candidate the released version; the one before it is superseded.

    The alias moves before anything is said of it, so there is never a moment without one.

    Args:
      waiting: another run's candidate, which keeps waiting.
    """
    client = connect(tracking_uri, existing=True)
    before = _aliases(client, name)
    client.set_registered_model_alias(name, RELEASED, str(version))
    client.set_model_version_tag(name, str(version), STATUS, RELEASED)
    if before.get(RELEASED, version) != version:
        client.set_model_version_tag(name, str(before[RELEASED]), STATUS, "superseded")
    if waiting is not None:
        client.set_registered_model_alias(name, CANDIDATE, str(waiting))
    elif CANDIDATE in before:
        client.delete_registered_model_alias(name, CANDIDATE)


@in_one_line
def withdraw(tracking_uri: str, name: str, version: int, *, reason: str, on: str) -> Released:
    """Takes the alias from a released version and says why; nothing is deleted.

    A bundle that somebody has fetched cannot be called back.

    Raises:
      ConfigError: there is no such version, it was never released, or no reason is given.
    """
    if not reason.strip():
        raise ConfigError("A withdrawal says why. Give --reason.")
    client = connect(tracking_uri, existing=True)
    found = next(
        (one for one in released_versions(tracking_uri, name) if one.version == version), None
    )
    if found is None:
        raise ConfigError(
            f"{name} has no released version {version} in {masked(tracking_uri)}. See `rapid-dist "
            "release list`."
        )
    if found.status != "withdrawn":
        tags = {STATUS: "withdrawn", "withdrawn.reason": reason.strip(), "withdrawn.date": on}
        for key, value in tags.items():
            client.set_model_version_tag(name, str(version), key, value)
    for alias in found.aliases:
        if alias in (RELEASED, CANDIDATE):
            client.delete_registered_model_alias(name, alias)
    return next(one for one in released_versions(tracking_uri, name) if one.version == version)


@in_one_line
def released_versions(tracking_uri: str, name: str | None = None) -> list[Released]:
    """Returns every version that went through a release, by name and number."""
    client = connect(tracking_uri, existing=True)
    names = _names(client) if name is None else [name]
    found = []
    for one in names:
        aliases = _aliases(client, one)
        for version in _versions(client, one):
            if STATUS in version.tags:
                number = int(version.version)
                own = tuple(alias for alias, of in sorted(aliases.items()) if of == number)
                found.append(
                    Released(
                        name=one,
                        version=number,
                        status=version.tags[STATUS],
                        aliases=own,
                        tags=dict(version.tags),
                    )
                )
    return sorted(found, key=lambda one: (one.name, one.version))


def tags_of(tracking_uri: str, name: str, version: int) -> dict[str, str]:
    """Returns the tags of one version; a ``ConfigError`` if there is none."""
    try:
        return dict(connect(tracking_uri, existing=True).get_model_version(name, str(version)).tags)
    except MlflowException as error:
        raise ConfigError(
            f"{name} has no version {version} in {masked(tracking_uri)} ({error.error_code})."
        ) from error


@in_one_line
def run_of(tracking_uri: str, name: str, version: int) -> str:
    """Returns the id of the MLflow run that a version belongs to."""
    return str(connect(tracking_uri, existing=True).get_model_version(name, str(version)).run_id)


@in_one_line
def ledger_heads(tracking_uri: str, dataset: str) -> set[str]:
    """Returns every ledger head that the registry's versions state of one private data set.

    Each of them must be in the ledger for ever: a ledger without one was cut.
    """
    client = connect(tracking_uri, existing=True)
    return {
        version.tags["dp.ledger_head"]
        for name in _names(client)
        for version in _versions(client, name)
        if version.tags.get("dp.dataset") == dataset and "dp.ledger_head" in version.tags
    }


def _names(client: MlflowClient) -> list[str]:
    names: list[str] = []
    token = None
    while True:
        page = client.search_registered_models(max_results=_PAGE, page_token=token)
        names += [model.name for model in page]
        token = page.token
        if not token:
            return sorted(names)


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    found: list[ModelVersion] = []
    token = None
    quoted = name.replace("'", "''")
    while True:
        page = client.search_model_versions(f"name='{quoted}'", max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _aliases(client: MlflowClient, name: str) -> dict[str, int]:
    try:
        model = client.get_registered_model(name)
    except MlflowException:
        return {}
    return {alias: int(version) for alias, version in model.aliases.items()}
