"""Sums over the ones of packed masks as vector instructions: what `cpu` is built of.

A 64-bit word of a mask is used as four predicates of sixteen lanes each, so that adding the sixteen numbers it
selects is one instruction where the machine has predicates (AVX-512), and a comparison and a blend more where it has
not. A plain loop with `if bit` compiles to six times as many (measured; docs/performance.md).

Every sum is kept in 64 lanes and added up as a fixed tree, whatever the machine's vectors: the order of additions,
and with it the last bit, does not depend on the number of threads.
"""

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from supsup_online.kernels.vectors import data, loop, splat

MASKS: Final = 4  # at once: they share the loads of the vector
ROWS: Final = 4  # at once: they share the loads of the inputs

_LANES: Final = 16
_PARTS: Final = 64 // _LANES
_I64: Final = ir.IntType(64)
_VECTOR: Final = ir.VectorType(ir.FloatType(), _LANES)
_PREDICATE: Final = ir.VectorType(ir.IntType(1), _LANES)


def _int(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _load(builder: Any, pointer: Any, part: int) -> Any:
    """Sixteen floats behind `pointer`, the part-th of four such groups."""
    at = builder.gep(pointer, [_int(part * _LANES)])
    return builder.load(builder.bitcast(at, _VECTOR.as_pointer()), align=4)


def _predicate(builder: Any, word: Any, part: int) -> Any:
    """Sixteen bits of the word behind a pointer; bit j of part p is bit 16 p + j of a little-endian word."""
    halves = builder.bitcast(word, ir.IntType(_LANES).as_pointer())
    return builder.bitcast(builder.load(builder.gep(halves, [_int(part)]), align=1), _PREDICATE)


def _totals(builder: Any, rows: list[list[Any]]) -> list[Any]:
    """Sums of 64 lanes each, of one row or of four, as one vector; lanes are halved again and again.

    Four rows share the later halvings: two vectors that are half done fit into one.
    """
    vectors = []
    for row in rows:
        parts = row
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
        vectors += parts
    width = _LANES  # lanes that one row still has
    while width > 1:
        width //= 2
        if len(vectors) > 1:
            vectors = [_halve(builder, a, b, width) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        else:
            vectors = [_halve(builder, vectors[0], None, width)]
    (totals,) = vectors
    return [builder.extract_element(totals, ir.Constant(ir.IntType(32), i)) for i in range(len(rows))]


def _halve(builder: Any, a: Any, b: Any, width: int) -> Any:
    """Add to the first `width` lanes of every 2 * width those behind them, for one vector or two side by side."""
    lanes = a.type.count * (1 if b is None else 2)
    low = [i for start in range(0, lanes, 2 * width) for i in range(start, start + width)]
    kind = ir.VectorType(ir.IntType(32), len(low))
    other = a if b is None else b
    first = builder.shuffle_vector(a, other, ir.Constant(kind, low))
    second = builder.shuffle_vector(a, other, ir.Constant(kind, [i + width for i in low]))
    return builder.fadd(first, second)


@intrinsic  # type: ignore[untyped-decorator]
def add_masked(typing: Any, words: Any, starts: Any, offset: Any, count: Any, vector: Any, sums: Any) -> Any:
    """Add, for `MASKS` masks, what each selects of one stretch of a vector to the mask's 64 running sums.

    Args:
        typing: numba's.
        words: uint64, flat, C-contiguous; of all masks.
        starts: int64 (MASKS,): where each mask begins in `words`.
        offset: first word of the stretch within a mask; its numbers begin at vector[64 * offset].
        count: words of the stretch.
        vector: float32, flat.
        sums: float32 (MASKS, 64), C-contiguous; changed in place.
    """
    del typing

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        begin = data(context, builder, kinds[1], given[1])
        numbers = builder.gep(data(context, builder, kinds[4], given[4]), [builder.mul(given[2], _int(64))])
        totals = data(context, builder, kinds[5], given[5])
        origin = builder.gep(data(context, builder, kinds[0], given[0]), [given[2]])
        masks = [builder.gep(origin, [builder.load(builder.gep(begin, [_int(m)]))]) for m in range(MASKS)]

        def body(i: Any, sums: list[Any]) -> list[Any]:
            here = builder.gep(numbers, [builder.mul(i, _int(64))])
            stretch = [_load(builder, here, p) for p in range(_PARTS)]
            out = []
            for m, mask in enumerate(masks):
                word = builder.gep(mask, [i])
                for p in range(_PARTS):
                    now = sums[m * _PARTS + p]
                    out.append(builder.select(_predicate(builder, word, p), builder.fadd(now, stretch[p]), now))
            return out

        places = [(m, p) for m in range(MASKS) for p in range(_PARTS)]
        rows = [builder.gep(totals, [_int(64 * m)]) for m in range(MASKS)]
        after = loop(builder, given[3], [_load(builder, rows[m], p) for m, p in places], body)
        for (m, p), value in zip(places, after, strict=True):
            at = builder.gep(rows[m], [_int(p * _LANES)])
            builder.store(value, builder.bitcast(at, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(words, starts, offset, count, vector, sums), generate


def _masked_rows(rows: int) -> Any:
    def typed(
        typing: Any,
        words: Any,
        start: Any,
        count: Any,
        weights: Any,
        at: Any,
        inputs: Any,
        first: Any,
        out: Any,
        to: Any,
    ) -> Any:
        del typing

        def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            kinds = signature.args
            count = given[2]
            mask = builder.gep(data(context, builder, kinds[0], given[0]), [given[1]])
            frozen = builder.gep(data(context, builder, kinds[3], given[3]), [given[4]])
            x = builder.gep(data(context, builder, kinds[5], given[5]), [given[6]])
            target = builder.gep(data(context, builder, kinds[7], given[7]), [given[8]])
            zero = ir.Constant(_VECTOR, [0.0] * _LANES)

            def body(i: Any, sums: list[Any]) -> list[Any]:
                here = builder.gep(x, [builder.mul(i, _int(64))])
                entries = [_load(builder, here, p) for p in range(_PARTS)]
                updated = []
                for r in range(rows):
                    place = builder.add(builder.mul(count, _int(r)), i)
                    word = builder.gep(mask, [place])
                    row = builder.gep(frozen, [builder.mul(place, _int(64))])
                    for p in range(_PARTS):
                        now = sums[r * _PARTS + p]
                        product = builder.fmul(_load(builder, row, p), entries[p], flags=("contract",))
                        more = builder.fadd(now, product, flags=("contract",))
                        updated.append(builder.select(_predicate(builder, word, p), more, now))
                return updated

            sums = loop(builder, count, [zero] * (rows * _PARTS), body)
            totals = _totals(builder, [sums[r * _PARTS : (r + 1) * _PARTS] for r in range(rows)])
            for r, total in enumerate(totals):
                builder.store(total, builder.gep(target, [_int(r)]))
            return context.get_dummy_value()

        return types.void(words, start, count, weights, at, inputs, first, out, to), generate

    typed.__doc__ = f"""Outputs of {rows} neighbouring neurons of a layer under one mask, without the activation.

    Args:
        typing: numba's.
        words: uint64, flat, C-contiguous.
        start: index of the first neuron's first word in it.
        count: words per neuron.
        weights: float32, flat, padded as the mask's bits are (`MaskLayout.pad`).
        at: index of the first neuron's first weight in it.
        inputs: float32, flat: the layer's inputs, padded to 64 * count.
        first: where they begin.
        out: float32, flat.
        to: where the outputs go in it.
    """
    return intrinsic(typed)


masked_rows = _masked_rows(ROWS)
masked_row = _masked_rows(1)


@intrinsic  # type: ignore[untyped-decorator]
def masked_neuron(
    typing: Any, words: Any, starts: Any, offset: Any, count: Any, weights: Any, inputs: Any, first: Any, out: Any
) -> Any:
    """Output of one neuron of the first layer, whose inputs are the same whatever the mask, under `MASKS` masks.

    Args:
        typing: numba's.
        words: uint64, flat, C-contiguous.
        starts: int64 (MASKS,): where each mask begins in `words`.
        offset: of the neuron's first word within a mask; its weights begin at weights[64 * offset].
        count: words per neuron.
        weights: float32, flat, padded.
        inputs: float32, flat, padded.
        first: where the inputs begin.
        out: float32 (MASKS,).
    """
    del typing

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        kinds = signature.args
        begin = data(context, builder, kinds[1], given[1])
        origin = builder.gep(data(context, builder, kinds[0], given[0]), [given[2]])
        masks = [builder.gep(origin, [builder.load(builder.gep(begin, [_int(m)]))]) for m in range(MASKS)]
        frozen = builder.gep(data(context, builder, kinds[4], given[4]), [builder.mul(given[2], _int(64))])
        x = builder.gep(data(context, builder, kinds[5], given[5]), [given[6]])
        target = data(context, builder, kinds[7], given[7])

        def body(i: Any, sums: list[Any]) -> list[Any]:
            at = builder.mul(i, _int(64))
            row, entries = builder.gep(frozen, [at]), builder.gep(x, [at])
            products = [builder.fmul(_load(builder, row, p), _load(builder, entries, p)) for p in range(_PARTS)]
            out = []
            for m, mask in enumerate(masks):
                word = builder.gep(mask, [i])
                for p in range(_PARTS):
                    now = sums[m * _PARTS + p]
                    out.append(builder.select(_predicate(builder, word, p), builder.fadd(now, products[p]), now))
            return out

        zero = ir.Constant(_VECTOR, [0.0] * _LANES)
        sums = loop(builder, given[3], [zero] * (MASKS * _PARTS), body)
        totals = _totals(builder, [sums[m * _PARTS : (m + 1) * _PARTS] for m in range(MASKS)])
        for m, total in enumerate(totals):
            builder.store(total, builder.gep(target, [_int(m)]))
        return context.get_dummy_value()

    return types.void(words, starts, offset, count, weights, inputs, first, out), generate


@intrinsic  # type: ignore[untyped-decorator]
def read_counters(typing: Any, digits: Any, column: Any, out: Any) -> Any:
    """The 64 counters that lie across a column of words, one binary digit in each.

    Args:
        typing: numba's.
        digits: uint64 (planes, columns), C-contiguous; the lowest digit first.
        column: which.
        out: float32 (64,).
    """
    del typing

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, given[0])
        planes, columns = (builder.extract_value(array.shape, i) for i in range(2))
        begin = builder.gep(array.data, [given[1]])
        target = data(context, builder, signature.args[2], given[2])
        one = splat(builder, ir.Constant(ir.FloatType(), 1.0), _LANES)

        def body(i: Any, carried: list[Any]) -> list[Any]:
            worth, sums = carried[0], carried[1:]
            word = builder.gep(begin, [builder.mul(i, columns)])
            more = [
                builder.select(_predicate(builder, word, part), builder.fadd(now, worth), now)
                for part, now in enumerate(sums)
            ]
            return [builder.fadd(worth, worth), *more]

        zero = ir.Constant(_VECTOR, [0.0] * _LANES)
        for part, value in enumerate(loop(builder, planes, [one] + [zero] * _PARTS, body)[1:]):
            at = builder.gep(target, [_int(part * _LANES)])
            builder.store(value, builder.bitcast(at, _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(digits, column, out), generate
