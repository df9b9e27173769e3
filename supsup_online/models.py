"""Named architectures: a name, an input shape and an output size give the layers and the flat weight layout."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor

from supsup_online import convolutional
from supsup_online.errors import SpecError
from supsup_online.layers import MaskedLayer, MaskedLinear
from supsup_online.parts import Chain, Flatten, Flow, Masked, Part

NAMED: Final = {"lenet-300-100": (300, 100), "fc-1024-1024": (1024, 1024)}
MAX_WEIGHTS: Final = 2**31 - 1
_MLP: Final = re.compile(r"mlp((?:-[1-9][0-9]{0,6})+)")


@dataclass(frozen=True)
class Architecture:
    """A feed-forward network over one flat vector of P frozen weights.

    Attributes:
        name: the name it was built from, for instance `lenet-300-100`.
        input_shape: shape of one input, without the batch axis.
        body: what inputs pass through.
    """

    name: str
    input_shape: tuple[int, ...]
    body: Part

    @cached_property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The masked layers, in the order of the flat vector."""
        return self.body.layers

    @cached_property
    def is_connected(self) -> bool:
        """Whether it is nothing but fully connected layers, one after the other."""
        return all(isinstance(layer, MaskedLinear) for layer in self.layers)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of weights of each layer."""
        return tuple(math.prod(layer.weight_shape) for layer in self.layers)

    @property
    def weight_count(self) -> int:
        """P, the number of weights of the whole network."""
        return sum(self.sizes)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat (P,) tensor, one per layer, in the layers' weight shapes."""
        parts = torch.split(flat, list(self.sizes))
        return [part.view(layer.weight_shape) for part, layer in zip(parts, self.layers, strict=True)]

    def forward(
        self, x: Tensor, weights: Sequence[Tensor], statistics: Tensor | None = None, noted: Tensor | None = None
    ) -> Tensor:
        """Logits (n, outputs) of inputs (n, *input_shape) under the effective weights, one per layer.

        Args:
            x: inputs.
            weights: one per layer.
            statistics: kept ones to normalise by, float32 (F,) (see `parts`); None: those of this batch.
            noted: where those of this batch are written, float32 (F,), zeros before; None: nowhere.
        """
        return self.body.forward(x, Flow(iter(weights), statistics, noted))


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> Architecture:
    """The architecture of a name: `lenet-300-100`, `fc-1024-1024`, `mlp-A-B-...` of hidden sizes, or `convolutional`.

    Raises:
        SpecError: the name is unknown, a size is not positive, the inputs are no images or too small for it, or the
            network would exceed 2**31 - 1 weights.
    """
    if not input_shape or min(input_shape) < 1 or outputs < 1:
        raise SpecError(f"input shape {input_shape} and outputs {outputs} must be positive")
    body = convolutional.body(name, input_shape, outputs) or _connected(_hidden_sizes(name), input_shape, outputs)
    architecture = Architecture(name, input_shape, body)
    if architecture.weight_count > MAX_WEIGHTS:
        raise SpecError(f"{name} on input shape {input_shape} has more than {MAX_WEIGHTS} weights")
    body.after(input_shape)  # refuses images that are too small
    return architecture


def _connected(hidden: Sequence[int], input_shape: tuple[int, ...], outputs: int) -> Part:
    sizes = (math.prod(input_shape), *hidden, outputs)
    last = len(sizes) - 2
    layers = (MaskedLinear(a, b, i < last, f"fc{i + 1}") for i, (a, b) in enumerate(pairwise(sizes)))
    return Chain((Flatten(), *map(Masked, layers)))


def _hidden_sizes(name: str) -> tuple[int, ...]:
    if name in NAMED:
        return NAMED[name]
    if match := _MLP.fullmatch(name):
        return tuple(int(size) for size in match[1].split("-")[1:])
    raise SpecError(
        f"unknown architecture {name!r}: choose {', '.join(NAMED)}, mlp-A-B-... (hidden sizes), {convolutional.KNOWN}"
    )
