"""Statistics per mask: what they count, and plain text that reads back to the same bits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online.errors import CodecError
from supsup_online.running_loss import RISING, RunningLoss
from supsup_online.stats import MaskStats

finite = st.floats(allow_nan=False, allow_infinity=False)
losses = st.floats(width=32)  # of a mask that has diverged not even finite
counts = st.integers(0, 2**63 - 1)


@st.composite
def any_stats(draw):
    batches = draw(counts)
    return MaskStats(
        batches=batches,
        samples=draw(counts),
        correct=draw(counts),
        loss=RunningLoss(draw(losses), draw(finite), batches),
        accuracy=draw(finite),
        entropy=draw(finite),
        ratio=draw(finite),
        created_ms=draw(counts),
        updated_ms=draw(counts),
        last_used=draw(counts),
        stream=draw(st.text()),
    )


@settings(max_examples=50, deadline=None)
@given(any_stats())
def test_statistics_come_back_from_their_text_exactly(stats):
    text = stats.to_text()
    assert all(isinstance(value, str) for value in text.values())
    assert MaskStats.from_text(text).to_text() == text


def test_the_text_has_one_plain_field_per_number():
    stats = MaskStats(2, 64, 32, RunningLoss(0.1, 0.25, 2), 0.5, 1.5, 1.25, 10, 20, 7, "topic/0/key")
    assert stats.to_text() == {
        "batches": "2",
        "samples": "64",
        "correct": "32",
        "loss": "0.1",
        "loss_variance": "0.25",
        "accuracy": "0.5",
        "entropy": "1.5",
        "ratio": "1.25",
        "created_ms": "10",
        "updated_ms": "20",
        "last_used": "7",
        "stream": "topic/0/key",
    }


def test_statistics_that_went_through_text_go_on_like_the_others():
    straight = MaskStats()
    for seed in range(7):
        straight.observe(np.random.default_rng(seed).random(32, dtype=np.float32), 20 + seed, 0.3 * seed)
    stored = MaskStats.from_text(straight.to_text())
    for stats in (straight, stored):
        stats.observe(np.random.default_rng(99).random(32, dtype=np.float32), 31, 0.7)
    assert stored == straight


def test_fields_that_are_not_known_are_ignored():
    assert MaskStats.from_text({**MaskStats().to_text(), "density": "0.5"}) == MaskStats()


@pytest.mark.parametrize("name", MaskStats().to_text())
def test_text_that_lacks_a_field_is_damaged(name):
    text = MaskStats().to_text()
    del text[name]
    with pytest.raises(CodecError, match=f"damaged.*{name}"):
        MaskStats.from_text(text)


@pytest.mark.parametrize("name", [name for name in MaskStats().to_text() if name != "stream"])
def test_text_with_a_field_that_is_no_number_is_damaged(name):
    with pytest.raises(CodecError, match="damaged"):
        MaskStats.from_text({**MaskStats().to_text(), name: "many"})


@pytest.mark.parametrize("name", ["batches", "samples", "correct", "created_ms", "updated_ms", "last_used"])
def test_a_count_that_is_not_whole_is_damaged(name):
    with pytest.raises(CodecError, match="damaged"):
        MaskStats.from_text({**MaskStats().to_text(), name: "1.5"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("batches", "-1"), ("samples", "-1"), ("correct", "-5"), ("last_used", str(2**63)), ("loss", "-1e300")],
)
def test_a_number_that_training_never_gives_is_damaged(name, value):
    with pytest.raises(CodecError, match="damaged"):
        MaskStats.from_text({**MaskStats().to_text(), name: value})


def test_a_record_may_be_older_than_1970_or_have_no_time():
    assert MaskStats.from_text({**MaskStats().to_text(), "created_ms": "-1"}).created_ms == -1


def test_a_batch_adds_to_the_counts_and_moves_the_running_numbers():
    stats = MaskStats()
    stats.observe(np.array([1.0, 3.0], dtype=np.float32), 1, 0.8)
    assert (stats.batches, stats.samples, stats.correct) == (1, 2, 1)
    assert (stats.accuracy, stats.entropy, stats.loss) == (0.5, 0.8, RunningLoss(2.0, 1.0, 1))
    stats.observe(np.array([0.0, 0.0, 0.0], dtype=np.float32), 3, 0.4)
    assert (stats.batches, stats.samples, stats.correct) == (2, 5, 4)
    assert (stats.accuracy, stats.entropy, stats.loss.batches) == (0.75, pytest.approx(0.6), 2)


def test_running_accuracy_and_entropy_follow_a_change_at_the_rate_of_a_loss_that_rises():
    stats = replace(MaskStats(), batches=100, accuracy=1.0, entropy=0.0, loss=RunningLoss(0.0, 0.0, 100))
    stats.observe(np.ones(128, dtype=np.float32), 0, 1.0)
    assert stats.accuracy == pytest.approx(1 - RISING)
    assert stats.entropy == pytest.approx(RISING)
    assert stats.loss.mean == pytest.approx(RISING)


def test_new_statistics_do_not_share_their_running_loss():
    one, other = MaskStats(), MaskStats()
    one.observe(np.ones(2, dtype=np.float32), 0, 1.0)
    assert other == MaskStats()
