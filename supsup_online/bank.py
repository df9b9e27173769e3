"""The mask bank: packed masks in memory, their ids, their mean, a budget. No IO."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supsup_online.bitpack import MaskLayout, Masks, Words
from supsup_online.errors import SupsupError


class BudgetError(SupsupError):
    """The bank is full; whoever allocates has to ask first."""


class MaskBank:
    """Packed masks by id.

    Ids rise by one with every allocation and are never given out twice, not even after an eviction. Memory: 8 bytes
    per word of a mask (43 KB for LeNet 300-100 with 500 outputs), and 4 bytes per weight once for the running mean.
    The mean is kept as whole counts of ones, so adding and removing masks for years leaves no rounding behind. With a
    device, the packed masks lie there as well, and `stacked` gives those: a decision among thousands copies nothing.

    Attributes:
        layout: how a mask's bits lie in words.
        budget: most masks it may hold.
        version: rises by one with every change.
        next_id: the id the next allocation gets.
    """

    def __init__(self, layout: MaskLayout, budget: int, device: torch.device | None = None) -> None:
        self.layout = layout
        self.budget = budget
        self.version = 0
        self.next_id = 0
        self._slots: dict[int, int] = {}
        self._free: list[int] = []
        self._words = np.zeros((0, layout.word_count), dtype=np.uint64)
        self._ones = np.zeros(layout.weight_count, dtype=np.int32)
        self._resident = None if device is None else _on(device, self._words)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, mask_id: object) -> bool:
        return mask_id in self._slots

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._slots))

    @property
    def full(self) -> bool:
        """Whether the budget is spent."""
        return len(self) >= self.budget

    def words(self, mask_id: int) -> Words:
        """The packed mask, a read-only view (word_count,).

        Raises:
            KeyError: no such mask.
        """
        view: Words = self._words[self._slots[mask_id]]
        view.flags.writeable = False
        return view

    def stacked(self, mask_ids: list[int]) -> Masks:
        """The packed masks of some ids, (k, word_count), in their order; on the device, where the bank has one.

        Where they lie side by side in memory this is a view, not to be written to, valid until the bank changes: 2500
        masks are 108 MB. (Compiled loops know an array that cannot be written by another type, so it is not locked.)
        """
        slots = [self._slots[mask_id] for mask_id in mask_ids]
        first = slots[0] if slots else 0
        beside = slots == list(range(first, first + len(slots)))
        if self._resident is not None:
            return self._resident[first : first + len(slots)] if beside else self._resident[slots]
        stack: Words = self._words[first : first + len(slots)] if beside else self._words[slots]
        return stack

    def density(self, mask_id: int) -> float:
        """Share of edges that the mask keeps."""
        ones = np.bitwise_count(self.words(mask_id)[: self.layout.bit_words])
        return int(ones.sum()) / self.layout.weight_count

    @property
    def mean(self) -> NDArray[np.float32]:
        """Mean of all masks, float32 (P,): the start of transfer, and the superposition with equal alphas."""
        return self._ones.astype(np.float32) / np.float32(max(1, len(self)))

    def allocate(self, words: Words) -> int:
        """Add a mask under the next id and return it.

        Raises:
            BudgetError: the bank is full.
        """
        if self.full:
            raise BudgetError(f"the budget of {self.budget} masks is spent")
        mask_id = self.next_id
        self.put(mask_id, words)
        return mask_id

    def put(self, mask_id: int, words: Words) -> None:
        """Set the mask of an id, known or new (restoring a stored bank may find it over its budget; that is kept).

        Raises:
            CodecError: wrong size, or padding bits that are not zero.
        """
        self.layout.check(words)
        if mask_id in self._slots:
            self._ones -= self.layout.unpack(self.words(mask_id))
        else:
            self._slots[mask_id] = self._free.pop() if self._free else self._grow()
        slot = self._slots[mask_id]
        self._words[slot] = words
        if self._resident is not None:
            self._resident[slot] = _on(self._resident.device, self._words[slot])
        self._ones += self.layout.unpack(words)
        self.next_id = max(self.next_id, mask_id + 1)
        self.version += 1

    def remove(self, mask_id: int) -> None:
        """Forget a mask; its slot is used again, its id is not."""
        self._ones -= self.layout.unpack(self.words(mask_id))
        self._free.append(self._slots.pop(mask_id))
        self.version += 1

    def _grow(self) -> int:
        """A free row; the array doubles when full, so adding stays cheap."""
        used = len(self._slots)
        if used >= len(self._words):
            larger = np.zeros((max(4, 2 * used), self.layout.word_count), dtype=np.uint64)
            larger[:used] = self._words
            self._words = larger
            if self._resident is not None:
                self._resident = _on(self._resident.device, larger)
        return used


def _on(device: torch.device, words: Words) -> Tensor:
    """A copy on a device, as int64, for torch shifts no uint64."""
    return torch.tensor(words.view(np.int64), device=device)
