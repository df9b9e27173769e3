"""HopSupSup: what the memory keeps, and that a mask is found again by the images it was learnt for."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from supsup_online.errors import SpecError
from supsup_online.paper.hopfield import HopSupSup, Recovery
from supsup_online.paper.hopfield_memory import RULES, HopfieldMemory
from supsup_online.paper.methods import Setup, Storage
from supsup_online.paper.unit_masks import UnitMaskedNetwork, mask_of

UNITS = 200
SETUP = Setup("mlp-256-256", (4, 4), classes=4, outputs=4, tasks=2, seed=3)
RECOVERY = Recovery(gamma=1.5e-2, learning_rate=50.0)


def patterns(count, units=UNITS, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, (count, units), generator=draws) - 1


def memory(rule, stored):
    made = HopfieldMemory(stored.shape[1], rule)
    for pattern in stored:
        made.store(pattern)
    return made


def resting(rule, count, seed=0):
    """Share of so many stored random patterns that stay as they are."""
    stored = patterns(count, seed=seed)
    rested = memory(rule, stored).settle(stored)
    return float((rested == stored).all(1).float().mean())


# -- the memory


@pytest.mark.parametrize("rule", RULES)
def test_stored_patterns_are_at_rest_and_lower_than_all_around_them(rule):
    stored = patterns(5)
    made = memory(rule, stored)
    assert torch.equal(made.settle(stored), stored)
    for pattern in stored:
        flipped = pattern * (1 - 2 * torch.eye(UNITS))
        assert (made.energy(flipped) > made.energy(pattern)).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_damaged_pattern_is_mended(rule):
    stored = patterns(5)
    damaged = stored.clone()
    damaged[:, ::8] *= -1
    assert torch.equal(memory(rule, stored).settle(damaged), stored)


def test_storkeys_rule_holds_more_patterns_than_hebbs():
    assert resting("storkey", 40) > resting("hebb", 40) + 0.5


@pytest.mark.parametrize("rule", RULES)
def test_the_energy_falls_along_the_field(rule):
    made = memory(rule, patterns(3))
    state = torch.randn(UNITS, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(made.energy(state), state)
    torch.testing.assert_close(gradient, -made.matrix @ state.detach(), rtol=1e-4, atol=1e-5)


def test_the_mean_needs_no_pattern():
    stored = patterns(7)
    torch.testing.assert_close(memory("storkey", stored).mean, stored.mean(0))


def test_an_unknown_rule_is_named():
    with pytest.raises(SpecError, match="unknown rule 'x': choose storkey or hebb"):
        HopfieldMemory(3, "x")


# -- the network


def test_a_mask_of_ones_is_the_whole_network_and_one_of_zeros_none_of_it():
    network = UnitMaskedNetwork(SETUP)
    x = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(0))
    features = network.features(x)
    torch.testing.assert_close(features.mean(0), torch.zeros(256), rtol=0, atol=1e-5)
    ones, zeros = ([torch.full((256,), value) for _ in range(2)] for value in (1.0, 0.0))
    assert network.logits(features, ones).std() > 0.1
    assert not network.logits(features, zeros).any()


def test_one_row_has_no_statistics():
    with pytest.raises(SpecError, match="at least two rows"):
        HopSupSup(SETUP).answer(np.zeros((1, 4, 4), np.uint8), None)


def test_convolutions_have_no_hidden_units_to_mask():
    with pytest.raises(SpecError, match="conv-3-4 is not fully connected"):
        UnitMaskedNetwork(Setup("conv-3-4", (4, 4)))


def test_the_gradient_goes_straight_through_the_threshold():
    scores = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    mask = mask_of(scores)
    assert mask.tolist() == [0, 1, 1]
    (gradient,) = torch.autograd.grad((mask * torch.tensor([1.0, 2.0, 3.0])).sum(), scores)
    assert gradient.tolist() == [1, 2, 3]


# -- masks learnt, stored and found


def batches(task, count, seed=0, rows=64):
    """Two of four clusters: classes 2 task and 2 task + 1."""
    centres = np.random.default_rng(9).normal(size=(4, 4, 4))
    draws = np.random.default_rng([task, seed])
    for _ in range(count):
        y = 2 * task + draws.integers(0, 2, rows)
        yield (centres[y] + 0.5 * draws.normal(size=(rows, 4, 4))).astype(np.float32), y


@pytest.fixture(scope="module")
def learnt():
    method = HopSupSup(SETUP, recovery=RECOVERY)
    kept = [method.train(batches(task, 60)) for task in range(2)]
    for of_task in kept:
        for store, pattern in zip(method.memories, of_task, strict=True):
            store.store(pattern)
    return method, kept


def test_the_mask_of_a_task_is_found_by_its_images(learnt):
    method, kept = learnt
    for task in range(2):
        ((x, y),) = batches(task, 1, seed=1)
        assert (method.answer(x, None).labels == y).mean() > 0.9
        found = method.recover(method.network.features(torch.from_numpy(x)))
        for pattern, right, wrong in zip(found.patterns, kept[task], kept[1 - task], strict=True):
            assert (pattern != right).float().mean() < 0.1 < (pattern != wrong).float().mean()


def test_energy_falls_and_the_found_pattern_is_at_rest(learnt):
    method, _ = learnt
    ((x, _),) = batches(0, 1, seed=1)
    steps = list(method.descend(method.network.features(torch.from_numpy(x)), method.mean()))
    assert len(steps) == RECOVERY.steps
    assert steps[-1].energy < steps[0].energy
    assert all(math.isfinite(step.entropy) for step in steps)


def test_storage_does_not_grow_with_the_number_of_tasks():
    method = HopSupSup(SETUP)
    before = method.storage()
    method.learn(0, batches(0, 2))
    assert method.storage() == before == Storage(8 + 2 * 4 * (256**2 + 256), 0)


def test_a_killed_run_goes_on_to_the_same_bytes():
    whole, begun, resumed = (HopSupSup(SETUP) for _ in range(3))
    for task in range(2):
        whole.learn(task, batches(task, 3))
    begun.learn(0, batches(0, 3))
    resumed.restore({name: array.copy() for name, array in begun.state().items()})
    resumed.learn(1, batches(1, 3))
    for name, array in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], array)


def test_what_is_recalled_from_random_states_is_what_was_stored_and_all_of_it():
    stored = patterns(4)
    for rule in RULES:
        recalled = memory(rule, stored).recall(patterns(500, seed=1))
        assert {tuple(row.tolist()) for row in recalled} == {tuple(row.tolist()) for row in stored}


def test_with_what_is_recalled_the_mask_of_the_task_is_found_to_the_last_bit(learnt):
    method, kept = learnt
    again = HopSupSup(SETUP, recovery=replace(RECOVERY, recalls=500))
    again.restore(method.state())
    for task in range(2):
        ((x, _),) = batches(task, 1, seed=1)
        found = again.recover(again.network.features(torch.from_numpy(x)))
        for pattern, right in zip(found.patterns, kept[task], strict=True):
            assert torch.equal(pattern, right)
