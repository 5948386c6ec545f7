"""What a released generator is on disk: a folder that needs nothing of its training.

    bundle/
      model.json        what it draws, how, and the privacy statement's figures
      denoiser.json     the numbers around the network
      unet/             the network in diffusers' layout, weights in safetensors
      vae/              the public autoencoder, likewise                    (of latents)
      prior.npz         p(reference | class), from the noised histogram     (source "prior")
      references.npz    the public reference images and their noise seeds   (source "prior")
      public/           public network, extractor, knowledge base, see query.py (source "query")
      answers.npz       noised answers of a private index, see answers.py  (source "answers")
      checksums.json    SHA-256 of every file above

Nothing here may come from private records but through a charged mechanism: ``BundleFacts`` has
no field for quality or data. No pickle is written or read, and a folder that holds one file
more, less or other than its checksums say is refused.

Letters: R reference images, E entries (an image with a noise seed), C channels, S pixels a side.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from rapid_dist.data.images import Int64Array, UInt8Array
from rapid_dist.diffusion.denoiser import Denoiser, load_denoiser, save_denoiser
from rapid_dist.diffusion.sampler import ChurnConfig, Solver
from rapid_dist.diffusion.schedule import ScheduleConfig
from rapid_dist.errors import CheckpointError, ConfigError
from rapid_dist.release.answers import FILE as ANSWERS
from rapid_dist.release.answers import Answers
from rapid_dist.release.checksums import verify_checksums, write_checksums
from rapid_dist.release.needed import PUBLIC
from rapid_dist.release.query import PublicHalf, QueryFacts
from rapid_dist.retrieval.arrays import pack_arrays, unpack_arrays
from rapid_dist.retrieval.jitter import JitterConfig
from rapid_dist.retrieval.prior import TrajectoryPrior
from rapid_dist.retrieval.trajectory import noise_check

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """What is written beside the weights; all of it is public."""

    name: str
    method: str
    class_names: tuple[str, ...]  # Empty for a generator without classes.
    schedule: ScheduleConfig
    # Enter at the state of a reference that is drawn or asked for, or at pure noise; "answers" is
    # from noise as well, each sample from an answer of its class.
    source: Literal["prior", "query", "noise", "answers"]
    from_step: int  # Where the private model begins: the split step, or the top for "noise".
    intervals: int
    solver: Solver = "dpmpp"
    guidance: float = 1.0
    churn: ChurnConfig = field(default_factory=ChurnConfig)  # Of the private network's steps.
    noise: Literal["sample", "entry"] = "sample"  # Whose noise path: its own, or the entry's.
    jitter: JitterConfig = field(default_factory=JitterConfig)  # Of drawn references.
    query: QueryFacts | None = None  # Of source "query" alone.
    privacy: dict[str, Any] = field(default_factory=dict)  # As in summary.json.
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.source not in ("prior", "query", "noise", "answers"):
            raise ConfigError(
                "A bundle samples from 'prior', 'query', 'noise' or 'answers', got "
                f"source={self.source!r}."
            )
        if (self.source == "query") != (self.query is not None):
            raise ConfigError(
                f"Source 'query', and no other, says how queries are made: got {self.source!r} "
                f"with query={self.query}."
            )
        if self.query is not None and self.noise == "entry":
            raise ConfigError(
                "A bundle that samples by query has no noise of its entries. Set noise='sample'."
            )
        if self.query is not None and not self.query.query_step > self.from_step:
            raise ConfigError(
                f"The query step must be above the step that is entered, got "
                f"{self.query.query_step} and {self.from_step}."
            )

    def levels(self) -> list[float]:
        """Returns the noise levels that sampling passes through, down to 0."""
        return self.schedule.path(self.from_step, 0, self.intervals)

    def early_levels(self) -> list[float]:
        """Returns those that the public model passes through, from the top to the query step."""
        assert self.query is not None, "Only a query is asked for on the way."
        top = self.schedule.num_steps
        return self.schedule.path(top, self.query.query_step, self.query.intervals)

    def to_json(self) -> dict[str, Any]:
        """Returns the content of model.json."""
        content = {"format": FORMAT, "noise_check": noise_check(), **asdict(self)}
        if self.query is None:  # As it was before there were queries in bundles.
            del content["query"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Reads ``to_json``; refuses another format and a NumPy that draws other noise."""
        content = dict(content)
        if content.pop("format") != FORMAT:
            raise CheckpointError(f"The bundle is not of format {FORMAT}. Use a matching version.")
        if content.pop("noise_check") != noise_check():
            raise CheckpointError(
                f"NumPy {np.__version__} draws other normal numbers than the NumPy that made this "
                f"bundle ({content['versions'].get('numpy', 'unknown')}). Install that one."
            )
        content["schedule"] = ScheduleConfig(**content["schedule"])
        content["jitter"] = JitterConfig(**content["jitter"])
        if content.get("query") is not None:
            content["query"] = QueryFacts(**content["query"])
        content["churn"] = ChurnConfig(**content.get("churn", {}))  # Older bundles have none.
        content["class_names"] = tuple(content["class_names"])
        return cls(**content)


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """The public images that sampling starts from, each stored once."""

    images: UInt8Array  # [R, C, S, S]
    hashes: UInt8Array  # [R, 32], the content hash that seeds an image's noise path.
    image_of_entry: Int64Array  # [E]
    seed_of_entry: Int64Array  # [E]

    def __post_init__(self) -> None:
        if self.hashes.shape != (len(self.images), 32):
            raise ConfigError(
                f"References need one 32-byte hash an image, got {self.hashes.shape} for "
                f"{len(self.images)} images."
            )
        if self.image_of_entry.shape != self.seed_of_entry.shape:
            raise ConfigError(
                f"Entries have {len(self.image_of_entry)} images but {len(self.seed_of_entry)} "
                "seeds. Give one of each an entry."
            )

    def keep(self, entries: Int64Array) -> Self:
        """Returns only these entries int64 [e], in that order, and the images they need."""
        used, image_of_entry = np.unique(self.image_of_entry[entries], return_inverse=True)
        return type(self)(
            images=self.images[used],
            hashes=self.hashes[used],
            image_of_entry=image_of_entry.astype(np.int64),
            seed_of_entry=self.seed_of_entry[entries],
        )

    def to_bytes(self) -> bytes:
        """Returns an npz without pickle, the same bytes for the same references."""
        return pack_arrays({name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads ``to_bytes``."""
        return cls(**unpack_arrays(data, "references.npz"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """An opened bundle, with the parts that its source needs and no others."""

    facts: BundleFacts
    denoiser: Denoiser
    prior: TrajectoryPrior | None = None
    references: References | None = None
    public: PublicHalf | None = None
    answers: Answers | None = None

    def __post_init__(self) -> None:
        if (self.facts.source == "query") != (self.public is not None):
            raise ConfigError(
                "A public network and a knowledge base belong to a bundle exactly if its source is "
                f"'query', got source={self.facts.source!r}."
            )
        if (self.facts.source == "prior") != (self.prior is not None) or (
            (self.prior is None) != (self.references is None)
        ):
            raise ConfigError(
                "A prior and its references belong to a bundle exactly if its source is 'prior', "
                f"got source={self.facts.source!r}."
            )
        if self.prior is not None and self.references is not None:
            num_entries = len(self.references.image_of_entry)
            if len(self.prior.cluster_of_entry) != num_entries:
                raise ConfigError(
                    f"The prior knows {len(self.prior.cluster_of_entry)} entries, the references "
                    f"{num_entries}. Take both from one knowledge base."
                )
        if (self.facts.source == "answers") != (self.answers is not None):
            raise ConfigError(
                "Answers belong to a bundle exactly if its source is 'answers', got "
                f"source={self.facts.source!r}."
            )
        # Images without classes are one class to the network, and it has no name.
        named = max(1, len(self.facts.class_names))
        if self.answers is not None:
            if self.answers.num_classes != named or len(self.answers) != self.denoiser.num_classes:
                raise ConfigError(
                    f"{len(self.answers)} answers of {self.answers.num_classes} classes do not fit "
                    f"a network of {self.denoiser.num_classes} rows and {named} class names."
                )
        elif named != self.denoiser.num_classes:
            raise ConfigError(
                f"class_names has {len(self.facts.class_names)} names for "
                f"{self.denoiser.num_classes} classes. Name every class once."
            )

    def pruned(self) -> Self:
        """Returns the bundle without the references that no class can draw.

        Guarantee: every sample enters at the same image, noise seed and class as before.
        """
        if self.prior is None or self.references is None:
            return self
        reachable = self.prior.probabilities.sum(axis=0) > 0
        entries = np.flatnonzero(reachable[self.prior.cluster_of_entry])
        prior = TrajectoryPrior(self.prior.cluster_of_entry[entries], self.prior.probabilities)
        return type(self)(
            facts=self.facts,
            denoiser=self.denoiser,
            prior=prior,
            references=self.references.keep(entries),
        )


def write_bundle(bundle: Bundle, directory: Path) -> str:
    """Writes the folder, checksums last, and returns the SHA-256 of its checksums.

    Args:
      directory: must not exist or be empty, so that nothing else is released by accident.
    """
    if directory.exists() and any(directory.iterdir()):
        raise ConfigError(f"{directory} is not empty. Remove it, or write the bundle elsewhere.")
    save_denoiser(bundle.denoiser, directory)
    (directory / "model.json").write_text(json.dumps(bundle.facts.to_json(), indent=2))
    if bundle.prior is not None and bundle.references is not None:
        (directory / "prior.npz").write_bytes(bundle.prior.to_bytes())
        (directory / "references.npz").write_bytes(bundle.references.to_bytes())
    if bundle.public is not None:
        bundle.public.save(directory / PUBLIC)
    if bundle.answers is not None:
        (directory / ANSWERS).write_bytes(bundle.answers.to_bytes())
    return write_checksums(directory)


def open_bundle(directory: Path) -> Bundle:
    """Reads a bundle after checking every file of it.

    Raises:
      CheckpointError: a file is missing, changed or not listed; nothing was loaded then.
    """
    verify_bundle(directory)
    facts = BundleFacts.from_json(json.loads((directory / "model.json").read_text()))
    denoiser = load_denoiser(directory)
    if facts.source == "noise":
        return Bundle(facts=facts, denoiser=denoiser)
    if facts.source == "answers":
        answers = Answers.from_bytes((directory / ANSWERS).read_bytes())
        return Bundle(facts=facts, denoiser=denoiser, answers=answers)
    if facts.query is not None:
        half = PublicHalf.load(directory / PUBLIC, facts.query)
        return Bundle(facts=facts, denoiser=denoiser, public=half)
    return Bundle(
        facts=facts,
        denoiser=denoiser,
        prior=TrajectoryPrior.from_bytes((directory / "prior.npz").read_bytes()),
        references=References.from_bytes((directory / "references.npz").read_bytes()),
    )


def verify_bundle(directory: Path) -> str:
    """Compares every file with its checksum and returns the SHA-256 of the checksums.

    Raises:
      CheckpointError: names every file that is missing, changed or not listed.
    """
    return verify_checksums(directory)
