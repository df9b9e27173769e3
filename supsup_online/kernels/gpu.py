"""Many masks at once on a GPU, straight from their packed bits: `cpu`'s functions as Triton kernels.

    masked_dots         one vector against every mask
    superposed_counts   how many of the masks keep each edge
    exact_logits        the outputs of every mask for a few inputs, layer by layer

Masks are int64 (k, word_count) on the device, the bits of the uint64 words; vectors over weights are padded like them.
Every sum is made by one program in one order, without atomic additions, so one device gives the same bits each time.
With TRITON_INTERPRET=1 the kernels run on the CPU, slowly: that is how a machine without a GPU tests them.
"""

from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from supsup_online.bitpack import WORD_BITS, MaskLayout

_MASKS: Final = 8  # of one program: they share the loads of the vector
_WORDS: Final = 4  # of each that it takes at a time
_SPLITS: Final = 8  # programs that share the words of one mask
_NEURONS: Final = 16  # of one program


def masked_dots(masks: Tensor, vector: Tensor) -> Tensor:
    """Dot product of a padded vector (64 * word_count,) with masks (k, word_count): float32 (k,)."""
    count, words = masks.shape
    parts = torch.zeros(_SPLITS, count, device=masks.device)
    share = triton.cdiv(triton.cdiv(words, _SPLITS), _WORDS) * _WORDS
    if count:
        grid = (triton.cdiv(count, _MASKS), _SPLITS)
        _dots[grid](masks, vector, parts, count, words, share, _MASKS, _WORDS)
    return parts.sum(0)


def superposed_counts(masks: Tensor) -> Tensor:
    """How many of the masks (k, word_count) keep each edge: float32, padded (64 * word_count,)."""
    count, words = masks.shape
    out = torch.empty(words * WORD_BITS, device=masks.device)
    _counts[(triton.cdiv(words, _WORDS),)](masks, out, count, words, _MASKS, _WORDS)
    return out


def exact_logits(layout: MaskLayout, masks: Tensor, weights: Tensor, x: Tensor) -> Tensor:
    """Outputs of a fully connected network, ReLU between its layers, under each mask: float32 (k, n, outputs).

    Args:
        layout: of the masks.
        masks: int64 (k, word_count).
        weights: the frozen weights, float32, padded (64 * word_count,).
        x: inputs, float32 (n, inputs).
    """
    count, rows = len(masks), len(x)
    width = -(-layout.shapes[0][1] // WORD_BITS)
    h = torch.nn.functional.pad(x, (0, width * WORD_BITS - x.shape[1])).contiguous()[None]
    word = 0
    for depth, (neurons, columns) in enumerate(layout.shapes):
        width, last = -(-columns // WORD_BITS), depth == len(layout.shapes) - 1
        room = neurons if last else -(-neurons // WORD_BITS) * WORD_BITS
        out = torch.zeros(count, rows, room, device=x.device)
        if out.numel():
            shared = 0 if depth == 0 else rows * h.shape[2]  # all masks see the same inputs, or each its own
            grid = (count, triton.cdiv(neurons, _NEURONS), rows)
            _layer[grid](
                masks, weights, h, out, masks.shape[1], word, width, neurons, shared, h.shape[2], room, rows,
                _NEURONS, not last,
            )  # fmt: skip
        h, word = out, word + neurons * width
    return h


@triton.jit  # type: ignore[untyped-decorator]
def _bits(words: Any) -> Any:
    """The bits of int64 words (...): bool (..., 64), the lowest first."""
    return ((tl.expand_dims(words, -1) >> tl.arange(0, 64).to(tl.int64)) & 1) != 0


@triton.jit  # type: ignore[untyped-decorator]
def _dots(
    masks: Any,
    vector: Any,
    out: Any,
    count: Any,
    words: Any,
    share: Any,
    group: tl.constexpr,
    step: tl.constexpr,
) -> None:
    many = tl.program_id(0) * group + tl.arange(0, group)
    begin = tl.program_id(1) * share
    total = tl.zeros([group], tl.float32)
    for offset in range(0, share, step):
        word = begin + offset + tl.arange(0, step)
        live = (many < count)[:, None] & (word < words)[None, :]
        some = tl.load(masks + many[:, None].to(tl.int64) * words + word[None, :], mask=live, other=0)
        places = word[:, None] * 64 + tl.arange(0, 64)[None, :]
        numbers = tl.load(vector + places, mask=(word < words)[:, None], other=0.0)
        chosen = tl.where(_bits(some), tl.expand_dims(numbers, 0), 0.0)
        total += tl.sum(tl.sum(chosen, 2), 1)
    tl.store(out + tl.program_id(1) * count + many, total, mask=many < count)


@triton.jit  # type: ignore[untyped-decorator]
def _counts(masks: Any, out: Any, count: Any, words: Any, group: tl.constexpr, step: tl.constexpr) -> None:
    word = tl.program_id(0) * step + tl.arange(0, step)
    total = tl.zeros([step, 64], tl.int32)
    for first in range(0, count, group):
        many = first + tl.arange(0, group)
        live = (many < count)[:, None] & (word < words)[None, :]
        some = tl.load(masks + many[:, None].to(tl.int64) * words + word[None, :], mask=live, other=0)
        total += tl.sum(_bits(some).to(tl.int32), 0)
    places = word[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + places, total.to(tl.float32), mask=(word < words)[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _layer(
    masks: Any,
    weights: Any,
    inputs: Any,
    out: Any,
    words: Any,
    first: Any,
    width: Any,
    neurons: Any,
    apart: Any,
    columns: Any,
    room: Any,
    rows: Any,
    block: tl.constexpr,
    relu: tl.constexpr,
) -> None:
    mask, row = tl.program_id(0).to(tl.int64), tl.program_id(2)
    neuron = tl.program_id(1) * block + tl.arange(0, block)
    live = neuron < neurons
    total = tl.zeros([block], tl.float32)
    for i in range(width):
        word = first + neuron * width + i
        some = tl.load(masks + mask * words + word, mask=live, other=0)
        places = word[:, None].to(tl.int64) * 64 + tl.arange(0, 64)[None, :]
        frozen = tl.load(weights + places, mask=live[:, None], other=0.0)
        entries = tl.load(inputs + mask * apart + row * columns + i * 64 + tl.arange(0, 64))
        total += tl.sum(tl.where(_bits(some), frozen * entries[None, :], 0.0), 1)
    if relu:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    tl.store(out + (mask * rows + row) * room + neuron, total, mask=live)
