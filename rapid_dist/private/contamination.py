"""Private images that lie among the public ones, near enough to be copies (P15).

Looking is a private pass: what it finds is internal. If the run is to *act* on it, by refusing or
by dropping a public source, then that act is a release, and one that no test of a single pair can
make privately: with or without one record, a private answer has nearly the same chance. So what is
asked is a count for every public source: each privacy unit that has near-duplicates in m of them
casts a vote of 1/sqrt(m) for each, of length 1 together, and the counts leave once, with noise.

Letters: N records, S public sources, m sources in which one unit has near-duplicates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from rapid_dist.collective import Collective
from rapid_dist.data.images import PublicImages, content_hashes
from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import SecretKey
from rapid_dist.privacy.mechanism import NoiseKind
from rapid_dist.privacy.noise import new_noise
from rapid_dist.retrieval.duplicates import Nearest, Prints, nearer, nearest_of, prints_of
from rapid_dist.retrieval.shard_maker import FeaturesOf

Policy = Literal["accept", "refuse", "drop"]

_TICKS = 16  # Parts of a vote. A source's sum in float32 is exact below 2^20 units.
_MOST_CHANCE = 0.05  # That noise alone condemns a source in which there is nothing.
_ROWS_AT_ONCE = 4_096  # Images that are looked at together: bounds memory only.
_QUANTILES = (0.0, 0.001, 0.01, 0.1, 0.5)


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """What is done about near-duplicates of private records in public sources.

    ``accept``: look, and write what was found where internal results are; nothing is charged.
    ``refuse``: release the noised count of every source, and end the run if one is too high.
    ``drop``: the same, and go on without the sources whose count is too high.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    policy: Policy = "accept"
    most_units: float = 100.0  # Noised count above which a source is refused or dropped.
    # Near enough to be a copy; null = not compared by this. Equal pixels always are one.
    hash_distance: float | None = 0.02  # Share of the gradient hash's bits that differ.
    feature_distance: float | None = 0.0005  # Squared, between unit vectors of the extractor.

    def __post_init__(self) -> None:
        if self.policy not in ("accept", "refuse", "drop"):
            raise ConfigError(
                f"contamination.policy must be accept, refuse or drop, got {self.policy!r}."
            )
        if not 0 < self.most_units < math.inf:
            raise ConfigError(
                f"contamination.most_units must be positive and finite, got {self.most_units}."
            )
        for name, most in (("hash_distance", 1), ("feature_distance", 4)):
            value = getattr(self, name)
            if value is not None and not 0 <= value < most:
                raise ConfigError(
                    f"contamination.{name} must be in [0, {most}) or null, got {value}."
                )

    @property
    def is_priced(self) -> bool:
        return self.policy != "accept"

    def check_noise(self, noise_multiplier: float | None) -> None:
        """Refuses a policy without its price, a price without its policy, and useless counts."""
        if not self.is_priced:
            if noise_multiplier is not None:
                raise ConfigError(
                    f"privacy.contamination_noise={noise_multiplier:g} pays for a count that "
                    "contamination.policy=accept never releases. Set it to null."
                )
            return
        if noise_multiplier is None:
            raise ConfigError(
                f"contamination.policy={self.policy} acts on private data by a noised count, which "
                "has to be paid for. Set privacy.contamination_noise, the count's noise in units."
            )
        chance = 0.5 * math.erfc(self.most_units / noise_multiplier / math.sqrt(2))
        if chance > _MOST_CHANCE:
            raise ConfigError(
                f"contamination.most_units={self.most_units:g} under noise of "
                f"{noise_multiplier:g} condemns a clean source with chance {chance:.2f}. "
                "Raise it to twice the noise, or lower privacy.contamination_noise."
            )


def nearest_public(
    images: np.ndarray,
    public: PublicImages,
    features_of: FeaturesOf,
    collective: Collective,
    on_rows: Callable[[int], None],
) -> Nearest:
    """Returns how near each of these private images comes to any public one.

    Workers share the features of the public images, and each compares images of its own. Row i is
    a function of image i and the public images alone.

    Args:
      images: uint8 [n, C, S, S], this worker's.
      on_rows: told how many more public images have been compared.
    """
    asked = _prints(images, features_of)
    found = Nearest(
        equal=np.zeros(len(asked), bool),
        bits=np.full(len(asked), np.inf, np.float32),
        features=np.full(len(asked), np.inf, np.float32),
    )
    for start in range(0, len(public), _ROWS_AT_ONCE):
        block = public.images[start : start + _ROWS_AT_ONCE]
        mine = np.array_split(np.arange(len(block)), collective.world_size)[collective.rank]
        features = torch.zeros(len(block), asked.features.shape[1])
        features[mine] = torch.from_numpy(features_of(block[mine]))
        collective.sum_(features.view(-1))  # Zeros but for one worker each: exact.
        others = prints_of(block, content_hashes(block), features.numpy())
        found = nearer(found, nearest_of(asked, others, block.shape[-1]))
        on_rows(len(block))
    return found


def _prints(images: np.ndarray, features_of: FeaturesOf) -> Prints:
    """Returns what images are compared by, some at a time: as floats they take much memory."""
    starts = range(0, max(1, len(images)), _ROWS_AT_ONCE)
    parts = [images[start : start + _ROWS_AT_ONCE] for start in starts]
    prints = [prints_of(part, content_hashes(part), features_of(part)) for part in parts]
    return Prints(
        hashes=[digest for one in prints for digest in one.hashes],
        codes=np.concatenate([one.codes for one in prints]),
        features=np.concatenate([one.features for one in prints]),
    )


def near(found: Nearest, config: ContaminationConfig) -> np.ndarray:
    """Returns which images, bool [n], are near enough to a public one to be its copy."""
    by_hash = config.hash_distance is not None and found.bits <= config.hash_distance
    by_features = config.feature_distance is not None and found.features <= config.feature_distance
    either: np.ndarray = found.equal | by_hash | by_features
    return either


def of_units(near_images: np.ndarray, groups: np.ndarray | None, num_units: int) -> np.ndarray:
    """Images bool [N, S] -> privacy units bool [num_units, S]: any image of a group counts."""
    if groups is None:
        return near_images
    units = np.zeros((num_units, near_images.shape[1]), bool)
    np.logical_or.at(units, groups, near_images)
    return units


def source_votes(near_units: np.ndarray) -> np.ndarray:
    """Units bool [U, S] -> votes of all of them together, float64 [S], in multiples of 1/16.

    Replacing one unit by nothing changes the votes by 1 at most in L2 norm.
    """
    sources = near_units.sum(axis=1, keepdims=True)
    shares = np.floor(_TICKS / np.sqrt(np.maximum(sources, 1))) / _TICKS
    votes: np.ndarray = (near_units * shares).sum(axis=0)
    return votes


def noised_votes(
    votes: np.ndarray,
    *,
    noise_multiplier: float,
    key: SecretKey,
    attempt: int,
    noise: NoiseKind = "fast",
) -> np.ndarray:
    """Returns the votes plus noise, float64 [S]; the query must be in the ledger before (P6)."""
    mechanism = new_noise(noise, 1.0, noise_multiplier, key, attempt, purpose="contamination")
    if mechanism.units is None:
        flat = torch.from_numpy(votes.astype(np.float32))
    else:
        flat = torch.from_numpy((votes * mechanism.units).astype(np.int64))  # Exact: 2^22 / 16.
    return mechanism.release(flat, step=0).double().numpy()


def described(
    sources: Sequence[Nearest], config: ContaminationConfig, near_images: np.ndarray
) -> list[dict[str, Any]]:
    """Returns, a source each, how many images are near it, and how near images come to it.

    Counts and quantiles, un-noised: internal. Which images they are is not said.
    """
    return [
        {
            "equal": int(one.equal.sum()),
            "by_hash": _within(one.bits, config.hash_distance),
            "by_features": _within(one.features, config.feature_distance),
            "near": int(near_images[:, number].sum()),
            "hash_quantiles": _quantiles(one.bits),
            "feature_quantiles": _quantiles(one.features),
        }
        for number, one in enumerate(sources)
    ]


def _within(distances: np.ndarray, most: float | None) -> int | None:
    return None if most is None else int((distances <= most).sum())


def _quantiles(distances: np.ndarray) -> dict[str, float]:
    finite = distances[np.isfinite(distances)]
    if len(finite) == 0:
        return {}
    return {f"{share:g}": float(np.quantile(finite, share)) for share in _QUANTILES}
