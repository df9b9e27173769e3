"""Arithmetic over many packed masks at once: what every kind of task inference is made of.

    superposed_mean     mean of some masks: a superposition with equal alphas
    masked_dots         one vector against each mask: the gradient to the alphas
    exact_logits        the network under each mask

Masks in memory go to the CPU's kernels, masks on a device to the GPU's. Each function has a plain twin, `*_reference`,
that unpacks masks and leaves the arithmetic to torch: the truth the tests hold the fast ways to, and what runs where no
kernel fits (a device without Triton, layers that are not fully connected).
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.bitpack import WORD_BITS, MaskLayout, Masks, Words
from supsup_online.kernels import cpu
from supsup_online.network import Network

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]

FEW: Final = (
    16  # inputs: for more, unpacking a mask once and multiplying matrices is faster than reading bits per input
)
_CHUNK: Final = 64  # masks unpacked at a time: 64 x 315,200 float32 are 81 MB
_AT_ONCE: Final = 8_000_000  # outputs held at a time, 32 MB


def superposed_mean(network: Network, masks: Masks, slots: Slots | None = None) -> Floats:
    """Mean of packed masks (k, word_count), or of those in some slots: float32 (P,)."""
    slots = _all(masks) if slots is None else slots
    if isinstance(masks, Tensor):
        counts: Floats = gpu().superposed_counts(chosen(masks, slots)).cpu().numpy()
        return network.layout.unpad(counts) / np.float32(len(slots))
    if network.device.type != "cpu":
        return superposed_mean_reference(network.layout, masks[slots])
    counts = cpu.superposed_counts(np.ascontiguousarray(masks), slots)
    return network.layout.unpad(counts) / np.float32(len(slots))


def superposed_mean_reference(layout: MaskLayout, masks: Words) -> Floats:
    """What `superposed_mean` means."""
    total = np.zeros(layout.weight_count, dtype=np.float64)
    for start in range(0, len(masks), _CHUNK):
        total += _dense(layout, masks[start : start + _CHUNK]).sum(0)
    return (total / len(masks)).astype(np.float32)


def masked_dots(network: Network, masks: Masks, vector: Floats, slots: Slots | None = None) -> Floats:
    """Dot product of one vector (P,) with packed masks (k, word_count), or with those in some slots: float32 (k,)."""
    slots = _all(masks) if slots is None else slots
    if isinstance(masks, Tensor):
        there = torch.from_numpy(network.layout.pad(np.asarray(vector, dtype=np.float32))).to(masks.device)
        dots: Floats = gpu().masked_dots(chosen(masks, slots), there).cpu().numpy()
        return dots
    if network.device.type != "cpu":
        return masked_dots_reference(network.layout, masks[slots], vector)
    padded = network.layout.pad(np.asarray(vector, dtype=np.float32))
    return cpu.masked_dots(np.ascontiguousarray(masks), slots, padded)


def masked_dots_reference(layout: MaskLayout, masks: Words, vector: Floats) -> Floats:
    """What `masked_dots` means."""
    chunks = [_dense(layout, masks[i : i + _CHUNK]) @ vector for i in range(0, len(masks), _CHUNK)]
    return np.concatenate([*chunks, np.zeros(0)]).astype(np.float32)


def exact_logits(
    network: Network, masks: Masks, x: Tensor, slots: Slots | None = None, *, by_batch: bool = False
) -> Iterator[Tensor]:
    """Logits of prepared inputs (n, ...) under packed masks (k, word_count), or under those in some slots.

    Each mask's kept statistics normalise, where it has any; `by_batch`: those of these inputs, as in training.

    Returns:
        Pieces (some masks, n, outputs), in the order of the masks or slots.
    """
    slots = _all(masks) if slots is None else slots
    step = max(1, _AT_ONCE // max(1, len(x) * network.spec.outputs))
    for start in range(0, len(slots), step):
        yield _exact_logits(network, masks, slots[start : start + step], x, by_batch=by_batch)


def _exact_logits(network: Network, masks: Masks, slots: Slots, x: Tensor, *, by_batch: bool) -> Tensor:
    if isinstance(masks, Tensor):
        return _exact_on_device(network, chosen(masks, slots), x)
    if network.device.type != "cpu":
        return exact_logits_reference(network, masks[slots], x, by_batch=by_batch)
    masks = np.ascontiguousarray(masks)
    if network.is_connected and len(x) <= FEW:
        rows = x.flatten(1).numpy()
        return torch.from_numpy(cpu.exact_logits(network.layout, masks, slots, network.padded_weights, rows))
    out = torch.empty(len(slots), len(x), network.spec.outputs)
    effective = torch.empty_like(network.weights)
    with torch.no_grad():
        for target, slot in zip(out, slots.tolist(), strict=True):
            cpu.apply_mask(network.layout, masks[slot], network.weights.numpy(), effective.numpy())
            statistics = None if by_batch else network.kept_statistics(masks[slot])
            target.copy_(network.architecture.forward(x, network.architecture.split(effective), statistics))
    return out


def exact_logits_reference(network: Network, masks: Words, x: Tensor, *, by_batch: bool = False) -> Tensor:
    """What `exact_logits` means, all masks at once: (k, n, outputs)."""
    rows = [network.logits(x, words, by_batch=by_batch) for words in masks]
    return torch.stack(rows) if rows else torch.zeros(0, len(x), network.spec.outputs, device=network.device)


def _exact_on_device(network: Network, masks: Tensor, x: Tensor) -> Tensor:
    x = x.flatten(1)
    if len(x) <= FEW:
        logits: Tensor = gpu().exact_logits(network.layout, masks, network.padded_on_device, x)
        return logits
    pieces = [_batched(network, masks[at : at + _CHUNK], x) for at in range(0, len(masks), _CHUNK)]
    return torch.cat(pieces) if pieces else torch.zeros(0, len(x), network.spec.outputs, device=x.device)


def _batched(network: Network, masks: Tensor, x: Tensor) -> Tensor:
    """Logits (k, n, outputs) by one batched product a layer, with the masks of the layer unpacked."""
    h, word = x.expand(len(masks), *x.shape), 0
    weights = network.architecture.split(network.weights)
    places = torch.arange(WORD_BITS, device=masks.device)
    for depth, (frozen, (rows, columns)) in enumerate(zip(weights, network.layout.shapes, strict=True)):
        width = rows * -(-columns // WORD_BITS)
        bits = (masks[:, word : word + width, None] >> places) & 1
        kept = bits.view(len(masks), rows, -1)[:, :, :columns].to(frozen.dtype)
        h, word = torch.bmm(h.relu() if depth else h, (kept * frozen).transpose(1, 2)), word + width
    return h


def chosen(masks: Tensor, slots: Slots) -> Tensor:
    """The masks on a device in some slots; themselves where that is all of them, so that nothing is copied."""
    if len(slots) == len(masks) and bool((slots == np.arange(len(masks))).all()):
        return masks
    return masks[torch.from_numpy(slots).to(masks.device)]


def joined(masks: Masks, more: Words) -> Masks:
    """Some masks and a few more behind them, where the first ones are."""
    if isinstance(masks, Tensor):
        return torch.cat([masks, torch.from_numpy(more.view(np.int64)).to(masks.device)])
    return np.concatenate([masks, more])


def gpu() -> Any:
    """The GPU's kernels, imported when they are needed: Triton comes with torch for CUDA only."""
    from supsup_online.kernels import gpu as kernels  # noqa: PLC0415 - see above

    return kernels


def _all(masks: Masks) -> Slots:
    return np.arange(len(masks), dtype=np.int64)


def _dense(layout: MaskLayout, masks: Words) -> Floats:
    return np.stack([layout.unpack(words) for words in masks]).astype(np.float32)
