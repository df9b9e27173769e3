"""Trained weights in the place of random ones (Piggyback's setting; Mallya et al., 2018): a safetensors file.

A tensor belongs to the layer of its name: `conv1.weight` to `conv1`. What else there is in the file (biases, weights of
normalisations) is left out, for these networks have none. A layer that is not in the file, the head for instance, is
drawn from the seed. A bank names its file by the sha256 of all of its bytes.
"""

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
from numpy.typing import NDArray

from supsup_online.errors import WeightsFileError
from supsup_online.models import Architecture

PREFIX: Final = "trained:"
_TRAINED: Final = re.compile(f"{PREFIX}[0-9a-f]{{64}}")
_SHOWN: Final = 5


def is_trained(weight_init: str) -> bool:
    """Whether a bank's `weight_init` names a file of trained weights."""
    return _TRAINED.fullmatch(weight_init) is not None


def weight_init_of(path: Path) -> str:
    """The `weight_init` of banks over the weights in a file: `trained:` and its sha256.

    Raises:
        WeightsFileError: the file cannot be read.
    """
    return _named(_read(path))


def load(path: Path | None, weight_init: str, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """The trained weights of a bank: name of a layer -> its flat weights; layers that are not in the file are left out.

    Raises:
        WeightsFileError: no file is given, it cannot be read or is another one, or its tensors do not fit the network.
    """
    wanted = weight_init.removeprefix(PREFIX)
    if path is None:
        raise WeightsFileError(
            f"this bank's masks lie over trained weights: set weights_file to the safetensors file with sha256 {wanted}"
        )
    blob = _read(path)
    if _named(blob) != weight_init:
        found = _named(blob).removeprefix(PREFIX)
        raise WeightsFileError(
            f"{path} has sha256 {found}, but this bank's masks lie over weights of a file with sha256 {wanted}: set "
            "weights_file to that one; over any other its masks mean nothing"
        )
    try:
        return decode(blob, architecture)
    except WeightsFileError as error:
        raise WeightsFileError(f"{path}: {error}") from error


def decode(blob: bytes, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """The weights for an architecture in the bytes of a safetensors file: name of a layer -> its flat weights.

    Raises:
        WeightsFileError: damaged; no layer's weights are there; or some are no finite float32 of the layer's shape.
    """
    try:
        tensors: dict[str, dict[str, Any]] = dict(safetensors.deserialize(blob))  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError as error:
        raise WeightsFileError(f"no safetensors file, or a damaged one ({error})") from error
    found = {
        layer.name: _weights(layer.name, tensors[f"{layer.name}.weight"], layer.weight_shape)
        for layer in architecture.layers
        if f"{layer.name}.weight" in tensors
    }
    if not found:
        wanted = ", ".join(f"{layer.name}.weight" for layer in architecture.layers[:_SHOWN])
        there = ", ".join(sorted(tensors)[:_SHOWN]) or "no tensor"
        raise WeightsFileError(f"no weights for {architecture.name} are in it: looked for {wanted}, ...; found {there}")
    return found


def _weights(name: str, tensor: dict[str, Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if tensor["dtype"] != "F32":
        raise WeightsFileError(f"{name}.weight is {tensor['dtype']}: convert it to F32 (float32)")
    if tuple(tensor["shape"]) != shape:
        raise WeightsFileError(f"{name}.weight has shape {tuple(tensor['shape'])}, the network's layer {shape}")
    weights = np.frombuffer(tensor["data"], dtype="<f4").astype(np.float32)
    if not np.isfinite(weights).all():
        raise WeightsFileError(f"{name}.weight holds a number that is not finite")
    return weights


def _named(blob: bytes) -> str:
    return PREFIX + hashlib.sha256(blob).hexdigest()


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise WeightsFileError(f"{path} is no file: weights_file must name a safetensors file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsFileError(f"{path} cannot be read: {error.strerror or error}") from error
