"""One frozen network, ready to be masked: the spec brought to life on a device."""

import hashlib
import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online import models, weights
from supsup_online.bitpack import Bits, MaskLayout, Words
from supsup_online.edge_popup import MaskVariant, initial_scores
from supsup_online.kernels import cpu
from supsup_online.models import Architecture
from supsup_online.spec import BankSpec


@dataclass(frozen=True, eq=False)
class Network:
    """Frozen weights and how masks lie over them.

    Attributes:
        spec: what it was built from.
        architecture: the layers.
        layout: how a mask's bits lie in words.
        variant: how scores become a mask.
        weights: float32 (P,), frozen, on the device everything else is computed on.
        fingerprint: sha256 of the weights.
    """

    spec: BankSpec
    architecture: Architecture
    layout: MaskLayout
    variant: MaskVariant
    weights: Tensor
    fingerprint: str

    @classmethod
    def build(
        cls, spec: BankSpec, device: torch.device | str = "cpu", *, weights_file: Path | None = None
    ) -> "Network":
        """Regenerate the network of a spec; trained weights come from their file. Same spec, same bytes.

        Raises:
            SpecError: unknown architecture, or a network too large; or (WeightsFileError) the file is not the spec's.
        """
        architecture = models.build(spec.architecture, spec.input_shape, spec.outputs)
        frozen = weights.generate(architecture, spec.weight_seed, spec.weight_init, weights_file)
        return cls(
            spec=spec,
            architecture=architecture,
            layout=MaskLayout.of(architecture),
            variant=spec.mask_variant(),
            weights=torch.from_numpy(frozen).to(device),
            fingerprint=weights.fingerprint(frozen),
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.weights.device

    @cached_property
    def padded_weights(self) -> NDArray[np.float32]:
        """The frozen weights as the mask's bits lie: float32 (64 * word_count,), for the CPU's kernels."""
        return self.layout.pad(self.weights.cpu().numpy())

    @property
    def is_connected(self) -> bool:
        """Whether it is nothing but fully connected layers."""
        return self.architecture.is_connected

    @property
    def has_kernels(self) -> bool:
        """Whether steps and inference are written out for the CPU: fully connected layers, there."""
        return self.device.type == "cpu" and self.is_connected

    @property
    def has_gpu_kernels(self) -> bool:
        """Whether a bank lies on the device, packed: fully connected layers, and a GPU with Triton."""
        return self.device.type == "cuda" and self.is_connected and importlib.util.find_spec("triton") is not None

    @cached_property
    def padded_on_device(self) -> Tensor:
        """`padded_weights` on the device, for the GPU's kernels."""
        return torch.from_numpy(self.padded_weights).to(self.device)

    @property
    def architecture_hash(self) -> bytes:
        """First 16 bytes of a sha256 over the layer shapes: what a stored mask must match to be read here.

        Of a network with more than connected layers its name comes first: the shapes do not say what lies between.
        """
        text = ";".join(map(str, (layer.weight_shape for layer in self.architecture.layers)))
        if not self.is_connected:
            text = f"{self.architecture.name};{text}"
        return hashlib.sha256(text.encode()).digest()[:16]

    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Raw inputs, uint8 or float32 (n, *input_shape), as float32 on the device; uint8 is scaled by the spec."""
        if x.dtype == np.uint8 and self.device.type == "cpu":
            scaled = np.empty(x.shape, np.float32)
            cpu.look_up(self.scaled_bytes.numpy(), np.ascontiguousarray(x).reshape(-1), scaled.reshape(-1))
            return torch.from_numpy(scaled)
        tensor = self._copied(x)
        return self._scaled(tensor) if tensor.dtype == torch.uint8 else tensor.float()

    @cached_property
    def scaled_bytes(self) -> Tensor:
        """What each uint8 becomes, float32 (256,): a batch is looked up in one pass instead of scaled in four."""
        return self._scaled(torch.arange(256, dtype=torch.uint8))

    def _scaled(self, tensor: Tensor) -> Tensor:
        return tensor.float().div_(255).sub_(self.spec.mean).div_(self.spec.std)

    def labels(self, y: NDArray[np.int64]) -> Tensor:
        """Labels (n,) int64 on the device."""
        return self._copied(y)

    def _copied(self, values: NDArray[np.generic]) -> Tensor:
        """On the device; the copy there does not wait for what the device is doing."""
        tensor = torch.from_numpy(np.require(values, requirements=["C", "W"]))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def masked_weights(self, words: Words) -> list[Tensor]:
        """Effective weights W * M of one packed mask, one tensor per layer."""
        mask = torch.from_numpy(self.layout.unpack(words)).to(self.device)
        return self.architecture.split(self.weights * mask)

    def kept_statistics(self, words: Words) -> Tensor | None:
        """The statistics kept with a packed mask, float32 (F,), on the device; None where none are."""
        if not self.layout.statistics_count:
            return None
        return torch.from_numpy(self.layout.statistics(words)).to(self.device)

    def logits(self, x: Tensor, words: Words, *, by_batch: bool = False) -> Tensor:
        """Logits (n, outputs) of prepared inputs under one packed mask; no gradient.

        Normalised by the statistics kept with the mask, so that no row depends on the others, or by those of the batch.
        """
        statistics = None if by_batch else self.kept_statistics(words)
        with torch.no_grad():
            return self.architecture.forward(x, self.masked_weights(words), statistics)

    def select(self, scores: Tensor) -> Bits:
        """The mask (P,) that flat scores (P,) stand for, layer by layer."""
        parts = [self.variant.select(part).flatten() for part in self.architecture.split(scores)]
        mask: Bits = torch.cat(parts).cpu().numpy()
        return mask

    def untrained_mask(self, mask_id: int) -> Words:
        """The packed mask that id `mask_id` would start from, before any training."""
        return self.layout.pack(self.select(initial_scores(self.architecture, self.spec.weight_seed, mask_id)))
