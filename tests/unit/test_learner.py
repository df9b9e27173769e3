"""The learner step by step: test, then train; decide; share the bank between streams; refuse what cannot be used."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from supsup_online.decide import RuleSettings
from supsup_online.drift import DETECTORS
from supsup_online.edge_popup import initial_scores, transferred_scores
from supsup_online.errors import BadBatchError, SpecError
from supsup_online.inference import entropy
from supsup_online.learner import LearnerSettings, OnlineLearner
from supsup_online.learner_state import Changes, StreamState
from unit import tiny
from unit.tiny import masks_of, permuted, relabelled, run


def decided(results):
    """(position in the stream, decision) of every batch that a decision preceded."""
    return [(i, result.decision) for i, result in enumerate(results) if result.decision is not None]


# ---- test, then train


def test_what_is_reported_is_the_mask_as_it_was_before_the_update():
    subject = tiny.learner()
    first, *rest = permuted(0)(8)
    run(subject, rest)
    subject.sync()
    before = subject.bank.words(0).copy()
    result = subject.step(first)
    x, y = subject.network.inputs(first.x), subject.network.labels(first.y)
    logits = subject.network.logits(x, before)
    assert result.loss == pytest.approx(functional.cross_entropy(logits, y).item(), rel=1e-5)
    assert result.entropy == pytest.approx(entropy(logits).mean().item(), rel=1e-5)
    np.testing.assert_array_equal(result.predictions, logits[:, : tiny.CLASSES].argmax(1))
    assert result.accuracy == pytest.approx((result.predictions == first.y).mean())
    assert (result.rows, result.trained, result.mask_id) == (32, True, 0)
    subject.sync()
    after = subject.network.logits(x, subject.bank.words(0))
    assert functional.cross_entropy(after, y).item() < result.loss, "the update came after, and with this batch"


def test_the_very_first_batch_is_tested_under_the_untrained_mask():
    subject = tiny.learner()
    (batch,) = permuted(0)(1)
    logits = subject.network.logits(subject.network.inputs(batch.x), subject.network.untrained_mask(0))
    expected = functional.cross_entropy(logits, subject.network.labels(batch.y)).item()
    assert subject.step(batch).loss == pytest.approx(expected, rel=1e-5)


def test_the_learner_learns_a_task():
    results = run(tiny.learner(), permuted(0)(60))
    assert np.mean([result.accuracy for result in results[:3]]) < 0.6
    assert np.mean([result.accuracy for result in results[-10:]]) > 0.95


@pytest.mark.parametrize("variant", ["top-k", "threshold"])
@pytest.mark.parametrize("optimiser", ["adam", "rmsprop", "sgd"])
def test_it_learns_with_every_variant_and_optimiser(variant, optimiser):
    settings = replace(tiny.SETTINGS.optimiser, name=optimiser, learning_rate=0.5 if optimiser == "sgd" else 0.01)
    subject = tiny.learner(spec=replace(tiny.LEARNING, variant=variant), optimiser=settings)
    results = run(subject, permuted(0)(60))
    assert np.mean([result.accuracy for result in results[-10:]]) > 0.85
    assert len(subject.bank) == 1


def test_bytes_as_inputs_are_learnt_as_well():
    subject = tiny.learner(spec=replace(tiny.LEARNING, mean=0.5, std=0.25))
    scaled = (replace(b, x=np.clip(b.x * 32 + 128, 0, 255).astype(np.uint8)) for b in permuted(0)(60))
    assert np.mean([result.accuracy for result in run(subject, scaled)[-10:]]) > 0.95


def test_statistics_follow_the_batches_trained_into_a_mask():
    subject = tiny.learner()
    batches = [replace(b, timestamp_ms=1000 + i) for i, b in enumerate(permuted(0, "here")(12))]
    results = run(subject, batches)
    stats = subject.stats[0]
    assert (stats.batches, stats.samples, stats.last_used, stats.stream) == (12, 12 * 32, 12, "here")
    assert stats.correct == round(sum(result.accuracy * 32 for result in results))
    assert (stats.created_ms, stats.updated_ms) == (1000, 1011)
    assert min(r.loss for r in results) <= stats.loss.mean <= max(r.loss for r in results)


# ---- when it decides


def test_the_first_batch_of_a_stream_asks_for_a_decision():
    ((position, decision),) = decided(run(tiny.learner(), permuted(0)(5)))
    assert position == 0
    assert (decision.action, decision.mask_id, decision.why, decision.rule) == ("allocate", 0, "start", "loss")
    assert (decision.previous, decision.evicted, decision.candidates) == (None, None, ())


def test_a_calm_stream_asks_again_after_every_window():
    found = decided(run(tiny.learner(decision_every=7, detector="none"), permuted(0)(7 * 4)))
    assert [position for position, _ in found] == [0, 7, 14, 21]
    assert [(d.why, d.action, d.mask_id, d.previous) for _, d in found[1:]] == [("window", "reuse", 0, 0)] * 3
    assert all(d.candidates[0].mask_id == 0 and d.candidates[0].agrees for _, d in found[1:])


def test_a_task_that_ends_in_the_middle_of_a_window_is_left_at_once():
    subject = tiny.learner()
    run(subject, permuted(0)(50))
    results = run(subject, permuted(1)(30, seed=1))
    position, decision = decided(results)[0]
    assert position == 0
    assert (decision.action, decision.mask_id, decision.why, decision.previous) == ("allocate", 1, "drift", 0)
    assert decision.candidates[0].mask_id == 0
    assert decision.candidates[0].agrees is False


def test_no_batch_of_one_task_is_trained_into_the_mask_of_another():
    subject = tiny.learner()
    run(subject, permuted(0)(47))
    before = tiny.bank_bytes(subject)[0]
    results = run(subject, permuted(1)(47, seed=1))
    assert masks_of(results) == [1]
    assert tiny.bank_bytes(subject)[0] == before
    assert subject.stats[0].batches == subject.stats[1].batches == 47
    assert results[0].loss > 1, "the first batch was tested under a mask that knows nothing of it"


def test_a_task_that_comes_back_gets_its_mask_back():
    subject = tiny.learner()
    stretches = [permuted(task)(33, seed=i) for i, task in enumerate([0, 1, 2, 0, 2, 1])]
    results = [run(subject, stretch) for stretch in stretches]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [2], [0], [2], [1]]
    for stretch in results[3:]:
        assert stretch[0].accuracy > 0.9, "the first batch back is answered as well as the last before"
        assert stretch[0].decision.action == "reuse"


def test_tasks_with_the_same_inputs_and_other_labels_get_masks_of_their_own():
    subject = tiny.learner()
    stretches = [relabelled(task)(47, seed=i) for i, task in enumerate([0, 1, 2, 0, 1, 2])]
    results = [run(subject, stretch) for stretch in stretches]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [2], [0], [1], [2]]
    assert all(stretch[-1].accuracy > 0.9 for stretch in results)


@pytest.mark.parametrize(("rule", "options"), [("exact", {}), ("one-shot", {}), ("one-shot", {"objective": "G"})])
def test_the_other_rules_tell_two_tasks_apart_as_well(rule, options):
    subject = tiny.learner(tiny.with_rule(rule, **options))
    results = [run(subject, permuted(task)(47, seed=i)) for i, task in enumerate([0, 1, 0, 1])]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [0], [1]]
    ratios = [d.ratio for stretch in results for _, d in decided(stretch)][1:]
    assert all((ratio is not None) == (rule == "one-shot") for ratio in ratios)
    if rule == "one-shot":
        assert subject.stats[1].ratio == decided(results[1])[0][1].ratio > 0


def test_the_paper_rule_decides_at_the_start_and_at_the_end_of_windows_alone():
    subject = tiny.learner(tiny.with_rule("paper"))
    results = run(subject, permuted(0)(47), permuted(1)(47, seed=1), relabelled(2)(26, seed=2))
    found = decided(results)
    assert [position for position, _ in found] == [0, 20, 40, 60, 80, 100]
    assert [d.why for _, d in found] == ["start"] + ["window"] * 5
    assert all(c.agrees is None for _, d in found for c in d.candidates)
    assert len(subject.bank) > 1, "it finds the second task, late"


@pytest.mark.parametrize("detector", [name for name in DETECTORS if name != "none"])
def test_every_detector_lets_a_new_task_have_its_own_mask(detector):
    subject = tiny.learner(detector=detector)
    results = [run(subject, permuted(task)(47, seed=i)) for i, task in enumerate([0, 1, 0])]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [0]]


def test_without_a_detector_a_new_task_waits_for_the_end_of_the_window():
    results = run(tiny.learner(detector="none"), permuted(0)(59), permuted(1)(20, seed=1))
    assert [position for position, _ in decided(results)] == [0, 20, 40, 60]
    assert masks_of(results) == [0, 1]


def test_a_window_that_ends_with_a_usual_batch_begins_anew_without_a_decision():
    subject = tiny.learner()
    results = run(subject, permuted(0)(45))
    assert decided(results) == decided(results[:1])
    assert subject.streams[""].position == 5
    assert len(subject.streams[""].drift.residuals) == 4


def test_a_window_that_ends_with_an_unusual_batch_ends_with_a_decision():
    subject = tiny.learner(rule=RuleSettings(usual=0.0))
    results = run(subject, permuted(0)(300))
    assert {d.why for i, d in decided(results) if i} == {"window"}, "of many windows some end above the running loss"
    assert {d.mask_id for _, d in decided(results)} == {0}


# ---- looking again


def test_a_mask_started_for_an_odd_batch_is_removed_when_the_next_batch_fits_an_older_one():
    subject = tiny.learner()
    results = run(subject, permuted(0)(30), permuted(1)(1, seed=1), permuted(0)(10, seed=2))
    assert masks_of(results) == [0, 1, 0]
    last = results[31].decision
    assert (last.action, last.why, last.mask_id, last.previous, last.evicted) == ("reuse", "look-again", 0, 1, 1)
    assert list(subject.bank) == list(subject.stats) == [0]
    assert subject.changes.removed == {1}
    assert subject.streams[""].position == 10


def test_a_new_mask_whose_next_batches_fit_no_other_stays_without_a_word():
    subject = tiny.learner()
    results = run(subject, permuted(0)(30), permuted(1)(10, seed=1))
    assert [d.why for _, d in decided(results)] == ["start", "drift"]
    assert masks_of(results) == [0, 1]


def test_after_so_many_looks_a_new_mask_is_believed():
    def reasons(looks):
        subject = tiny.learner(rule=RuleSettings(looks=looks))
        results = run(subject, permuted(0)(30), permuted(1)(3, seed=1), permuted(0)(1, seed=2))
        return [d.why for _, d in decided(results)]

    assert "look-again" not in reasons(2)
    assert "look-again" in reasons(3)


@pytest.mark.parametrize("settings", [{"rule": RuleSettings(looks=0)}, {"rule": RuleSettings("paper")}], ids=str)
def test_nobody_looks_again_where_that_is_switched_off(settings):
    results = run(tiny.learner(**settings), permuted(0)(20), permuted(1)(1, seed=1), permuted(0)(3, seed=2))
    assert "look-again" not in [d.why for _, d in decided(results)]


def test_a_mask_that_is_young_itself_takes_no_batches_back():
    results = run(tiny.learner(), permuted(0)(3), permuted(1)(1, seed=1), permuted(0)(3, seed=2))
    assert "look-again" not in [d.why for _, d in decided(results)]


# ---- several streams


def test_interleaved_streams_keep_separate_states():
    subject = tiny.learner()
    pairs = zip(permuted(0, "a")(50), permuted(1, "b")(50, seed=1), strict=True)
    results = run(subject, (batch for pair in pairs for batch in pair))
    assert {(result.stream, result.mask_id) for result in results} == {("a", 0), ("b", 1)}
    for stream in ("a", "b"):
        own = [result for result in results if result.stream == stream]
        assert [(i, d.why) for i, d in decided(own)] == [(0, "start")], "a usual batch keeps its mask without a look"
        assert own[-1].accuracy > 0.9
    assert {name: (s.mask_id, s.position) for name, s in subject.streams.items()} == {"a": (0, 10), "b": (1, 10)}
    assert len(subject.streams["a"].drift.residuals) == 9, "the batch that a decision preceded is not among them"


def test_a_stream_that_starts_with_a_known_task_reuses_its_mask():
    subject = tiny.learner()
    run(subject, permuted(0, "a")(30))
    (result,) = run(subject, permuted(0, "b")(1, seed=1))
    assert (result.decision.action, result.mask_id, result.decision.why) == ("reuse", 0, "start")


def test_a_mask_in_its_first_batches_is_not_shared():
    subject = tiny.learner()
    run(subject, permuted(0, "a")(4))
    assert run(subject, permuted(0, "b")(1, seed=1))[0].mask_id == 1
    run(subject, permuted(0, "a")(16, seed=2))
    assert run(subject, permuted(0, "c")(1, seed=1))[0].mask_id == 0


def test_beyond_max_streams_the_one_unused_for_longest_is_forgotten_and_starts_over():
    subject = tiny.learner(max_streams=2)
    run(subject, permuted(0, "a")(10), permuted(0, "b")(10, seed=1), permuted(0, "a")(1, seed=2))
    run(subject, permuted(0, "c")(1, seed=3))
    assert set(subject.streams) == {"a", "c"}
    assert subject.changes.forgotten_streams == {"b"}
    assert subject.changes.streams == {"a", "c"}
    assert run(subject, permuted(0, "a")(1, seed=4))[0].decision is None
    (result,) = run(subject, permuted(0, "b")(1, seed=5))
    assert result.decision.why == "start"
    assert set(subject.streams) == {"a", "b"}
    assert subject.changes.forgotten_streams == {"c"}


def test_a_learner_that_was_given_more_streams_than_it_may_keep_comes_down_to_their_number():
    subject = tiny.learner(max_streams=2)
    subject.streams = {name: StreamState(None, 0, subject.drift_monitor(), i) for i, name in enumerate("dcba")}
    run(subject, permuted(0, "new")(1))
    assert set(subject.streams) == {"a", "new"}
    assert subject.changes.forgotten_streams == {"b", "c", "d"}


# ---- over budget


def tight(policy, budget=1, **changed):
    return tiny.learner(spec=replace(tiny.LEARNING, budget=budget), over_budget=policy, **changed)


def test_over_budget_a_batch_is_left_alone_and_the_bank_is_not_touched():
    subject = tight("overflow")
    run(subject, permuted(0)(45))
    before = tiny.whole_state(subject)
    results = run(subject, permuted(1)(3, seed=1))
    for result, why, previous in zip(results, ("drift", "start", "start"), (0, None, None), strict=True):
        assert (result.mask_id, result.trained, result.rows) == (None, False, 32)
        assert math.isnan(result.loss)
        assert math.isnan(result.accuracy)
        assert math.isnan(result.entropy)
        assert result.predictions.shape == (0,)
        d = result.decision
        assert (d.action, d.mask_id, d.why, d.previous, d.evicted) == ("over-budget", None, why, previous, None)
    after = tiny.whole_state(subject)
    for name in ("masks", "stats", "hot", "next_id"):
        assert after[name] == before[name]
    assert after["steps"] == before["steps"] + 3


def test_over_budget_a_known_task_still_finds_its_mask():
    subject = tight("overflow")
    run(subject, permuted(0)(40), permuted(1)(3, seed=1))
    results = run(subject, permuted(0)(3, seed=2))
    assert masks_of(results) == [0]
    assert (results[0].decision.action, results[0].decision.why) == ("reuse", "start")
    assert all(result.trained for result in results)


def test_the_evict_policy_gives_the_place_of_the_mask_unused_for_longest():
    subject = tight("evict", budget=2)
    run(subject, *(permuted(task)(33, seed=i) for i, task in enumerate([0, 1, 0])))
    kept = tiny.bank_bytes(subject)[0]
    subject.committed()
    results = run(subject, permuted(2)(33, seed=3))
    assert masks_of(results) == [2]
    decision = results[0].decision
    assert (decision.action, decision.evicted, decision.mask_id, decision.previous) == ("allocate", 1, 2, 0)
    assert list(subject.bank) == [0, 2]
    assert subject.stats.keys() == {0, 2}
    assert subject.hot.keys() <= {0, 2}
    assert tiny.bank_bytes(subject)[0] == kept
    assert subject.changes.removed == {1}
    assert 1 not in subject.changes.masks | subject.changes.cooled
    assert results[-1].accuracy > 0.9


def test_a_stream_whose_mask_was_evicted_starts_over():
    subject = tight("evict", budget=2)
    run(subject, permuted(0, "a")(33), permuted(1, "b")(33, seed=1))
    subject.committed()
    run(subject, permuted(2, "b")(33, seed=2))
    assert subject.streams["a"].mask_id is None
    assert subject.changes.streams == {"a", "b"}
    (result,) = run(subject, permuted(0, "a")(1, seed=3))
    assert (result.decision.why, result.decision.action, result.decision.previous) == ("start", "allocate", None)
    assert (result.mask_id, result.decision.evicted) == (3, 1)


def test_with_a_budget_of_one_every_new_task_evicts_the_only_mask():
    subject = tight("evict")
    results = [run(subject, permuted(task)(33, seed=task)) for task in range(3)]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [2]]
    assert results[2][0].decision.previous == results[2][0].decision.evicted == 1
    assert list(subject.bank) == [2]


def test_the_evict_policy_copes_with_a_budget_that_was_lowered_between_two_starts():
    roomy = tight("evict", budget=4)
    run(roomy, *(permuted(task)(33, seed=task) for task in range(4)))
    roomy.sync()
    subject = tight("evict", budget=2)
    masks = {mask_id: roomy.bank.words(mask_id) for mask_id in roomy.bank}
    subject.restore(masks, roomy.stats, {}, steps=roomy.steps, next_id=roomy.bank.next_id)
    results = run(subject, permuted(4)(33, seed=9))
    assert masks_of(results) == [4]
    assert list(subject.bank) == [3, 4]


# ---- hot and cold masks


def test_with_one_hot_mask_two_tasks_are_still_learnt():
    subject = tiny.learner(hot_masks=1)
    results = [run(subject, permuted(task)(25, seed=i)) for i, task in enumerate([0, 1, 0, 1, 0, 1])]
    assert [masks_of(stretch) for stretch in results] == [[0], [1], [0], [1], [0], [1]]
    assert subject.hot.keys() == {1}
    for stretch in results[4:]:
        assert np.mean([result.accuracy for result in stretch]) > 0.9
    assert subject.stats[0].batches == subject.stats[1].batches == 75


def test_two_streams_that_share_one_hot_mask_take_turns_and_still_learn():
    subject = tiny.learner(hot_masks=1)
    pairs = zip(permuted(0, "a")(60), permuted(1, "b")(60, seed=1), strict=True)
    results = run(subject, (batch for pair in pairs for batch in pair))
    assert len(subject.hot) == 1
    assert {(result.stream, result.mask_id) for result in results} == {("a", 0), ("b", 1)}


def test_a_mask_that_goes_cold_keeps_the_bits_it_had():
    subject = tiny.learner(hot_masks=1)
    run(subject, permuted(0)(25))
    hot = subject.trainer.pack(subject.hot[0]).copy()
    run(subject, permuted(1)(1, seed=1))
    assert 0 not in subject.hot
    np.testing.assert_array_equal(subject.bank.words(0), hot)
    assert subject.changes.cooled == {0}


def test_the_hot_mask_unused_for_longest_goes_cold():
    subject = tiny.learner(hot_masks=2)
    run(subject, *(permuted(task)(25, seed=i) for i, task in enumerate([0, 1, 0, 2])))
    assert subject.hot.keys() == {0, 2}


def test_a_learner_restored_with_fewer_hot_masks_comes_down_to_their_number():
    before = tiny.learner()
    run(before, *(permuted(task)(25, seed=task) for task in range(3)))
    before.sync()
    subject = tiny.learner(hot_masks=1)
    masks = {mask_id: before.bank.words(mask_id) for mask_id in before.bank}
    subject.restore(masks, before.stats, before.hot, steps=before.steps, next_id=3)
    run(subject, permuted(3)(1, seed=9))
    assert subject.hot.keys() == {3}


# ---- determinism


def test_the_same_batches_give_the_same_bytes():
    def everything():
        subject = tiny.learner(hot_masks=1, detector="kswin")
        run(subject, *(permuted(task)(23, seed=i) for i, task in enumerate([0, 1, 0])))
        return tiny.whole_state(subject)

    assert everything() == everything()


def test_asking_for_the_bits_in_between_changes_nothing():
    plain, asked = tiny.learner(), tiny.learner()
    for batch in permuted(0)(25):
        plain.step(batch)
        asked.step(batch)
        asked.sync()
    assert tiny.whole_state(plain) == tiny.whole_state(asked)


# ---- transfer


def test_with_transfer_a_new_mask_starts_from_the_mean_of_the_others():
    subject = tiny.learner(transfer=True)
    run(subject, permuted(0)(40))
    subject.sync()
    mean = subject.bank.mean
    first = next(permuted(1)(1))
    subject.step(first)
    subject.sync()
    net = subject.network
    drawn = initial_scores(net.architecture, net.spec.weight_seed, 1)
    started = net.select(transferred_scores(net.architecture, net.variant, drawn, torch.from_numpy(mean)))
    assert (net.layout.unpack(subject.bank.words(1)) == started).mean() > 0.95, "one step has moved few of them"
    assert (net.layout.unpack(subject.bank.words(1)) == mean).mean() > 0.7, "a fresh mask would agree on half"


def test_with_transfer_the_very_first_mask_is_a_fresh_one():
    plain, transferring = tiny.learner(), tiny.learner(transfer=True)
    for subject in (plain, transferring):
        run(subject, permuted(0)(10))
        subject.sync()
    assert tiny.whole_state(plain) == tiny.whole_state(transferring)


def test_with_transfer_every_task_still_has_a_mask_of_its_own_and_the_same_bytes_whenever_somebody_asks():
    plain, asked = tiny.learner(transfer=True, hot_masks=2), tiny.learner(transfer=True, hot_masks=2)
    for place, task in enumerate([0, 1, 2, 0, 1]):
        for batch in permuted(task)(25, seed=place):
            plain.step(batch)
            asked.step(batch)
            asked.sync()
    assert tiny.whole_state(plain) == tiny.whole_state(asked)
    assert len(plain.bank) == 3


# ---- unlabelled batches


def unlabelled(batch):
    return replace(batch, y=None)


def test_an_unlabelled_batch_is_answered_under_the_surest_mask_and_changes_nothing():
    subject = tiny.learner()
    run(subject, permuted(0)(33), permuted(1)(33, seed=1))
    before = tiny.whole_state(subject)
    subject.committed()
    for task in range(2):
        (batch,) = permuted(task)(1, seed=77)
        result = subject.step(unlabelled(batch))
        assert (result.mask_id, result.trained, result.decision, result.rows) == (task, False, None, 32)
        assert (result.predictions == batch.y).mean() > 0.9
        assert math.isnan(result.loss)
        assert math.isnan(result.accuracy)
        assert 0 <= result.entropy < 1
    assert tiny.whole_state(subject) == before
    assert subject.changes == Changes()


def test_all_rows_of_an_unlabelled_batch_are_answered_as_one_task():
    subject = tiny.learner()
    run(subject, permuted(0)(33), permuted(1)(33, seed=1))
    few, many = (next(permuted(task)(1, seed=77)) for task in (0, 1))
    mixed = replace(unlabelled(many), x=np.concatenate([few.x[:8], many.x]))
    subject.sync()
    expected = subject.network.logits(subject.network.inputs(mixed.x), subject.bank.words(1))
    result = subject.step(mixed)
    assert result.mask_id == 1
    np.testing.assert_array_equal(result.predictions, expected[:, : tiny.CLASSES].argmax(1))
    assert (result.predictions[:8] == few.y[:8]).mean() < 0.9, "rows of the other task show the difference"


def test_an_answer_uses_what_was_learnt_a_moment_ago():
    subject = tiny.learner()
    run(subject, permuted(0)(19))
    (batch,) = permuted(0)(1, seed=77)
    expected = subject.network.logits(subject.network.inputs(batch.x), subject.trainer.pack(subject.hot[0]))
    np.testing.assert_array_equal(subject.step(unlabelled(batch)).predictions, expected[:, :4].argmax(1))


def test_an_unlabelled_batch_before_anything_was_learnt_cannot_be_answered():
    subject = tiny.learner()
    with pytest.raises(BadBatchError) as caught:
        run(subject, map(unlabelled, permuted(0)(1)))
    assert caught.value.reason == "no-mask"
    assert tiny.whole_state(subject) == tiny.whole_state(tiny.learner())


# ---- batches that cannot be used


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.001e6, -2e6])
@pytest.mark.parametrize("labelled", [True, False])
def test_an_input_out_of_range_is_refused_and_changes_nothing(value, labelled):
    subject = tiny.learner()
    run(subject, permuted(0)(25))
    subject.committed()
    before = tiny.whole_state(subject)
    (batch,) = permuted(1, "new")(1)
    batch.x[17, 2, 3] = value
    with pytest.raises(BadBatchError, match="scale them") as caught:
        subject.step(batch if labelled else unlabelled(batch))
    assert caught.value.reason == "out-of-range"
    assert tiny.whole_state(subject) == before
    assert subject.changes == Changes()


def test_inputs_up_to_a_million_are_taken():
    subject = tiny.learner()
    (batch,) = permuted(0)(1)
    result = subject.step(replace(batch, x=(batch.x / np.abs(batch.x).max() * np.float32(1e6))))
    assert math.isfinite(result.loss)
    assert subject.hot[0].scores.isfinite().all()
    assert all(moment.isfinite().all() for moment in subject.hot[0].optimiser.moments)


def test_a_loss_that_is_not_finite_is_refused_and_trained_into_no_mask():
    usual = tiny.network(tiny.LEARNING)
    net = replace(usual, weights=usual.weights * 1e30)
    subject = OnlineLearner(net, tiny.SETTINGS)
    with pytest.raises(BadBatchError, match="not a finite number") as caught:
        run(subject, permuted(0)(1))
    assert caught.value.reason == "not-finite"
    assert all(stats.batches == 0 for stats in subject.stats.values())
    assert all(hot.optimiser.step == 0 for hot in subject.hot.values())


# ---- what a commit has to write


def test_changes_name_the_masks_and_streams_since_the_last_commit():
    subject = tiny.learner(hot_masks=1)
    run(subject, permuted(0, "a")(25))
    assert subject.changes == Changes(masks={0}, streams={"a"})
    subject.committed()
    assert subject.changes == Changes()
    run(subject, permuted(1, "b")(2, seed=1))
    assert subject.changes == Changes(masks={1}, streams={"b"}, cooled={0})
    run(subject, permuted(0, "a")(1, seed=2))
    assert subject.changes == Changes(masks={0, 1}, streams={"a", "b"}, cooled={1})


# ---- settings


@pytest.mark.parametrize("options", [{"decision_every": 0}, {"hot_masks": 0}, {"max_streams": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(SpecError, match="at least 1"):
        LearnerSettings(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "ears"}, "choose page-hinkley, adwin, kswin, none"),
        ({"over_budget": "panic"}, "choose overflow or evict"),
    ],
)
def test_names_that_are_not_known_are_refused_with_those_that_are(options, message):
    with pytest.raises(SpecError, match=message):
        LearnerSettings(**options)


def test_an_unknown_optimiser_is_refused_before_anything_is_learnt():
    with pytest.raises(SpecError, match="unknown optimiser"):
        tiny.learner(optimiser=replace(tiny.SETTINGS.optimiser, name="lion"))


@pytest.mark.parametrize("rule", ["one-shot", "paper"])
def test_objective_g_without_superfluous_neurons_is_refused_before_anything_is_learnt(rule):
    with pytest.raises(SpecError, match="superfluous"):
        tiny.learner(tiny.with_rule(rule, objective="G"), replace(tiny.LEARNING, outputs=tiny.CLASSES))


def test_rules_that_use_no_objective_do_not_care_about_superfluous_neurons():
    subject = tiny.learner(tiny.with_rule("loss", objective="G"), replace(tiny.LEARNING, outputs=tiny.CLASSES))
    results = run(subject, permuted(0)(33), permuted(1)(33, seed=1))
    assert masks_of(results) == [0, 1]


def test_the_defaults_are_those_of_the_design():
    settings = OnlineLearner(tiny.network()).settings
    assert (settings.decision_every, settings.detector, settings.over_budget) == (100, "page-hinkley", "overflow")
    assert (settings.rule.rule, settings.rule.epsilon, settings.rule.superposed) == ("loss", 0.125, 5)
    assert (settings.optimiser.name, settings.hot_masks) == ("adam", 8)
