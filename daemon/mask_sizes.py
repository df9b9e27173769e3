"""What a mask costs in bytes, without building its network: the formulas of docs/reference/memory.md."""

from dataclasses import dataclass
from typing import Final

from supsup_online import codec, models
from supsup_online.bitpack import MaskLayout
from supsup_online.spec import BankSpec

_STATE_HEADER: Final = 56
_TEXT: Final = 1024  # statistics, an entry of the index, and what Redis needs for the keys: some 600, rounded up


@dataclass(frozen=True, slots=True)
class MaskSizes:
    """Bytes of one mask.

    Attributes:
        weights: of the frozen network, once, float32.
        packed: in memory.
        hot: in memory, on top, while it is trained.
        blob: the value in Redis.
        stored: in Redis, with its statistics and keys.
        stored_hot: in Redis, on top, while it is trained.
    """

    weights: int
    packed: int
    hot: int
    blob: int
    stored: int
    stored_hot: int

    @classmethod
    def of(cls, spec: BankSpec, moments: int) -> "MaskSizes":
        """Sizes over the network of a spec, with an optimiser of so many moments.

        Raises:
            SpecError: there is no such network.
        """
        layout = MaskLayout.of(models.build(spec.architecture, spec.input_shape, spec.outputs))
        blob = codec.mask_bytes(layout)
        scores = 4 * (layout.weight_count * (1 + moments) + layout.statistics_count)
        return cls(
            weights=4 * layout.weight_count,
            packed=8 * layout.word_count,
            hot=scores,
            blob=blob,
            stored=blob + _TEXT,
            stored_hot=_STATE_HEADER + scores,
        )
