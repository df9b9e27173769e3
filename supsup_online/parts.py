"""The parts that a network is composed of: masked layers, and what stands between them without weights.

A part says which masked layers it has, and takes their effective weights in that order from a `Flow` as inputs pass
through. Normalisations have no weights of their own (the paper's are not affine either), only means and variances per
channel: those of the batch at hand, or those *kept* with a mask.

Kept statistics are one vector of float32 (F,): the number of batches seen, and then for each normalisation, in order,
its means and its variances.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from supsup_online.errors import SpecError
from supsup_online.layers import MaskedLayer, Shape

EPSILON: Final = 1e-5  # torch's own; it stands beside a variance
_NEWEST: Final = 0.1  # least weight of the newest batch, as in torch


def statistics_count(channels: tuple[int, ...]) -> int:
    """F, the numbers kept for normalisations of so many channels; 0 where there are none."""
    return 1 + 2 * sum(channels) if channels else 0


def fold(kept: Tensor, noted: Tensor) -> None:
    """Take the statistics of one more batch (F,) into those kept (F,), in place.

    The mean of the first ten batches, then a running one. The count is exact up to 2**24, and then stands still.
    """
    weight = max(_NEWEST, 1 / (float(kept[0]) + 1))
    kept[1:].lerp_(noted[1:], weight)
    kept[0] += 1


@dataclass(slots=True)
class Flow:
    """What one pass through a network takes up on its way.

    Attributes:
        weights: effective weights of the layers, in their order.
        kept: float32 (F,): the statistics to normalise by; None: those of the batch.
        noted: float32 (F,), zeros: where the statistics of the batch are written; None: nowhere.
    """

    weights: Iterator[Tensor]
    kept: Tensor | None = None
    noted: Tensor | None = None
    _place: int = field(default=1, init=False)

    def normalised(self, x: Tensor) -> Tensor:
        """The next normalisation whose statistics are kept: x (n, channels, ...) -> the same shape."""
        place, channels = self._place, x.shape[1]
        self._place += 2 * channels
        source = self.noted if self.kept is None else self.kept
        if source is None:
            return by_the_batch(x)
        mean, variance = source[place : place + channels], source[place + channels : self._place]
        if self.kept is None:
            return by_the_batch(x, mean, variance)
        return functional.batch_norm(x, mean, variance, training=False, eps=EPSILON)


def by_the_batch(x: Tensor, mean: Tensor | None = None, variance: Tensor | None = None) -> Tensor:
    """Normalise x (n, channels, ...) by its own statistics, and write them, float32 (channels,), where that is asked.

    What is written is the unbiased variance; what x is divided by is the biased one, as in torch.
    """
    return functional.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=EPSILON)


class Part:
    """A piece of a network; this one does nothing."""

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The masked layers, in the order in which their weights are taken."""
        return ()

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each normalisation whose statistics are kept, in the order in which they are met."""
        return ()

    def after(self, shape: Shape) -> Shape:
        """Shape of one output, for an input of some shape, the batch axis left out.

        Raises:
            SpecError: the part does not take such an input.
        """
        return shape

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """Inputs (n, ...) to outputs (n, ...)."""
        return x


@dataclass(frozen=True)
class Chain(Part):
    """One part after the other."""

    parts: tuple[Part, ...]

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """Those of all parts."""
        return tuple(layer for part in self.parts for layer in part.layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """Those of all parts."""
        return tuple(count for part in self.parts for count in part.channels)

    def after(self, shape: Shape) -> Shape:
        """Through all parts."""
        for part in self.parts:
            shape = part.after(shape)
        return shape

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """Through all parts."""
        for part in self.parts:
            x = part.forward(x, flow)
        return x


@dataclass(frozen=True)
class Masked(Part):
    """A masked layer."""

    layer: MaskedLayer

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """That one."""
        return (self.layer,)

    def after(self, shape: Shape) -> Shape:
        """As the layer says."""
        return self.layer.after(shape)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """Under the next effective weight."""
        return self.layer.forward(x, next(flow.weights))


@dataclass(frozen=True)
class Residual(Part):
    """What the body makes of its input, and the input itself, or what a shortcut makes of it; ReLU behind the sum."""

    body: Part
    shortcut: Part = field(default_factory=Part)

    @property
    def layers(self) -> tuple[MaskedLayer, ...]:
        """The body's, then the shortcut's."""
        return self.body.layers + self.shortcut.layers

    @property
    def channels(self) -> tuple[int, ...]:
        """The body's, then the shortcut's."""
        return self.body.channels + self.shortcut.channels

    def after(self, shape: Shape) -> Shape:
        """Of both."""
        after, beside = self.body.after(shape), self.shortcut.after(shape)
        if after != beside:
            raise SpecError(f"a residual block cannot add {beside} to {after}")
        return after

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """relu(body + shortcut)."""
        y = self.body.forward(x, flow)
        return torch.relu(y + self.shortcut.forward(x, flow))


@dataclass(frozen=True)
class Normalisation(Part):
    """To mean 0 and variance 1 per channel, over the rows and places of a batch or by kept statistics; not affine.

    Attributes:
        count: channels.
        kept: whether masks keep its statistics; else it always goes by the batch.
    """

    count: int
    kept: bool = True

    @property
    def channels(self) -> tuple[int, ...]:
        """Its own, where they are kept."""
        return (self.count,) if self.kept else ()

    def after(self, shape: Shape) -> Shape:
        """The same; a single image needs two places, or it has no variance."""
        if len(shape) != 3 or shape[0] != self.count or shape[1] * shape[2] < 2:
            raise SpecError(f"the image is too small for this network: {shape} is left where channels are normalised")
        return shape

    def forward(self, x: Tensor, flow: Flow) -> Tensor:
        """(n, channels, h, w) -> the same shape."""
        return flow.normalised(x) if self.kept else by_the_batch(x)


@dataclass(frozen=True)
class Relu(Part):
    """max(x, 0)."""

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """Element by element."""
        return torch.relu(x)


@dataclass(frozen=True)
class MaxPool(Part):
    """The maximum of square windows.

    Attributes:
        window: its side.
        stride: from one window to the next.
        padding: places around the image that are never the maximum.
    """

    window: int = 2
    stride: int = 2
    padding: int = 0

    def after(self, shape: Shape) -> Shape:
        """(channels, h, w): as many as there are whole windows."""
        if len(shape) != 3 or min(shape[1:]) + 2 * self.padding < self.window:
            raise SpecError(f"the image is too small for this network: {shape} is left where windows are pooled")
        height, width = ((side + 2 * self.padding - self.window) // self.stride + 1 for side in shape[1:])
        return (shape[0], height, width)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """(n, channels, h, w) -> (n, channels, ...)."""
        return functional.max_pool2d(x, self.window, self.stride, self.padding)


@dataclass(frozen=True)
class GlobalAveragePool(Part):
    """The mean of each channel."""

    def after(self, shape: Shape) -> Shape:
        """(channels, h, w) -> (channels,)."""
        return shape[:1]

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """(n, channels, h, w) -> (n, channels)."""
        return x.mean((2, 3))


@dataclass(frozen=True)
class Flatten(Part):
    """All of an input as one row."""

    def after(self, shape: Shape) -> Shape:
        """(...) -> (product,)."""
        return (math.prod(shape),)

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """(n, ...) -> (n, product)."""
        return x.flatten(1)


@dataclass(frozen=True)
class AsImage(Part):
    """Inputs of two axes as images of one channel."""

    def after(self, shape: Shape) -> Shape:
        """(h, w) -> (1, h, w); (channels, h, w) stays."""
        if len(shape) not in (2, 3):
            raise SpecError(f"a convolutional network takes inputs of shape HxW or CxHxW (channels first), not {shape}")
        return (1, *shape) if len(shape) == 2 else shape

    def forward(self, x: Tensor, flow: Flow) -> Tensor:  # noqa: ARG002 - parts share a signature
        """(n, h, w) -> (n, 1, h, w)."""
        return x[:, None] if x.dim() == 3 else x
