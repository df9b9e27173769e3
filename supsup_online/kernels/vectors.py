"""Pieces of LLVM code that the vector kernels share."""

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir

_I64: Final = ir.IntType(64)
_I32: Final = ir.IntType(32)


def data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    """Pointer to the first item of a C-contiguous array."""
    return context.make_array(kind)(context, builder, value).data


def splat(builder: Any, value: Any, lanes: int) -> Any:
    """A vector with the same value in every lane."""
    kind = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def store(builder: Any, vector: Any, pointer: Any, at: Any) -> None:
    """Write a vector to where item `at` behind `pointer` begins."""
    place = builder.bitcast(builder.gep(pointer, [at]), vector.type.as_pointer())
    builder.store(vector, place, align=2)


def loop(builder: Any, count: Any, start: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> list[Any]:
    """A loop over i < count that carries some values; what it leaves them at."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    i = builder.phi(_I64)
    i.add_incoming(ir.Constant(_I64, 0), before)
    carried = [builder.phi(value.type) for value in start]
    for phi, value in zip(carried, start, strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_signed("<", i, count), inside, after)
    builder.position_at_end(inside)
    updated = body(i, carried)
    last = builder.block
    i.add_incoming(builder.add(i, ir.Constant(_I64, 1)), last)
    for phi, value in zip(carried, updated, strict=True):
        phi.add_incoming(value, last)
    builder.branch(head)
    builder.position_at_end(after)
    return carried
