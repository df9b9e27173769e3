"""Stop and go on: whatever was committed when, a restored learner ends with the bytes of one that never stopped.

`Shelf` is the smallest store that obeys the learner's `Changes`: it writes what they name and nothing else, as bytes
and text, so a change that a learner forgets to name shows here as a difference.
"""

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online import codec
from supsup_online.errors import CodecError
from supsup_online.learner import OnlineLearner
from supsup_online.learner_state import StreamState
from supsup_online.stats import MaskStats
from supsup_online.trainer import HotMask
from unit import tiny
from unit.tiny import permuted, relabelled, run


@dataclass
class Shelf:
    """What would lie in a store."""

    masks: dict[int, bytes] = field(default_factory=dict)
    stats: dict[int, dict[str, str]] = field(default_factory=dict)
    hot: dict[int, bytes] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    steps: int = 0
    next_id: int = 0
    position: int = 0

    def commit(self, subject: OnlineLearner, position: int) -> None:
        """Write what has changed, and how far the stream was read."""
        subject.sync()
        net, changes = subject.network, subject.changes
        for mask_id in changes.masks:
            self.masks[mask_id] = codec.encode_mask(net, subject.bank.words(mask_id))
            self.stats[mask_id] = subject.stats[mask_id].to_text()
            if mask_id in subject.hot:
                self.hot[mask_id] = codec.encode_hot(net, subject.trainer.optimiser, subject.hot[mask_id])
        for mask_id in changes.cooled:
            self.hot.pop(mask_id, None)
        for mask_id in changes.removed:
            for part in (self.masks, self.stats, self.hot):
                part.pop(mask_id, None)
        for name in changes.streams:
            s = subject.streams[name]
            self.streams[name] = json.dumps([s.mask_id, s.position, s.drift.residuals, s.last_used])
        for name in changes.forgotten_streams:
            self.streams.pop(name, None)
        self.steps, self.next_id, self.position = subject.steps, subject.bank.next_id, position
        subject.committed()

    def restore(self, subject: OnlineLearner) -> OnlineLearner:
        """Fill a learner that has seen nothing yet."""
        net, optimiser = subject.network, subject.trainer.optimiser
        subject.restore(
            {mask_id: codec.decode_mask(net, blob) for mask_id, blob in self.masks.items()},
            {mask_id: MaskStats.from_text(text) for mask_id, text in self.stats.items()},
            {mask_id: codec.decode_hot(net, optimiser, blob) for mask_id, blob in sorted(self.hot.items())},
            steps=self.steps,
            next_id=self.next_id,
        )
        for name, text in self.streams.items():
            mask_id, position, residuals, last_used = json.loads(text)
            subject.streams[name] = StreamState(mask_id, position, subject.drift_monitor(residuals), last_used)
        return subject


def one_stream():
    """Two tasks with switches inside windows, both coming back."""
    stretches = [permuted(0)(13), permuted(1)(17, seed=1), permuted(0)(9, seed=2), relabelled(1)(11, seed=3)]
    return [batch for stretch in stretches for batch in stretch]


def two_streams():
    """Streams that change places in the middle, and a third that comes late."""
    a = [*permuted(0, "a")(14), *permuted(1, "a")(10, seed=3)]
    b = [*permuted(1, "b")(14, seed=1), *permuted(2, "b")(10, seed=4)]
    return [batch for pair in zip(a, b, strict=True) for batch in pair] + list(permuted(0, "c")(4, seed=5))


CASES = {
    "plain": (one_stream, {}, {}),
    "threshold": (one_stream, {}, {"variant": "threshold"}),
    "bfloat16": (one_stream, {"precision": "bfloat16"}, {}),
    "masks go cold": (one_stream, {"hot_masks": 1}, {}),
    "evictions": (one_stream, {"over_budget": "evict", "hot_masks": 1}, {"budget": 2}),
    "overflow": (one_stream, {"over_budget": "overflow"}, {"budget": 1}),
    "two streams": (two_streams, {}, {}),
    "two streams, cold masks": (two_streams, {"hot_masks": 1}, {}),
    "two streams, evictions": (two_streams, {"over_budget": "evict", "hot_masks": 2}, {"budget": 2}),
    "streams are forgotten": (two_streams, {"max_streams": 1, "hot_masks": 2}, {}),
    "kswin": (one_stream, {"detector": "kswin"}, {}),
    "adwin": (one_stream, {"detector": "adwin"}, {}),
    "paper": (one_stream, {"rule": tiny.with_rule("paper").rule}, {}),
    "one-shot": (one_stream, {"rule": tiny.with_rule("one-shot").rule}, {}),
    "top-m": (one_stream, {}, {"variant": "top-m"}),
    "convolutional": (two_streams, {"hot_masks": 2}, {"architecture": "conv-4-8"}),
    "convolutional, by the batch": (one_stream, {}, {"architecture": "conv-4-8-batch"}),
    "rmsprop": (one_stream, {"optimiser": replace(tiny.SETTINGS.optimiser, name="rmsprop")}, {}),
}


def fresh(case):
    _, changed, spec = CASES[case]
    return tiny.learner(spec=replace(tiny.LEARNING, **spec), **{"decision_every": 6, **changed})


_ENDS: dict[str, dict[str, object]] = {}


def undisturbed(case):
    """The end of a run that never stopped; computed once."""
    if case not in _ENDS:
        subject = fresh(case)
        run(subject, CASES[case][0]())
        _ENDS[case] = tiny.whole_state(subject)
    return _ENDS[case]


def disturbed(case, commits, crashes):
    """The end of a run that commits after some batches and loses everything since the last commit after others."""
    batches, subject, shelf, position = CASES[case][0](), fresh(case), Shelf(), 0
    pending = sorted(crashes)
    while position < len(batches):
        subject.step(batches[position])
        position += 1
        if position in commits:
            shelf.commit(subject, position)
        if pending and position >= pending[0]:
            pending.pop(0)
            subject, position = shelf.restore(fresh(case)), shelf.position
    return tiny.whole_state(subject)


@pytest.mark.parametrize("case", CASES)
def test_a_run_with_commits_and_crashes_ends_with_the_bytes_of_an_undisturbed_one(case):
    assert disturbed(case, commits=set(range(0, 60, 7)), crashes=[4, 11, 21, 30, 38, 47]) == undisturbed(case)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_restored_after_every_third_batch_ends_with_the_bytes_of_an_undisturbed_one(case):
    thirds = list(range(3, 60, 3))
    assert disturbed(case, commits=set(thirds), crashes=thirds) == undisturbed(case)


@settings(max_examples=10, deadline=None)
@given(
    case=st.sampled_from(
        ["masks go cold", "two streams, cold masks", "two streams, evictions", "streams are forgotten"]
    ),
    commits=st.sets(st.integers(1, 50)),
    crashes=st.lists(st.integers(1, 50), max_size=4),
)
def test_wherever_it_commits_and_crashes_a_run_ends_with_the_bytes_of_an_undisturbed_one(case, commits, crashes):
    assert disturbed(case, commits, crashes) == undisturbed(case)


def test_the_cases_above_do_evict_go_cold_overflow_and_forget():
    evicting = undisturbed("two streams, evictions")
    assert len(evicting["masks"]) == 2
    assert evicting["next_id"] > 2
    assert len(undisturbed("masks go cold")["hot"]) == 1
    assert len(undisturbed("masks go cold")["masks"]) > 2
    assert len(undisturbed("overflow")["masks"]) == 1
    assert undisturbed("overflow")["steps"] == 50
    assert undisturbed("overflow")["stats"][0]["batches"] != "50"
    assert set(undisturbed("streams are forgotten")["streams"]) == {"c"}
    assert any(position for _, position, *_ in undisturbed("two streams")["streams"].values())


# ---- what restore takes and refuses


def committed_run():
    """A shelf after a run of two tasks."""
    subject, shelf = fresh("plain"), Shelf()
    run(subject, permuted(0)(13), permuted(1)(8, seed=1))
    shelf.commit(subject, 21)
    return subject, shelf


def test_a_restored_learner_is_the_one_that_committed_and_has_nothing_to_commit():
    subject, shelf = committed_run()
    restored = shelf.restore(fresh("plain"))
    assert tiny.whole_state(restored) == tiny.whole_state(subject)
    assert restored.changes == subject.changes
    np.testing.assert_array_equal(restored.bank.mean, subject.bank.mean)


def test_the_id_of_a_mask_that_was_removed_is_not_given_out_again_after_a_restart():
    _, shelf = committed_run()
    for part in (shelf.masks, shelf.stats, shelf.hot):
        part.pop(1, None)
    shelf.streams.clear()
    restored = shelf.restore(fresh("plain"))
    assert list(restored.bank) == [0]
    assert run(restored, permuted(1)(1, seed=9))[0].mask_id == 2


def test_a_next_id_that_is_behind_the_masks_is_not_believed():
    _, shelf = committed_run()
    shelf.next_id = 0
    assert shelf.restore(fresh("plain")).bank.next_id == 2


def test_without_hot_states_a_learner_goes_on_from_the_bits():
    _, shelf = committed_run()
    shelf.hot.clear()
    restored = shelf.restore(fresh("plain"))
    results = run(restored, permuted(0)(10, seed=9))
    assert {result.mask_id for result in results} == {0}
    assert results[0].accuracy > 0.9


def test_the_state_of_another_optimiser_is_left_behind_and_learning_goes_on_from_the_bits():
    _, shelf = committed_run()
    rmsprop = fresh("rmsprop")
    found = {i: codec.decode_hot(rmsprop.network, rmsprop.trainer.optimiser, blob) for i, blob in shelf.hot.items()}
    assert set(found.values()) == {None}
    shelf.hot.clear()
    assert run(shelf.restore(rmsprop), permuted(0)(1, seed=9))[0].mask_id == 0


def parts_of(shelf):
    net = fresh("plain").network
    masks = {mask_id: codec.decode_mask(net, blob) for mask_id, blob in shelf.masks.items()}
    stats = {mask_id: MaskStats.from_text(text) for mask_id, text in shelf.stats.items()}
    return masks, stats


@pytest.mark.parametrize("missing", ["masks", "stats"])
def test_masks_and_statistics_of_different_ids_are_refused(missing):
    masks, stats = parts_of(committed_run()[1])
    (masks if missing == "masks" else stats).pop(1)
    with pytest.raises(CodecError, match="do not belong together"):
        fresh("plain").restore(masks, stats, {}, steps=21, next_id=2)


def test_a_hot_state_without_its_mask_is_refused():
    subject, shelf = committed_run()
    masks, stats = parts_of(shelf)
    hot: dict[int, HotMask] = {7: subject.hot[0]}
    with pytest.raises(CodecError, match="do not belong together"):
        fresh("plain").restore(masks, stats, hot, steps=21, next_id=2)


def test_a_mask_of_another_network_is_refused():
    masks, stats = parts_of(committed_run()[1])
    with pytest.raises(CodecError, match="words of 64 bits"):
        tiny.learner(spec=tiny.SPEC).restore(masks, stats, {}, steps=21, next_id=2)


def test_a_bank_over_a_lowered_budget_is_kept_whole():
    _, shelf = committed_run()
    restored = shelf.restore(tiny.learner(spec=replace(tiny.LEARNING, budget=1)))
    assert list(restored.bank) == [0, 1]
    assert restored.bank.full
    assert run(restored, permuted(2)(1, seed=9))[0].decision.action == "over-budget"
