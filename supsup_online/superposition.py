"""The gradient to the alphas of a superposition: what One-Shot and Binary inference are made of.

For fully connected layers on the CPU it is written out, all of it in the layout of the masks' bits, padding included:
counts of ones become effective weights, and the gradient to those becomes the vector that the masks are multiplied
with, in place. What is saved is copying between two layouts, and that is most of the time there is for few masks. The
plain twin, by autograd, is the truth the tests hold it to, and what runs for all other networks.

A superposition is none of the masks, so no statistics are kept for it: it is normalised by those of the inputs at hand,
of a single image by its own pixels.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from supsup_online import many_masks
from supsup_online.bitpack import MaskLayout, Masks, Words
from supsup_online.kernels import cpu
from supsup_online.network import Network

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]


def alpha_gradient(
    network: Network,
    masks: Masks,
    slots: Slots,
    x: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    mean: Floats | None = None,
) -> Floats:
    """dObjective/dalpha_i = <dObjective/dW_eff * W, M_i> at equal alphas, float32 (k,).

    Args:
        network: the frozen weights.
        masks: packed (all, word_count).
        slots: int64 (k,), those that are superposed.
        x: prepared inputs (n, ...).
        objective: of logits (n, outputs): values (n,), of which the mean is meant.
        mean: of these masks, float32 (P,), where it is known.
    """
    if isinstance(masks, Tensor):
        return _on_device(network, masks, slots, x, objective)
    if not network.has_kernels:
        return alpha_gradient_reference(network, masks, slots, x, objective, mean=mean)
    masks, layout = np.ascontiguousarray(masks), network.layout
    weights = torch.from_numpy(network.padded_weights)
    if mean is None:
        effective = torch.from_numpy(cpu.superposed_weights(masks, slots, network.padded_weights))
    else:
        effective = torch.from_numpy(layout.pad(mean)).mul_(weights)
    layers, inputs = list(_layers(layout, effective)), []
    h = x.flatten(1)
    for depth, layer in enumerate(layers):
        h = functional.pad(h.relu() if depth else h, (0, layer.shape[1] - h.shape[1]))
        inputs.append(h)
        h = h @ layer.T
    above = _gradient(objective, h)
    vector = torch.empty_like(effective)
    targets = list(_layers(layout, vector))
    for depth in reversed(range(len(layers))):
        torch.mm(above.T, inputs[depth], out=targets[depth])
        if depth:
            below = torch.ops.aten.threshold_backward(above @ layers[depth], inputs[depth], 0)
            above = below[:, : layout.shapes[depth - 1][0]]
    return cpu.masked_dots(masks, slots, vector.mul_(weights).numpy())


def _on_device(
    network: Network, masks: Tensor, slots: Slots, x: Tensor, objective: Callable[[Tensor], Tensor]
) -> Floats:
    """In the layout of the bits as well; only the k results leave the device."""
    kernels, masks, weights = many_masks.gpu(), many_masks.chosen(masks, slots), network.padded_on_device
    effective = (kernels.superposed_counts(masks) / max(1, len(masks)) * weights).requires_grad_()
    h = x.flatten(1)
    for depth, layer in enumerate(_layers(network.layout, effective)):
        h = functional.pad(h.relu() if depth else h, (0, layer.shape[1] - h.shape[1])) @ layer.T
    (gradient,) = torch.autograd.grad(objective(h).mean(), effective)
    found: Floats = kernels.masked_dots(masks, gradient * weights).cpu().numpy()
    return found


def alpha_gradient_reference(
    network: Network,
    masks: Words,
    slots: Slots,
    x: Tensor,
    objective: Callable[[Tensor], Tensor],
    *,
    mean: Floats | None = None,
) -> Floats:
    """What `alpha_gradient` means: one backward pass by autograd, then k masked dot products."""
    mean = many_masks.superposed_mean(network, masks, slots) if mean is None else mean
    effective = (network.weights * torch.from_numpy(mean).to(network.device)).requires_grad_()
    logits = network.architecture.forward(x, network.architecture.split(effective))
    (gradient,) = torch.autograd.grad(objective(logits).mean(), effective)
    return many_masks.masked_dots(network, masks, (gradient * network.weights).cpu().numpy(), slots)


def _layers(layout: MaskLayout, padded: Tensor) -> Iterator[Tensor]:
    """Views (neurons, padded columns) of a number per weight, one per layer."""
    return (padded[words].view(rows, -1) for (rows, _), _, words in layout.places())


def _gradient(objective: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(objective(leaf).mean(), leaf)[0]
