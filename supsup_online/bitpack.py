"""Masks as bits: how a network's mask lies in 64-bit words, and the way there and back.

Layout. The weights feeding one output neuron are one *row* of mask bits. Rows follow each other in the order of the
flat weight vector; each starts on a 64-bit word, weight j of a row is bit j % 64 (least significant first) of its
word j // 64, and the padding bits behind a row are zero. A kernel can therefore walk a neuron's inputs word by word,
and a count of ones needs no masking. LeNet 300-100 on MNIST with 500 outputs: 315,200 weights in 5,400 words, 43,200
bytes.

Where a network's normalisations keep statistics (`parts`), those are part of a mask: F float32 lie behind the bits in
the same array of words, little-endian, and zeros fill up the last word. Whoever stacks, copies or swaps masks moves
them along without knowing; whoever counts ones looks at the first `bit_words` only.

The bytes that are stored (`codec`) hold no padding; that is a matter of storage, this one of speed.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.errors import CodecError
from supsup_online.models import Architecture
from supsup_online.parts import statistics_count

WORD_BITS = 64
_FLOATS = 2  # in a word

Bits = NDArray[np.bool_]
Words = NDArray[np.uint64]
Statistics = NDArray[np.float32]
Masks = Words | Tensor  # of several masks (k, word_count): uint64 here, or int64 with the same bits on a device
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class MaskLayout:
    """Where each layer's mask bits lie, and the statistics behind them.

    Attributes:
        shapes: (rows, columns) per layer.
        channels: of each normalisation whose statistics are kept.
    """

    shapes: tuple[tuple[int, int], ...]
    channels: tuple[int, ...] = ()

    @classmethod
    def of(cls, architecture: Architecture) -> "MaskLayout":
        """The layout of an architecture: one row per output neuron (or channel) of each layer."""
        shapes = (layer.weight_shape for layer in architecture.layers)
        return cls(tuple((shape[0], math.prod(shape[1:])) for shape in shapes), architecture.body.channels)

    @cached_property
    def weight_count(self) -> int:
        """P, the number of mask bits that mean something."""
        return sum(rows * columns for rows, columns in self.shapes)

    @cached_property
    def bit_words(self) -> int:
        """Words of a mask's bits, row padding included."""
        return sum(rows * _words_per_row(columns) for rows, columns in self.shapes)

    @cached_property
    def statistics_count(self) -> int:
        """F, the statistics kept with a mask; 0 where there are none."""
        return statistics_count(self.channels)

    @cached_property
    def word_count(self) -> int:
        """Words of one packed mask, statistics included."""
        return self.bit_words + -(-self.statistics_count // _FLOATS)

    @property
    def fresh_statistics(self) -> Statistics:
        """Of a mask that has seen no batch: means 0, variances 1."""
        fresh = np.zeros(self.statistics_count, dtype=np.float32)
        fresh[self.variances] = 1
        return fresh

    @cached_property
    def variances(self) -> Bits:
        """Which of the statistics are variances, (F,)."""
        kinds = [np.repeat(np.array([False, True]), count) for count in self.channels]
        return np.concatenate([np.zeros(min(1, len(kinds)), dtype=np.bool_), *kinds])

    def statistics(self, words: Words) -> Statistics:
        """A copy of the statistics in words (word_count,): float32 (F,)."""
        behind = words[self.bit_words :].astype("<u8").view("<f4")[: self.statistics_count]
        return behind.astype(np.float32)

    def pack(self, mask: Bits, statistics: Statistics | None = None) -> Words:
        """Flat mask (P,) of booleans, and statistics (F,), fresh ones unless given -> words (word_count,)."""
        words = np.zeros(self.word_count, dtype=np.uint64)
        if self.statistics_count:
            behind = np.zeros(_FLOATS * (self.word_count - self.bit_words), dtype="<f4")
            behind[: self.statistics_count] = self.fresh_statistics if statistics is None else statistics
            words[self.bit_words :] = behind.view("<u8")
        for (rows, columns), bits, target in self._parts(mask, words):
            padded = np.zeros((rows, _words_per_row(columns) * WORD_BITS), dtype=np.bool_)
            padded[:, :columns] = bits.reshape(rows, columns)
            target[:] = np.packbits(padded, axis=1, bitorder="little").view("<u8").reshape(-1)
        return words

    def unpack(self, words: Words) -> Bits:
        """Words (word_count,) -> flat mask (P,) of booleans; `statistics` gives what lies behind it."""
        mask = np.empty(self.weight_count, dtype=np.bool_)
        for (rows, columns), bits, source in self._parts(mask, words):
            as_bytes = source.astype("<u8", copy=False).view(np.uint8).reshape(rows, -1)
            bits[:] = np.unpackbits(as_bytes, axis=1, bitorder="little", count=columns).reshape(-1)
        return mask

    def pad(self, vector: NDArray[Number]) -> NDArray[Number]:
        """A number per weight (P,) -> the same with zeros where the bits have padding: (64 * word_count,)."""
        padded = np.zeros(self.word_count * WORD_BITS, dtype=vector.dtype)
        for (rows, columns), part, words in self.places():
            padded[words].reshape(rows, -1)[:, :columns] = vector[part].reshape(rows, columns)
        return padded

    def unpad(self, padded: NDArray[Number]) -> NDArray[Number]:
        """The inverse of `pad`: (64 * word_count,) -> (P,)."""
        vector = np.empty(self.weight_count, dtype=padded.dtype)
        for (rows, columns), part, words in self.places():
            vector[part].reshape(rows, columns)[:] = padded[words].reshape(rows, -1)[:, :columns]
        return vector

    def check(self, words: Words) -> None:
        """Raise CodecError unless `words` has the right size and its padding is zero; statistics may be anything."""
        if words.dtype != np.uint64 or words.shape != (self.word_count,):
            raise CodecError(f"expected {self.word_count} words of 64 bits, got {words.dtype} {words.shape}")
        if not np.array_equal(self.pack(self.unpack(words), self.statistics(words)), words):
            raise CodecError("padding bits behind a row, or behind the statistics, are not zero")

    def places(self) -> Iterator[tuple[tuple[int, int], slice, slice]]:
        """Shape of each layer, where its weights lie, and where they lie when padded."""
        bit, place = 0, 0
        for rows, columns in self.shapes:
            next_bit, next_place = bit + rows * columns, place + rows * _words_per_row(columns) * WORD_BITS
            yield (rows, columns), slice(bit, next_bit), slice(place, next_place)
            bit, place = next_bit, next_place

    def _parts(self, mask: Bits, words: Words) -> Iterator[tuple[tuple[int, int], Bits, Words]]:
        bit, word = 0, 0
        for rows, columns in self.shapes:
            next_bit, next_word = bit + rows * columns, word + rows * _words_per_row(columns)
            yield (rows, columns), mask[bit:next_bit], words[word:next_word]
            bit, word = next_bit, next_word


def pack_reference(layout: MaskLayout, mask: Bits) -> Words:
    """What `MaskLayout.pack` means, one bit and one number at a time."""
    words = [0] * layout.word_count
    bit, word = 0, 0
    for rows, columns in layout.shapes:
        for _ in range(rows):
            for j in range(columns):
                words[word + j // WORD_BITS] |= int(mask[bit + j]) << (j % WORD_BITS)
            bit, word = bit + columns, word + _words_per_row(columns)
    for j, number in enumerate(layout.fresh_statistics.tolist()):
        (code,) = struct.unpack("<I", struct.pack("<f", number))
        words[word + j // _FLOATS] |= code << (j % _FLOATS * 32)
    return np.array(words, dtype=np.uint64)


def _words_per_row(columns: int) -> int:
    return -(-columns // WORD_BITS)
