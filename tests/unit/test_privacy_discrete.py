"""Secure noise: reference streams, exact comparisons, and what it costs to be discrete."""

import json
import math
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.accounting import affordable_steps, epsilons, plan
from rapid_dist.privacy.discrete import CipherStream, ExactSampler, _Uniform
from rapid_dist.privacy.discreteness import discreteness
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.ledger import Ledger
from rapid_dist.privacy.mechanism import (
    MOST_VALUES,
    UNITS,
    DiscreteDpSgdEvent,
    DiscreteGaussianEvent,
    DpSgdEvent,
    GaussianEvent,
)
from rapid_dist.privacy.noise import CHUNK, SecureNoise
from rapid_dist.privacy.settings import Budget, PrivacyConfig
from rapid_dist.privacy.statement import Claim, claim
from tests.fakes import MemoryStorage

KEY = SecretKey(bytes(range(KEY_BYTES)))
DELTA = 1e-5
# Under KEY, purpose "test": what the first release of this module drew.
REFERENCE_SMALL = [4, -2, -5, -2, 3, 0, -1, -2, -1, 2, -6, 3]
REFERENCE_LARGE = [5780256, -2266794, -3257347, -619976]


def _stream(purpose: str = "test", *parts: int) -> CipherStream:
    return CipherStream(KEY.derive(purpose, *parts))


def test_the_stream_is_chacha20s_keystream() -> None:
    # The published keystream of ChaCha20 under an all-zero key and nonce.
    published = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert CipherStream(bytes(32)).words(4).astype("<u8").tobytes().hex() == published
    parts = CipherStream(bytes(32))
    assert np.array_equal(
        np.concatenate([parts.words(1), parts.words(3)]), CipherStream(bytes(32)).words(4)
    )


def test_the_values_under_a_key_are_the_same_for_ever() -> None:
    assert ExactSampler(_stream()).gaussian(3, 12).tolist() == REFERENCE_SMALL
    assert ExactSampler(_stream()).gaussian(UNITS, 4).tolist() == REFERENCE_LARGE


@pytest.mark.parametrize("scale", [1, 3, 5_000, UNITS, 3 * 2**40])
def test_whole_numbers_and_floats_decide_alike(scale: int) -> None:
    exact = ExactSampler(_stream("alike", scale), doubt=1.0).gaussian(scale, 300)
    assert np.array_equal(exact, ExactSampler(_stream("alike", scale)).gaussian(scale, 300))


@pytest.mark.parametrize("x", [Fraction(1, 7), Fraction(1), Fraction(22, 7), Fraction(40)])
def test_a_comparison_that_floats_cannot_make_is_made(x: Fraction) -> None:
    context = Context(prec=120)
    power = context.exp(context.divide(Decimal(-x.numerator), Decimal(x.denominator)))
    word = int(context.multiply(power, Decimal(2**64)))  # The 64 bits of exp(-x) itself.
    assert _Uniform(_stream(), word - 1).is_below_exp(x)
    assert not _Uniform(_stream(), word + 1).is_below_exp(x)
    tail = int(context.multiply(power, Decimal(2**128))) - (word << 64)
    for other in range(8):  # Equal in 64 bits: the next 64 decide.
        drawn = int(_stream("tie", other).words(1)[0])
        assert _Uniform(_stream("tie", other), word).is_below_exp(x) == (drawn < tail)


def test_noise_is_the_same_whether_it_was_prepared_or_not() -> None:
    def released(prepared: tuple[int, int] | None) -> torch.Tensor:
        noise = SecureNoise(1.0, 2.0, KEY, 1)
        if prepared is not None:
            noise.prepare(*prepared)
        return noise.release(torch.arange(1_000), 3)

    alone = released(None)
    assert torch.equal(released((3, 1_000)), alone)
    assert torch.equal(released((2, 1_000)), alone)  # Another step's noise is dropped, not used.
    assert torch.equal(released((3, 999)), alone)


def test_noise_of_a_whole_chunk_does_not_depend_on_the_length_of_the_vector() -> None:
    def released(size: int) -> torch.Tensor:
        return SecureNoise(1.0, 2.0, KEY, 1).release(torch.zeros(size, dtype=torch.int64), 0)

    assert torch.equal(released(CHUNK + 500)[:CHUNK], released(CHUNK + 9)[:CHUNK])


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"attempt": 2}, {"purpose": "prior"}, {"key": SecretKey(b"k" * KEY_BYTES)}],
)
def test_another_step_attempt_purpose_or_key_gives_other_noise(other: dict[str, object]) -> None:
    def released(step: int = 0, **own: object) -> torch.Tensor:
        noise = SecureNoise(1.0, 1.0, **{"key": KEY, "attempt": 1, "purpose": "noise", **own})  # type: ignore[arg-type]
        return noise.release(torch.zeros(50, dtype=torch.int64), step)

    assert not (released() == released(**other)).any()  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [torch.zeros(5), torch.zeros(5).double(), torch.eye(2).long()])
def test_only_whole_numbers_are_noised(total: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="one int64 vector"):
        SecureNoise(1.0, 1.0, KEY, 1).release(total, 0)


def test_a_vector_longer_than_was_charged_is_refused() -> None:
    noise = SecureNoise(1.0, 1.0, KEY, 1)
    with pytest.raises(ConfigError, match=r"privacy\.noise=fast"):
        noise.release(torch.zeros(1, dtype=torch.int64).expand(MOST_VALUES + 1), 0)


@pytest.mark.parametrize("noise", [1e-9, 1e9])
def test_a_scale_for_which_nothing_is_proved_is_refused(noise: float) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier="):
        DiscreteGaussianEvent(noise_multiplier=noise, units=UNITS, values=1)


def _log_ratio(scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Places k, and log R(k) / Q(k) of the rounded against the discrete Gaussian."""
    places = np.arange(0, 6 * scale + 1)
    upper = scipy.stats.norm.sf((places - 0.5) / scale) - scipy.stats.norm.sf(
        (places + 0.5) / scale
    )
    everywhere = np.exp(-(np.arange(-20 * scale, 20 * scale + 1) ** 2.0) / (2 * scale**2))
    weights = np.exp(-(places**2.0) / (2 * scale**2))
    return places, np.log(upper) - np.log(weights / everywhere.sum())


@pytest.mark.parametrize("scale", [16, 25, 60])
def test_the_ratios_of_the_derivation_hold(scale: int) -> None:
    places, ratio = _log_ratio(scale)
    assert (-ratio).max() <= 1 / (24 * scale**2) * (1 + 1e-6)
    assert (ratio - places**2 / (24 * scale**4)).max() <= 1e-9


def test_the_ratio_test_would_notice_half_the_bounds() -> None:
    places, ratio = _log_ratio(16)
    assert (-ratio).max() > 1 / (48 * 16**2)
    assert (ratio - places**2 / (48 * 16**4)).max() > 1e-6


STEP = DiscreteDpSgdEvent(
    sample_rate=0.03, noise_multiplier=3.0, steps=500, units=2**12, values=1_000
)
QUERY = DiscreteGaussianEvent(noise_multiplier=20.0, units=2**12, values=1_000)


def test_discrete_releases_cost_what_gaussian_ones_cost_and_their_difference() -> None:
    price = discreteness([STEP, QUERY], DELTA)
    scales = (3 * 2**12, 20 * 2**12)
    by_hand = (500_000 + 1_000) / (6 * scales[0] ** 2) + (1_000 + 1_000) / (6 * scales[1] ** 2)
    assert price.epsilon == pytest.approx(by_hand)
    assert price.delta == pytest.approx(DELTA * math.exp(-price.epsilon), rel=2e-9)
    assert price.delta < DELTA * math.exp(-price.epsilon)
    gaussian = [
        DpSgdEvent(sample_rate=0.03, noise_multiplier=3.0, steps=500),
        GaussianEvent(noise_multiplier=20.0),
    ]
    ideal = epsilons(gaussian, price.delta)
    found = epsilons([STEP, QUERY], DELTA)
    assert found.reported == pytest.approx(ideal.reported + price.epsilon, abs=1e-12)
    assert found.reported > epsilons(gaussian, DELTA).reported


def test_a_coarser_grid_and_a_longer_vector_cost_more() -> None:
    def cost(units: int, values: int) -> float:
        event = DiscreteGaussianEvent(noise_multiplier=1.0, units=units, values=values)
        return discreteness([event], DELTA).epsilon

    assert cost(2**12, 1_000) < cost(2**12, 2_000) < cost(2**10, 2_000)


def test_gaussian_releases_pay_nothing_for_being_discrete() -> None:
    event = GaussianEvent(noise_multiplier=3.0)
    assert discreteness([event], DELTA).delta == DELTA
    assert discreteness([event], DELTA).epsilon == 0


def test_a_secure_plan_is_of_discrete_events_and_meets_its_budget() -> None:
    config = PrivacyConfig(epsilon=3, delta=1e-4, expected_batch=200, steps=40, noise="secure")
    found = plan(config, 1_500)
    assert [type(event) for event in found.events] == [DiscreteGaussianEvent, DiscreteDpSgdEvent]
    assert found.epsilons.reported <= 3
    assert found.epsilons == epsilons(found.events, 1e-4)
    assert found.dp_sgd is not None
    step = found.dp_sgd.event()
    spent = found.events[:1]
    steps = affordable_steps(spent, Budget(epsilon=3, delta=1e-4), step, at_most=40)
    assert steps == 40


def test_a_secure_plan_costs_hardly_more_noise_than_a_fast_one() -> None:
    options = {"epsilon": 3.0, "delta": 1e-4, "expected_batch": 200.0, "steps": 40}
    fast = plan(PrivacyConfig(**options), 1_500).dp_sgd  # type: ignore[arg-type]
    secure = plan(PrivacyConfig(**options, noise="secure"), 1_500).dp_sgd  # type: ignore[arg-type]
    assert fast is not None
    assert secure is not None
    assert 1 - 1e-4 < secure.noise_multiplier / fast.noise_multiplier < 1.001


def _claimed(*events: GaussianEvent | DpSgdEvent) -> Claim:
    ledger = Ledger.open(MemoryStorage(), "secret")
    attempt = ledger.begin_attempt("run")
    for event in events:
        ledger.append("query", "run", attempt=attempt, event=event)
    config = PrivacyConfig(epsilon=5, delta=DELTA, noise_multiplier=None)
    return claim(config, 1_000, ledger, "run")


def test_the_claim_says_which_noise_the_ledger_holds() -> None:
    fast = GaussianEvent(noise_multiplier=20.0)
    assert "ideal Gaussian" in _claimed(fast).sentences[-1]
    assert "discrete" not in _claimed(fast).sentences[-1]
    assert "discrete Gaussian, drawn exactly" in _claimed(QUERY).sentences[-1]
    assert "ideal Gaussian" not in _claimed(QUERY).sentences[-1]
    mixed = _claimed(QUERY, fast).sentences[-1]
    assert mixed.startswith("1 of 2 releases")
    assert "ideal Gaussian" in mixed


def test_epsilon_from_the_ledger_pays_for_discreteness() -> None:
    assert _claimed(QUERY).spent == epsilons([QUERY], DELTA)
    assert _claimed(QUERY).spent.reported > _claimed(GaussianEvent(noise_multiplier=20.0)).spent.pld


def test_entries_written_before_there_was_secure_noise_are_read_as_they_are() -> None:
    storage = MemoryStorage()
    ledger = Ledger.open(storage, "secret")
    attempt = ledger.begin_attempt("run")
    ledger.append("query", "run", attempt=attempt, event=GaussianEvent(noise_multiplier=2.0))
    ledger.append("query", "run", attempt=attempt, event=QUERY)
    old, new = (json.loads(data)["event"] for data in list(storage.files.values())[1:])
    assert old == {"mechanism": "gaussian", "noise_multiplier": 2.0}
    assert new == {
        "mechanism": "discrete_gaussian", "noise_multiplier": 20.0, "units": 4096, "values": 1_000,
    }  # fmt: skip
    assert [type(e) for e in Ledger.open(storage, "secret").events()] == [
        GaussianEvent,
        DiscreteGaussianEvent,
    ]
