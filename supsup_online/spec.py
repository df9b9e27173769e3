"""What a bank is: the settings that give its bits a meaning. Two banks with equal specs can exchange masks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Final, get_args

from supsup_online import backbone, weights
from supsup_online.edge_popup import MaskVariant, Threshold, TopK, TopM
from supsup_online.errors import SpecError
from supsup_online.types import VariantName, parse_shape

SCHEMA_VERSION: Final = 1
CHANGEABLE: Final = frozenset({"budget"})
LATER: Final = frozenset({"edges_per_channel"})  # not in the specs of older banks, which mean the default


@dataclass(frozen=True, slots=True)
class BankSpec:
    """Everything a mask depends on, besides the data it was trained on.

    Attributes:
        architecture: a name `models.build` knows.
        input_shape: shape of one input without the batch axis.
        classes: number of labels; labels are 0 .. classes - 1.
        outputs: network outputs s >= classes; the rest are the superfluous neurons of objective G.
        weight_seed: the only thing kept of the frozen weights; also seeds the scores.
        weight_init: `signed-constant`, `kaiming-normal`, or `trained:` and the sha256 of a file (`backbone`).
        variant: how scores become a mask, `top-k`, `top-m` or `threshold`.
        keep_fraction: share of edges kept per layer by `top-k`.
        edges_per_channel: the m of `top-m`; older banks do not have it.
        budget: most masks the bank may hold.
        mean, std: uint8 inputs become (x / 255 - mean) / std; float32 inputs are taken as they are.
        schema: version of this record and of the stored layout.
    """

    architecture: str = "lenet-300-100"
    input_shape: tuple[int, ...] = (28, 28)
    classes: int = 10
    outputs: int = 500
    weight_seed: int = 0
    weight_init: str = "signed-constant"
    variant: VariantName = "top-k"
    keep_fraction: float = 0.5
    edges_per_channel: int = 8
    budget: int = 2500
    mean: float = 0.1307
    std: float = 0.3081
    schema: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SpecError("; ".join(problems))

    def _problems(self) -> Any:
        if self.schema != SCHEMA_VERSION:
            yield f"schema {self.schema} is not the one this version reads ({SCHEMA_VERSION})"
        if self.classes < 2:
            yield f"classes must be at least 2, not {self.classes}"
        if self.outputs < self.classes:
            yield f"outputs ({self.outputs}) must not be fewer than classes ({self.classes})"
        if not 0 <= self.weight_seed < 2**63:
            yield f"weight_seed must lie in 0..2**63-1, not {self.weight_seed}"
        if self.weight_init not in weights.WEIGHT_INITS and not backbone.is_trained(self.weight_init):
            yield f"unknown weight initialisation {self.weight_init!r}: choose {' or '.join(weights.WEIGHT_INITS)}"
        if self.budget < 1:
            yield f"budget must be at least 1, not {self.budget}"
        if not (math.isfinite(self.std) and self.std > 0 and math.isfinite(self.mean)):
            yield f"mean {self.mean} and std {self.std} must be finite, std positive"
        if self.variant not in get_args(VariantName):
            yield f"unknown mask variant {self.variant!r}: choose {', '.join(get_args(VariantName))}"
        if self.edges_per_channel < 1:
            yield f"edges_per_channel must be at least 1, not {self.edges_per_channel}"

    def mask_variant(self) -> MaskVariant:
        """The rule that turns scores into a mask."""
        if self.variant == "top-m":
            return TopM(self.edges_per_channel)
        return TopK(self.keep_fraction) if self.variant == "top-k" else Threshold()

    def to_text(self) -> dict[str, str]:
        """Field -> plain text, exact (floats as their shortest round-trip form)."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["input_shape"] = "x".join(map(str, self.input_shape))
        return {name: str(value) for name, value in values.items()}

    @classmethod
    def from_text(cls, text: dict[str, str]) -> "BankSpec":
        """The inverse of `to_text`; fields it does not know are ignored, fields that came later have their default.

        Raises:
            SpecError: a field is missing, does not parse or is out of range.
        """
        kinds: dict[str, Callable[[str], Any]] = {f.name: int for f in fields(cls)}
        kinds |= dict.fromkeys(("architecture", "weight_init", "variant"), str)
        kinds |= dict.fromkeys(("mean", "std", "keep_fraction"), float)
        kinds["input_shape"] = parse_shape
        try:
            values = {name: parse(text[name]) for name, parse in kinds.items() if name in text or name not in LATER}
        except (KeyError, ValueError) as error:
            raise SpecError(f"the stored spec is damaged: {error!r}") from error
        return cls(**values)

    def differences(self, other: "BankSpec") -> list[str]:
        """One line per field that makes the two banks incompatible, `field: self, other`."""
        return [
            f"{f.name}: {getattr(self, f.name)}, {getattr(other, f.name)}"
            for f in fields(self)
            if f.name not in CHANGEABLE and getattr(self, f.name) != getattr(other, f.name)
        ]
