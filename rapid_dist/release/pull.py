"""Takes released generators out of a registry: what there is, and the bundle of one version.

    generator = open_model("models:/rapid-dist-digits@released", "http://mlflow:5000")
    images = generator.generate(np.array([3, 3, 7]), seed=1)  # uint8 [3, 1, 8, 8]

Nothing of the training is needed: torch, diffusers, safetensors, NumPy and mlflow-skinny. Only
the bundle is fetched, and it is opened by this package: no code of the stored model is run. What
was fetched once is kept, by its hash, and every file is compared with its checksum whenever it is
opened.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from rapid_dist.errors import CheckpointError, ConfigError, RapidError, ReleaseError
from rapid_dist.release.bundle import verify_bundle
from rapid_dist.release.generator import Generator
from rapid_dist.release.server import connect
from rapid_dist.secret import masked

RELEASED = "released"  # The alias that a name without one stands for.
DIGEST_TAG = "bundle.sha256"
CLAIM_TAG = "dp.epsilon"  # A version without it is no model of ours.
PAGE_SIZE = 200
_MODEL = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered version, as its registry describes it."""

    name: str
    version: int
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    description: str
    created_ms: int  # Since 1970.
    run_id: str
    source: str  # Where the model's files lie.

    @property
    def label(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def withdrawn(self) -> bool:
        return self.tags.get("release.status") == "withdrawn"


def open_model(model: str, tracking_uri: str | None = None, device: str = "cpu") -> Generator:
    """Returns the generator of a registered model, or of a bundle's folder.

    Args:
      model: ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``models:/NAME`` (alias
        "released") or a folder.
      tracking_uri: the registry; by default MLFLOW_TRACKING_URI.
    """
    if not model.startswith("models:/"):
        return Generator.open(Path(model), device)
    registry = Registry(tracking_uri)
    return Generator.open(registry.fetch(registry.find(model)), device)


class Registry:
    """The reading side of a model registry."""

    def __init__(self, tracking_uri: str | None = None, cache: Path | None = None) -> None:
        """Connects; a registry that does not answer is a ``RapidError``."""
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ConfigError(
                "No model registry is named. Set MLFLOW_TRACKING_URI, or give its address "
                "(--tracking-uri http://... or sqlite:///runs/mlflow.db)."
            )
        self.uri = uri
        self._cache = cache or _cache_folder()
        try:
            self._client: MlflowClient = connect(uri)
        except RapidError:
            raise
        except Exception as error:  # A server's, a database's, a network's: each has its own.
            raise RapidError(
                f"The registry at {masked(uri)} does not answer: {_line(error)}."
            ) from error

    def names(self) -> list[str]:
        """Returns the names of all registered models, sorted."""
        found: list[str] = []
        token = None
        while True:
            page = self._client.search_registered_models(max_results=PAGE_SIZE, page_token=token)
            found += [model.name for model in page]
            token = page.token
            if not token:
                return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """Returns all versions of a model that state their privacy, the newest first."""
        aliases = self._aliases(name)
        found: list[Version] = []
        token = None
        while True:
            page = self._client.search_model_versions(
                f"name={_quoted(name)}", max_results=PAGE_SIZE, page_token=token
            )
            found += [_version(one, aliases) for one in page if CLAIM_TAG in one.tags]
            token = page.token
            if not token:
                return sorted(found, key=lambda one: -one.version)

    def find(self, model: str) -> Version:
        """Returns the version that ``models:/...`` names; a ``ConfigError`` says what there is."""
        asked = _MODEL.fullmatch(model)
        if asked is None:
            raise ConfigError(
                f"{model} names no model. Write models:/NAME@released or models:/NAME/VERSION."
            )
        name, alias, number = asked[1], asked[2] or RELEASED, asked[3]
        aliases = self._aliases(name)
        if number is None and alias not in aliases:
            told = ", ".join(f"{one} (version {of})" for one, of in sorted(aliases.items()))
            raise ConfigError(
                f"Model {name} has no alias {alias}; it has {told or 'none at all'}. Name one of "
                f"those, or a version as models:/{name}/1."
            )
        wanted = int(number) if number is not None else aliases[alias]
        try:
            found = _version(self._client.get_model_version(name, str(wanted)), aliases)
        except MlflowException as error:
            raise ConfigError(f"Model {name} has no version {wanted} ({_line(error)}).") from error
        if CLAIM_TAG not in found.tags or DIGEST_TAG not in found.tags:
            raise ConfigError(
                f"{found.label} states no privacy ({CLAIM_TAG}, {DIGEST_TAG}): it is no generator "
                "of this package."
            )
        if found.withdrawn:
            raise ReleaseError(
                f"{found.label} was withdrawn: "
                f"{found.tags.get('withdrawn.reason', 'no reason is stated')}. Use another version."
            )
        return found

    def fetch(self, version: Version) -> Path:
        """Returns the folder of a version's bundle, fetched unless it is here already.

        Raises:
          CheckpointError: what came is not the bundle that was registered.
        """
        digest = version.tags.get(DIGEST_TAG, "")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise CheckpointError(f"{version.label} has no valid tag {DIGEST_TAG}: {digest!r}.")
        kept = self._cache / digest
        if kept.is_dir():
            try:
                if verify_bundle(kept) == digest:
                    return kept
            except CheckpointError:
                pass  # Torn, or tampered with. Another copy is at hand.
            shutil.rmtree(kept)
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache, prefix=".fetch-") as scratch:
            place = f"{version.source.rstrip('/')}/artifacts"
            try:
                # The one folder there; its name is that of the folder which was registered.
                (found,) = mlflow.artifacts.list_artifacts(
                    artifact_uri=place, tracking_uri=self.uri
                )
                came = Path(
                    mlflow.artifacts.download_artifacts(
                        artifact_uri=f"{place}/{PurePosixPath(found.path).name}",
                        dst_path=scratch,
                        tracking_uri=self.uri,
                    )
                )
            except Exception as error:
                raise RapidError(
                    f"The bundle of {version.label} cannot be fetched from {place}: {_line(error)}."
                ) from error
            if verify_bundle(came) != digest:
                raise CheckpointError(
                    f"{version.label} is not what was registered: its files have other checksums "
                    f"than its tag {DIGEST_TAG} says. Do not use it."
                )
            # Another process may have been faster; its copy is as good.
            if not kept.is_dir():
                try:
                    came.rename(kept)
                except OSError:
                    if not kept.is_dir():
                        raise
        return kept

    def _aliases(self, name: str) -> dict[str, int]:
        try:
            found = self._client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise RapidError(
                    f"The registry at {masked(self.uri)} refused: {_line(error)}."
                ) from error
            known = ", ".join(self.names()) or "none"
            raise ConfigError(
                f"There is no model {name} in {masked(self.uri)}. It holds: {known}."
            ) from error
        return {str(alias): int(version) for alias, version in found.items()}


def _version(found: ModelVersion, aliases: Mapping[str, int]) -> Version:
    number = int(found.version)
    return Version(
        name=found.name,
        version=number,
        aliases=tuple(sorted(alias for alias, of in aliases.items() if of == number)),
        tags=dict(found.tags),
        description=found.description or "",
        created_ms=int(found.creation_timestamp or 0),
        run_id=found.run_id or "",
        source=found.source or "",
    )


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rapid-dist" / "models"


def _quoted(value: str) -> str:
    """Returns a value as MLflow's filters take it; they know no escape."""
    return f"'{value}'" if "'" not in value else f'"{value}"'


def _line(error: Exception) -> str:
    return masked((str(error).splitlines() or [type(error).__name__])[0])
