"""Convolutional networks by name, composed of `parts`; layers are called what torchvision calls them.

    conv-A-B-...    per number: 3x3 convolution, normalisation, ReLU, 2x2 max pooling; then one connected layer
    resnet18-W      the paper's: ResNet-18 for small images, of width W (20 there), 3x3 stem without pooling
    resnet50        ResNet-50 for large images (He et al., 2016), strides as torchvision has them

Each with `-batch` behind it normalises by the batch at hand, always; without, by statistics that are kept per mask.
No layer has a bias and no normalisation weights.
"""

import math
import re
from collections.abc import Callable, Iterator
from typing import Final

from supsup_online.layers import MaskedConv, MaskedLinear, Shape
from supsup_online.parts import (
    AsImage,
    Chain,
    Flatten,
    GlobalAveragePool,
    Masked,
    MaxPool,
    Normalisation,
    Part,
    Relu,
    Residual,
)

KNOWN: Final = "conv-A-B-... (channels), resnet18-W (width) or resnet50"
_NAME: Final = re.compile(
    r"(?:conv(?P<conv>(?:-[1-9][0-9]{0,6})+)|resnet18-(?P<width>[1-9][0-9]{0,6})|resnet50)(?P<batch>-batch)?"
)
_WIDER: Final = 4  # a bottleneck's outputs, in multiples of its width

Block = Callable[[str, int, int, int, bool], Part]  # name, channels before, width, stride, kept


def body(name: str, input_shape: Shape, outputs: int) -> Part | None:
    """The network called `name`, or None where no convolutional network is called that.

    Raises:
        SpecError: the inputs are no images, or too small for this network.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    image = AsImage().after(input_shape)
    kept = found["batch"] is None
    if found["conv"]:
        return _plain([int(count) for count in found["conv"].split("-")[1:]], image, outputs, kept=kept)
    if found["width"]:
        return _resnet18(int(found["width"]), image[0], outputs, kept=kept)
    return _resnet50(image[0], outputs, kept=kept)


def _plain(counts: list[int], image: Shape, outputs: int, *, kept: bool) -> Part:
    parts: list[Part] = []
    before, shape = image[0], image
    for index, count in enumerate(counts, 1):
        piece = Chain((*_conv(f"conv{index}", before, count, 3, kept=kept), Relu(), MaxPool()))
        parts.append(piece)
        before, shape = count, piece.after(shape)
    head = MaskedLinear(math.prod(shape), outputs, relu=False, name="fc")
    return Chain((AsImage(), *parts, Flatten(), Masked(head)))


def _resnet18(width: int, channels: int, outputs: int, *, kept: bool) -> Part:
    stem = (*_conv("conv1", channels, width, 3, kept=kept), Relu())
    widths = [width, 2 * width, 4 * width, 8 * width]
    blocks = _blocks(_basic, width, widths, (2, 2, 2, 2), kept=kept)
    return _with_head((*stem, *blocks), widths[-1], outputs)


def _resnet50(channels: int, outputs: int, *, kept: bool) -> Part:
    stem = (*_conv("conv1", channels, 64, 7, 2, kept=kept), Relu(), MaxPool(3, 2, 1))
    widths = [64, 128, 256, 512]
    blocks = _blocks(_bottleneck, 64, widths, (3, 4, 6, 3), wider=_WIDER, kept=kept)
    return _with_head((*stem, *blocks), _WIDER * widths[-1], outputs)


def _with_head(parts: tuple[Part, ...], channels: int, outputs: int) -> Part:
    head = MaskedLinear(channels, outputs, relu=False, name="fc")
    return Chain((AsImage(), *parts, GlobalAveragePool(), Masked(head)))


def _blocks(
    block: Block, before: int, widths: list[int], counts: tuple[int, ...], *, wider: int = 1, kept: bool
) -> Iterator[Part]:
    """Four stages of residual blocks; each but the first begins with a stride of two."""
    for stage, (width, count) in enumerate(zip(widths, counts, strict=True), 1):
        for index in range(count):
            yield block(f"layer{stage}.{index}", before, width, 2 if stage > 1 and index == 0 else 1, kept)
            before = wider * width


def _basic(name: str, before: int, width: int, stride: int, kept: bool) -> Part:  # noqa: FBT001 - a `Block`
    inner = (
        *_conv(f"{name}.conv1", before, width, 3, stride, kept=kept),
        Relu(),
        *_conv(f"{name}.conv2", width, width, 3, kept=kept),
    )
    return Residual(Chain(inner), _shortcut(name, before, width, stride, kept=kept))


def _bottleneck(name: str, before: int, width: int, stride: int, kept: bool) -> Part:  # noqa: FBT001 - a `Block`
    inner = (
        *_conv(f"{name}.conv1", before, width, 1, kept=kept),
        Relu(),
        *_conv(f"{name}.conv2", width, width, 3, stride, kept=kept),
        Relu(),
        *_conv(f"{name}.conv3", width, _WIDER * width, 1, kept=kept),
    )
    return Residual(Chain(inner), _shortcut(name, before, _WIDER * width, stride, kept=kept))


def _shortcut(name: str, before: int, after: int, stride: int, *, kept: bool) -> Part:
    """The input itself where it has the right shape, else a 1x1 convolution of it."""
    if before == after and stride == 1:
        return Part()
    return Chain(_conv(f"{name}.downsample.0", before, after, 1, stride, kept=kept))


def _conv(name: str, before: int, after: int, kernel: int, stride: int = 1, *, kept: bool) -> tuple[Part, Part]:
    """A convolution and its normalisation."""
    return Masked(MaskedConv(before, after, kernel, stride, name)), Normalisation(after, kept)
