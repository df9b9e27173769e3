"""Layers whose weights are frozen and masked: each knows its shape and how to apply an effective weight.

A layer owns no tensor. The weights of a whole network are one flat float32 vector (see `models.Architecture`), its
masks are bits over that vector, and a layer is handed the product of the two. That is the interface a convolution
has to fill as well: a shape, a fan-in, and `forward`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class MaskedLayer(Protocol):
    """One layer of a masked network."""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight; the first axis is the output, and one output's weights are one row of mask bits."""

    @property
    def fan_in(self) -> int:
        """Inputs of one output neuron: the scale of the frozen weights and of the scores."""

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the layer with an effective weight (frozen weight times mask) of `weight_shape`."""


@dataclass(frozen=True, slots=True)
class MaskedLinear:
    """Fully connected layer without bias (section 3 of the paper has none), ReLU behind it unless it is the last."""

    in_features: int
    out_features: int
    relu: bool = True

    @property
    def weight_shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        return (self.out_features, self.in_features)

    @property
    def fan_in(self) -> int:
        """The number of input features."""
        return self.in_features

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Map (n, in_features) to (n, out_features)."""
        y = functional.linear(x, weight)
        return torch.relu(y) if self.relu else y
