"""Noise is a pure function of key, step, attempt and place, whoever makes it."""

import pytest
import torch

from rapid_dist.errors import ConfigError
from rapid_dist.privacy.keys import KEY_BYTES, SecretKey
from rapid_dist.privacy.noise import CHUNK, add_noise_

KEY = SecretKey(bytes(range(KEY_BYTES)))


def test_workers_with_the_broadcast_key_hold_bit_equal_noise() -> None:
    sum_ = torch.linspace(-5, 5, CHUNK + 77)
    here = add_noise_(sum_.clone(), 2.0, KEY, step=3, attempt=1)
    there = add_noise_(sum_.clone(), 2.0, SecretKey.from_bytes(KEY.reveal()), step=3, attempt=1)
    assert torch.equal(here, there)


def test_noise_is_added_once_and_in_place() -> None:
    flat = torch.full((100,), 7.0)
    same = add_noise_(flat, 2.0, KEY, step=3, attempt=1)
    alone = add_noise_(torch.zeros(100), 2.0, KEY, step=3, attempt=1)
    assert same is flat
    torch.testing.assert_close(flat, 7.0 + alone)
    assert alone.abs().max() > 1


def test_noise_at_a_place_does_not_depend_on_the_length_of_the_vector() -> None:
    long = add_noise_(torch.zeros(CHUNK + 50), 1.0, KEY, step=0, attempt=1)
    short = add_noise_(torch.zeros(CHUNK + 9), 1.0, KEY, step=0, attempt=1)
    assert torch.equal(long[: CHUNK + 9], short)


def test_noise_scales_with_its_stddev() -> None:
    one = add_noise_(torch.zeros(100), 1.0, KEY, step=0, attempt=1)
    three = add_noise_(torch.zeros(100), 3.0, KEY, step=0, attempt=1)
    torch.testing.assert_close(three, 3 * one)


@pytest.mark.parametrize(
    "other",
    [{"step": 1}, {"attempt": 2}, {"purpose": "prior"}, {"key": SecretKey(b"k" * KEY_BYTES)}],
)
def test_another_step_attempt_purpose_or_key_gives_other_noise(other: dict[str, object]) -> None:
    usual = {"key": KEY, "step": 0, "attempt": 1, "purpose": "noise"}
    one = add_noise_(torch.zeros(50), 1.0, **usual)  # type: ignore[arg-type]
    two = add_noise_(torch.zeros(50), 1.0, **(usual | other))  # type: ignore[arg-type]
    assert not torch.isclose(one, two).any()


@pytest.mark.parametrize("stddev", [0.0, -1.0, float("nan"), float("inf")])
def test_a_release_without_finite_noise_is_refused(stddev: float) -> None:
    with pytest.raises(ConfigError, match="stddev must be positive"):
        add_noise_(torch.zeros(5), stddev, KEY, step=0, attempt=1)


@pytest.mark.parametrize("flat", [torch.zeros(5).half(), torch.zeros(5).double(), torch.eye(2)])
def test_only_a_flat_float32_sum_is_noised(flat: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="one float32 vector"):
        add_noise_(flat, 1.0, KEY, step=0, attempt=1)
