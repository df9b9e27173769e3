"""A rate that falls over a task, and weight decay."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from supsup_online.optimisers import OPTIMISERS, OptimiserChoice, new_state
from supsup_online.paper import plain
from supsup_online.paper.bounds import UpperBound
from supsup_online.paper.figures import FIGURES
from supsup_online.paper.schedule import Schedule, Scheduled
from supsup_online.paper.supsup import SupSup
from unit import tiny
from unit.paper_methods import CONVOLUTIONAL, SETUP, accuracy, batches, bytes_of, learn

METHODS = {"SupSup": SupSup, "a baseline": UpperBound}


def test_the_rate_is_whole_at_the_first_batch_half_in_the_middle_and_nothing_after_the_last():
    schedule = Schedule(batches=10)
    assert [schedule.share(batch) for batch in (0, 5, 10, 11)] == pytest.approx([1, 0.5, 0, 0])
    shares = [schedule.share(batch) for batch in range(11)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_the_projects_own_optimisers_under_a_schedule_are_those_of_torch_under_it(name):
    choice, schedule = OptimiserChoice(name, 0.02), Schedule(batches=5, weight_decay=0.1)
    ours, leaf = torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 20).requires_grad_()
    rule, theirs = Scheduled(choice.build(), schedule), plain.torch_optimiser(choice, [leaf])
    state, rate = new_state(rule, ours), schedule.follow(theirs)
    for _ in range(7):
        rule.update(ours, ours**3, state)
        plain.step(theirs, (leaf**4 / 4).sum())
        rate.step()
        torch.testing.assert_close(leaf.detach(), ours)


@pytest.mark.parametrize("setup", [SETUP, CONVOLUTIONAL], ids=["connected", "convolutions"])
@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_a_task_is_learnt_under_a_schedule(make, setup):
    method = learn(make(replace(setup, schedule=Schedule(60, weight_decay=1e-4))), 0)
    assert accuracy(method, 0) > 0.6


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_batches_after_the_last_of_a_schedule_change_nothing_and_the_next_task_begins_anew(make):
    setup = replace(SETUP, schedule=Schedule(20))
    in_time, late = make(setup), make(setup)
    for task in range(2):
        in_time.learn(task, islice(batches(tiny.permuted, task), 20))
        late.learn(task, islice(batches(tiny.permuted, task), 30))
    assert bytes_of(in_time) == bytes_of(late)
    constant = learn(make(SETUP), 0, 1, count=20)
    assert bytes_of(in_time) != bytes_of(constant)


def test_weight_decay_draws_what_is_learnt_towards_zero():
    def learnt(decay):
        method = learn(UpperBound(replace(SETUP, schedule=Schedule(60, weight_decay=decay))), 0)
        return sum(float(np.square(array).sum()) for array in method.state().values())

    assert learnt(0.1) < 0.9 * learnt(0.0)


def test_cifar_at_the_papers_size_is_trained_as_in_the_paper():
    for cell in FIGURES["split-cifar100"].cells("paper", 0):
        assert cell.setup.schedule == Schedule(cell.batches, weight_decay=1e-4)
        assert cell.record()["setup"]["schedule"] == {"batches": cell.batches, "weight_decay": 1e-4}


def test_a_setup_without_a_schedule_is_written_down_as_before_there_were_any():
    (cell,) = FIGURES["check"].cells("laptop", 0)
    assert "schedule" not in cell.record()["setup"]
