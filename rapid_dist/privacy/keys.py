"""The secret that all private randomness grows from.

A key lives in memory only: it comes from the operating system, reaches the other workers by a
collective broadcast, and is never written, logged, pickled or put into a checkpoint. A run that
is started again therefore gets a new key, and cannot repeat old noise.
"""

import hashlib
import hmac
import os
from typing import NoReturn

import numpy as np

from rapid_dist.confined import no_core_dumps

KEY_BYTES = 32


class SecretKey:
    """32 secret bytes that refuse to be shown, copied or pickled."""

    __slots__ = ("__material",)

    def __init__(self, material: bytes) -> None:
        assert len(material) == KEY_BYTES, "A key is 32 bytes."
        self.__material = bytes(material)

    @classmethod
    def generate(cls) -> "SecretKey":
        """Returns a new key from the operating system."""
        no_core_dumps()
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def from_bytes(cls, material: bytes) -> "SecretKey":
        """Returns the key whose bytes another worker broadcast."""
        no_core_dumps()
        return cls(material)

    def reveal(self) -> bytes:
        """Returns the bytes, for the collective broadcast and for nothing else."""
        return self.__material

    def derive(self, purpose: str, *parts: int) -> bytes:
        """Returns 32 bytes that are independent for every (purpose, parts).

        Args:
          purpose: what the bytes are for, such as "noise". Streams of two purposes never meet.
          parts: indices within the purpose, such as step, attempt and chunk; not negative.
        """
        name = purpose.encode()
        # Lengths first, so that no two lists of arguments encode to the same message.
        message = len(name).to_bytes(2, "big") + name + len(parts).to_bytes(2, "big")
        message += b"".join(part.to_bytes(8, "big") for part in parts)
        return hmac.new(self.__material, message, hashlib.sha256).digest()

    def generator(self, purpose: str, *parts: int) -> np.random.Generator:
        """Returns a Philox generator of its own for (purpose, parts)."""
        key = int.from_bytes(self.derive(purpose, *parts)[:16], "big")  # Philox keys: 128 bits.
        return np.random.Generator(np.random.Philox(key=key))

    def __repr__(self) -> str:
        return "SecretKey(hidden)"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("A SecretKey is never pickled or copied. Broadcast it to the workers.")
