"""Seed -> frozen weights, the same bytes on every machine, and the fingerprint that proves it.

Signed constant (the paper's choice): every weight is +-sqrt(2 / fan_in), the sign a raw random bit. Kaiming normal:
mean 0, standard deviation sqrt(2 / fan_in). Layer i draws from the stream (seed, WEIGHTS, i) of `draws`. Trained
weights come from a file (`backbone`) instead; layers that are not in it are signed constant.
"""

import hashlib
import math
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online import backbone, draws
from supsup_online.errors import SpecError
from supsup_online.models import Architecture
from supsup_online.types import WeightInit

WEIGHT_INITS: Final[tuple[WeightInit, ...]] = ("signed-constant", "kaiming-normal")


def generate(
    architecture: Architecture, seed: int, init: str = "signed-constant", weights_file: Path | None = None
) -> NDArray[np.float32]:
    """The frozen weights of a network as one flat vector, float32 of shape (P,).

    Args:
        architecture: the layers.
        seed: of all that is drawn.
        init: one of `WEIGHT_INITS`, or `trained:` and the sha256 of a file.
        weights_file: that file.

    Raises:
        SpecError: `init` is neither; or (WeightsFileError) the file is missing, another one, or does not fit.
    """
    if init not in WEIGHT_INITS and not backbone.is_trained(init):
        raise SpecError(f"unknown weight initialisation {init!r}: choose {' or '.join(WEIGHT_INITS)}")
    trained = backbone.load(weights_file, init, architecture) if backbone.is_trained(init) else {}
    drawn = "kaiming-normal" if init == "kaiming-normal" else "signed-constant"
    layers = enumerate(architecture.layers)
    return np.concatenate(
        [trained[x.name] if x.name in trained else _layer(architecture, i, seed, drawn) for i, x in layers]
    )


def _layer(architecture: Architecture, index: int, seed: int, init: str) -> NDArray[np.float32]:
    count = architecture.sizes[index]
    scale = np.float32(math.sqrt(2.0 / architecture.layers[index].fan_in))
    if init == "kaiming-normal":
        return draws.normals(seed, draws.Purpose.WEIGHTS, index, count) * scale
    signs = draws.bits(seed, draws.Purpose.WEIGHTS, index, count).astype(np.float32)
    return (signs * np.float32(2.0) - np.float32(1.0)) * scale


def fingerprint(weights: NDArray[np.float32]) -> str:
    """sha256 (hexadecimal) of the weights as little-endian float32: what a reader compares before it trusts them."""
    return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
