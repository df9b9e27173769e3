"""Packed masks: the layout by its slow reference, round trips, and padding that stays zero."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online import models
from supsup_online.bitpack import MaskLayout, pack_reference
from supsup_online.errors import CodecError
from unit import tiny

shapes = st.tuples(st.integers(1, 5), st.one_of(st.integers(1, 9), st.sampled_from([63, 64, 65, 127, 128, 129, 200])))
channels = st.lists(st.integers(1, 5), max_size=3).map(tuple)
layouts = st.builds(MaskLayout, st.lists(shapes, min_size=1, max_size=4).map(tuple), channels)
packed = layouts.flatmap(lambda layout: st.tuples(st.just(layout), tiny.masks(layout.weight_count)))
relaxed = settings(max_examples=50, deadline=None)


@relaxed
@given(packed)
def test_packing_equals_the_reference_that_sets_one_bit_at_a_time(case):
    layout, mask = case
    words = layout.pack(mask)
    assert words.dtype == np.uint64
    np.testing.assert_array_equal(words, pack_reference(layout, mask))


@relaxed
@given(packed)
def test_a_mask_comes_back_from_its_words(case):
    layout, mask = case
    back = layout.unpack(layout.pack(mask))
    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, mask)


@relaxed
@given(packed)
def test_packing_adds_no_ones(case):
    layout, mask = case
    assert int(np.bitwise_count(layout.pack(mask)[: layout.bit_words]).sum()) == int(mask.sum())


@relaxed
@given(packed)
def test_what_was_packed_passes_the_check(case):
    layout, mask = case
    layout.check(layout.pack(mask))


any_floats = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32))


@relaxed
@given(packed, st.data())
def test_statistics_come_back_from_behind_the_bits_whatever_they_are_and_leave_these_alone(case, data):
    layout, mask = case
    statistics = np.array([data.draw(any_floats) for _ in range(layout.statistics_count)], dtype=np.float32)
    words = layout.pack(mask, statistics)
    assert layout.statistics(words).tobytes() == statistics.tobytes()
    np.testing.assert_array_equal(layout.unpack(words), mask)
    np.testing.assert_array_equal(words[: layout.bit_words], layout.pack(mask)[: layout.bit_words])
    layout.check(words)


def test_a_mask_that_has_seen_no_batch_has_a_count_of_zero_means_of_zero_and_variances_of_one():
    layout = MaskLayout(((1, 1),), channels=(2, 1))
    fresh = layout.statistics(layout.pack(np.ones(1, dtype=np.bool_)))
    assert fresh.tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert layout.word_count == 1 + 4


def test_networks_without_kept_statistics_have_words_for_their_bits_alone():
    for name in ("lenet-300-100", "conv-4-8-batch"):
        layout = MaskLayout.of(models.build(name, (28, 28), 10))
        assert layout.word_count == layout.bit_words
        assert layout.statistics_count == 0
    kept = MaskLayout.of(models.build("conv-4-8", (28, 28), 10))
    assert (kept.channels, kept.statistics_count) == ((4, 8), 25)


def test_weight_j_of_a_row_is_bit_j_modulo_64_of_its_word_and_rows_start_on_a_word():
    layout = MaskLayout(((2, 66), (1, 3)))
    mask = np.zeros(135, dtype=np.bool_)
    mask[[0, 65, 66 + 1, 66 + 64, 132 + 2]] = True
    assert layout.pack(mask).tolist() == [1, 2, 2, 1, 4]


def test_lenet_with_500_outputs_takes_the_words_of_the_design():
    layout = MaskLayout.of(models.build("lenet-300-100", (28, 28), 500))
    assert (layout.weight_count, layout.word_count) == (315_200, 5_400)


def test_a_lenet_mask_comes_back_and_equals_the_reference():
    layout = MaskLayout.of(models.build("lenet-300-100", (28, 28), 500))
    mask = np.random.default_rng(0).random(layout.weight_count) < 0.3
    words = layout.pack(mask)
    np.testing.assert_array_equal(words, pack_reference(layout, mask))
    np.testing.assert_array_equal(layout.unpack(words), mask)


def test_unpacking_does_not_write_to_the_words():
    layout = MaskLayout(((3, 70),))
    words = layout.pack(np.ones(210, dtype=np.bool_))
    words.flags.writeable = False
    assert layout.unpack(words).all()


@relaxed
@given(packed, st.data())
def test_any_padding_bit_that_is_set_fails_the_check(case, data):
    layout, mask = case
    ones = np.uint64(2**64 - 1)
    full = layout.pack(np.ones_like(mask))
    full[layout.bit_words :] = ones  # the floats, of which the last may be padding
    if layout.statistics_count % 2:
        full[-1] = 2**32 - 1
    padding = ~np.unpackbits(full.view(np.uint8), bitorder="little").astype(np.bool_)
    if not padding.any():
        return
    bit = data.draw(st.sampled_from(np.flatnonzero(padding).tolist()))
    words = layout.pack(mask)
    words[bit // 64] |= np.uint64(1 << (bit % 64))
    with pytest.raises(CodecError, match="padding"):
        layout.check(words)


@pytest.mark.parametrize(
    "words",
    [
        np.zeros(3, dtype=np.uint64),
        np.zeros(5, dtype=np.uint64),
        np.zeros((2, 2), dtype=np.uint64),
        np.zeros(4, dtype=np.int64),
        np.zeros(4, dtype=np.uint32),
    ],
)
def test_words_of_another_size_or_kind_fail_the_check(words):
    layout = MaskLayout(((2, 65),))
    layout.check(np.zeros(4, dtype=np.uint64))
    with pytest.raises(CodecError, match="expected 4 words of 64 bits"):
        layout.check(words)
