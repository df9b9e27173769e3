"""Reuse or allocate: every row of the decision tables."""

import math

import numpy as np
import pytest

from supsup_online.allocation import Allocate, OverBudget, Reuse, choose, familiar, nns
from supsup_online.inference import OneShot
from supsup_online.types import Examined

EPSILON = 0.125


def outcome(*nu):
    return OneShot(gradient=-np.log(np.array(nu, dtype=np.float32)), nu=np.array(nu, dtype=np.float32))


@pytest.mark.parametrize(
    ("nu", "trained", "known"),
    [
        pytest.param((0.2, 0.2, 0.2, 0.2, 0.2), 5, False, id="no mask stands out"),
        pytest.param((0.26, 0.185, 0.185, 0.185, 0.185), 5, True, id="one stands out by more than epsilon"),
        pytest.param((0.22, 0.195, 0.195, 0.195, 0.195), 5, False, id="one stands out by less than epsilon"),
        pytest.param((0.28125, 0.23958, 0.23958, 0.23958), 4, True, id="exactly 1 + epsilon is known"),
        pytest.param((0.28124, 0.23959, 0.23959, 0.23958), 4, False, id="just below 1 + epsilon is new"),
        pytest.param((0.1, 0.6, 0.1, 0.1, 0.1), 1, False, id="a pad wins"),
        pytest.param((0.1, 0.6, 0.1, 0.1, 0.1), 2, True, id="the last trained mask wins"),
        pytest.param((0.6, 0.1, 0.1, 0.1, 0.1), 1, True, id="the only trained mask wins over the pads"),
        pytest.param((0.6, 0.1, 0.1, 0.1, 0.1), 0, False, id="nothing is trained yet"),
        pytest.param((0.4, 0.4, 0.1, 0.05, 0.05), 1, True, id="a tie between mask and pad goes to the mask"),
    ],
)
def test_the_nns_rule_knows_a_task_when_a_trained_mask_stands_out(nu, trained, known):
    assert nns(outcome(*nu), trained, EPSILON) is known


def test_a_larger_epsilon_asks_for_more():
    found = outcome(0.26, 0.185, 0.185, 0.185, 0.185)
    assert nns(found, 5, 0.25)
    assert not nns(found, 5, 0.35)


def test_the_ratio_is_k_times_the_largest_nu_and_the_best_is_its_position():
    found = outcome(0.1, 0.3, 0.6)
    assert found.best == 2
    assert found.ratio == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("entropy", "usual", "margin", "known"),
    [
        pytest.param(0.5, 0.5, 0.25, True, id="as usual"),
        pytest.param(0.1, 0.5, 0.25, True, id="surer than usual"),
        pytest.param(0.99, 0.0, 0.25, True, id="less than a quarter of the way to knowing nothing"),
        pytest.param(1.01, 0.0, 0.25, False, id="more than a quarter of the way"),
        pytest.param(0.51, 0.5, 0.0, False, id="no margin"),
        pytest.param(4.0, 0.5, 0.99, False, id="knowing nothing"),
        pytest.param(4.0, 4.5, 0.25, True, id="usual above ln outputs: no allowance is taken off"),
        pytest.param(4.6, 4.5, 0.25, False, id="above a usual above ln outputs"),
    ],
)
def test_an_entropy_is_familiar_up_to_a_margin_of_the_way_to_knowing_nothing(entropy, usual, margin, known):
    outputs = round(math.exp(4))
    assert familiar(entropy, usual, outputs, margin) is known


def candidate(mask_id, agrees):
    return Examined(mask_id, 0.0, None if agrees is None else 0.0, agrees)


@pytest.mark.parametrize(
    ("candidates", "room", "choice"),
    [
        pytest.param([], True, Allocate(), id="empty bank"),
        pytest.param([], False, OverBudget(), id="nothing known, no room"),
        pytest.param([candidate(3, True)], True, Reuse(3), id="known and agreeing"),
        pytest.param([candidate(3, True)], False, Reuse(3), id="a reuse needs no room"),
        pytest.param([candidate(3, None)], True, Reuse(3), id="known, loss not asked"),
        pytest.param([candidate(3, False)], True, Allocate(), id="contradicted by its loss"),
        pytest.param([candidate(3, False)], False, OverBudget(), id="contradicted by its loss, no room"),
        pytest.param([candidate(3, False), candidate(1, True)], True, Reuse(1), id="the second agrees"),
        pytest.param([candidate(3, True), candidate(1, True)], True, Reuse(3), id="the best of two that agree"),
        pytest.param([candidate(3, False), candidate(1, False)], True, Allocate(), id="all contradicted"),
    ],
)
def test_the_first_candidate_that_is_not_contradicted_is_reused_else_a_mask_is_allocated_if_there_is_room(
    candidates, room, choice
):
    assert choose(candidates, room=room) == choice
