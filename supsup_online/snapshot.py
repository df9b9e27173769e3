"""A bank as it was at one version, for readers: it never changes, and the next one shares what stayed the same.

Whoever answers with a snapshot may go on while the bank moves on beside it. `Shelf` keeps the packed masks of all
snapshots in use in one array, because the kernels want one: a mask that changes is written to a row that no living
snapshot shows. So a new version costs as many rows as masks have changed, not as many as there are.
"""

import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from supsup_online import many_masks
from supsup_online.bitpack import Masks, Words
from supsup_online.network import Network

_LEAST_ROWS: Final = 8


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Masks of one bank version; nothing here is ever written to again.

    Attributes:
        network: the frozen weights.
        version: of the bank.
        mask_ids: int64 (k,), rising.
        slots: int64 (k,), where in `masks` each of them lies.
        masks: packed, uint64 (rows, word_count); rows that `slots` does not name are other snapshots'.
        usual: float32 (k,), the output entropy each mask usually has, nats.
    """

    network: Network
    version: int
    mask_ids: NDArray[np.int64]
    slots: NDArray[np.int64]
    masks: Masks
    usual: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.mask_ids)

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """Mean of all masks, float32 (P,): the superposition with equal alphas."""
        return many_masks.superposed_mean(self.network, self.masks, self.slots)

    def place(self, mask_id: int) -> int | None:
        """Where in `mask_ids` an id is, or None where this version has no such mask."""
        place = int(np.searchsorted(self.mask_ids, mask_id))
        return place if place < len(self) and self.mask_ids[place] == mask_id else None


@dataclass(slots=True)
class Shelf:
    """Rows for the masks of all snapshots in use, and how one snapshot becomes the next.

    Memory: 8 bytes a word and row; rows double when there are none left, and are used again once the last snapshot
    that showed them is gone. Not for more than one thread; the snapshots are for any number.
    """

    network: Network
    _masks: Words = field(init=False)
    _free: list[int] = field(default_factory=list)
    _past: deque[tuple["weakref.ref[Snapshot]", list[int]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._masks = np.zeros((0, self.network.layout.word_count), dtype=np.uint64)

    @property
    def rows(self) -> int:
        """Rows there is memory for."""
        return len(self._masks)

    def empty(self, version: int = 0) -> Snapshot:
        """A snapshot without masks."""
        none = np.zeros(0, dtype=np.int64)
        return Snapshot(self.network, version, none, none, self._masks, np.zeros(0, dtype=np.float32))

    def next(
        self, before: Snapshot, version: int, changed: Mapping[int, Words], usual: Mapping[int, float], gone: set[int]
    ) -> Snapshot:
        """The snapshot that follows another one.

        Args:
            before: the newest snapshot this shelf made.
            version: of the bank, now.
            changed: packed masks (word_count,) that are new or another.
            usual: their usual output entropies, nats; an id of each in `changed`.
            gone: ids that are no longer there.

        Raises:
            CodecError: a mask of the wrong size, or with padding bits that are not zero.
        """
        for words in changed.values():
            self.network.layout.check(words)
        slots = dict(zip(before.mask_ids.tolist(), before.slots.tolist(), strict=True))
        levels = dict(zip(before.mask_ids.tolist(), before.usual.tolist(), strict=True))
        left = [slots.pop(mask_id) for mask_id in (gone | changed.keys()) & slots.keys()]
        self._make_room(len(changed))
        for mask_id, words in changed.items():
            slots[mask_id] = self._free.pop()
            levels[mask_id] = usual[mask_id]
            self._masks[slots[mask_id]] = words
        self._past.append((weakref.ref(before), left))
        ids = sorted(slots)
        return Snapshot(
            self.network,
            version,
            np.array(ids, dtype=np.int64),
            np.array([slots[mask_id] for mask_id in ids], dtype=np.int64),
            self._masks,
            np.array([levels[mask_id] for mask_id in ids], dtype=np.float32),
        )

    def _make_room(self, rows: int) -> None:
        """At least so many free rows: those that nobody reads any more, else a larger array."""
        # A row left behind is free when all snapshots up to the last that showed it are gone, hence from the oldest on.
        while self._past and self._past[0][0]() is None:
            self._free += self._past.popleft()[1]
        if len(self._free) >= rows:
            return
        used = len(self._masks)
        larger = np.zeros((max(_LEAST_ROWS, used + rows, 2 * used), self._masks.shape[1]), dtype=np.uint64)
        larger[:used] = self._masks  # snapshots in use keep the array they have
        self._masks = larger
        self._free += range(len(larger) - 1, used - 1, -1)
