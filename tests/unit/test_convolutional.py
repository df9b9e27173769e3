"""Convolutional masks through the library: trained, kept, told apart, answered with; their statistics with them."""

import copy
import pickle
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch

from supsup_online import codec, inference, many_masks
from supsup_online.answering import Inquiry, answer, answer_told
from supsup_online.bank import MaskBank
from supsup_online.decide import Decider, RuleSettings
from supsup_online.device_trainer import DeviceTrainer
from supsup_online.errors import BadBatchError, SpecError
from supsup_online.fused_trainer import FusedTrainer, trainer_for
from supsup_online.optimisers import Adam
from supsup_online.predictor import predict
from supsup_online.snapshot import Shelf
from supsup_online.trainer import EdgePopupTrainer
from supsup_online.types import Batch
from unit import tiny

NET = tiny.network(tiny.CONVOLUTIONAL)
BY_BATCH = tiny.network(replace(tiny.CONVOLUTIONAL, architecture="conv-3-4-batch"))
RESIDUAL = replace(tiny.SPEC, architecture="resnet18-2", input_shape=(3, 9, 9))
X = tiny.random_inputs(NET, 24)
IDS = [3, 11, 12, 40]


@lru_cache(maxsize=1)
def trained():
    """A learner that knows four permuted tasks as masks 0 to 3."""
    subject = tiny.learner(spec=tiny.LEARNING_IMAGES)
    for task in range(4):
        assert tiny.run(subject, tiny.permuted(task)(60, seed=task))[-1].mask_id == task
    subject.sync()
    return subject


def batch_of(task, seed=33):
    (batch,) = tiny.permuted(task)(1, seed=seed)
    net = trained().network
    return net.inputs(batch.x), net.labels(batch.y)


def snapshot(net, masks, usual=1.0):
    words = dict(zip(IDS, masks, strict=True))
    shelf = Shelf(net)
    return shelf.next(shelf.empty(), 1, words, dict.fromkeys(words, usual), set())


# ---- who trains it


@pytest.mark.parametrize("spec", [tiny.CONVOLUTIONAL, RESIDUAL], ids=["plain", "residual"])
def test_networks_with_convolutions_are_trained_by_autograd(spec):
    net = tiny.network(spec)
    assert not net.is_connected
    assert not net.has_kernels
    assert not net.has_gpu_kernels
    found = trainer_for(net, Adam())
    assert type(found) is EdgePopupTrainer
    assert not isinstance(found, FusedTrainer | DeviceTrainer)
    with pytest.raises(SpecError, match="bfloat16"):
        trainer_for(net, Adam(), "bfloat16")


def test_a_step_through_a_residual_network_moves_every_layers_scores():
    net = tiny.network(RESIDUAL)
    trainer = EdgePopupTrainer(net, Adam(0.01))
    hot = trainer.start(0)
    before = net.architecture.split(hot.scores.clone())
    evaluation = trainer.evaluate(hot, tiny.random_inputs(net, 8), torch.arange(8) % 4)
    trainer.update(hot, evaluation)
    after = net.architecture.split(hot.scores)
    assert all((one != other).any() for one, other in zip(before, after, strict=True))


def test_a_learner_of_images_learns():
    stats = trained().stats
    assert all(stats[task].accuracy > 0.9 for task in range(4))


# ---- statistics of a mask in training


def test_evaluating_leaves_the_kept_statistics_alone_and_an_update_folds_the_batch_in():
    trainer = EdgePopupTrainer(NET, Adam(0.01))
    hot = trainer.start(0)
    fresh = hot.statistics.clone()
    evaluation = trainer.evaluate(hot, X, torch.arange(24) % 4)
    assert torch.equal(hot.statistics, fresh)
    trainer.update(hot, evaluation)
    assert hot.statistics[0] == 1
    torch.testing.assert_close(hot.statistics[1:], evaluation.statistics[1:])
    first = torch.nn.functional.conv2d(X[:, None], evaluation.weights[0].detach(), padding=1)
    torch.testing.assert_close(hot.statistics[1:4], first.mean((0, 2, 3)))
    torch.testing.assert_close(hot.statistics[4:7], first.var((0, 2, 3)))


def test_a_mask_packs_its_statistics_and_returns_with_them():
    trainer = EdgePopupTrainer(NET, Adam(0.01))
    hot = trainer.start(0)
    for batch in tiny.permuted(0)(3):
        trainer.update(hot, trainer.evaluate(hot, NET.inputs(batch.x), NET.labels(batch.y)))
    words = trainer.pack(hot)
    np.testing.assert_array_equal(NET.layout.statistics(words), hot.statistics.numpy())
    returned = trainer.rekindle(0, codec.decode_mask(NET, codec.encode_mask(NET, words)))
    assert torch.equal(returned.statistics, hot.statistics)
    np.testing.assert_array_equal(trainer.pack(returned), words)
    for copied in (copy.deepcopy(hot), pickle.loads(pickle.dumps(hot))):  # noqa: S301 - our own
        assert torch.equal(copied.statistics, hot.statistics)


def test_networks_normalised_by_the_batch_keep_nothing():
    trainer = EdgePopupTrainer(BY_BATCH, Adam(0.01))
    hot = trainer.start(0)
    evaluation = trainer.evaluate(hot, X, torch.arange(24) % 4)
    trainer.update(hot, evaluation)
    assert evaluation.statistics is None
    assert hot.statistics.numel() == 0


def test_a_batch_whose_statistics_are_not_finite_is_refused_and_changes_nothing():
    net = tiny.network(replace(tiny.LEARNING_IMAGES, weight_seed=3))
    huge = copy.copy(net)
    object.__setattr__(huge, "weights", net.weights * 1e34)  # as trained weights could be
    subject = tiny.learner(spec=tiny.LEARNING_IMAGES)
    subject.network = subject.trainer.network = huge
    subject.trainer._weights = huge.architecture.split(huge.weights)
    (batch,) = tiny.permuted(0)(1)
    with pytest.raises(BadBatchError, match="finite"):
        subject.step(Batch(batch.x * 1e4, batch.y))
    assert all(hot.statistics[0] == 0 for hot in subject.hot.values())


# ---- a bank of them


def test_a_bank_counts_ones_and_the_mean_by_the_bits_alone():
    masks = tiny.random_masks(NET, 5)
    bits = np.stack([NET.layout.unpack(words) for words in masks])
    bank = MaskBank(NET.layout, 9)
    for words in masks:
        bank.allocate(words)
    bank.remove(1)
    np.testing.assert_allclose(bank.mean, bits[[0, 2, 3, 4]].mean(0), rtol=1e-6)
    assert bank.density(3) == bits[3].mean()
    np.testing.assert_array_equal(bank.words(2), masks[2])


def test_arithmetic_over_many_masks_does_not_look_at_statistics():
    masks, vector = tiny.random_masks(NET, 9), np.random.default_rng(1).normal(size=NET.layout.weight_count)
    masks[:, NET.layout.bit_words :] = np.uint64(2**64 - 1)
    found = many_masks.masked_dots(NET, masks, vector)
    twin = many_masks.masked_dots_reference(NET.layout, masks, vector)
    np.testing.assert_allclose(found, twin, rtol=1e-5, atol=1e-5)
    mean = many_masks.superposed_mean(NET, masks)
    np.testing.assert_array_equal(mean, many_masks.superposed_mean_reference(NET.layout, masks))


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize("rows", [1, 5, 24])
def test_exact_logits_equal_their_twin_with_kept_statistics_and_with_the_batchs(rows, by_batch):
    masks, slots = tiny.random_masks(NET, 6), np.array([4, 0, 5])
    found = torch.cat(list(many_masks.exact_logits(NET, masks, X[:rows], slots, by_batch=by_batch)))
    twin = many_masks.exact_logits_reference(NET, masks[slots], X[:rows], by_batch=by_batch)
    torch.testing.assert_close(found, twin)
    assert found.shape == (3, rows, NET.spec.outputs)


# ---- which statistics for what


def test_losses_of_a_labelled_batch_are_those_of_training():
    subject, (x, y) = trained(), batch_of(2)
    evaluation = subject.trainer.evaluate(subject.hot[2], x, y)
    losses = inference.exact_losses(subject.network, subject.bank.stacked([2]), x, y)
    np.testing.assert_allclose(losses[0], evaluation.losses.numpy(), rtol=1e-5, atol=1e-6)
    entropies = inference.exact_entropies(subject.network, subject.bank.stacked([2]), x)
    np.testing.assert_allclose(entropies[0], evaluation.entropies(y).numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("asked", ["exact", "told"])
def test_an_answer_does_not_depend_on_the_rows_it_is_asked_with(asked):
    masks = tiny.random_masks(NET, 4)
    shown = snapshot(NET, masks)

    def ask(x, rows):
        if asked == "told":
            return answer_told(shown, x, np.array(IDS)[np.arange(24) % 4][rows], Inquiry())
        return answer(shown, x, Inquiry())

    together = ask(X, slice(0, 24))
    for rows in (slice(0, 1), slice(7, 8), slice(3, 20)):
        alone = ask(X[rows], rows)
        np.testing.assert_array_equal(alone.mask_ids, together.mask_ids[rows])
        np.testing.assert_allclose(alone.probabilities, together.probabilities[rows], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(alone.confidences, together.confidences[rows], rtol=1e-4, atol=1e-5)


def test_the_answer_of_a_network_normalised_by_the_batch_does():
    masks = tiny.random_masks(BY_BATCH, 4)
    together, alone = (predict(BY_BATCH, IDS, masks, X[:rows]).probabilities[0] for rows in (24, 1))
    assert np.abs(together - alone).max() > 1e-3


def test_every_mask_is_asked_with_its_own_statistics():
    masks = tiny.random_masks(NET, 2)
    moved = masks[0].copy()
    moved[NET.layout.bit_words :] = masks[1][NET.layout.bit_words :]
    one, other = torch.cat(list(many_masks.exact_logits(NET, np.stack([masks[0], moved]), X)))
    assert (one - other).abs().max() > 1e-3


# ---- the right one among several


@pytest.mark.parametrize("task", range(4))
@pytest.mark.parametrize("rule", ["loss", "exact", "one-shot", "paper"])
def test_every_rule_ranks_the_mask_of_a_learnt_task_first(rule, task):
    subject, (x, y) = trained(), batch_of(task)
    found = Decider(subject.network, RuleSettings(rule))(subject.bank, subject.stats, "", x, y)
    assert found.examined[0].mask_id == task


@pytest.mark.parametrize("task", range(4))
@pytest.mark.parametrize("how", ["exact", "one-shot", "binary"])
def test_every_kind_of_inference_finds_the_mask_of_a_task_and_answers_right(how, task):
    subject, (x, y) = trained(), batch_of(task)
    shelf = Shelf(subject.network)
    words = {mask_id: subject.bank.words(mask_id) for mask_id in subject.bank}
    usual = {mask_id: subject.stats[mask_id].entropy for mask_id in words}
    shown = shelf.next(shelf.empty(), 1, words, usual, set())
    found = answer(shown, x, Inquiry(inference=how, scope="batch"))
    assert set(found.mask_ids.tolist()) == {task}
    assert (found.labels == y.numpy()).mean() > 0.9


def test_single_images_find_their_mask_by_kept_statistics():
    subject = trained()
    ids = list(subject.bank)
    for task in range(4):
        x, y = batch_of(task)
        found = predict(subject.network, ids, subject.bank.stacked(ids), x)
        assert (found.mask_ids == task).mean() > 0.8
        assert (found.labels == y.numpy()).mean() > 0.8


def test_a_superposition_is_normalised_by_the_inputs_at_hand():
    masks = tiny.random_masks(NET, 5)
    other = masks.copy()
    other[:, NET.layout.bit_words :] = 0
    one, two = (inference.one_shot(NET, some, X).gradient for some in (masks, other))
    np.testing.assert_array_equal(one, two)
    assert np.isfinite(inference.one_shot(NET, masks, X[:1]).gradient).all(), "a single image has its pixels"
