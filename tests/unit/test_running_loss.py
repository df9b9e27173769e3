"""A mask's running loss: its moving mean, and residuals in units in which +1 is noise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supsup_online.errors import SpecError
from supsup_online.running_loss import FALLING, RISING, Agreement, RunningLoss, moments

CHANCE = math.log(10)


def losses(mean, deviation=0.0, rows=100):
    """Losses with exactly this mean and standard deviation (of an even number of rows)."""
    return np.resize(np.array([mean - deviation, mean + deviation], dtype=np.float32), rows)


def settled(mean, deviation, batches=200):
    running = RunningLoss()
    for _ in range(batches):
        running.observe(losses(mean, deviation))
    return running


def test_the_first_batch_sets_the_level():
    running = RunningLoss()
    running.observe(losses(3.0, 0.5))
    assert (running.mean, running.variance, running.batches) == (3.0, 0.25, 1)


@pytest.mark.parametrize("batches", [1, 2, 200])
def test_a_better_batch_is_believed_sooner_than_a_worse_one(batches):
    better, worse = settled(2.0, 0.0, batches), settled(2.0, 0.0, batches)
    better.observe(losses(1.0, rows=128))
    worse.observe(losses(3.0, rows=128))
    assert better.mean == pytest.approx(2 - FALLING)
    assert worse.mean == pytest.approx(2 + RISING)
    assert FALLING > RISING
    assert better.batches == worse.batches == batches + 1


def test_a_rise_between_batches_counts_as_scatter_and_a_fall_does_not():
    rising, falling = settled(2.0, 0.5, 10), settled(2.0, 0.5, 10)
    before = rising.variance
    rising.observe(losses(4.0, 0.5))
    falling.observe(losses(1.0, 0.5))
    assert rising.variance > before
    assert falling.variance == pytest.approx(before)


def test_batches_of_one_row_have_scatter_too():
    running = RunningLoss()
    for loss in (1.0, 2.0, 1.0, 2.0):
        running.observe(losses(loss, 0.0, rows=1))
    assert running.variance > 0.05


def test_a_mask_without_batches_takes_anything():
    assert RunningLoss().residual(losses(50.0), CHANCE, Agreement()) == 0


def test_a_batch_at_the_usual_loss_has_residual_zero_and_a_better_one_a_negative_one():
    running = settled(1.0, 0.5)
    assert running.residual(losses(1.0), CHANCE, Agreement()) == pytest.approx(0, abs=1e-6)
    assert running.residual(losses(0.5), CHANCE, Agreement()) < 0


@pytest.mark.parametrize(
    ("level", "loss", "recognised"),
    [(0.5, 0.4, True), (0.5, 1.3, True), (0.5, 1.5, False), (2.2, 2.24, True), (2.2, 2.3, False), (2.5, 2.0, False)],
)
def test_a_batch_is_recognised_while_it_gives_up_less_than_half_of_what_was_learnt(level, loss, recognised):
    assert settled(level, 0.5).recognises(losses(loss), math.log(10)) is recognised


def test_without_a_margin_the_residual_counts_standard_errors_of_the_batch():
    running = settled(1.0, 0.5)
    agreement = Agreement(margin=0.0)
    assert running.residual(losses(1.2, rows=100), CHANCE, agreement) == pytest.approx(0.2 / (0.5 / 10), rel=1e-5)
    assert running.residual(losses(1.2, rows=400), CHANCE, agreement) == pytest.approx(0.2 / (0.5 / 20), rel=1e-5)


@given(
    mean=st.floats(0.0, 2.0),
    tolerance=st.floats(0.5, 20.0),
    margin=st.floats(0.01, 0.5),
    deviation=st.floats(0.0, 1e-3),
)
def test_a_batch_may_always_give_up_the_margin_of_what_was_learnt_and_no_more_when_the_mask_is_sure(
    mean, tolerance, margin, deviation
):
    running = RunningLoss(mean, deviation**2, batches=9)
    agreement = Agreement(tolerance, margin)
    learnt = CHANCE - mean
    assert running.residual(losses(mean + 0.9 * margin * learnt), CHANCE, agreement) <= tolerance
    if tolerance * max(deviation, 1e-3) / 10 < margin * learnt:  # the allowance decides, not the standard error
        assert running.residual(losses(mean + 1.1 * margin * learnt), CHANCE, agreement) > tolerance


def test_a_mask_worse_than_chance_is_measured_by_its_noise_alone():
    running = settled(5.0, 0.5)
    assert running.residual(losses(5.5), CHANCE, Agreement()) == pytest.approx(0.5 / (0.5 / 10), rel=1e-5)


def test_losses_without_any_spread_and_allowance_still_give_a_finite_residual():
    running = settled(5.0, 0.0)
    assert math.isfinite(running.residual(losses(6.0), CHANCE, Agreement()))
    assert running.residual(losses(6.0), CHANCE, Agreement()) > 100


def test_asking_for_a_residual_changes_nothing():
    running = settled(1.0, 0.5)
    before = (running.mean, running.variance, running.batches)
    running.residual(losses(9.0), CHANCE, Agreement())
    assert (running.mean, running.variance, running.batches) == before


def test_moments_are_taken_in_float64():
    values = np.array([1e8, 1e8 + 8, 1e8 - 8, 1e8], dtype=np.float32)
    assert moments(values) == (1e8, 32.0)


@pytest.mark.parametrize(
    "options", [{"tolerance": 0.0}, {"tolerance": -1.0}, {"tolerance": math.nan}, {"margin": -0.1}, {"margin": 1.1}]
)
def test_a_tolerance_or_margin_that_makes_no_sense_is_refused(options):
    with pytest.raises(SpecError, match="tolerance must be positive and margin"):
        Agreement(**options)
