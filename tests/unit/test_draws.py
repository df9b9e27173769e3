"""Random draws: fixed for ever by literals, independent of each other, shaped like the distributions they claim."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supsup_online import draws
from supsup_online.draws import Purpose

KINDS = (draws.raw_words, draws.bits, draws.uniforms, draws.normals)
MANY = 200_000


def sha256(values: np.ndarray) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


@pytest.mark.parametrize(
    ("kind", "golden"),
    [
        (draws.raw_words, "1585dda94b56041616a2dcc6b4c2face321d9e81c1fd151afb89cc833e172120"),
        (draws.bits, "c06807565079fd066089510dd4b9f98a5cd761bb75b647d98abef18b93a184a9"),
        (draws.uniforms, "0b37c2b8a971a8923a60b55e2b5ff49b2e853388f9d57742d8d8431031f9f1d7"),
        (draws.normals, "e8fd452ce12076a7f9542d8b9312e264f27e8016ef9ed3ba6f37b774883691ec"),
    ],
)
def test_the_draws_of_a_stream_never_change(kind, golden):
    assert sha256(kind(42, Purpose.SCORES, 3, 1001)) == golden


def test_the_key_is_seed_purpose_and_index_as_documented():
    key = np.array([5, 2 * 2**48 + 9], dtype=np.uint64)
    np.testing.assert_array_equal(draws.raw_words(5, Purpose.SCORES, 9, 7), np.random.Philox(key=key).random_raw(7))


def test_the_purposes_keep_their_numbers():
    core = {"WEIGHTS": 1, "SCORES": 2, "REKINDLE": 3}
    baselines = {"CONTEXTS": 16, "RANK_ONE": 17, "RESERVOIR": 18}
    assert {purpose.name: purpose.value for purpose in Purpose} == core | baselines


@pytest.mark.parametrize("kind", KINDS)
def test_streams_that_differ_in_seed_purpose_or_index_share_nothing(kind):
    names = [(0, Purpose.WEIGHTS, 0), (1, Purpose.WEIGHTS, 0), (0, Purpose.SCORES, 0), (0, Purpose.WEIGHTS, 1)]
    streams = [kind(*name, 256) for name in names]
    assert len({stream.tobytes() for stream in streams}) == len(names)


@given(kind=st.sampled_from(KINDS), short=st.integers(0, 200), more=st.integers(0, 200))
def test_a_shorter_draw_is_the_beginning_of_a_longer_one(kind, short, more):
    few, many = (kind(1, Purpose.WEIGHTS, 0, count) for count in (short, short + more))
    assert len(few) == short
    np.testing.assert_array_equal(few, many[:short])


def test_a_seed_counts_modulo_two_to_the_64():
    a, b = (draws.raw_words(seed, Purpose.WEIGHTS, 0, 4) for seed in (3, 3 + 2**64))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("index", [-1, 2**48])
def test_an_index_that_would_spill_into_the_purpose_is_refused(index):
    with pytest.raises(ValueError, match="index"):
        draws.raw_words(0, Purpose.WEIGHTS, index, 1)


def test_bits_take_the_least_significant_bit_of_each_word_first():
    word = int(draws.raw_words(0, Purpose.WEIGHTS, 0, 2)[1])
    drawn = draws.bits(0, Purpose.WEIGHTS, 0, 100)[64:]
    assert drawn.tolist() == [(word >> i) & 1 for i in range(36)]


def test_bits_are_fair():
    drawn = draws.bits(0, Purpose.WEIGHTS, 0, MANY)
    assert set(drawn.tolist()) == {0, 1}
    assert abs(drawn.mean() - 0.5) < 4 * 0.5 / MANY**0.5


def test_uniforms_are_exact_multiples_of_two_to_the_minus_24_in_the_unit_interval():
    drawn = draws.uniforms(0, Purpose.SCORES, 0, MANY)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < 1e-4
    assert 1 - 1e-4 < drawn.max() < 1
    scaled = drawn.astype(np.float64) * 2**24
    np.testing.assert_array_equal(scaled, np.round(scaled))
    assert abs(drawn.mean(dtype=np.float64) - 0.5) < 4 / (12 * MANY) ** 0.5


def test_normals_have_mean_zero_and_deviation_one_and_end_at_four_point_two():
    drawn = draws.normals(0, Purpose.WEIGHTS, 0, MANY).astype(np.float64)
    assert abs(drawn.mean()) < 4 / MANY**0.5
    assert abs(drawn.std() - 1) < 4 / (2 * MANY) ** 0.5
    assert 3.5 < np.abs(drawn).max() < 4.4


def test_normals_are_the_quantiles_of_the_interval_midpoints_on_a_grid_of_two_to_the_minus_16():
    levels = draws.raw_words(8, Purpose.WEIGHTS, 0, 50).view("<u2")
    expected = [NormalDist().inv_cdf((int(level) + 0.5) / 2**16) for level in levels]
    drawn = draws.normals(8, Purpose.WEIGHTS, 0, 200)
    np.testing.assert_allclose(drawn, expected, atol=2**-17, rtol=0)
    np.testing.assert_array_equal(drawn * 2**16, np.round(drawn * 2**16))
