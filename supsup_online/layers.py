"""Layers whose weights are frozen and masked: each knows its shape and how to apply an effective weight.

A layer owns no tensor. The weights of a whole network are one flat float32 vector (see `models.Architecture`), its
masks are bits over that vector, and a layer is handed the product of the two. None has a bias: section 3 of the paper
has none.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from supsup_online.errors import SpecError

Shape = tuple[int, ...]


class MaskedLayer(Protocol):
    """One layer of a masked network."""

    @property
    def name(self) -> str:
        """What torchvision calls it: trained weights come from a file under `<name>.weight`."""

    @property
    def weight_shape(self) -> Shape:
        """Shape of the weight; the first axis is the output, and one output's weights are one row of mask bits."""

    @property
    def fan_in(self) -> int:
        """Inputs of one output neuron: the scale of the frozen weights and of the scores."""

    def after(self, shape: Shape) -> Shape:
        """Shape of one output, for an input of some shape, the batch axis left out.

        Raises:
            SpecError: the layer does not take such an input.
        """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Apply the layer with an effective weight (frozen weight times mask) of `weight_shape`."""


@dataclass(frozen=True, slots=True)
class MaskedLinear:
    """Fully connected layer, ReLU behind it unless it is the last."""

    in_features: int
    out_features: int
    relu: bool = True
    name: str = ""

    @property
    def weight_shape(self) -> Shape:
        """(out_features, in_features)."""
        return (self.out_features, self.in_features)

    @property
    def fan_in(self) -> int:
        """The number of input features."""
        return self.in_features

    def after(self, shape: Shape) -> Shape:
        """(in_features,) -> (out_features,)."""
        _require(shape == (self.in_features,), self.name, f"({self.in_features},)", shape)
        return (self.out_features,)

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Map (n, in_features) to (n, out_features)."""
        y = functional.linear(x, weight)
        return torch.relu(y) if self.relu else y


@dataclass(frozen=True, slots=True)
class MaskedConv:
    """Convolution over images, channels first, with a square kernel; zeros around the image, half a kernel wide."""

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    name: str = ""

    @property
    def weight_shape(self) -> Shape:
        """(out_channels, in_channels, kernel, kernel)."""
        return (self.out_channels, self.in_channels, self.kernel, self.kernel)

    @property
    def fan_in(self) -> int:
        """Input channels times the kernel's places."""
        return self.in_channels * self.kernel**2

    def after(self, shape: Shape) -> Shape:
        """(in_channels, h, w) -> (out_channels, h / stride, w / stride), rounded up."""
        _require(len(shape) == 3 and shape[0] == self.in_channels, self.name, f"({self.in_channels}, h, w)", shape)
        return (self.out_channels, -(-shape[1] // self.stride), -(-shape[2] // self.stride))

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Map (n, in_channels, h, w) to (n, out_channels, ...)."""
        return functional.conv2d(x, weight, stride=self.stride, padding=self.kernel // 2)


def _require(fits: bool, name: str, wanted: str, shape: Shape) -> None:  # noqa: FBT001 - a plain assertion
    if not fits:
        raise SpecError(f"layer {name} takes inputs of shape {wanted}, not {shape}")
