"""The training step: the same scores and masks as autograd through the straight-through reference and torch.optim."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from supsup_online.edge_popup import initial_scores, straight_through_reference
from supsup_online.optimisers import OptimiserChoice
from supsup_online.trainer import EdgePopupTrainer
from unit import tiny

TORCH = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.02),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
}
VARIANTS = {
    "top-k": replace(tiny.SPEC, variant="top-k", keep_fraction=0.4),
    "top-m": replace(tiny.SPEC, variant="top-m", edges_per_channel=3),
    "threshold": replace(tiny.SPEC, variant="threshold"),
    "convolutional": tiny.CONVOLUTIONAL,
    "convolutional, top-m": replace(tiny.CONVOLUTIONAL, variant="top-m", edges_per_channel=2),
}


def trainer_for(variant="top-k", optimiser="adam"):
    return EdgePopupTrainer(tiny.network(VARIANTS[variant]), OptimiserChoice(optimiser, 0.02).build())


def batches(trainer, count):
    for batch in tiny.permuted(0)(count):
        yield trainer.network.inputs(batch.x), trainer.network.labels(batch.y)


def reference_gradient(net, scores, x, y):
    """Loss and gradient of the scores by plain autograd, one straight-through mask per layer."""
    leaf = scores.detach().clone().requires_grad_()
    parts = zip(net.architecture.split(leaf), net.architecture.split(net.weights), strict=True)
    effective = [frozen * straight_through_reference(part, net.variant) for part, frozen in parts]
    loss = functional.cross_entropy(net.architecture.forward(x, effective), y)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("optimiser", TORCH)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_steps_equal_autograd_through_the_reference_and_torch_optim(variant, optimiser):
    trainer = trainer_for(variant, optimiser)
    net, hot = trainer.network, trainer.start(3)
    parameter = torch.nn.Parameter(hot.scores.clone())
    theirs = TORCH[optimiser]([parameter])
    first = net.select(hot.scores)
    for x, y in batches(trainer, 10):
        loss, parameter.grad = reference_gradient(net, parameter, x, y)
        evaluation = trainer.evaluate(hot, x, y)
        torch.testing.assert_close(evaluation.mean_loss.detach(), loss)
        trainer.update(hot, evaluation)
        theirs.step()
        torch.testing.assert_close(hot.scores, parameter.detach(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(net.select(hot.scores), net.select(parameter.detach()))
    assert (net.select(hot.scores) != first).any(), "ten steps change a mask, or this test shows nothing"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_of_plain_gradient_descent_is_the_reference_gradient(variant):
    trainer = trainer_for(variant, "sgd")
    hot = trainer.start(0)
    (x, y) = next(batches(trainer, 1))
    before = hot.scores.clone()
    _, gradient = reference_gradient(trainer.network, before, x, y)
    trainer.update(hot, trainer.evaluate(hot, x, y))
    torch.testing.assert_close((before - hot.scores) / 0.02, gradient, rtol=1e-4, atol=1e-5)
    dropped = ~torch.from_numpy(trainer.network.select(before))
    assert gradient[dropped].any(), "edges that are not kept learn as well"


def test_evaluating_reports_the_loss_per_sample_and_changes_nothing():
    trainer = trainer_for()
    hot = trainer.start(0)
    before = hot.scores.clone()
    x, y = next(batches(trainer, 1))
    evaluation = trainer.evaluate(hot, x, y)
    logits = trainer.network.logits(x, trainer.pack(hot))
    torch.testing.assert_close(evaluation.logits, logits)
    torch.testing.assert_close(evaluation.losses, functional.cross_entropy(logits, y, reduction="none"))
    torch.testing.assert_close(evaluation.mean_loss.detach(), evaluation.losses.mean())
    assert not evaluation.logits.requires_grad
    assert not evaluation.losses.requires_grad
    assert torch.equal(hot.scores, before)
    assert hot.optimiser.step == 0


def test_training_leaves_the_frozen_weights_as_they_are():
    trainer = trainer_for()
    before = trainer.network.weights.clone()
    hot = trainer.start(0)
    for x, y in batches(trainer, 3):
        trainer.update(hot, trainer.evaluate(hot, x, y))
    assert torch.equal(trainer.network.weights, before)


def test_training_lowers_the_loss():
    trainer = trainer_for()
    hot = trainer.start(0)
    losses = []
    for x, y in batches(trainer, 40):
        evaluation = trainer.evaluate(hot, x, y)
        losses.append(float(evaluation.mean_loss.detach()))
        trainer.update(hot, evaluation)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_mask_starts_with_the_scores_of_its_id_and_an_empty_optimiser():
    trainer = trainer_for()
    hot = trainer.start(6)
    assert torch.equal(hot.scores, initial_scores(trainer.network.architecture, tiny.SPEC.weight_seed, 6))
    assert hot.optimiser.step == 0
    assert not any(moment.any() for moment in hot.optimiser.moments)
    np.testing.assert_array_equal(trainer.pack(hot), trainer.network.untrained_mask(6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_mask_that_went_cold_returns_with_its_bits_and_a_fresh_optimiser(variant):
    trainer = trainer_for(variant)
    hot = trainer.start(0)
    for x, y in batches(trainer, 5):
        trainer.update(hot, trainer.evaluate(hot, x, y))
    words = trainer.pack(hot)
    returned = trainer.rekindle(0, words)
    np.testing.assert_array_equal(trainer.pack(returned), words)
    assert returned.optimiser.step == 0
    assert not any(moment.any() for moment in returned.optimiser.moments)
