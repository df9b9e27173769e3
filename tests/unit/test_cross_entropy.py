"""Losses and gradients from a softmax equal those of torch, where logits are plain and where they are not."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from supsup_online.kernels import cross_entropy


def losses_and_mean(logits, labels):
    out = torch.empty(len(labels) + 1)
    cross_entropy.losses_into(logits.numpy(), logits.softmax(1).numpy(), labels.numpy(), out.numpy())
    return out[:-1], out[-1]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 9),
    outputs=st.integers(1, 40),
    size=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30]),
)
def test_losses_and_their_gradient_are_those_of_torch(seed, rows, outputs, size):
    rng = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(rows, outputs, generator=rng)
    labels = torch.randint(0, outputs, (rows,), generator=rng)
    losses, mean = losses_and_mean(logits, labels)
    leaf = logits.clone().requires_grad_()
    expected = functional.cross_entropy(leaf, labels, reduction="none")
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-5, atol=1e-6 * max(1.0, size))
    torch.testing.assert_close(mean, losses.double().mean().float())
    (slope,) = torch.autograd.grad(expected.mean(), leaf)
    found = torch.empty(rows, outputs)
    cross_entropy.gradient_into(logits.softmax(1).numpy(), labels.numpy(), found.numpy())
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-7)


def test_a_label_that_was_thought_impossible_has_the_loss_it_has():
    logits = torch.tensor([[0.0, 500.0, 0.0, 200.0]])
    losses, mean = losses_and_mean(logits, torch.tensor([3]))
    assert losses.tolist() == [300.0]
    assert float(mean) == 300.0


@pytest.mark.parametrize("damage", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 2])
def test_logits_that_overflowed_make_their_row_and_the_mean_no_number(damage, place):
    logits = torch.zeros(2, 3)
    logits[0, place] = damage
    losses, mean = losses_and_mean(logits, torch.tensor([2, 2]))
    assert losses[0].isnan()
    assert mean.isnan()
    assert float(losses[1]) == pytest.approx(np.log(3))
