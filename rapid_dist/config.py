"""One frozen tree of settings: a YAML recipe, then dotted overrides, then nothing else.

Every room declares and checks its own settings as a frozen dataclass; here they are hung in one
tree and nowhere are they written twice. Files and overrides are read in ``recipe_files.py``.
``load_recipe`` answers before anything has started:
an unknown key, a wrong type or a value out of range is a ``ConfigError`` that names it.

    recipe = load_recipe("digits", ["privacy.epsilon=5", "runtime.workers=1"])

Nothing in the tree is read off private data (P1), so it may be printed, logged and released.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from rapid_dist.data.sources import PrivateSource, PublicSource
from rapid_dist.diffusion.compute import DeviceName
from rapid_dist.diffusion.denoiser import NetworkConfig
from rapid_dist.diffusion.sampler import SamplingConfig
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import ConfigError
from rapid_dist.evaluation.settings import EvaluationConfig
from rapid_dist.methods.compare_settings import CompareConfig
from rapid_dist.methods.presets import presets_of
from rapid_dist.methods.settings import MethodSettings, SplitConfig
from rapid_dist.methods.sweep_settings import SweepConfig
from rapid_dist.privacy.settings import PrivacyConfig
from rapid_dist.private.contamination import ContaminationConfig
from rapid_dist.private.index import PrivateIndexConfig
from rapid_dist.private.settings import TrainConfig
from rapid_dist.public.adapt import AdaptConfig
from rapid_dist.public.autoencode import AutoencoderConfig
from rapid_dist.public.conditional import ConditionalConfig
from rapid_dist.public.contrast import ContrastConfig
from rapid_dist.public.pretrain import PretrainConfig
from rapid_dist.recipe_files import nearest, override, read_tree, shown, written
from rapid_dist.release.settings import ReleaseConfig
from rapid_dist.retrieval.knowledge_base import KnowledgeBaseConfig
from rapid_dist.retrieval.prior import PriorConfig
from rapid_dist.secret import MASK, Secret, credentials_in, names_secret, require_plain


class _Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Node):
    """Which images there are, and on which side of the boundary."""

    root: str | None = None  # Folder that sources with files are looked up in: local, or s3://.
    private: PrivateSource
    public: tuple[PublicSource, ...] = Field(min_length=1)
    # Sources that join the references alone. Networks and keys that were made before stay as they
    # are, so adding one at the end makes its own shards and no other.
    more_references: tuple[PublicSource, ...] = ()
    reference_share: float = Field(default=0.5, gt=0, lt=1)  # Of the public images.


class RuntimeConfig(_Node):
    """Where the stages run; not part of a stage's identity.

    The mechanism is the same at any number of workers. Public training is not bit-equal: each
    worker draws its own part of the public rows.
    """

    backend: Literal["ray", "process"] = "ray"
    workers: int = Field(default=2, ge=1)  # Of every training stage.
    trajectory_actors: int = Field(default=2, ge=1)
    search_actors: int = Field(default=2, ge=1)
    search_replicas: int = Field(default=1, ge=1)  # Whole copies of the searching actors.
    # Private queries: answered in each worker, or by actors; auto = by actors where a copy of the
    # knowledge base takes more than memory_gb.
    search: Literal["auto", "replicated", "sharded"] = "auto"
    search_gpus: float = Field(default=0.0, ge=0)  # Of a searching actor; needs faiss-gpu there.
    actor_resources: dict[str, float] = {}  # Of a node that may hold searching and building actors.
    actor_labels: dict[str, str] = {}
    # Of nodes for one kind of process, as in `ray start --labels`; empty = any node for training,
    # actor_labels for the other two.
    worker_labels: dict[str, str] = {}
    trajectory_labels: dict[str, str] = {}
    search_labels: dict[str, str] = {}
    scale_minutes: float = Field(default=0, ge=0)  # To wait for nodes that an autoscaler adds.
    threads_per_worker: int = Field(default=1, ge=1)
    # Training and sampling; auto = CUDA where every worker can have a device. Draws, noise and keys
    # are made on the CPU either way, and the knowledge base is built there.
    device: DeviceName = "auto"
    # One worker's or actor's: for the check up front, and for train.micro_batch=null.
    memory_gb: float = Field(default=1.0, gt=0)
    max_failures: int = Field(default=2, ge=0)  # Restarts of a stage's workers before it fails.
    hang_minutes: float = Field(default=30, gt=0)  # That workers wait for one that does not answer.
    public_dir: str | None = None  # Shared store of public stages; None = beside the run.
    ledger_dir: str | None = None  # Ledgers of all private data sets; None = beside the run.
    price_per_hour: float | None = Field(default=None, ge=0)  # Of the cluster; for the report.
    debug: bool = False  # May log private values; such a run can never be released (P9).


class TrackingConfig(_Node):
    """Where runs and models are recorded; MLFLOW_TRACKING_URI stands in for an unset ``uri``."""

    uri: str | None = None  # None = a sqlite file beside the run directory.
    # Of the account, for MLFLOW_TRACKING_USERNAME and ..._PASSWORD where those are not set. The
    # password as env:NAME or file:PATH; it is in no tree, file or hash of a recipe.
    username: str | None = None
    password: Annotated[Secret, PlainValidator(Secret.of)] | None = Field(
        default=None, exclude=True
    )
    experiment: str = "rapid-dist"
    model_name: str | None = None  # None = rapid-dist-<recipe>.
    register_models: bool = True  # False: a finished run is no model of the registry.


class Recipe(_Node):
    """A whole experiment. Everything in it is public."""

    name: str = "recipe"
    method: Literal[
        "rapid",
        "dpdm",
        "dp_ldm",
        "dp_rdm",
        "public",
        "references",
        "public_from_references",
        "nonprivate",
    ] = "rapid"
    seed: int = Field(default=0, ge=0)  # Of public randomness; secret keys come from the OS.
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    split: SplitConfig = SplitConfig()
    autoencoder: AutoencoderConfig | None = None  # Diffusion in its latents; null = in pixels.
    pretrain: PretrainConfig = PretrainConfig()
    contrast: ContrastConfig = ContrastConfig()
    knowledge_base: KnowledgeBaseConfig = KnowledgeBaseConfig()
    contamination: ContaminationConfig = ContaminationConfig()
    prior: PriorConfig = PriorConfig()
    adapt: AdaptConfig = AdaptConfig()
    privacy: PrivacyConfig
    train: TrainConfig = TrainConfig()
    conditional: ConditionalConfig = ConditionalConfig()  # Method dp_rdm.
    private_index: PrivateIndexConfig = PrivateIndexConfig()  # Method dp_rdm.
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    sweep: SweepConfig = SweepConfig()  # Of the command `sweep` alone; no other reads it.
    compare: CompareConfig = CompareConfig()  # Of the command `compare` alone.
    runtime: RuntimeConfig = RuntimeConfig()
    tracking: TrackingConfig = TrackingConfig()
    release: ReleaseConfig = ReleaseConfig()

    @model_validator(mode="after")
    def _rooms_agree(self) -> Self:
        if self.split.query_step > self.schedule.num_steps:
            raise ConfigError(
                f"split.query_step is {self.split.query_step}, but schedule.num_steps is "
                f"{self.schedule.num_steps}. Choose a query step on the schedule."
            )
        if (self.privacy.unit == "group") != (self.data.private.group_column is not None):
            raise ConfigError(
                f"privacy.unit is {self.privacy.unit!r}, but data.private.group_column is "
                f"{self.data.private.group_column!r}. A group is the unit exactly where the "
                "source names a group column."
            )
        if self.privacy.unit == "record" and self.train.images_per_group > 1:
            raise ConfigError(
                f"train.images_per_group is {self.train.images_per_group}, but privacy.unit is "
                "'record': one image is all there is. Set it to 1, or train.multiplicity higher."
            )
        self.contamination.check_noise(self.privacy.contamination_noise)
        return self

    @property
    def num_units(self) -> int:
        """The declared number of privacy units: N of the mechanism."""
        return self.data.private.num_groups or self.data.private.num_records


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Returns the recipe of that file, or of that name inside the package, with overrides.

    An override of ``method`` brings what that method changes in any recipe (``presets.py``), before
    all other overrides; without one the file is taken as it is.

    Args:
      overrides: each ``a.b=value``, the value read as YAML; a number in the path is a list index.
    """
    path = Path(name_or_path)
    tree = read_tree(path)
    tree.setdefault("name", path.stem)
    written_for = tree.setdefault("method", Recipe.model_fields["method"].default)
    for text in overrides:
        if text.partition("=")[0].strip() == "method":
            override(tree, text, _settings(Recipe))
    own = presets_of(str(tree["method"])) if tree["method"] != written_for else ()
    for text in (*own, *overrides):
        override(tree, text, _settings(Recipe))
    return parse_recipe(tree)


def parse_recipe(tree: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that a plain tree describes, or raises ``ConfigError`` in one line."""
    for dotted, address in credentials_in(tree):
        require_plain(address, dotted)
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_in_one_line(error)) from None


def to_tree(recipe: Recipe) -> dict[str, Any]:
    """Returns the whole recipe, defaults included, as plain values; ``parse_recipe`` undoes it."""
    return recipe.model_dump(mode="json")


def method_settings(recipe: Recipe) -> MethodSettings:
    """Returns what the method is told: the recipe without where it runs and is recorded."""
    root = recipe.data.root
    moved: dict[str, Any] = {
        "data_root": _absolute(root),
        "private": recipe.data.private,
        "public": recipe.data.public,
        "more_references": recipe.data.more_references,
        "reference_share": recipe.data.reference_share,
    }
    same = {
        field.name: getattr(recipe, field.name)
        for field in fields(MethodSettings)
        if field.name not in moved
    }
    return MethodSettings(**moved, **same)


def _absolute(root: str | None) -> str | None:
    if root is None or root.startswith("s3://"):
        return root
    return str(Path(root).expanduser().resolve())


def recipe_hash(recipe: Recipe) -> str:
    """Returns the SHA-256 of all that shapes what is asked of private data.

    Not of where it runs, and not of what is made of the trained model and costs nothing: samples
    and figures.
    """
    shaping = asdict(method_settings(recipe))
    for name in ("data_root", "sampling", "evaluation"):
        del shaping[name]
    content = json.dumps(shaping, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()


def to_yaml(recipe: Recipe) -> str:
    """Returns the whole recipe as a file that ``load_recipe`` reads."""
    return written(to_tree(recipe))


def _in_one_line(error: ValidationError) -> str:
    found = error.errors(include_url=False)
    # A list of which no item is right counts as too short as well.
    first, *more = [one for one in found if one["type"] != "too_short"] or found
    dotted = ".".join(str(part) for part in first["loc"])
    given = MASK if names_secret(dotted) else shown(first.get("input"))
    kind, message = first["type"], first["msg"]
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        like = nearest(dotted, _settings(Recipe))
        line = f"There is no setting {dotted} (given: {given}). {like}"
    elif kind in {"missing", "missing_argument", "missing_keyword_only_argument"}:
        line = f"The recipe must give {dotted}. The recipes of the package, as digits, show how."
    elif kind == "value_error":  # A room's own check: it names the value and the remedy.
        line = message.removeprefix("Value error, ")
        if dotted and not re.search(rf"\b{re.escape(dotted)}\b", line):
            line = f"{dotted}: {line}"
    else:
        line = f"{dotted}={given} is not valid: {message}."
    return f"{line} (And {len(more)} more.)" if more else line


def _settings(owner: type, prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of all settings below a model or a dataclass."""
    hints = get_type_hints(owner)
    for name in _field_names(owner):
        yield prefix + name
        for candidate in (hints[name], *get_args(hints[name])):
            if isinstance(candidate, type) and (
                is_dataclass(candidate) or issubclass(candidate, BaseModel)
            ):
                yield from _settings(candidate, f"{prefix}{name}.")


def _field_names(owner: type) -> list[str]:
    if issubclass(owner, BaseModel):
        return list(owner.model_fields)
    assert is_dataclass(owner)
    return [field.name for field in fields(owner)]
