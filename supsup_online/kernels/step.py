"""The elementwise half of a training step as one pass over the scores: see `fused_trainer`, which calls it.

Per weight, in this order: the gradient goes straight through to the score, the optimiser moves the score, the mask is
chosen anew, and the effective weight is written for the next forward pass. Weights pass in pieces that stay in the
first-level cache between these loops, so memory is read and written once.

Top-k without a sort. Magnitudes are compared as the bits of abs(score), which order like the numbers. The pass is given
a band of keys round the previous threshold: what lies above is kept, what lies below is dropped, and of what lies
inside the indices are noted. `settle` finds the exact threshold among those few. If it lies outside the band, it says
so, and the caller selects among all.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.kernels.compiled import compiled

Floats = NDArray[np.float32]
Whole = NDArray[np.int64]

ADAM: Final = 0
RMSPROP: Final = 1
SGD: Final = 2

# Weights that pass at a time: six arrays of 8 KB. Threads cut between pieces only: the rest behind the last whole
# vector is rounded on its own, so elsewhere a last bit would depend on the number of threads.
PIECE: Final = 2048
_BLOCK: Final = 32
_ABS: Final = np.int32(0x7FFFFFFF)


@compiled
def advance(
    gradient: NDArray[np.generic],
    weights: Floats,
    scores: Floats,
    first_moment: Floats,
    second_moment: Floats,
    effective: NDArray[np.generic],
    noted: NDArray[np.int32],
    low: int,
    high: int,
    kind: int,
    constants: Floats,
    first: int,
    last: int,
    base: int,
) -> tuple[np.int32, int]:
    """The pass over weights first..last-1 of one layer.

    Args:
        gradient: to the effective weights from `base` on, float32, or bfloat16 as its bits, uint16.
        weights: frozen, float32 (P,).
        scores: float32 (P,), changed.
        first_moment: float32 (P,), changed (Adam: the mean; RMSprop: the square; SGD: the velocity).
        second_moment: float32 (P,), changed (Adam: the square); else not used.
        effective: float32 (P,): weight or 0; or uint16 (P,): the sign of the weight or 0, as bits of a bfloat16.
        noted: int32 (P,): indices inside the band, written from `first` on.
        low: smallest key inside the band; negative: no top-k but scores >= 0.
        high: largest key inside the band.
        kind: ADAM, RMSPROP or SGD.
        constants: float32 (5,), see `_move`.
        first: begin of the part.
        last: its end.
        base: the weight that the gradient begins with.

    Returns:
        how many keys lie above the band, and how many inside.
    """
    piece = np.empty(PIECE, np.float32)
    above, inside = np.int32(0), 0
    for begin in range(first, last, PIECE):
        end = min(begin + PIECE, last)
        some, frozen = piece[: end - begin], weights[begin:end]
        score, target = scores[begin:end], effective[begin:end]
        _widen(gradient[begin - base : end - base], some)
        _through(some, frozen, score, low >= 0)
        _move(kind, constants, some, score, first_moment[begin:end], second_moment[begin:end])
        if low >= 0:
            keys = score.view(np.int32)
            above += _keep(keys, high, frozen, target)
            inside += _note(keys, low, high, begin, noted[first + inside :])
        else:
            keep_positive(score, frozen, target)
    return above, inside


@compiled
def _widen(gradient: NDArray[np.generic], out: Floats) -> None:
    """Float32 as it is; the bits of a bfloat16 are the upper half of a float32."""
    if gradient.itemsize == 4:
        for i in range(len(out)):
            out[i] = gradient[i]
    else:
        bits = out.view(np.uint32)
        for i in range(len(out)):
            bits[i] = np.uint32(gradient[i]) << np.uint32(16)


@compiled
def _through(some: Floats, frozen: Floats, score: Floats, by_magnitude: bool) -> None:
    zero = np.float32(0)
    if by_magnitude:
        for i in range(len(some)):
            g, s = some[i] * frozen[i], score[i]
            some[i] = g if s > zero else (-g if s < zero else zero)
    else:
        for i in range(len(some)):
            some[i] *= frozen[i]


@compiled
def _move(kind: int, c: Floats, g: Floats, score: Floats, one: Floats, two: Floats) -> None:
    """The optimiser.

    Constants: learning rate, 1 - decay of the mean, decay of the square (SGD: the momentum), 1 - decay of the square,
    eps. Adam's bias corrections are in the rate and in eps: a quotient less per weight.
    """
    rate, fresh, decay, more, eps = c[0], c[1], c[2], c[3], c[4]
    if kind == ADAM:
        for i in range(len(g)):
            one[i] += fresh * (g[i] - one[i])
            two[i] = decay * two[i] + more * (g[i] * g[i])
            score[i] -= rate * (one[i] / (np.sqrt(two[i]) + eps))
    elif kind == RMSPROP:
        for i in range(len(g)):
            one[i] = decay * one[i] + more * (g[i] * g[i])
            score[i] -= rate * (g[i] / (np.sqrt(one[i]) + eps))
    else:
        for i in range(len(g)):
            one[i] = decay * one[i] + g[i]
            score[i] -= rate * one[i]


@compiled
def _keep(keys: NDArray[np.int32], high: int, frozen: Floats, target: NDArray[np.generic]) -> np.int32:
    above, bound = np.int32(0), np.int32(high)
    if target.itemsize == 4:
        for i in range(len(keys)):
            kept = (keys[i] & _ABS) > bound
            above += np.int32(kept)
            target[i] = frozen[i] if kept else np.float32(0)
    else:
        bits = frozen.view(np.uint32)
        for i in range(len(keys)):
            kept = (keys[i] & _ABS) > bound
            above += np.int32(kept)
            target[i] = _sign(bits[i]) if kept else np.uint16(0)
    return above


@compiled
def keep_positive(score: Floats, frozen: Floats, target: NDArray[np.generic]) -> None:
    """Effective weights (see `advance`) of scores >= 0."""
    if target.itemsize == 4:
        for i in range(len(score)):
            target[i] = frozen[i] if score[i] >= np.float32(0) else np.float32(0)
    else:
        bits = frozen.view(np.uint32)
        for i in range(len(score)):
            target[i] = _sign(bits[i]) if score[i] >= np.float32(0) else np.uint16(0)


@compiled
def _sign(bits: np.uint32) -> np.uint16:
    """+-1 as the bits of a bfloat16, from the bits of a float32."""
    return np.uint16(((bits >> np.uint32(16)) & np.uint32(0x8000)) | np.uint32(0x3F80))


@compiled
def _note(keys: NDArray[np.int32], low: int, high: int, begin: int, noted: NDArray[np.int32]) -> int:
    """Few keys lie inside the band, so a glance at a block of them, one vector, mostly saves a look at each."""
    count, least, span = 0, np.int32(low), np.uint32(high - low)
    for block in range(0, len(keys), _BLOCK):
        some = keys[block:][:_BLOCK]
        seen = np.uint32(0)
        for i in range(len(some)):
            seen += np.uint32(np.uint32((some[i] & _ABS) - least) <= span)
        if seen:
            for i in range(len(some)):
                if np.uint32((some[i] & _ABS) - least) <= span:
                    noted[count] = begin + block + i
                    count += 1
    return count


@compiled
def settle(
    keys: NDArray[np.int32],
    weights: Floats,
    effective: NDArray[np.generic],
    noted: NDArray[np.int32],
    places: Whole,
    missing: int,
    cut: NDArray[np.int32],
) -> None:
    """Keep the `missing` largest keys of those inside the band, the lower index first among equals.

    Args:
        keys: bits of the scores, int32 (P,).
        weights: frozen, float32 (P,).
        effective: as in `advance`, changed at the indices noted.
        noted: int32 (P,), indices.
        places: int64 (parts, 2): where in `noted` ascending indices begin, and how many there are.
        missing: how many of them are to be kept, 1..all.
        cut: int32 (2,): set to the threshold and the last index kept among those equal to it.
    """
    inside = np.empty(places[:, 1].sum(), np.int32)
    magnitude = np.empty(len(inside), np.int32)
    count = 0
    for part in range(len(places)):
        for i in range(places[part, 0], places[part, 0] + places[part, 1]):
            inside[count], magnitude[count] = noted[i], keys[noted[i]] & _ABS
            count += 1
    threshold = np.partition(magnitude, count - missing)[count - missing]
    equal = missing
    for i in range(count):
        equal -= magnitude[i] > threshold
    cut[0] = threshold
    for i in range(count):
        at, kept = inside[i], magnitude[i] > threshold
        if magnitude[i] == threshold and equal > 0:
            kept, equal, cut[1] = True, equal - 1, at
        if effective.itemsize == 4:
            effective[at] = weights[at] if kept else np.float32(0)
        else:
            effective[at] = np.uint16(0x3F80) | (np.uint16(0x8000) if weights[at] < 0 else np.uint16(0)) if kept else 0
