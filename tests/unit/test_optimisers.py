"""Optimisers: torch.optim's own updates, one state per mask."""

import math

import pytest
import torch

from supsup_online.errors import SpecError
from supsup_online.optimisers import OPTIMISERS, SGD, Adam, OptimiserChoice, RMSprop, new_state

PAIRS = [
    (Adam(), torch.optim.Adam),
    (Adam(0.03, (0.7, 0.9), 1e-3), lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.7, 0.9), eps=1e-3)),
    (RMSprop(), lambda p: torch.optim.RMSprop(p, lr=1e-4)),
    (RMSprop(0.02, 0.9, 1e-4), lambda p: torch.optim.RMSprop(p, lr=0.02, alpha=0.9, eps=1e-4)),
    (SGD(), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    (SGD(0.01, 0.0), lambda p: torch.optim.SGD(p, lr=0.01)),
]


def gradients(count, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(200, generator=generator) for _ in range(count)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_twenty_updates_equal_those_of_torch(ours, theirs, scale):
    scores = torch.randn(200, generator=torch.Generator().manual_seed(1))
    parameter = torch.nn.Parameter(scores.clone())
    reference, state = theirs([parameter]), new_state(ours, scores)
    for step, gradient in enumerate(gradients(20, scale), start=1):
        ours.update(scores, gradient, state)
        parameter.grad = gradient.clone()
        reference.step()
        torch.testing.assert_close(scores, parameter.detach(), rtol=1e-6, atol=1e-7)
        assert state.step == step


@pytest.mark.parametrize("kind", list(OPTIMISERS.values()))
def test_an_update_leaves_the_gradient_as_it_is(kind):
    scores, gradient = torch.zeros(3), torch.tensor([1.0, -2.0, 3.0])
    kind().update(scores, gradient, new_state(kind(), scores))
    assert gradient.tolist() == [1, -2, 3]


@pytest.mark.parametrize("kind", list(OPTIMISERS.values()))
def test_a_mask_that_is_not_trained_does_not_drift_while_another_is(kind):
    optimiser = kind(learning_rate=0.1)
    idle, busy = torch.ones(200), torch.ones(200)
    idle_state, busy_state = new_state(optimiser, idle), new_state(optimiser, busy)
    first, *rest = gradients(20)
    optimiser.update(idle, first, idle_state)
    before = [idle.clone(), *(moment.clone() for moment in idle_state.moments)]
    for gradient in rest:
        optimiser.update(busy, gradient, busy_state)
    assert all(torch.equal(a, b) for a, b in zip(before, [idle, *idle_state.moments], strict=True))
    assert (idle_state.step, busy_state.step) == (1, 19)
    assert not torch.equal(busy, torch.ones(200))


@pytest.mark.parametrize("kind", list(OPTIMISERS.values()))
def test_an_interruption_changes_nothing_of_what_follows(kind):
    optimiser, scores = kind(), torch.zeros(200)
    straight, interrupted = scores.clone(), scores.clone()
    one, two, other = (new_state(optimiser, scores) for _ in range(3))
    for gradient in gradients(10):
        optimiser.update(straight, gradient, one)
        optimiser.update(torch.zeros(200), gradient, other)
        optimiser.update(interrupted, gradient, two)
    assert torch.equal(straight, interrupted)


@pytest.mark.parametrize(("name", "moments"), [("adam", 2), ("rmsprop", 1), ("sgd", 1)])
def test_a_choice_by_name_builds_that_optimiser_with_its_default_rate(name, moments):
    built = OptimiserChoice(name).build()
    assert built == OPTIMISERS[name]()
    assert (built.name, built.moment_count) == (name, moments)
    state = new_state(built, torch.ones(3))
    assert state.step == 0
    assert [moment.tolist() for moment in state.moments] == [[0, 0, 0]] * moments


def test_a_choice_can_set_the_learning_rate():
    assert OptimiserChoice("sgd", 0.25).build() == SGD(learning_rate=0.25)


def test_an_unknown_optimiser_is_refused_with_the_ones_that_are_known():
    with pytest.raises(SpecError, match="choose adam, rmsprop, sgd"):
        OptimiserChoice("lion").build()


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_a_learning_rate_must_be_positive_and_finite(rate):
    with pytest.raises(SpecError, match="learning rate"):
        OptimiserChoice("adam", rate).build()
