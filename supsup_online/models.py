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

from supsup_online.errors import SpecError
from supsup_online.layers import MaskedLayer, MaskedLinear

NAMED: Final = {"lenet-300-100": (300, 100), "fc-1024-1024": (1024, 1024)}
MAX_WEIGHTS: Final = 2**31 - 1
_MLP = re.compile(r"mlp((?:-[1-9][0-9]{0,6})+)")


@dataclass(frozen=True)
class Architecture:
    """A feed-forward network over one flat vector of P frozen weights.

    Attributes:
        name: the name it was built from, for instance `lenet-300-100`.
        input_shape: shape of one input, without the batch axis.
        layers: in the order in which they are applied.
    """

    name: str
    input_shape: tuple[int, ...]
    layers: tuple[MaskedLayer, ...]

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

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Logits (n, outputs) of inputs (n, *input_shape) under the effective weights, one per layer."""
        x = x.flatten(1)
        for layer, weight in zip(self.layers, weights, strict=True):
            x = layer.forward(x, weight)
        return x


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> Architecture:
    """The architecture called `name`: `lenet-300-100`, `fc-1024-1024` or any `mlp-A-B-...` of hidden sizes.

    Raises:
        SpecError: the name is unknown, a size is not positive, or the network would exceed 2**31 - 1 weights.
    """
    if not input_shape or min(input_shape) < 1 or outputs < 1:
        raise SpecError(f"input shape {input_shape} and outputs {outputs} must be positive")
    sizes = (math.prod(input_shape), *_hidden_sizes(name), outputs)
    if sum(a * b for a, b in pairwise(sizes)) > MAX_WEIGHTS:
        raise SpecError(f"{name} on input shape {input_shape} has more than {MAX_WEIGHTS} weights")
    last = len(sizes) - 2
    layers = tuple(MaskedLinear(a, b, relu=i < last) for i, (a, b) in enumerate(pairwise(sizes)))
    return Architecture(name, input_shape, layers)


def _hidden_sizes(name: str) -> tuple[int, ...]:
    if name in NAMED:
        return NAMED[name]
    if match := _MLP.fullmatch(name):
        return tuple(int(size) for size in match[1].split("-")[1:])
    raise SpecError(f"unknown architecture {name!r}: choose {', '.join(NAMED)} or mlp-A-B-... (hidden sizes)")
