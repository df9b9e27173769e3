"""Plain training: the optimiser that was asked for, and the pieces of a network."""

import numpy as np
import pytest
import torch

from supsup_online.errors import SpecError
from supsup_online.optimisers import OPTIMISERS, OptimiserChoice, new_state
from supsup_online.paper import plain
from unit.paper_methods import CONVOLUTIONAL, SETUP


@pytest.mark.parametrize("rate", [None, 0.02])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_optimiser_of_torch_does_what_the_projects_own_does(name, rate):
    choice = OptimiserChoice(name, rate)
    ours, leaf = torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20).requires_grad_()
    rule, theirs = choice.build(), plain.torch_optimiser(choice, [leaf])
    state = new_state(rule, ours)
    for _ in range(3):
        rule.update(ours, ours**3, state)
        plain.step(theirs, (leaf**4 / 4).sum())
        torch.testing.assert_close(leaf.detach(), ours)


def test_an_optimiser_that_does_not_exist_is_refused():
    with pytest.raises(SpecError, match="unknown optimiser"):
        plain.torch_optimiser(OptimiserChoice("adagrad"), [torch.zeros(1)])


@pytest.mark.parametrize("setup", [SETUP, CONVOLUTIONAL], ids=["connected", "convolutions"])
def test_trunk_and_head_together_are_the_network(setup):
    architecture = setup.build()
    flat = plain.start(setup, architecture)
    trunk, head = plain.cut(architecture, flat)
    assert len(head) == np.prod(architecture.layers[-1].weight_shape)
    for part, whole in zip(plain.joined(architecture, trunk, head), architecture.split(flat), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=0)


def test_a_head_that_is_trained_alone_asks_no_gradient_of_the_trunk():
    architecture = SETUP.build()
    trunk, head = plain.cut(architecture, plain.start(SETUP, architecture))
    needed = [part.requires_grad for part in plain.joined(architecture, trunk, head.requires_grad_())]
    assert needed == [False, False, True]


def test_labels_are_the_largest_of_the_outputs_that_are_classes():
    logits = torch.tensor([[0.0, 1, 2, 0, 9], [3, 1, 2, 0, 9]])
    assert plain.best_labels(SETUP, logits).tolist() == [2, 0]
