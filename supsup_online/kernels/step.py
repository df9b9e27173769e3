"""The elementwise half of a training step as one pass over the scores: see `fused_trainer`, which calls it.

Per weight, in this order: the gradient goes straight through to the score, the optimiser moves the score, the mask is
chosen anew, and the effective weight is written for the next forward pass (`moving.move`).

Top-k without a sort. Magnitudes are compared as the bits of abs(score), which order like the numbers. The pass is given
a band of keys round the previous threshold: what lies above is kept, what lies below is dropped, and of what lies
inside the indices are noted. The exact threshold is then found among those few, or, if it has left the band, among all.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from supsup_online.kernels.compiled import compiled
from supsup_online.kernels.moving import ADAM, LANES, RMSPROP, SGD, move

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Arrays = tuple[Any, ...]  # gradient, weights, scores, two moments, effective weights

PIECE: Final = 2048  # weights between two looks at what lies inside the band
NARROWEST: Final = np.float32(0.002)  # half width of the band, as a share of the threshold
WIDEST: Final = np.float32(0.25)
_SLACK: Final = np.float32(4)  # the band over how far the threshold moved last
_ABS: Final = np.int32(0x7FFFFFFF)


@compiled
def advance_threshold(
    gradient: NDArray[np.generic],
    weights: Floats,
    scores: Floats,
    first_moment: Floats,
    second_moment: Floats,
    effective: NDArray[np.generic],
    kind: int,
    hyperparameters: Doubles,
    updates: int,
    first: int,
    last: int,
) -> None:
    """The pass over one layer, weights first..last-1, where scores >= 0 are kept.

    One thread's work: it waits for memory as much as it computes, and torch's threads, which have just multiplied, spin
    on the other cores for a while.

    Args:
        gradient: to the layer's effective weights, float32, or bfloat16 as its bits, uint16.
        weights: frozen, float32 (P,).
        scores: float32 (P,), changed.
        first_moment: float32 (P,), changed (Adam: the mean; RMSprop: the square; SGD: the velocity).
        second_moment: float32 (P,), changed (Adam: the square); else not used, and may be the first.
        effective: float32 (P,): weight or 0; or uint16 (P,): the sign of the weight or 0, as bits of a bfloat16.
        kind: ADAM, RMSPROP or SGD.
        hyperparameters: float64 (4,): learning rate, decays of both moments, eps.
        updates: how many the scores have had with this one, from 1 on.
        first: the layer's first weight.
        last: the one behind its last.
    """
    arrays = gradient, weights, scores, first_moment, second_moment, effective
    constants = constants_of(kind, hyperparameters, updates)
    _advance(arrays, kind, constants, first, last, -1, -1, np.empty(0, np.int32))


@compiled
def advance_top_k(
    gradient: NDArray[np.generic],
    weights: Floats,
    scores: Floats,
    first_moment: Floats,
    second_moment: Floats,
    effective: NDArray[np.generic],
    noted: NDArray[np.int32],
    kind: int,
    hyperparameters: Doubles,
    updates: int,
    first: int,
    last: int,
    kept: int,
    cut: NDArray[np.int32],
    width: Floats,
) -> None:
    """The pass over one layer where the `kept` scores with the largest magnitude are kept, of equals the first.

    Args:
        gradient: this one and those not named here are those of `advance_threshold`.
        weights: float32 (P,).
        scores: float32 (P,).
        first_moment: float32 (P,).
        second_moment: float32 (P,).
        effective: float32 (P,) or uint16 (P,).
        noted: int32 (P,), room for indices.
        kind: of the optimiser.
        hyperparameters: float64 (4,).
        updates: from 1 on.
        first: the layer's first weight.
        last: the one behind its last.
        kept: how many.
        cut: int32 (2,): threshold as a key, and the last index kept among those equal to it. Read and set.
        width: float32 (1,): half width of the band, as a share of the threshold. Read and set; time depends on it, the
            result does not.
    """
    threshold = cut[:1].view(np.float32)
    before = threshold[0]
    ends = np.array([before * (1 - width[0]), before * (1 + width[0])], np.float32).view(np.int32)
    arrays = gradient, weights, scores, first_moment, second_moment, effective
    constants = constants_of(kind, hyperparameters, updates)
    above, inside = _advance(arrays, kind, constants, first, last, ends[0], ends[1], noted[first:last])
    keys, missing = scores.view(np.int32), kept - above
    if 0 < missing <= inside:
        _settle(keys, weights, effective, noted[first : first + inside], missing, cut)
    else:
        select(keys, weights, effective, noted, kept, cut, first, last)
    moved = abs(threshold[0] - before) / before if before > 0 else WIDEST
    width[0] = min(max(_SLACK * moved, NARROWEST), WIDEST)


@compiled
def _advance(
    arrays: Arrays,
    kind: int,
    constants: Floats,
    first: int,
    last: int,
    low: int,
    high: int,
    noted: NDArray[np.int32],
) -> tuple[int, int]:
    """The pass: how many keys lie above the band, and how many inside, whose indices are then in `noted`."""
    band, inside = np.array([low, high], np.int32), np.empty(PIECE // LANES, np.uint16)
    above, count = 0, 0
    for begin in range(first, last, PIECE):
        vectors = (min(begin + PIECE, last) - begin) // LANES
        above += _move(kind, arrays, begin - first, begin, vectors, constants, band, inside)
        if low >= 0:
            count += _note(inside[:vectors], begin, noted[count:])
    rest = (last - first) % LANES
    if rest:
        padded = _padded(arrays, last - rest, rest, first)
        above += _move(kind, padded, 0, 0, 1, constants, band, inside)
        _put_back(padded, arrays, last - rest, rest)
        if low >= 0:
            inside[0] &= np.uint16((1 << rest) - 1)
            count += _note(inside[:1], last - rest, noted[count:])
    return above, count


@compiled
def _move(
    kind: int,
    arrays: Arrays,
    at: int,
    first: int,
    vectors: int,
    constants: Floats,
    band: NDArray[np.int32],
    inside: NDArray[np.uint16],
) -> int:
    """`moving.move`, of which every choice below is compiled by itself."""
    g, w, s, one, two, out = arrays
    by_magnitude = band[0] >= 0
    above: int = 0
    if kind == ADAM and by_magnitude:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, ADAM, 1)
    elif kind == ADAM:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, ADAM, 0)
    elif kind == RMSPROP and by_magnitude:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, RMSPROP, 1)
    elif kind == RMSPROP:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, RMSPROP, 0)
    elif by_magnitude:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, SGD, 1)
    else:
        above = move(g, w, s, one, two, out, at, first, vectors, constants, band, inside, SGD, 0)
    return above


@compiled
def _padded(arrays: Arrays, first: int, count: int, base: int) -> Arrays:
    """One vector of each array, of which `count` weights are real; the others are zero and stay out of every band."""
    g, w, s, one, two, out = arrays
    return (
        _vector(g, first - base, count),
        _vector(w, first, count),
        _vector(s, first, count),
        _vector(one, first, count),
        _vector(two, first, count),
        _vector(out, first, count),
    )


@compiled
def _vector(array: NDArray[np.generic], first: int, count: int) -> NDArray[np.generic]:
    out = np.zeros(LANES, array.dtype)
    out[:count] = array[first : first + count]
    return out


@compiled
def _put_back(padded: Arrays, arrays: Arrays, first: int, count: int) -> None:
    _, _, s, one, two, out = padded
    _, _, scores, first_moment, second_moment, effective = arrays
    for i in range(count):
        scores[first + i], effective[first + i] = s[i], out[i]
        second_moment[first + i] = two[i]
        first_moment[first + i] = one[i]  # after it: with one moment both are the same array


@compiled
def cut_where_zero(activations: NDArray[np.generic], gradient: NDArray[np.generic]) -> None:
    """Backward of ReLU: cut the gradient (n, m), in place, where its output (n, m) was zero.

    Both float32, or the bits of bfloat16, uint16, of which a positive number has the same zero.
    """
    nothing = gradient.dtype.type(0)
    for row in range(len(gradient)):
        some, target = activations[row], gradient[row]
        for i in range(len(target)):
            target[i] = target[i] if some[i] > nothing else nothing


@compiled
def constants_of(kind: int, hyperparameters: Doubles, updates: int) -> Floats:
    """Of one update, float32 (5,): rate, 1 - decay of the mean, decay of the square (SGD: the momentum), 1 - it, eps.

    Adam's bias corrections go into the rate and into eps: a quotient less per weight.
    """
    rate, mean, square, eps = hyperparameters
    if kind == ADAM:
        root = np.sqrt(1 - square**updates)
        rate, eps = rate / (1 - mean**updates) * root, eps * root
    return np.array([rate, 1 - mean, square, 1 - square, eps]).astype(np.float32)


@compiled
def keep_positive(score: Floats, frozen: Floats, target: NDArray[np.generic]) -> None:
    """Effective weights (see `advance_threshold`) of scores >= 0."""
    for i in range(len(score)):
        target[i] = _effective(frozen[i], score[i] >= np.float32(0), target)


@compiled
def _effective(weight: np.float32, kept: bool, target: NDArray[np.generic]) -> np.generic:
    """What `target` holds of a weight: itself, or its sign as the bits of a bfloat16; 0 where it is dropped."""
    if target.itemsize == 4:
        return weight if kept else np.float32(0)
    return (np.uint16(0xBF80) if weight < 0 else np.uint16(0x3F80)) if kept else np.uint16(0)


@compiled
def _note(inside: NDArray[np.uint16], begin: int, noted: NDArray[np.int32]) -> int:
    """Write down which weights the bits of `inside` stand for; few are set."""
    count = 0
    for i in range(len(inside)):
        bits = np.uint32(inside[i])
        at = begin + i * LANES
        while bits:
            if bits & np.uint32(1):
                noted[count] = at
                count += 1
            bits >>= np.uint32(1)
            at += 1
    return count


@compiled
def _settle(
    keys: NDArray[np.int32],
    weights: Floats,
    effective: NDArray[np.generic],
    noted: NDArray[np.int32],
    missing: int,
    cut: NDArray[np.int32],
) -> None:
    """Keep the `missing` largest keys of those inside the band, the lower index first among equals.

    Args:
        keys: bits of the scores, int32 (P,).
        weights: frozen, float32 (P,).
        effective: as above, changed at the indices noted.
        noted: int32 (m,), their indices, ascending.
        missing: how many of them are to be kept, 1..m.
        cut: int32 (2,): set to the threshold and the last index kept among those equal to it.
    """
    count = len(noted)
    magnitude = np.empty(count, np.int32)
    for i in range(count):
        magnitude[i] = keys[noted[i]] & _ABS
    threshold = np.partition(magnitude, count - missing)[count - missing]
    equal = missing
    for i in range(count):
        equal -= magnitude[i] > threshold
    cut[0] = threshold
    for i in range(count):
        at, kept = noted[i], magnitude[i] > threshold
        if magnitude[i] == threshold and equal > 0:
            kept, equal, cut[1] = True, equal - 1, at
        effective[at] = _effective(weights[at], kept, effective)


@compiled
def select(
    keys: NDArray[np.int32],
    weights: Floats,
    effective: NDArray[np.generic],
    noted: NDArray[np.int32],
    kept: int,
    cut: NDArray[np.int32],
    first: int,
    last: int,
) -> None:
    """The mask of a layer from all of its scores; arguments as above."""
    for i in range(first, last):
        noted[i] = i
    _settle(keys, weights, effective, noted[first:last], kept, cut)
