"""Many masks at once on the CPU, straight from their packed bits. The plain twins are in `many_masks`.

    masked_dots         one vector against every mask: the gradient to the alphas of a superposition
    superposed_weights  the weights under a superposition with equal alphas
    superposed_counts   how many of some masks keep each edge
    exact_logits        the outputs of every mask for a few inputs, layer by layer, nothing unpacked
    apply_mask          one mask unpacked, times the weights
    look_up             bytes as the numbers they stand for

All read `words` (slots, word_count) through `rows`, the slots that take part, so that no masks are copied. Vectors
over weights are padded like the bits (`MaskLayout.pad`). Memory beside the arguments: a megabyte a thread.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.bitpack import WORD_BITS, MaskLayout, Words
from supsup_online.kernels.compiled import compiled, spread
from supsup_online.kernels.masked import (
    MASKS,
    ROWS,
    add_masked,
    masked_neuron,
    masked_row,
    masked_rows,
    read_counters,
)

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]

_STRETCH: Final = 128  # words of a vector taken at a time: 32 KB, a first-level cache
_TILE: Final = 128  # words whose counters are kept at a time
_NEURONS: Final = 16  # of which weights are kept near while masks pass by
_SMALL: Final = 8  # fewest masks worth a thread


def masked_dots(words: Words, rows: Slots, vector: Floats, *, threads: int | None = None) -> Floats:
    """Dot product of a padded vector (64 * word_count,) with the masks in some slots: float32 (k,).

    Args:
        words: uint64 (slots, word_count), C-contiguous.
        rows: int64 (k,), slots; may repeat.
        vector: float32, padded.
        threads: how many to use; None: as many as torch.
    """
    out = np.empty(len(rows), dtype=np.float32)
    flat, starts = _checked(words, rows, vector)
    spread(len(rows), lambda a, b: _masked_dots(flat, starts, vector, out, a, b), threads=threads, least=_SMALL)
    return out


def superposed_counts(words: Words, rows: Slots, *, threads: int | None = None) -> Floats:
    """How many of the masks in some slots keep each edge, padded: float32 (64 * word_count,), exact below 2**24.

    Args:
        words: uint64 (slots, word_count), C-contiguous.
        rows: int64 (k,), slots; may repeat.
        threads: how many to use; None: as many as torch.
    """
    _, starts = _checked(words, rows)
    out = np.empty(words.shape[1] * WORD_BITS, dtype=np.float32)
    flat, planes = words.reshape(-1), _planes(rows)
    spread(words.shape[1], lambda a, b: _counts(flat, starts, planes, out, a, b), threads=threads, least=_TILE)
    return out


def superposed_weights(words: Words, rows: Slots, weights: Floats, *, threads: int | None = None) -> Floats:
    """Effective weights of the masks in some slots superposed with equal alphas: float32, padded (64 * word_count,).

    Args:
        words: uint64 (slots, word_count), C-contiguous.
        rows: int64 (k,), slots; may repeat.
        weights: the frozen weights, float32, padded.
        threads: how many to use; None: as many as torch.
    """
    flat, starts = _checked(words, rows, weights)
    out, planes, share = np.empty_like(weights), _planes(rows), np.float32(1 / max(1, len(rows)))
    spread(
        words.shape[1],
        lambda a, b: _superposed(flat, starts, planes, weights, share, out, a, b),
        threads=threads,
        least=_TILE,
    )
    return out


def _planes(rows: Slots) -> int:
    """Binary digits of a counter; the adders need four."""
    return max(4, len(rows).bit_length())


def exact_logits(
    layout: MaskLayout, words: Words, rows: Slots, weights: Floats, x: Floats, *, threads: int | None = None
) -> Floats:
    """Outputs of a fully connected network, ReLU between its layers, under each mask: float32 (k, n, outputs).

    Args:
        layout: of the masks.
        words: uint64 (slots, word_count), C-contiguous.
        rows: int64 (k,), slots; may repeat.
        weights: the frozen weights, float32, padded (64 * word_count,).
        x: inputs, float32 (n, inputs).
        threads: how many to use; None: as many as torch.
    """
    _, starts = _checked(words, rows, weights)
    flat, table = words.reshape(-1), _layers(layout)
    padded = np.zeros((len(x), int(table[0, 1]) * WORD_BITS), dtype=np.float32)
    padded[:, : x.shape[1]] = x
    out = np.empty((len(rows), len(x), layout.shapes[-1][0]), dtype=np.float32)
    if out.size:
        spread(
            len(rows),
            lambda a, b: _exact(flat, starts, table, weights, padded, out, a, b),
            threads=threads,
            least=_SMALL,
        )
    return out


def apply_mask(layout: MaskLayout, words: Words, weights: Floats, out: Floats) -> None:
    """The effective weights of one mask, W * M: words (word_count,), weights and out float32 (P,), not padded."""
    if words.shape != (layout.word_count,) or not weights.shape == out.shape == (layout.weight_count,):
        raise ValueError("mask and weights do not fit the layout")
    weight = word = 0
    for neurons, columns in layout.shapes:
        per_row = -(-columns // WORD_BITS)
        parts = slice(weight, weight + neurons * columns)
        _apply(words[word:], weights[parts].reshape(neurons, -1), out[parts].reshape(neurons, -1))
        weight, word = parts.stop, word + neurons * per_row


def _checked(words: Words, rows: Slots, vector: Floats | None = None) -> tuple[Words, Slots]:
    """The words as one flat array and where each mask begins in it. No index below is checked again.

    Raises:
        ValueError: a shape, type or slot that would lead outside the arrays.
    """
    if words.dtype != np.uint64 or words.ndim != 2 or not words.flags.c_contiguous:
        raise ValueError("masks must be a C-contiguous array of uint64 (slots, words)")
    if len(rows) and not (rows.min() >= 0 and rows.max() < len(words)):
        raise ValueError("a slot lies outside the masks")
    if vector is not None and (vector.dtype != np.float32 or vector.shape != (words.shape[1] * WORD_BITS,)):
        raise ValueError("a vector over weights must be float32 and padded like the masks")
    return words.reshape(-1), np.asarray(rows, dtype=np.int64) * words.shape[1]


def _layers(layout: MaskLayout) -> NDArray[np.int64]:
    """(neurons, words per neuron, first word) of each layer."""
    table, word = [], 0
    for neurons, columns in layout.shapes:
        per_row = -(-columns // WORD_BITS)
        table.append((neurons, per_row, word))
        word += neurons * per_row
    return np.array(table, dtype=np.int64)


@compiled
def look_up(table: Floats, codes: NDArray[np.uint8], out: Floats) -> None:
    """table[codes]: float32 (256,), uint8 (n,) -> out (n,)."""
    for i in range(len(codes)):
        out[i] = table[codes[i]]


@compiled
def _masked_dots(words: Words, starts: Slots, vector: Floats, out: Floats, first: int, last: int) -> None:
    count, length = last - first, len(vector) // 64
    groups = (count + MASKS - 1) // MASKS
    sums = np.zeros((groups, MASKS, 64), np.float32)
    begin = np.empty((groups, MASKS), np.int64)
    for i in range(groups * MASKS):  # the last group is filled up with its last mask
        begin[i // MASKS, i % MASKS] = starts[first + min(i, count - 1)]
    for offset in range(0, length, _STRETCH):
        width = min(_STRETCH, length - offset)
        for group in range(groups):
            add_masked(words, begin[group], offset, width, vector, sums[group])
    for i in range(count):
        lanes = sums[i // MASKS, i % MASKS]
        half = 32
        while half:
            for j in range(half):
                lanes[j] += lanes[j + half]
            half //= 2
        out[first + i] = lanes[0]


@compiled
def _counts(words: Words, starts: Slots, planes: int, out: Floats, first: int, last: int) -> None:
    digits, carry = np.empty((planes, _TILE), np.uint64), np.empty(_TILE, np.uint64)
    for tile in range(first, last, _TILE):
        width = min(_TILE, last - tile)
        _add_up(words, starts, tile, width, digits, carry)
        for t in range(width):
            read_counters(digits, t, out[(tile + t) * 64 :][:64])


@compiled
def _superposed(
    words: Words, starts: Slots, planes: int, weights: Floats, share: np.float32, out: Floats, first: int, last: int
) -> None:
    digits, carry = np.empty((planes, _TILE), np.uint64), np.empty(_TILE, np.uint64)
    counts = np.empty(64, np.float32)
    for tile in range(first, last, _TILE):
        width = min(_TILE, last - tile)
        _add_up(words, starts, tile, width, digits, carry)
        for t in range(width):
            read_counters(digits, t, counts)
            source, target = weights[(tile + t) * 64 :][:64], out[(tile + t) * 64 :][:64]
            for j in range(64):
                target[j] = counts[j] * share * source[j]


@compiled
def _add_up(words: Words, starts: Slots, tile: int, width: int, digits: Words, carry: Words) -> None:
    """Counters lie across words, one plane per binary digit: eight masks are added with seven carry-save adders."""
    digits[:] = 0
    whole = len(starts) // 8 * 8
    for i in range(0, whole, 8):
        _add_eight(words, starts, i, tile, digits, carry, width)
        _ripple(digits, 3, carry, width)
    for i in range(whole, len(starts)):
        for t in range(width):
            carry[t] = words[starts[i] + tile + t]
        _ripple(digits, 0, carry, width)


@compiled
def _add_eight(words: Words, starts: Slots, i: int, tile: int, digits: Words, carry: Words, width: int) -> None:
    # Slices, because an index that is a sum might be negative for all the compiler knows, and then nothing is a vector.
    a, b = words[starts[i] + tile :][:width], words[starts[i + 1] + tile :][:width]
    c, d = words[starts[i + 2] + tile :][:width], words[starts[i + 3] + tile :][:width]
    e, f = words[starts[i + 4] + tile :][:width], words[starts[i + 5] + tile :][:width]
    g, h = words[starts[i + 6] + tile :][:width], words[starts[i + 7] + tile :][:width]
    one, two, four = digits[0], digits[1], digits[2]
    for t in range(width):
        ones, twos_a = _sum_carry(one[t], a[t], b[t])
        ones, twos_b = _sum_carry(ones, c[t], d[t])
        twos, fours_a = _sum_carry(two[t], twos_a, twos_b)
        ones, twos_a = _sum_carry(ones, e[t], f[t])
        ones, twos_b = _sum_carry(ones, g[t], h[t])
        twos, fours_b = _sum_carry(twos, twos_a, twos_b)
        fours, eights = _sum_carry(four[t], fours_a, fours_b)
        one[t], two[t], four[t], carry[t] = ones, twos, fours, eights


@compiled
def _ripple(digits: Words, lowest: int, carry: Words, width: int) -> None:
    """Add one bit per counter at a digit and carry on."""
    for p in range(lowest, len(digits)):
        plane = digits[p]
        for t in range(width):
            digit = plane[t]
            plane[t] = digit ^ carry[t]
            carry[t] &= digit


@compiled
def _sum_carry(a: np.uint64, b: np.uint64, c: np.uint64) -> tuple[np.uint64, np.uint64]:
    half = a ^ b
    return half ^ c, (a & b) | (half & c)


@compiled
def _exact(
    words: Words,
    starts: Slots,
    layers: NDArray[np.int64],
    weights: Floats,
    x: Floats,
    out: Floats,
    first: int,
    last: int,
) -> None:
    """Masks pass in blocks, so that the weights of a few neurons serve a whole block from the first-level cache."""
    images, deepest, widest = len(x), len(layers) - 1, 0
    for layer in range(1, len(layers)):
        widest = max(widest, layers[layer, 1] * 64)
    block = max(1, 32 // images)
    source, target = np.zeros(block * images * widest, np.float32), np.zeros(block * images * widest, np.float32)
    inputs, outputs = x.reshape(-1), out.reshape(-1)
    for begin in range(first, last, block):
        masks = starts[begin : min(begin + block, last)]
        for layer in range(len(layers)):
            neurons, width, word = layers[layer]
            hidden = layer < deepest
            step = layers[layer + 1, 1] * 64 if hidden else neurons
            goal = target if hidden else outputs[begin * images * neurons :]
            if layer == 0:
                _first_layer(words, masks, images, neurons, width, weights, inputs, goal, step)
            else:
                _layer(words, masks, images, neurons, width, word, weights, source, goal, step)
            if hidden:
                for i in range(len(masks) * images * step):
                    target[i] = max(target[i], np.float32(0))
            source, target = target, source


@compiled
def _first_layer(
    words: Words,
    masks: Slots,
    images: int,
    neurons: int,
    width: int,
    weights: Floats,
    inputs: Floats,
    target: Floats,
    step: int,
) -> None:
    """The layer whose inputs all masks share: they share the products with the weights, too."""
    groups = (len(masks) + MASKS - 1) // MASKS
    begin, found = np.empty((groups, MASKS), np.int64), np.empty(MASKS, np.float32)
    for i in range(groups * MASKS):  # the last group is filled up with its last mask
        begin[i // MASKS, i % MASKS] = masks[min(i, len(masks) - 1)]
    for near in range(0, neurons, _NEURONS):
        for group in range(groups):
            many = min(MASKS, len(masks) - group * MASKS)
            for i in range(images):
                place = (group * MASKS * images + i) * step
                for neuron in range(near, min(near + _NEURONS, neurons)):
                    masked_neuron(words, begin[group], neuron * width, width, weights, inputs, i * width * 64, found)
                    for m in range(many):
                        target[place + m * images * step + neuron] = found[m]


@compiled
def _layer(
    words: Words,
    masks: Slots,
    images: int,
    neurons: int,
    width: int,
    word: int,
    weights: Floats,
    source: Floats,
    target: Floats,
    step: int,
) -> None:
    """A later layer of some masks: `step` numbers apart in `target`, mask by mask and image by image."""
    for neuron in range(0, neurons, _NEURONS):
        stop = min(neuron + _NEURONS, neurons)
        whole = neuron + (stop - neuron) // ROWS * ROWS
        for m in range(len(masks)):
            for i in range(images):
                entry = (m * images + i) * width * 64
                place = (m * images + i) * step
                for r in range(neuron, whole, ROWS):
                    at = word + r * width
                    masked_rows(words, masks[m] + at, width, weights, at * 64, source, entry, target, place + r)
                for r in range(whole, stop):
                    at = word + r * width
                    masked_row(words, masks[m] + at, width, weights, at * 64, source, entry, target, place + r)


@compiled
def _apply(words: Words, weights: Floats, out: Floats) -> None:
    neurons, columns = weights.shape
    per_row = (columns + 63) // 64
    for n in range(neurons):
        for w in range(per_row):
            word, many = words[n * per_row + w], min(64, columns - 64 * w)
            source, target = weights[n, 64 * w :][:many], out[n, 64 * w :][:many]
            low, high = np.uint32(word), np.uint32(word >> np.uint64(32))
            for j in range(min(32, many)):
                target[j] = source[j] if (low >> np.uint32(j)) & np.uint32(1) else np.float32(0)
            for j in range(32, many):
                target[j] = source[j] if (high >> np.uint32(j - 32)) & np.uint32(1) else np.float32(0)
