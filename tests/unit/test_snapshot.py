"""Snapshots of a moving bank: each stays as it was, whatever comes after."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from supsup_online.errors import CodecError
from supsup_online.many_masks import superposed_mean_reference
from supsup_online.snapshot import Shelf, Snapshot
from unit import tiny

NET = tiny.network()
MASKS = tiny.random_masks(NET, 40)


def following(shelf: Shelf, before: Snapshot, masks: dict[int, int], gone: set[int] = frozenset()) -> Snapshot:
    """The next snapshot: masks of some ids by their number in `MASKS`, which is their usual entropy as well."""
    words = {mask_id: MASKS[number] for mask_id, number in masks.items()}
    usual = {mask_id: float(number) for mask_id, number in masks.items()}
    return shelf.next(before, before.version + 1, words, usual, set(gone))


def shown(snapshot: Snapshot) -> dict[int, tuple[bytes, float]]:
    """What a reader sees: mask and usual entropy by id."""
    return {
        mask_id: (snapshot.masks[slot].tobytes(), level)
        for mask_id, slot, level in zip(
            snapshot.mask_ids.tolist(), snapshot.slots.tolist(), snapshot.usual.tolist(), strict=True
        )
    }


def as_shown(numbers: dict[int, int]) -> dict[int, tuple[bytes, float]]:
    return {mask_id: (MASKS[number].tobytes(), float(number)) for mask_id, number in sorted(numbers.items())}


@dataclass
class Model:
    """A bank that changes at random, and every snapshot of it that somebody still holds."""

    seed: int
    shelf: Shelf = field(default_factory=lambda: Shelf(NET))
    now: dict[int, int] = field(default_factory=dict)
    alive: list[tuple[Snapshot, dict[int, int]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.newest = self.shelf.empty()
        self.alive.append((self.newest, {}))

    def step(self) -> None:
        """Some masks change, come or go; readers let go of some snapshots."""
        changed = {int(i): int(self.rng.integers(len(MASKS))) for i in self.rng.integers(0, 12, self.rng.integers(5))}
        gone = {mask_id for mask_id in self.now if mask_id not in changed and self.rng.random() < 0.2}
        self.newest = following(self.shelf, self.newest, changed, gone)
        self.now = {mask_id: n for mask_id, n in (self.now | changed).items() if mask_id not in gone}
        kept = [pair for pair in self.alive if self.rng.random() < 0.8]
        self.alive = [*kept, (self.newest, dict(self.now))]


@pytest.mark.parametrize("seed", range(5))
def test_a_snapshot_that_somebody_holds_never_changes(seed: int) -> None:
    model = Model(seed)
    for _ in range(50):
        model.step()
        for snapshot, numbers in model.alive:
            assert shown(snapshot) == as_shown(numbers)


def test_the_very_arrays_of_a_snapshot_stay_the_same() -> None:
    model = Model(seed=9)
    for _ in range(5):
        model.step()
    held = model.newest
    before = [held.mask_ids.copy(), held.slots.copy(), held.usual.copy(), held.masks[held.slots].copy()]
    for _ in range(50):
        model.step()
    after = [held.mask_ids, held.slots, held.usual, held.masks[held.slots]]
    for copy, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(now, copy)


def test_rows_are_used_again_once_nobody_shows_them() -> None:
    shelf = Shelf(NET)
    snapshot = shelf.empty()
    for version in range(200):
        snapshot = following(shelf, snapshot, {mask_id: (version + mask_id) % 40 for mask_id in range(5)})
    assert shelf.rows <= 20


def test_one_snapshot_that_is_held_keeps_its_rows_and_those_left_later_and_lets_go_of_them_with_its_end() -> None:
    shelf = Shelf(NET)
    held = snapshot = following(shelf, shelf.empty(), dict.fromkeys(range(5), 0))
    for version in range(20):
        snapshot = following(shelf, snapshot, dict.fromkeys(range(5), version))
    most = shelf.rows
    assert shown(held) == as_shown(dict.fromkeys(range(5), 0))
    del held
    for version in range(20):
        snapshot = following(shelf, snapshot, dict.fromkeys(range(5), version))
    assert shelf.rows == most


def test_what_stays_the_same_lies_where_it_lay() -> None:
    shelf = Shelf(NET)
    first = following(shelf, shelf.empty(), {3: 0, 5: 1, 9: 2})
    second = following(shelf, first, {5: 7})
    assert second.slots[[0, 2]].tolist() == first.slots[[0, 2]].tolist()
    assert second.slots[1] != first.slots[1]
    assert (first.version, second.version) == (1, 2)


def test_ids_that_are_gone_vanish_and_may_come_back() -> None:
    shelf = Shelf(NET)
    first = following(shelf, shelf.empty(), {3: 0, 5: 1, 9: 2})
    second = following(shelf, first, {4: 3}, gone={5, 77})
    assert shown(second) == as_shown({3: 0, 4: 3, 9: 2})
    assert (second.place(5), second.place(4), second.place(9)) == (None, 1, 2)
    third = following(shelf, second, {5: 6}, gone={3, 4, 9})
    assert shown(third) == as_shown({5: 6})
    assert (len(third), third.place(3), third.place(10**9), third.place(-1)) == (1, None, None, None)


def test_a_new_version_in_which_nothing_changed_needs_no_row() -> None:
    shelf = Shelf(NET)
    first = following(shelf, shelf.empty(), {3: 0})
    rows = shelf.rows
    second = following(shelf, first, {})
    assert (second.version, shown(second), shelf.rows) == (2, shown(first), rows)


def test_an_empty_snapshot_has_no_masks() -> None:
    empty = Shelf(NET).empty(4)
    assert (len(empty), empty.version, empty.place(0), shown(empty)) == (0, 4, None, {})


WRONG = {
    "short": MASKS[0][:-1],
    "long": np.concatenate([MASKS[0], MASKS[0][:1]]),
    "of another type": MASKS[0].astype(np.int64),
    "two": MASKS[:2],
    "with padding bits": MASKS[0] | np.uint64(2**63),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_mask_that_is_none_is_refused_and_leaves_everything_as_it_was(what: str) -> None:
    shelf = Shelf(NET)
    first = following(shelf, shelf.empty(), {3: 0, 5: 1})
    with pytest.raises(CodecError):
        shelf.next(first, 2, {3: MASKS[4], 5: WRONG[what]}, {3: 0.0, 5: 0.0}, {3})
    assert shown(first) == as_shown({3: 0, 5: 1})
    assert shown(following(shelf, first, {3: 6})) == as_shown({3: 6, 5: 1})


def test_the_mean_is_that_of_the_snapshots_own_masks() -> None:
    shelf = Shelf(NET)
    first = following(shelf, shelf.empty(), {3: 0, 5: 1, 9: 2})
    second = following(shelf, first, {5: 7}, gone={9})
    np.testing.assert_allclose(first.mean, superposed_mean_reference(NET.layout, MASKS[[0, 1, 2]]), rtol=1e-6)
    np.testing.assert_allclose(second.mean, superposed_mean_reference(NET.layout, MASKS[[0, 7]]), rtol=1e-6)
