"""Seed -> frozen weights, the same bytes on every machine, and the fingerprint that proves it.

Signed constant (the paper's choice): every weight is +-sqrt(2 / fan_in), the sign a raw random bit. Kaiming normal:
mean 0, standard deviation sqrt(2 / fan_in). Layer i draws from the stream (seed, WEIGHTS, i) of `draws`.
"""

import hashlib
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online import draws
from supsup_online.errors import SpecError
from supsup_online.models import Architecture
from supsup_online.types import WeightInit

WEIGHT_INITS: Final[tuple[WeightInit, ...]] = ("signed-constant", "kaiming-normal")


def generate(architecture: Architecture, seed: int, init: WeightInit = "signed-constant") -> NDArray[np.float32]:
    """The frozen weights of a network as one flat vector, float32 of shape (P,).

    Raises:
        SpecError: `init` is not one of `WEIGHT_INITS`.
    """
    if init not in WEIGHT_INITS:
        raise SpecError(f"unknown weight initialisation {init!r}: choose {' or '.join(WEIGHT_INITS)}")
    return np.concatenate([_layer(architecture, index, seed, init) for index in range(len(architecture.layers))])


def _layer(architecture: Architecture, index: int, seed: int, init: WeightInit) -> NDArray[np.float32]:
    count = architecture.sizes[index]
    scale = np.float32(math.sqrt(2.0 / architecture.layers[index].fan_in))
    if init == "kaiming-normal":
        return draws.normals(seed, draws.Purpose.WEIGHTS, index, count) * scale
    signs = draws.bits(seed, draws.Purpose.WEIGHTS, index, count).astype(np.float32)
    return (signs * np.float32(2.0) - np.float32(1.0)) * scale


def fingerprint(weights: NDArray[np.float32]) -> str:
    """sha256 (hexadecimal) of the weights as little-endian float32: what a reader compares before it trusts them."""
    return hashlib.sha256(weights.astype("<f4").tobytes()).hexdigest()
