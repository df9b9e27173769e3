"""Random draws that are the same on every machine and with every version of numpy.

numpy promises a stable *raw* bit stream of its Philox generator and nothing about its distributions, so every draw of
this project starts from raw 64-bit words and is turned into numbers here, by arithmetic that IEEE 754 fixes exactly.

A stream of draws is named by three whole numbers: the seed, a purpose and an index (a layer, a mask id). They form
Philox's 128-bit key, so streams never overlap and any of them can be regenerated alone:

    key[0] = seed            (taken modulo 2**64)
    key[1] = purpose * 2**48 + index
"""

from enum import IntEnum
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64
_INDEX_LIMIT = 2**48
_NORMAL_LEVELS = 2**16


class Purpose(IntEnum):
    """What a stream of draws is for; part of its key, so the numbers must never change."""

    WEIGHTS = 1
    SCORES = 2
    REKINDLE = 3
    CONTEXTS = 16
    RANK_ONE = 17
    RESERVOIR = 18


def raw_words(seed: int, purpose: Purpose, index: int, count: int) -> NDArray[np.uint64]:
    """`count` raw 64-bit words of the stream named by (seed, purpose, index)."""
    if not 0 <= index < _INDEX_LIMIT:
        raise ValueError(f"index {index} is outside 0..2**48-1")
    key = np.array([seed % _WORD, int(purpose) * _INDEX_LIMIT + index], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(count).astype("<u8")


def bits(seed: int, purpose: Purpose, index: int, count: int) -> NDArray[np.uint8]:
    """`count` random bits (0 or 1, uint8), least significant bit of each word first."""
    words = raw_words(seed, purpose, index, -(-count // 64))
    return np.unpackbits(words.view(np.uint8), bitorder="little", count=count)


def uniforms(seed: int, purpose: Purpose, index: int, count: int) -> NDArray[np.float32]:
    """`count` float32 values, uniform on the multiples of 2**-24 in [0, 1): exact, so rounding cannot differ."""
    halves = raw_words(seed, purpose, index, -(-count // 2)).view("<u4")[:count]
    return (halves >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


@lru_cache(maxsize=1)
def _normal_table() -> NDArray[np.float32]:
    """Quantiles of the standard normal at the 2**16 interval mid-points, on a grid of 2**-16.

    The grid is far coarser than what two machines' logarithms could disagree about, which is what makes the table
    the same everywhere. It ends at +-4.2 standard deviations.
    """
    upper = [NormalDist().inv_cdf((i + 0.5) / _NORMAL_LEVELS) for i in range(_NORMAL_LEVELS // 2, _NORMAL_LEVELS)]
    half = np.round(np.array(upper) * 2.0**16) * 2.0**-16
    return np.concatenate([-half[::-1], half]).astype(np.float32)


def normals(seed: int, purpose: Purpose, index: int, count: int) -> NDArray[np.float32]:
    """`count` float32 draws of the standard normal, quantised to 2**16 equally likely levels."""
    levels = raw_words(seed, purpose, index, -(-count // 4)).view("<u2")[:count]
    quantiles: NDArray[np.float32] = _normal_table()[levels]
    return quantiles
