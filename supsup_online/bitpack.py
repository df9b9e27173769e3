"""Masks as bits: how a network's mask lies in 64-bit words, and the way there and back.

Layout. The weights feeding one output neuron are one *row* of mask bits. Rows follow each other in the order of the
flat weight vector; each starts on a 64-bit word, weight j of a row is bit j % 64 (least significant first) of its
word j // 64, and the padding bits behind a row are zero. A kernel can therefore walk a neuron's inputs word by word,
and a count of ones needs no masking. LeNet 300-100 on MNIST with 500 outputs: 315,200 weights in 5,400 words, 43,200
bytes.

The bytes that are stored (`codec`) hold no padding; that is a matter of storage, this one of speed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.errors import CodecError
from supsup_online.models import Architecture

WORD_BITS = 64

Bits = NDArray[np.bool_]
Words = NDArray[np.uint64]
Masks = Words | Tensor  # of several masks (k, word_count): uint64 here, or int64 with the same bits on a device
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True)
class MaskLayout:
    """Where each layer's mask bits lie; `shapes` are (rows, columns) per layer."""

    shapes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, architecture: Architecture) -> "MaskLayout":
        """The layout of an architecture: one row per output neuron (or channel) of each layer."""
        shapes = (layer.weight_shape for layer in architecture.layers)
        return cls(tuple((shape[0], math.prod(shape[1:])) for shape in shapes))

    @cached_property
    def weight_count(self) -> int:
        """P, the number of mask bits that mean something."""
        return sum(rows * columns for rows, columns in self.shapes)

    @cached_property
    def word_count(self) -> int:
        """Words of one packed mask, row padding included."""
        return sum(rows * _words_per_row(columns) for rows, columns in self.shapes)

    def pack(self, mask: Bits) -> Words:
        """Flat mask (P,) of booleans -> words (word_count,)."""
        words = np.empty(self.word_count, dtype=np.uint64)
        for (rows, columns), bits, target in self._parts(mask, words):
            padded = np.zeros((rows, _words_per_row(columns) * WORD_BITS), dtype=np.bool_)
            padded[:, :columns] = bits.reshape(rows, columns)
            target[:] = np.packbits(padded, axis=1, bitorder="little").view("<u8").reshape(-1)
        return words

    def unpack(self, words: Words) -> Bits:
        """Words (word_count,) -> flat mask (P,) of booleans."""
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
        """Raise CodecError unless `words` has the right size and its padding bits are zero."""
        if words.dtype != np.uint64 or words.shape != (self.word_count,):
            raise CodecError(f"expected {self.word_count} words of 64 bits, got {words.dtype} {words.shape}")
        if not np.array_equal(self.pack(self.unpack(words)), words):
            raise CodecError("padding bits behind a row are not zero")

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
    """What `MaskLayout.pack` means, one bit at a time."""
    words = [0] * layout.word_count
    bit, word = 0, 0
    for rows, columns in layout.shapes:
        for _ in range(rows):
            for j in range(columns):
                words[word + j // WORD_BITS] |= int(mask[bit + j]) << (j % WORD_BITS)
            bit, word = bit + columns, word + _words_per_row(columns)
    return np.array(words, dtype=np.uint64)


def _words_per_row(columns: int) -> int:
    return -(-columns // WORD_BITS)
