"""Drift monitors: they fire on a jump, from the first batch on, and a restored one goes on as if nothing had been."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online.drift import DETECTORS, DriftMonitor

TOLERANCE = 6.0
JUMP = 20.0
calm = np.random.default_rng(0).normal(size=200).tolist()


def with_jumps(seed, count):
    """Noise whose level changes now and then: long enough for every detector to fire."""
    rng = np.random.default_rng(seed)
    levels = np.repeat(rng.choice([0.0, 0.0, 5.0, JUMP], size=-(-count // 15)), 15)[:count]
    return (levels + rng.normal(size=count)).tolist()


residuals = st.one_of(
    st.lists(st.floats(-100, 100), max_size=20), st.builds(with_jumps, st.integers(0, 2**32), st.integers(0, 100))
)


def first_alarm(monitor, values):
    """Position of the first value that is called drift, None if none is."""
    return next((i for i, value in enumerate(values) if monitor.update(value)), None)


def test_page_hinkley_fires_on_a_jump_right_after_a_reset():
    monitor = DriftMonitor("page-hinkley", TOLERANCE)
    assert monitor.update(JUMP)
    monitor.reset()
    assert monitor.update(JUMP)


@pytest.mark.parametrize("after", [0, 1, 5, 99])
def test_page_hinkley_fires_on_a_jump_at_any_place_of_a_window(after):
    monitor = DriftMonitor("page-hinkley", TOLERANCE)
    assert first_alarm(monitor, [value / 3 for value in calm[:after]]) is None
    assert monitor.update(JUMP)


def test_page_hinkley_adds_up_several_small_rises_that_each_stay_within_tolerance():
    monitor = DriftMonitor("page-hinkley", TOLERANCE)
    assert first_alarm(monitor, [0.0] * 20 + [0.8 * TOLERANCE] * 10) in range(20, 30)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_loss_that_falls_and_levels_off_is_learning_not_drift(detector):
    falling = np.concatenate([np.linspace(0, -5 * JUMP, 30), np.linspace(-5 * JUMP, 0, 40), np.zeros(30)])
    assert first_alarm(DriftMonitor(detector, TOLERANCE), falling.tolist()) is None


def test_a_higher_tolerance_lets_more_pass():
    assert DriftMonitor("page-hinkley", 6.0).update(JUMP)
    assert not DriftMonitor("page-hinkley", 12.0).update(JUMP)


@pytest.mark.parametrize("detector", [name for name in DETECTORS if name != "none"])
def test_every_detector_notices_a_lasting_jump_within_the_window_after_it(detector):
    monitor = DriftMonitor(detector, TOLERANCE)
    assert first_alarm(monitor, [value / 3 for value in calm[:50]]) is None
    assert first_alarm(monitor, [JUMP + value for value in calm[:30]]) is not None


@pytest.mark.parametrize("detector", [name for name in DETECTORS if name != "none"])
def test_at_most_one_window_in_ten_of_pure_noise_ends_with_a_false_alarm(detector):
    noise = np.random.default_rng(1).normal(size=(20, 60))
    alarms = [first_alarm(DriftMonitor(detector, TOLERANCE), window) is not None for window in noise]
    assert sum(alarms) <= 2


def test_the_detector_none_never_fires_and_has_nothing_to_remember():
    monitor = DriftMonitor("none", TOLERANCE)
    assert first_alarm(monitor, [0.0, 1e6, -1e6]) is None
    assert monitor.residuals == []


@pytest.mark.parametrize("detector", DETECTORS)
@settings(max_examples=20, deadline=None)
@given(before=residuals, after=residuals)
def test_a_monitor_restored_from_its_residuals_goes_on_like_the_uninterrupted_one(detector, before, after):
    uninterrupted = DriftMonitor(detector, TOLERANCE)
    for value in before:
        uninterrupted.update(value)
    restored = DriftMonitor(detector, TOLERANCE, uninterrupted.residuals)
    assert restored.residuals == uninterrupted.residuals
    assert [restored.update(value) for value in after] == [uninterrupted.update(value) for value in after]


@pytest.mark.parametrize("detector", DETECTORS)
@settings(max_examples=20, deadline=None)
@given(before=residuals, after=residuals)
def test_a_reset_monitor_is_as_good_as_new(detector, before, after):
    used, new = DriftMonitor(detector, TOLERANCE, before), DriftMonitor(detector, TOLERANCE)
    used.reset()
    assert used.residuals == []
    assert [used.update(value) for value in after] == [new.update(value) for value in after]
    assert used.residuals == new.residuals == ([] if detector == "none" else after)
