"""Secret keys stay in memory, and give every purpose a stream of its own."""

import copy
import itertools
import json
import pickle
from dataclasses import asdict, dataclass

import pytest

from rapid_dist.privacy.keys import KEY_BYTES, SecretKey

MATERIAL = bytes(range(KEY_BYTES))


@dataclass
class _Holder:
    key: SecretKey


def test_a_key_is_never_shown() -> None:
    key = SecretKey(MATERIAL)
    for text in (repr(key), str(key), f"{key}", repr(_Holder(key)), json.dumps(key, default=str)):
        assert "hidden" in text
        assert MATERIAL.hex() not in text
        assert repr(MATERIAL) not in text
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize(
    "leak",
    [
        pickle.dumps,
        copy.copy,
        copy.deepcopy,
        lambda key: asdict(_Holder(key)),
        lambda key: pickle.dumps({"state": [key]}),
        json.dumps,
    ],
)
def test_a_key_refuses_to_be_written_or_copied(leak) -> None:
    with pytest.raises(TypeError):
        leak(SecretKey(MATERIAL))


def test_every_generated_key_is_new() -> None:
    keys = {SecretKey.generate().reveal() for _ in range(50)}
    assert len(keys) == 50
    assert {len(key) for key in keys} == {KEY_BYTES}


def test_a_broadcast_key_derives_the_same_bytes() -> None:
    key = SecretKey.generate()
    copied = SecretKey.from_bytes(key.reveal())
    assert copied.derive("noise", 1, 2, 3) == key.derive("noise", 1, 2, 3)


def test_no_two_purposes_or_indices_share_a_stream() -> None:
    key = SecretKey(MATERIAL)
    names = ["noise", "poisson", "nois", "noise\x00", ""]
    parts = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (256,), (2**40,)]
    derived = {key.derive(name, *part) for name, part in itertools.product(names, parts)}
    assert len(derived) == len(names) * len(parts)


def test_another_key_gives_other_streams() -> None:
    assert SecretKey(MATERIAL).derive("noise", 0) != SecretKey(bytes(KEY_BYTES)).derive("noise", 0)


def test_the_generator_of_one_index_is_always_the_same() -> None:
    key = SecretKey(MATERIAL)
    again = key.generator("noise", 4).random(5)
    assert (key.generator("noise", 4).random(5) == again).all()
    assert (key.generator("noise", 5).random(5) != again).all()
