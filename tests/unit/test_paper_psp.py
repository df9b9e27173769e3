"""PSP: contexts that can be drawn again, and weights that come back through them."""

from dataclasses import replace

import pytest
import torch

from supsup_online.paper.ewc import OnlineEWC
from supsup_online.paper.psp import (
    ParameterSuperposition,
    _turned,
    draw_contexts,
    turned_inputs,
    turned_weights,
)
from unit import tiny
from unit.paper_methods import CONVOLUTIONAL, SETUP, accuracy, learn

KINDS = ("rotation", "binary")
WIDE = replace(SETUP, architecture="mlp-256-256")


def test_a_rotation_turns_and_does_not_stretch():
    for context in draw_contexts(SETUP.build(), 7, 2, "rotation"):
        torch.testing.assert_close(context @ context.T, torch.eye(len(context)), rtol=0, atol=1e-5)


def test_binary_contexts_are_signs_of_the_inputs():
    contexts = draw_contexts(SETUP.build(), 7, 2, "binary")
    assert [len(context) for context in contexts] == [16, 64, 32]
    assert set(torch.cat(contexts).tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", KINDS)
def test_contexts_follow_from_seed_and_task_and_differ_between_them(kind):
    architecture = SETUP.build()
    first = torch.cat([context.flatten() for context in draw_contexts(architecture, 7, 2, kind)])
    again, other_task, other_seed = (
        torch.cat([context.flatten() for context in draw_contexts(architecture, *names, kind)])
        for names in ((7, 2), (7, 3), (8, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other_task)
    assert not torch.equal(first, other_seed)


def test_rotations_are_uniform_over_both_kinds_of_orthogonal_matrices():
    # Without the sign of R's diagonal, traces are far below zero on the average.
    traces = [
        draw_contexts(replace(SETUP, architecture="mlp-4").build(), 0, task, "rotation")[1].trace()
        for task in range(400)
    ]
    assert abs(torch.stack(traces).mean()) < 0.15
    assert torch.stack(traces).var() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_turning_the_inputs_is_turning_the_weights(kind):
    architecture = SETUP.build()
    flat = ParameterSuperposition(SETUP)._weights
    contexts = draw_contexts(architecture, 7, 0, kind)
    x = torch.randn(10, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = turned_weights(architecture, x, flat, contexts)
    torch.testing.assert_close(turned_inputs(architecture, x, flat, contexts), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_convolution_the_channels_are_turned(kind):
    architecture = CONVOLUTIONAL.build()
    flat = ParameterSuperposition(CONVOLUTIONAL)._weights
    weight, context = architecture.split(flat)[1], draw_contexts(architecture, 7, 0, kind)[1]
    x = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    matrix = context if context.dim() == 2 else torch.diag(context)
    expected = torch.conv2d(torch.einsum("ij,njhw->nihw", matrix, x), weight, padding=1)
    torch.testing.assert_close(torch.conv2d(x, _turned(weight, context), padding=1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_contradicting_tasks_live_side_by_side_where_plain_training_forgets(kind):
    method = learn(ParameterSuperposition(WIDE, kind), 0, 1, make_task=tiny.relabelled)
    plain = learn(OnlineEWC(WIDE, strength=0), 0, 1, make_task=tiny.relabelled)
    assert accuracy(method, 1, make_task=tiny.relabelled) > 0.9
    assert accuracy(method, 0, make_task=tiny.relabelled) > accuracy(plain, 0, make_task=tiny.relabelled) + 0.3
