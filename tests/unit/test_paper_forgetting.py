"""What forgets, and what forgets less: Lower Bound, online EWC and experience replay against plain training."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional

from supsup_online import models
from supsup_online.optimisers import OptimiserChoice
from supsup_online.paper.bounds import LowerBound, UpperBound
from supsup_online.paper.ewc import OnlineEWC, fisher_information
from supsup_online.paper.heads import SeparateHeads
from supsup_online.paper.methods import Setup
from supsup_online.paper.own_labels import OwnLabels
from supsup_online.paper.replay import ExperienceReplay, Reservoir
from supsup_online.parts import statistics_count
from supsup_online.scenarios import RawDraws
from unit.paper_methods import SETUP, accuracy, learn, unseen

GENTLE = replace(SETUP, optimiser=OptimiserChoice("rmsprop", 1e-3))


def kept(method):
    """Mean accuracy on two of three tasks, when the third has been learnt as well."""
    learn(method, 0, 1, 2)
    assert accuracy(method, 2) > 0.9, "who learns nothing forgets nothing"
    return (accuracy(method, 0) + accuracy(method, 1)) / 2


def test_plain_training_forgets_and_consolidation_and_replay_forget_less():
    plain = kept(OnlineEWC(GENTLE, strength=0))
    assert kept(OnlineEWC(GENTLE, strength=1e4)) > plain + 0.03
    assert kept(ExperienceReplay(GENTLE)) > plain + 0.03


def test_the_trunk_of_the_lower_bound_forgets():
    assert kept(LowerBound(SETUP)) < kept(SeparateHeads(SETUP)) - 0.1


def test_labels_that_are_not_shared_name_the_task_and_are_forgotten_sooner():
    own = OwnLabels(GENTLE, lambda setup: OnlineEWC(setup, strength=0))
    assert kept(own) < kept(OnlineEWC(GENTLE, strength=0)) - 0.1
    replayed = learn(OwnLabels(SETUP, ExperienceReplay), 0, 1)
    for task in (0, 1):
        x, y = unseen(task)
        found = replayed.answer(x, None)
        assert ((found.tasks == task) & (found.labels == y)).mean() > 0.7


def test_an_upper_bound_that_is_carried_on_begins_where_the_last_task_ended():
    carried, fresh = (UpperBound(SETUP, carry_on=carry_on) for carry_on in (True, False))
    for method in (carried, fresh):
        learn(method, 0, count=5).learn(1, [])
    first, second = carried.state()["networks"]
    np.testing.assert_array_equal(first, second)
    first, second = fresh.state()["networks"]
    assert (first != second).any()


def test_the_fisher_information_is_the_mean_squared_gradient_of_single_rows():
    method = learn(OnlineEWC(SETUP), 0, count=3)
    x = torch.randn(20, 4, 4, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % SETUP.classes
    flat = torch.from_numpy(method.state()["weights"])
    expected = torch.zeros_like(flat)
    for row, label in zip(x, y, strict=True):
        leaf = flat.clone().requires_grad_()
        logits = method.architecture.forward(row[None], method.architecture.split(leaf))
        expected += torch.autograd.grad(functional.cross_entropy(logits, label[None]), leaf)[0] ** 2 / 20
    found = fisher_information(method.architecture, flat, [(x[:15], y[:15]), (x[15:], y[15:])])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_the_fisher_information_of_single_rows_is_under_the_statistics_of_their_batch():
    architecture = models.build("conv-4-4", (8, 8), 3)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 8, 8, generator=generator), torch.arange(20) % 3
    flat = torch.randn(architecture.weight_count, generator=generator) / 5
    noted = torch.zeros(statistics_count(architecture.body.channels))
    architecture.forward(x, architecture.split(flat), noted=noted)
    expected = torch.zeros_like(flat)
    for row, label in zip(x, y, strict=True):
        leaf = flat.clone().requires_grad_()
        logits = architecture.forward(row[None], architecture.split(leaf), noted)
        expected += torch.autograd.grad(functional.cross_entropy(logits, label[None]), leaf)[0] ** 2 / 20
    torch.testing.assert_close(fisher_information(architecture, flat, [(x, y)]), expected, rtol=1e-4, atol=1e-9)


def test_gamma_says_how_much_information_of_earlier_tasks_is_left():
    lasting, brief = (learn(OnlineEWC(SETUP, gamma=gamma), 0, count=5) for gamma in (1.0, 0.0))
    before = lasting.state()["fisher"]
    np.testing.assert_array_equal(brief.state()["fisher"], before)
    learn(lasting, 1, count=0)
    learn(brief, 1, count=0)
    np.testing.assert_array_equal(lasting.state()["fisher"], before)
    assert not brief.state()["fisher"].any()


def test_a_very_strong_penalty_holds_the_weights_that_matter_in_place():
    method = learn(OnlineEWC(SETUP, strength=1e9), 0, count=20)
    before, fisher = method.state()["weights"], method.state()["fisher"]
    learn(method, 1, count=50)
    moved = np.abs(method.state()["weights"] - before)
    mattered = fisher > np.quantile(fisher[fisher > 0], 0.9)
    assert moved[mattered].mean() < moved[fisher == 0].mean()


def reservoir(capacity, stream, seed, rows=7):
    """A buffer that has seen 0 .. stream - 1, each as an image and as a label."""
    setup = Setup("mlp-4", (1,), classes=stream)
    buffer, numbers = Reservoir(setup, capacity), RawDraws(seed, 1)
    for start in range(0, stream, rows):
        values = np.arange(start, min(start + rows, stream))
        buffer.add(values[:, None].astype(np.float32), values, numbers)
    return buffer


def test_a_reservoir_holds_everything_until_it_is_full():
    x, y, seen = reservoir(50, 30, 0).state().values()
    np.testing.assert_array_equal(y[:30], np.arange(30))
    np.testing.assert_array_equal(x[:30, 0], np.arange(30))
    assert seen == 30


def test_a_full_reservoir_is_a_uniform_sample_of_all_it_has_seen():
    counts = np.zeros(100)
    for seed in range(600):
        buffer = reservoir(20, 100, seed)
        images, labels = buffer.state()["buffer_x"][:, 0], buffer.state()["buffer_y"]
        np.testing.assert_array_equal(images, labels)
        counts[np.unique(labels)] += 1
    assert counts.sum() == 600 * 20, "no image is held twice"
    # Of 600 draws of probability 0.2: 120 +- 10. Early, middle and late images alike.
    assert np.abs(counts - 120).max() < 50
    assert np.abs(counts.reshape(10, 10).mean(1) - 120).max() < 13


def test_a_sample_comes_from_what_is_held_and_an_empty_buffer_gives_none():
    buffer = reservoir(20, 10, 0)
    x, y = buffer.sample(500, RawDraws(3, 1))
    assert set(y.tolist()) == set(range(10))
    np.testing.assert_array_equal(x[:, 0], y)
    empty = Reservoir(SETUP, 5)
    assert empty.sample(4, RawDraws(3, 1))[0].shape == (0, 4, 4)
    assert empty.nbytes == 5 * 16 + 5
