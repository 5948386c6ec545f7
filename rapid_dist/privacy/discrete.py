"""The discrete Gaussian of Canonne, Kamath and Steinke (2020), drawn exactly, many at a time.

Their Algorithms 2 and 3 (arXiv 2004.00010) with two changes that leave the law as it is. The
Laplace's parameter t is the power of two nearest the scale, so that a uniform whole number below it
is a few bits. A coin of chance exp(-x) is tossed by comparing a uniform number with exp(-x): in
floating point where the two are far apart, and where they are closer than floating point can vouch
for, in whole numbers, with as many bits of both as it takes. So no rounding, and no width of a
word, changes any probability; and the same stream gives the same values on every machine.
"""

from collections.abc import Callable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

_BLOCK = 2**15  # Candidates drawn at once: their arrays stay in a core's cache.
_DOUBT = 2.0**-36  # Closer comparisons are made in whole numbers. Float errors are below 2^-40.
_RARE = 2.0**-24  # Below it, 64 bits know a uniform number's logarithm too badly for _DOUBT.


class CipherStream:
    """Uniform words from the ChaCha20 keystream of a key that is used for nothing else."""

    def __init__(self, key: bytes) -> None:
        self._encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()

    def words(self, count: int) -> np.ndarray:
        """Returns the next uint64 [count], the same on machines of either byte order."""
        drawn = np.frombuffer(self._encryptor.update(bytes(8 * count)), "<u8")
        return drawn.astype(np.uint64, copy=False)


class ExactSampler:
    """Draws from laws that have exp in them, without error, from one stream of words."""

    def __init__(self, stream: CipherStream, doubt: float = _DOUBT) -> None:
        """Takes the stream; more ``doubt`` is slower, and changes no law."""
        self._stream = stream
        self._doubt = doubt

    def gaussian(self, scale: int, count: int) -> np.ndarray:
        """Returns int64 [count], k with chance proportional to exp(-k^2 / 2 scale^2).

        Algorithm 3: a discrete Laplace Y, kept with chance exp(-(|Y| - scale^2 / t)^2 / 2 scale^2).
        """
        bits = max(0, round(np.log2(scale)))
        parts: list[np.ndarray] = []
        missing = count
        while missing > 0:
            laplace = self._laplace(bits, min(_BLOCK, 64 + 5 * missing // 2))
            size = np.abs(laplace)
            offset = size / scale - scale / 2**bits

            def exact(place: int, size: np.ndarray = size) -> Fraction:
                away = (int(size[place]) << bits) - scale**2
                return Fraction(away**2, 2 * (scale << bits) ** 2)

            kept = laplace[self.coins(offset * offset / 2, exact)]
            parts.append(kept[:missing])
            missing -= len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _laplace(self, bits: int, count: int) -> np.ndarray:
        """Algorithm 2: k with chance proportional to exp(-|k| / t), t = 2^bits; some of count."""
        words = self._stream.words(count)
        low = (words & np.uint64(2**bits - 1)).astype(np.int64)
        negative = (words >> np.uint64(63)).astype(bool)
        share = low * 2.0**-bits
        kept = self.coins(share, lambda place: Fraction(share[place]))
        size = low[kept] + (self.geometric(int(kept.sum())) << bits)
        once = ~(negative[kept] & (size == 0))  # Or zero would have two chances.
        values: np.ndarray = np.where(negative[kept], -size, size)[once]
        return values

    def coins(self, x: np.ndarray, exact: Callable[[int], Fraction]) -> np.ndarray:
        """Returns bool [n], each True with chance exp(-x), independently.

        Args:
          x: float64 [n], not negative, known to 2^-40 or so.
          exact: the true x of a place, for comparisons that floating point cannot make.
        """
        words = self._stream.words(len(x))
        gap = words * 2.0**-64 - np.exp(-x)
        heads: np.ndarray = gap < 0
        for place in np.flatnonzero(np.abs(gap) <= self._doubt).tolist():
            heads[place] = _Uniform(self._stream, int(words[place])).is_below_exp(exact(place))
        return heads

    def geometric(self, count: int) -> np.ndarray:
        """Returns int64 [count], at least v with chance exp(-v): tosses of exp(-1) up to a tail."""
        words = self._stream.words(count)
        uniform = words * 2.0**-64
        level = -np.log(np.maximum(uniform, 2.0**-64))
        values = level.astype(np.int64)
        near = np.abs(level - np.rint(level)) <= self._doubt
        for place in np.flatnonzero(near | (uniform < _RARE)).tolist():
            number, value = _Uniform(self._stream, int(words[place])), 0
            while number.is_below_exp(Fraction(value + 1)):
                value += 1
            values[place] = value
        return values


class _Uniform:
    """A uniform number in [0, 1), of which as many bits are drawn as a comparison needs."""

    def __init__(self, stream: CipherStream, word: int) -> None:
        self._stream = stream
        self._bits, self._size = word, 64

    def is_below_exp(self, x: Fraction) -> bool:
        """Whether the number is below exp(-x): decided, never guessed."""
        if x == 0:
            return True
        while True:
            low, high = _exp_bounds(x, self._size)
            if self._bits + 1 <= low:
                return True
            if self._bits >= high:
                return False
            self._bits = self._bits << 64 | int(self._stream.words(1)[0])
            self._size += 64


def _exp_bounds(x: Fraction, size: int) -> tuple[int, int]:
    """Returns whole numbers below and above 2^size exp(-x)."""
    # Decimal's exp is correctly rounded; dividing first costs x units of its last digit.
    digits = size // 3 + 30 + len(str(int(x)))
    context = Context(prec=digits)
    quotient = context.divide(Decimal(-x.numerator), Decimal(x.denominator))
    value = context.multiply(context.exp(quotient), Decimal(2**size))
    error = context.scaleb(context.add(value, Decimal(1)), 20 + len(str(int(x))) - digits)
    low = context.subtract(value, error).to_integral_value(ROUND_FLOOR)
    high = context.add(value, error).to_integral_value(ROUND_CEILING)
    return max(0, int(low)), int(high)
