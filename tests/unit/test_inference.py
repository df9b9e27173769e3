"""Which mask fits: gradients equal to autograd over explicit alphas, halving, and one honest pass per mask."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch.nn import functional

from supsup_online import inference, many_masks, superposition
from supsup_online.errors import SpecError
from unit import tiny

NET = tiny.network()
LENET = replace(tiny.SPEC, architecture="lenet-300-100", input_shape=(28, 28), classes=10, outputs=50)
OBJECTIVES = ["H", "G"]


def explicit_gradient(net, masks, alphas, x, objective):
    """dObjective/dalpha with the alphas as a leaf over stacked float masks, as the paper writes it."""
    stacked = torch.from_numpy(np.stack([net.layout.unpack(words) for words in masks])).float()
    leaf = torch.from_numpy(alphas).requires_grad_()
    effective = net.weights * (leaf[:, None] * stacked).sum(0)
    logits = net.architecture.forward(x, net.architecture.split(effective))
    if objective == "H":
        p = logits.softmax(-1)
        value = -(p * p.log()).sum(-1)
    else:
        classes = net.spec.classes
        value = torch.logsumexp(torch.cat([logits[:, :classes].detach(), logits[:, classes:]], 1), 1)
    return torch.autograd.grad(value.mean(), leaf)[0].numpy()


@lru_cache(maxsize=1)
def trained_bank():
    """A learner with three tasks learnt, one mask each."""
    subject = tiny.learner()
    for task in range(3):
        results = tiny.run(subject, tiny.permuted(task)(40, seed=task))
        assert results[-1].mask_id == task, "the tests below rest on one mask per task"
    subject.sync()
    return subject


# ---- One-Shot


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("count", [1, 2, 5, 70])
def test_the_one_shot_gradient_equals_autograd_on_explicit_alphas(objective, count):
    masks, x = tiny.random_masks(NET, count), tiny.random_inputs(NET, 6)
    alphas = np.full(count, 1 / count, dtype=np.float32)
    outcome = inference.one_shot(NET, masks, x, objective)
    expected = explicit_gradient(NET, masks, alphas, x, objective)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(outcome.gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_one_shot_gradient_equals_autograd_for_lenet(objective):
    net = tiny.network(LENET)
    masks, x = tiny.random_masks(net, 5), tiny.random_inputs(net, 4)
    expected = explicit_gradient(net, masks, np.full(5, 0.2, dtype=np.float32), x, objective)
    np.testing.assert_allclose(inference.one_shot(net, masks, x, objective).gradient, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("spec", [tiny.SPEC, LENET, replace(tiny.SPEC, architecture="mlp-70-65-3")], ids=str)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 6])
def test_the_gradient_written_out_equals_that_of_autograd(spec, objective, rows):
    net = tiny.network(spec)
    masks, x, slots = tiny.random_masks(net, 9), tiny.random_inputs(net, rows), np.array([7, 2, 3])
    for mean in (None, many_masks.superposed_mean(net, masks, slots)):
        of = inference._objective(net, objective)
        found = superposition.alpha_gradient(net, masks, slots, x, of, mean=mean)
        expected = superposition.alpha_gradient_reference(net, masks, slots, x, of, mean=mean)
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_two_objectives_are_not_the_same_thing():
    masks, x = tiny.random_masks(NET, 5), tiny.random_inputs(NET, 6)
    gradients = [inference.one_shot(NET, masks, x, objective).gradient for objective in OBJECTIVES]
    assert not np.allclose(*gradients, rtol=0.1)


def test_nu_is_the_softmax_of_the_negative_gradient():
    outcome = inference.one_shot(NET, tiny.random_masks(NET, 5), tiny.random_inputs(NET, 6))
    expected = torch.from_numpy(-outcome.gradient).softmax(0).numpy()
    np.testing.assert_allclose(outcome.nu, expected, rtol=1e-5)
    assert outcome.best == int(np.argmin(outcome.gradient))
    assert outcome.ratio == pytest.approx(5 * expected.max(), rel=1e-5)


def test_a_single_mask_has_ratio_one_whatever_the_data():
    outcome = inference.one_shot(NET, tiny.random_masks(NET, 1), tiny.random_inputs(NET, 6))
    assert (outcome.best, outcome.ratio) == (0, 1.0)


def test_identical_masks_do_not_stand_out():
    masks = np.repeat(tiny.random_masks(NET, 1), 6, axis=0)
    assert inference.one_shot(NET, masks, tiny.random_inputs(NET, 6)).ratio == pytest.approx(1.0, abs=1e-5)


def test_gradients_too_large_for_a_plain_exponential_still_give_a_distribution():
    outcome = inference.one_shot(NET, tiny.random_masks(NET, 5), 1e6 * tiny.random_inputs(NET, 6), "G")
    assert np.abs(outcome.gradient).max() > 1e3
    assert outcome.nu.sum() == pytest.approx(1)


# ---- finding a trained mask


@pytest.mark.parametrize("task", range(3))
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_shot_and_binary_find_the_trained_mask(task, objective):
    subject = trained_bank()
    masks = subject.bank.stacked(list(subject.bank))
    x = subject.network.inputs(next(tiny.permuted(task)(1, seed=77)).x)
    assert inference.one_shot(subject.network, masks, x, objective).best == task
    assert inference.binary(subject.network, masks, x, objective) == task


@pytest.mark.parametrize("position", [0, 3, 10])
def test_binary_finds_the_trained_mask_among_untrained_ones(position):
    subject = trained_bank()
    masks = tiny.random_masks(subject.network, 11)
    masks[position] = subject.bank.words(0)
    x = subject.network.inputs(next(tiny.permuted(0)(1, seed=77)).x)
    assert inference.binary(subject.network, masks, x) == position


def test_binary_keeps_the_better_half_in_each_round():
    masks, x = tiny.random_masks(NET, 7), tiny.random_inputs(NET, 6)
    remaining = list(range(7))
    while len(remaining) > 1:
        alphas = np.full(len(remaining), 1 / len(remaining), dtype=np.float32)
        gradient = explicit_gradient(NET, masks[remaining], alphas, x, "H")
        order = np.argsort(gradient, kind="stable")[: (len(remaining) + 1) // 2]
        remaining = sorted(remaining[i] for i in order)
    assert inference.binary(NET, masks, x) == remaining[0]


def test_binary_of_one_mask_is_that_mask():
    assert inference.binary(NET, tiny.random_masks(NET, 1), tiny.random_inputs(NET, 2)) == 0


# ---- objective G


@pytest.mark.parametrize("ask", [inference.one_shot, inference.binary])
def test_objective_g_without_superfluous_neurons_is_refused(ask):
    net = tiny.network(replace(tiny.SPEC, outputs=tiny.CLASSES))
    with pytest.raises(SpecError, match="superfluous neurons"):
        ask(net, tiny.random_masks(net, 3), tiny.random_inputs(net, 2), "G")
    ask(net, tiny.random_masks(net, 3), tiny.random_inputs(net, 2), "H")


def test_objective_g_sends_no_gradient_through_the_real_classes():
    logits = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = inference.superfluous(logits, 4)
    torch.testing.assert_close(value, logits.logsumexp(1))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert not gradient[:, :4].any()
    torch.testing.assert_close(gradient[:, 4:], logits.softmax(1)[:, 4:])


def test_entropy_is_that_of_the_softmax_in_nats():
    assert inference.entropy(torch.zeros(2, 8)).tolist() == pytest.approx([np.log(8)] * 2)
    assert inference.entropy(torch.tensor([[1e6, 0.0, -1e6]])).tolist() == [0]


# ---- exact


def per_mask_logits(net, masks, x):
    for words in masks:
        mask = torch.from_numpy(net.layout.unpack(words)).float()
        yield net.architecture.forward(x, net.architecture.split(net.weights * mask))


def test_exact_entropies_and_losses_equal_one_forward_pass_per_mask():
    masks, x = tiny.random_masks(NET, 5), tiny.random_inputs(NET, 6)
    y = torch.tensor([0, 1, 2, 3, 0, 1])
    logits = list(per_mask_logits(NET, masks, x))
    entropies = [-(z.softmax(1) * z.log_softmax(1)).sum(1) for z in logits]
    losses = [functional.cross_entropy(z, y, reduction="none") for z in logits]
    found = inference.exact_entropies(NET, masks, x), inference.exact_losses(NET, masks, x, y)
    for ours, theirs in zip(found, (entropies, losses), strict=True):
        assert ours.shape == (5, 6)
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, torch.stack(theirs).numpy(), rtol=1e-5, atol=1e-6)


def test_exact_inference_over_no_masks_is_an_empty_table():
    x = tiny.random_inputs(NET, 6)
    none = tiny.random_masks(NET, 2)[:0]
    assert inference.exact_entropies(NET, none, x).shape == (0, 6)
    assert inference.exact_losses(NET, none, x, torch.zeros(6, dtype=torch.int64)).shape == (0, 6)
