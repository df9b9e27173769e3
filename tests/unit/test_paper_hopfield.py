"""HopSupSup: what a Hopfield network holds, and how a task's mask comes back from it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from supsup_online.errors import NothingLearntError, SpecError
from supsup_online.paper.hopfield import PROJECTED, HopSupSup, paper_recovery
from supsup_online.paper.hopfield_memory import RULES, HopfieldMemory
from supsup_online.paper.hopfield_recovery import PaperRecovery, ProjectedRecovery
from supsup_online.paper.methods import Setup
from supsup_online.paper.unit_masks import MaskTraining, UnitMaskedNetwork
from supsup_online.scenarios import RawDraws

SETUP = Setup("mlp-256-256", (40,), classes=6, outputs=6, tasks=3, seed=1)
# A unit of 256 weighs more in the entropy than one of 2048: smaller steps, more energy.
WAYS = {"paper": PaperRecovery(learning_rate=60.0, gamma=0.012), "projected": ProjectedRecovery()}


def patterns(count, units, seed=0):
    return torch.from_numpy(RawDraws(seed, 9).many_below(2, count * units).reshape(count, units)).float() * 2 - 1


def memory_of(stored, rule="storkey"):
    memory = HopfieldMemory(stored.shape[1], rule)
    for pattern in stored:
        memory.store(pattern)
    return memory


def corrupted(pattern, share, seed=3):
    wrong = RawDraws(seed, 8).permutation(len(pattern))[: int(share * len(pattern))]
    other = pattern.clone()
    other[wrong] *= -1
    return other


def images(task, rows, seed):
    """Two classes per task, labels 2 task and 2 task + 1: a centre each, and noise around it."""
    centres = RawDraws(77, task).many_below(2, 80).reshape(2, 40) * 3.0
    draws = RawDraws(seed, task, 5)
    y = draws.many_below(2, rows)
    noise = draws.many_below(1001, rows * 40).reshape(rows, 40) / 500 - 1
    return (centres[y] + noise).astype(np.float32), y + 2 * task


def stream(task, batches=40):
    return [images(task, 64, seed) for seed in range(batches)]


def taught(recovery=PROJECTED, tasks=3, **settings):
    method = HopSupSup(SETUP, recovery, **settings)
    masks = []
    for task in range(tasks):
        masks.append(method.train(task, stream(task)))
        method.store(masks[-1])
    return method, masks


@pytest.mark.parametrize("rule", RULES)
def test_stored_patterns_are_at_rest(rule):
    stored = patterns(5, 200)
    torch.testing.assert_close(memory_of(stored, rule).settle(stored), stored)


@pytest.mark.parametrize("rule", RULES)
def test_a_stored_pattern_lies_lower_than_all_its_neighbours(rule):
    stored = patterns(3, 100)
    memory = memory_of(stored, rule)
    neighbours = stored[1] * (1 - 2 * torch.eye(100))
    assert (memory.energy(neighbours) > memory.energy(stored[1])).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_corrupted_pattern_is_recovered(rule):
    stored = patterns(5, 200)
    torch.testing.assert_close(memory_of(stored, rule).settle(corrupted(stored[2], 0.2)), stored[2])


def test_the_papers_rule_holds_more_random_patterns_than_hebbs():
    stored = patterns(40, 200)
    at_rest = {}
    for rule in RULES:
        settled = memory_of(stored, rule).settle(stored, sweeps=1)
        at_rest[rule] = int((settled == stored).all(dim=1).sum())
    assert at_rest["storkey"] > at_rest["hebb"] + 10, at_rest


def test_the_gradient_of_the_energy_is_the_negative_field():
    memory = memory_of(patterns(4, 60))
    state = patterns(1, 60, seed=5)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(memory.energy(state), state)
    torch.testing.assert_close(gradient, -(memory.matrix @ state.detach()))
    torch.testing.assert_close(memory.matrix, memory.matrix.T)


def test_the_running_mean_is_the_mean_of_the_patterns():
    stored = patterns(7, 50)
    torch.testing.assert_close(memory_of(stored).mean, stored.mean(0))


def test_a_pattern_that_is_forgotten_is_no_longer_found():
    stored = patterns(3, 200)
    left = memory_of(stored).without(stored[0])
    assert not torch.equal(left.settle(corrupted(stored[0], 0.2)), stored[0])
    torch.testing.assert_close(left.settle(corrupted(stored[1], 0.2)), stored[1])


def test_training_equals_torch_sgd_with_a_cosine():
    network = UnitMaskedNetwork(SETUP)
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in stream(0, 6)]
    ours = MaskTraining().scores(network, batches, 6)
    theirs = [torch.nn.Parameter(torch.zeros(256)) for _ in range(2)]
    optimiser = torch.optim.SGD(theirs, lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=6)
    for x, y in batches:
        masks = [(p >= 0).float() + p - p.detach() for p in theirs]
        loss = torch.nn.functional.cross_entropy(network.logits(network.features(x), masks), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        scheduler.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_mask_of_the_right_task_comes_back(way):
    method, masks = taught(WAYS[way])
    for task in range(3):
        found = method.recover(method.features(images(task, 128, seed=900)[0]))
        assert found.path[-1].distances(_bits(masks)).argmin() == task
        assert found.path[-1].distances(_bits(masks))[task] < 0.02


def _bits(masks):
    return np.stack([torch.cat(layers).bool().numpy() for layers in masks])


@pytest.mark.parametrize("way", WAYS)
def test_a_recovery_can_be_watched_step_by_step(way):
    method, masks = taught(WAYS[way])
    path = method.recover(method.features(images(1, 128, seed=900)[0])).path
    assert len(path) == WAYS[way].steps + 1
    assert path[-1].energy < path[0].energy
    assert path[-1].entropy < path[0].entropy
    assert path[-1].distances(_bits(masks)).shape == (3,)


def test_labels_of_one_task_each_say_the_task():
    method, _ = taught()
    for task in range(3):
        x, y = images(task, 128, seed=901)
        answers = method.answer(x, None, "batch")
        assert (answers.labels == y).mean() > 0.95
        np.testing.assert_array_equal(answers.tasks, answers.labels // 2)


def test_labels_that_tasks_share_say_no_task():
    method = HopSupSup(SETUP)
    method.learn(0, stream(0, 4))
    method.learn(1, [(x, y - 2) for x, y in stream(1, 4)])
    assert method.answer(images(0, 32, 0)[0], None, "batch").tasks is None


def test_the_authors_way_answers_a_whole_test_set():
    method, _ = taught(replace(WAYS["paper"], steps=None), rows=64)
    x, y = images(2, 64 * 30 + 1, seed=902)
    assert (method.answer(x, None, "batch").labels == y).mean() > 0.95
    assert len(method.features(x)) == 30
    assert [len(batch) for batch in paper_recovery(SETUP).features(x[:129])] == [64, 65]


def test_storage_does_not_grow_with_tasks():
    method = HopSupSup(SETUP)
    before = method.storage()
    for task in range(3):
        method.learn(task, stream(task, 2))
    assert method.storage() == before
    assert before.per_task == 0
    assert before.shared == 2 * (256 * 256 + 256) * 4 + 6 * 8
    assert sum(array.nbytes for array in method.state().values()) == before.shared + 8


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    states = []
    for seed in (1, 1, 2):
        method = HopSupSup(Setup("mlp-64-64", (40,), 6, 6, 3, seed))
        method.learn(0, stream(0, 8))
        states.append(b"".join(array.tobytes() for array in method.state().values()))
    assert states[0] == states[1] != states[2]


def test_a_restored_run_goes_on_as_if_never_interrupted():
    through, other = HopSupSup(SETUP), HopSupSup(SETUP)
    through.learn(0, stream(0, 8))
    other.restore(through.state())
    for method in (through, other):
        method.learn(1, stream(1, 8))
    for name, array in through.state().items():
        np.testing.assert_array_equal(array, other.state()[name])
    x, _ = images(1, 64, seed=903)
    np.testing.assert_array_equal(through.answer(x, None, "batch").labels, other.answer(x, None, "batch").labels)


def test_a_stream_without_length_is_learnt_alike():
    counted, streamed, told = HopSupSup(SETUP), HopSupSup(SETUP), HopSupSup(SETUP, steps=5)
    counted.learn(0, stream(0, 5))
    streamed.learn(0, iter(stream(0, 5)))
    told.learn(0, iter(stream(0, 5)))
    for method in (streamed, told):
        np.testing.assert_array_equal(method.state()["matrix-1"], counted.state()["matrix-1"])


@pytest.mark.parametrize("scope", ["row", "first"])
def test_a_single_row_cannot_decide(scope):
    method, _ = taught(tasks=1)
    with pytest.raises(SpecError, match="batch only"):
        method.answer(images(0, 8, 0)[0], None, scope)
    with pytest.raises(SpecError, match="at least two rows"):
        method.answer(images(0, 1, 0)[0], None, "batch")


def test_nothing_is_answered_before_the_first_task():
    with pytest.raises(NothingLearntError):
        HopSupSup(SETUP).answer(images(0, 8, 0)[0], None, "batch")


def test_unknown_rules_and_networks_without_units_to_choose_from_are_refused():
    with pytest.raises(SpecError, match="unknown rule"):
        HopSupSup(SETUP, rule="pseudo-inverse")
