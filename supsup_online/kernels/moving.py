"""The pass over the scores as vector instructions: what `step` is built of.

All of it happens to sixteen weights at a time: gradient to the score, optimiser, choice of the mask, effective weight.
As one loop, arithmetic and the waiting for memory overlap. As loops one after the other, which is what compiles well
from plain code over so many arrays, the one waits for the other.
"""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from supsup_online.kernels.vectors import data, loop, splat, store

LANES: Final = 16

ADAM: Final = 0
RMSPROP: Final = 1
SGD: Final = 2

_I64: Final = ir.IntType(64)
_HALVES: Final = ir.VectorType(ir.IntType(16), LANES)
_KEYS: Final = ir.VectorType(ir.IntType(32), LANES)
_FLOATS: Final = ir.VectorType(ir.FloatType(), LANES)
_ZERO: Final = ir.Constant(_FLOATS, [0.0] * LANES)
_CONTRACT: Final = ("contract",)  # a product and the sum behind it may become one instruction, nothing else


def _fixed(kind: ir.VectorType, value: int) -> ir.Constant:
    return ir.Constant(kind, [value] * LANES)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def move(
    typing: Any,
    gradient: Any,
    weights: Any,
    scores: Any,
    first_moment: Any,
    second_moment: Any,
    effective: Any,
    at: Any,
    first: Any,
    count: Any,
    constants: Any,
    band: Any,
    inside: Any,
    kind: Any,
    by_magnitude: Any,
) -> Any:
    """Move scores by one update and choose the mask anew. Returns how many keys lie above the band (int64).

    Args:
        typing: numba's.
        gradient: this and the next five are those of `step.advance_threshold`.
        weights: float32 (P,).
        scores: float32 (P,).
        first_moment: float32 (P,).
        second_moment: float32 (P,).
        effective: float32 (P,), or bits of bfloat16, uint16 (P,).
        at: where the stretch begins in `gradient`.
        first: where it begins in the other arrays.
        count: how many vectors of sixteen weights it has.
        constants: float32 (5,), see `step.constants_of`.
        band: int32 (2,), smallest and largest key inside the band.
        inside: uint16 (count,), written by magnitude only: bit j of entry i is set where weight 16 i + j is inside.
        kind: ADAM, RMSPROP or SGD, known when compiling.
        by_magnitude: 1: keep what lies above the band. 0: keep scores >= 0. Known when compiling.
    """
    del typing
    rule, top_k = kind.literal_value, bool(by_magnitude.literal_value)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        arrays = [data(context, builder, signature.args[i], given[i]) for i in range(6)]
        places = [builder.gep(pointer, [given[6 if i == 0 else 7]]) for i, pointer in enumerate(arrays)]
        numbers = data(context, builder, signature.args[9], given[9])
        constant = [splat(builder, builder.load(builder.gep(numbers, [ir.Constant(_I64, i)])), LANES) for i in range(5)]
        ends = data(context, builder, signature.args[10], given[10])
        lowest, highest = (
            splat(builder, builder.load(builder.gep(ends, [ir.Constant(_I64, i)])), LANES) for i in (0, 1)
        )
        span = builder.sub(highest, lowest)
        notes = data(context, builder, signature.args[11], given[11])

        def body(i: Any, carried: list[Any]) -> list[Any]:
            here = builder.mul(i, ir.Constant(_I64, LANES))
            g, w, s, one, two = (_load(builder, pointer, here) for pointer in places[:5])
            g = builder.fmul(g, w)
            if top_k:
                g = _signed_like(builder, g, s)
            s, one, two = _UPDATES[rule](builder, constant, g, s, one, two)
            for pointer, value in zip(places[2:5], (s, one, two), strict=True):
                if value is not None:
                    store(builder, value, pointer, here)
            if not top_k:
                _store_effective(builder, builder.fcmp_ordered(">=", s, _ZERO), w, places[5], here)
                return carried
            keys = builder.and_(builder.bitcast(s, _KEYS), _fixed(_KEYS, 0x7FFFFFFF))
            above = builder.icmp_signed(">", keys, highest)
            _store_effective(builder, above, w, places[5], here)
            noted = builder.icmp_unsigned("<=", builder.sub(keys, lowest), span)
            builder.store(builder.bitcast(noted, ir.IntType(LANES)), builder.gep(notes, [i]))
            return [builder.sub(carried[0], builder.sext(above, _KEYS))]

        (above,) = loop(builder, given[8], [_fixed(_KEYS, 0)], body)
        total = ir.Constant(_I64, 0)
        for lane in range(LANES):
            some = builder.extract_element(above, ir.Constant(ir.IntType(32), lane))
            total = builder.add(total, builder.sext(some, _I64))
        return total

    given = (gradient, weights, scores, first_moment, second_moment, effective, at, first, count, constants)
    return types.int64(*given, band, inside, kind, by_magnitude), generate


def _load(builder: Any, pointer: Any, at: Any) -> Any:
    """Sixteen floats; the bits of a bfloat16 are the upper half of a float32."""
    place = builder.gep(pointer, [at])
    if pointer.type.pointee == ir.FloatType():
        return builder.load(builder.bitcast(place, _FLOATS.as_pointer()), align=4)
    halves = builder.load(builder.bitcast(place, _HALVES.as_pointer()), align=2)
    return builder.bitcast(builder.shl(builder.zext(halves, _KEYS), _fixed(_KEYS, 16)), _FLOATS)


def _store_effective(builder: Any, kept: Any, weights: Any, pointer: Any, at: Any) -> None:
    """The weights that are kept; or their signs, +-1 as the bits of a bfloat16."""
    if pointer.type.pointee == ir.FloatType():
        store(builder, builder.select(kept, weights, _ZERO), pointer, at)
        return
    upper = builder.trunc(builder.lshr(builder.bitcast(weights, _KEYS), _fixed(_KEYS, 16)), _HALVES)
    signs = builder.or_(builder.and_(upper, _fixed(_HALVES, 0x8000)), _fixed(_HALVES, 0x3F80))
    store(builder, builder.select(kept, signs, _fixed(_HALVES, 0)), pointer, at)


def _signed_like(builder: Any, gradient: Any, scores: Any) -> Any:
    """The gradient goes through abs(score): times the sign of the score, 0 where that is 0."""
    flipped = builder.select(builder.fcmp_ordered("<", scores, _ZERO), builder.fneg(gradient), _ZERO)
    return builder.select(builder.fcmp_ordered(">", scores, _ZERO), gradient, flipped)


# The optimisers: constants, gradient, score, moments -> the new score and moments, None where there is no such moment.
_Update = Callable[..., tuple[Any, Any, Any]]


def _adam(b: Any, c: list[Any], g: Any, score: Any, mean: Any, square: Any) -> tuple[Any, Any, Any]:
    rate, fresh, decay, more, eps = c
    mean = _plus_product(b, mean, fresh, b.fsub(g, mean))
    square = _decayed_square(b, square, g, decay, more)
    return _minus_product(b, score, rate, b.fdiv(mean, b.fadd(_root(b, square), eps))), mean, square


def _rmsprop(b: Any, c: list[Any], g: Any, score: Any, square: Any, unused: Any) -> tuple[Any, Any, Any]:
    del unused
    rate, _, decay, more, eps = c
    square = _decayed_square(b, square, g, decay, more)
    return _minus_product(b, score, rate, b.fdiv(g, b.fadd(_root(b, square), eps))), square, None


def _sgd(b: Any, c: list[Any], g: Any, score: Any, velocity: Any, unused: Any) -> tuple[Any, Any, Any]:
    del unused
    velocity = _plus_product(b, g, c[2], velocity)
    return _minus_product(b, score, c[0], velocity), velocity, None


_UPDATES: Final[dict[int, _Update]] = {ADAM: _adam, RMSPROP: _rmsprop, SGD: _sgd}


def _plus_product(b: Any, term: Any, left: Any, right: Any) -> Any:
    return b.fadd(term, b.fmul(left, right, flags=_CONTRACT), flags=_CONTRACT)


def _minus_product(b: Any, term: Any, left: Any, right: Any) -> Any:
    return b.fsub(term, b.fmul(left, right, flags=_CONTRACT), flags=_CONTRACT)


def _decayed_square(b: Any, square: Any, g: Any, decay: Any, more: Any) -> Any:
    return _plus_product(b, b.fmul(decay, square, flags=_CONTRACT), more, b.fmul(g, g))


def _root(b: Any, value: Any) -> Any:
    name = f"llvm.sqrt.v{LANES}f32"
    function = b.module.globals.get(name) or ir.Function(b.module, ir.FunctionType(_FLOATS, [_FLOATS]), name)
    return b.call(function, [value])
