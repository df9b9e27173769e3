"""Stored bytes: golden ones that never change, exact round trips, CodecError for every violation and nothing else.

The files in tests/golden were written with struct and hashlib alone, from the layout tables of the codec's docstring.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from supsup_online.codec import decode_hot, decode_mask, encode_hot, encode_mask, mask_bytes
from supsup_online.errors import CodecError
from supsup_online.optimisers import SGD, Adam, OptimiserState, RMSprop
from supsup_online.spec import BankSpec
from supsup_online.trainer import EdgePopupTrainer, HotMask
from unit import tiny

GOLDEN = Path(__file__).parent.parent / "golden"
GOLDEN_NET = tiny.network(BankSpec("mlp-2", (3,), classes=2, outputs=2))
GOLDEN_BITS = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1], dtype=np.bool_)
GOLDEN_SCORES = [0.5, -0.25, 1.0, -2.0, 0.125, 3.5, -0.0, 1e-3, 7.0, -1.5]
GOLDEN_VELOCITY = [0.0, 1.0, -1.0, 0.25, 2.0, -4.0, 0.5, 1e-8, -0.75, 6.0]

NET = tiny.network(replace(tiny.SPEC, architecture="mlp-15-7"))  # 429 weights: the last byte of a mask has padding
COUNT = NET.architecture.weight_count
MASK = encode_mask(NET, tiny.random_masks(NET, 1)[0])
IMAGES = tiny.network(tiny.CONVOLUTIONAL)  # 183 weights, 15 statistics
KEPT = IMAGES.layout.statistics_count
OPTIMISERS = [Adam(), RMSprop(), SGD()]
relaxed = settings(max_examples=40, deadline=None)
reals = hnp.arrays(np.float32, COUNT, elements=st.floats(width=32, allow_nan=False, allow_infinity=False))


def golden(name):
    return bytes.fromhex((GOLDEN / name).read_text())


def sealed(body):
    """The body with the checksum it should have."""
    return body + hashlib.sha256(body).digest()[:8]


def changed(blob, offset, value):
    """The blob with other bytes at an offset, and the checksum made right again."""
    body = bytearray(blob[:-8])
    body[offset : offset + len(value)] = value
    return sealed(bytes(body))


def hot_of(optimiser, seed=0):
    generator = torch.Generator().manual_seed(seed)
    moments = [torch.randn(COUNT, generator=generator) for _ in range(optimiser.moment_count)]
    return HotMask(torch.randn(COUNT, generator=generator), OptimiserState(17 + seed, moments))


HOT = encode_hot(NET, Adam(), hot_of(Adam()))


# ---- golden bytes


def test_the_bytes_of_a_mask_never_change():
    words = GOLDEN_NET.layout.pack(GOLDEN_BITS)
    assert encode_mask(GOLDEN_NET, words) == golden("mask.hex")
    np.testing.assert_array_equal(decode_mask(GOLDEN_NET, golden("mask.hex")), words)


def test_the_bytes_of_a_hot_state_never_change():
    hot = HotMask(torch.tensor(GOLDEN_SCORES), OptimiserState(258, [torch.tensor(GOLDEN_VELOCITY)]))
    assert encode_hot(GOLDEN_NET, SGD(), hot) == golden("hot_state.hex")
    back = decode_hot(GOLDEN_NET, SGD(), golden("hot_state.hex"))
    assert torch.equal(back.scores, hot.scores)
    assert torch.signbit(back.scores[6]), "also the sign of zero survives"
    assert torch.equal(back.optimiser.moments[0], hot.optimiser.moments[0])
    assert back.optimiser.step == 258


def test_a_lenet_mask_takes_the_bytes_of_the_docstring():
    net = tiny.network(BankSpec())
    assert len(encode_mask(net, net.untrained_mask(0))) == 39_440


# ---- round trips


@relaxed
@given(tiny.masks(COUNT))
def test_a_mask_comes_back_from_its_bytes(bits):
    words = NET.layout.pack(bits)
    np.testing.assert_array_equal(decode_mask(NET, encode_mask(NET, words)), words)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@settings(max_examples=10, deadline=None)
@given(scores=reals, moments=st.tuples(reals, reals), step=st.integers(0, 2**63))
def test_a_hot_state_comes_back_bit_for_bit(optimiser, scores, moments, step):
    vectors = [torch.from_numpy(moment) for moment in moments[: optimiser.moment_count]]
    hot = HotMask(torch.from_numpy(scores), OptimiserState(step, vectors))
    back = decode_hot(NET, optimiser, encode_hot(NET, optimiser, hot))
    assert back.optimiser.step == step
    assert back.scores.numpy().tobytes() == scores.tobytes()
    assert [m.numpy().tobytes() for m in back.optimiser.moments] == [m.numpy().tobytes() for m in vectors]


def test_training_goes_on_from_a_decoded_state_with_the_same_bits():
    trainer = EdgePopupTrainer(NET, Adam(0.01))
    straight = trainer.start(0)
    stream = [(NET.inputs(b.x), NET.labels(b.y)) for b in tiny.permuted(0)(6)]
    for x, y in stream[:3]:
        trainer.update(straight, trainer.evaluate(straight, x, y))
    restored = decode_hot(NET, trainer.optimiser, encode_hot(NET, trainer.optimiser, straight))
    for x, y in stream[3:]:
        for hot in (straight, restored):
            trainer.update(hot, trainer.evaluate(hot, x, y))
    assert torch.equal(straight.scores, restored.scores)
    assert restored.optimiser.step == 6


def test_a_decoded_state_does_not_share_memory_with_its_bytes():
    blob = bytearray(HOT)
    back = decode_hot(NET, Adam(), bytes(blob))
    back.scores.zero_()
    back.optimiser.moments[0].zero_()
    assert decode_hot(NET, Adam(), bytes(blob)).scores.any()


# ---- statistics


def hot_images(seed=0):
    rng, count = np.random.default_rng(seed), IMAGES.architecture.weight_count
    scores, *moments = (torch.from_numpy(rng.normal(size=count).astype(np.float32)) for _ in range(3))
    return HotMask(scores, OptimiserState(17, moments), torch.from_numpy(tiny.random_statistics(IMAGES, rng)))


def read_images_mask(blob):
    return decode_mask(IMAGES, blob)


def read_images_hot(blob):
    return decode_hot(IMAGES, Adam(), blob)


IMAGES_MASK = encode_mask(IMAGES, tiny.random_masks(IMAGES, 1)[0])
IMAGES_HOT = encode_hot(IMAGES, Adam(), hot_images())
WITH_STATISTICS = [
    pytest.param(read_images_mask, IMAGES_MASK, id="mask"),
    pytest.param(read_images_hot, IMAGES_HOT, id="hot state"),
]
BEHIND = -8 - 4 * KEPT  # where the statistics begin


@relaxed
@given(tiny.masks(IMAGES.architecture.weight_count), st.integers(0, 2**32))
def test_a_mask_comes_back_with_its_statistics(bits, seed):
    words = IMAGES.layout.pack(bits, tiny.random_statistics(IMAGES, np.random.default_rng(seed)))
    blob = encode_mask(IMAGES, words)
    assert len(blob) == mask_bytes(IMAGES.layout) == 32 + 23 + 4 * 15 + 8
    np.testing.assert_array_equal(decode_mask(IMAGES, blob), words)


def test_a_hot_state_comes_back_with_its_statistics():
    hot = hot_images()
    back = read_images_hot(encode_hot(IMAGES, Adam(), hot))
    for one, other in ((hot.scores, back.scores), (hot.statistics, back.statistics)):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_statistics_lie_behind_the_bits_in_the_order_count_means_variances():
    words = tiny.random_masks(IMAGES, 1)[0]
    assert IMAGES.layout.statistics(words).astype("<f4").tobytes() == IMAGES_MASK[BEHIND:-8]
    assert IMAGES.layout.channels == (3, 4)
    assert np.flatnonzero(IMAGES.layout.variances).tolist() == [4, 5, 6, 11, 12, 13, 14]


def test_networks_that_keep_no_statistics_are_written_in_the_format_they_always_had():
    assert (MASK[4], HOT[4]) == (1, 1)
    assert (IMAGES_MASK[4], IMAGES_HOT[4]) == (2, 2)
    by_batch = tiny.network(replace(tiny.CONVOLUTIONAL, architecture="conv-3-4-batch"))
    assert encode_mask(by_batch, by_batch.untrained_mask(0))[4] == 1


@pytest.mark.parametrize(("read", "blob"), WITH_STATISTICS)
@pytest.mark.parametrize("place", [0, 1, 4, KEPT - 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_statistic_that_is_not_finite_is_refused(read, blob, place, value):
    with pytest.raises(CodecError, match="not finite"):
        read(changed(blob, len(blob) + BEHIND + 4 * place, np.float32(value).tobytes()))


@pytest.mark.parametrize(("read", "blob"), WITH_STATISTICS)
@pytest.mark.parametrize(("place", "value"), [(4, -1e-9), (KEPT - 1, -1), (0, -1), (0, 0.5)])
def test_a_negative_variance_and_a_count_that_is_none_are_refused(read, blob, place, value):
    with pytest.raises(CodecError, match="variance is negative, or the count"):
        read(changed(blob, len(blob) + BEHIND + 4 * place, np.float32(value).tobytes()))


@pytest.mark.parametrize(("read", "blob"), WITH_STATISTICS)
def test_a_mean_may_be_negative(read, blob):
    assert read(changed(blob, len(blob) + BEHIND + 4, np.float32(-7).tobytes())) is not None


def test_the_state_another_optimiser_left_is_none_with_statistics_as_well():
    assert decode_hot(IMAGES, SGD(), IMAGES_HOT) is None


@pytest.mark.parametrize(("read", "blob"), WITH_STATISTICS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_statistics_are_read_or_end_in_codec_error_and_nothing_else(read, blob, data):
    body = bytearray(blob[:-8])
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.integers(len(body) - 4 * KEPT - 2, len(body) - 1))
        body[offset : offset + 1] = data.draw(st.binary(max_size=3))
    try:
        found = read(sealed(bytes(body)))
    except CodecError:
        return
    write = encode_mask(IMAGES, found) if isinstance(found, np.ndarray) else encode_hot(IMAGES, Adam(), found)
    assert write == sealed(bytes(body)), "what is accepted has one spelling"


def test_a_mask_of_the_same_shapes_normalised_by_the_batch_is_refused():
    by_batch = tiny.network(replace(tiny.CONVOLUTIONAL, architecture="conv-3-4-batch"))
    with pytest.raises(CodecError):
        decode_mask(by_batch, IMAGES_MASK)
    with pytest.raises(CodecError):
        decode_mask(IMAGES, encode_mask(by_batch, by_batch.untrained_mask(0)))


# ---- another optimiser


@pytest.mark.parametrize("reader", OPTIMISERS, ids=lambda o: o.name)
@pytest.mark.parametrize("writer", OPTIMISERS, ids=lambda o: o.name)
def test_the_state_another_optimiser_left_is_none(writer, reader):
    found = decode_hot(NET, reader, encode_hot(NET, writer, hot_of(writer)))
    assert (found is None) == (writer.name != reader.name)


def test_another_learning_rate_is_still_the_same_optimiser():
    assert decode_hot(NET, Adam(0.5), HOT) is not None


def test_a_state_of_another_number_of_moments_under_the_same_name_is_none():
    blob = encode_hot(NET, Adam(), hot_of(SGD()))
    assert decode_hot(NET, Adam(), blob) is None


def test_damage_in_the_state_of_another_optimiser_is_still_found():
    blob = bytearray(encode_hot(NET, SGD(), hot_of(SGD())))
    blob[100] ^= 1
    with pytest.raises(CodecError, match="checksum"):
        decode_hot(NET, Adam(), bytes(blob))


# ---- violations


def read_mask(blob):
    return decode_mask(NET, blob)


def read_hot(blob):
    return decode_hot(NET, Adam(), blob)


BOTH = [pytest.param(read_mask, MASK, id="mask"), pytest.param(read_hot, HOT, id="hot state")]


@pytest.mark.parametrize(("read", "blob"), BOTH)
def test_an_untouched_blob_is_read(read, blob):
    assert read(blob) is not None
    assert read(changed(blob, 0, b"")) is not None, "the helper of the tests below leaves a good blob good"


@pytest.mark.parametrize(("read", "blob"), BOTH)
@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        pytest.param(0, b"SSXX", "starts with b'SSXX'", id="magic"),
        pytest.param(4, b"\x02", "format 2", id="format"),
        pytest.param(4, b"\x00", "format 0", id="format zero"),
        pytest.param(8, b"\x00", "another architecture", id="architecture hash"),
        pytest.param(23, b"\x00", "another architecture", id="last byte of the hash"),
        pytest.param(24, (COUNT + 1).to_bytes(8, "little"), "another architecture", id="one weight more"),
        pytest.param(24, (2**63).to_bytes(8, "little"), "another architecture", id="an absurd size"),
    ],
)
def test_a_header_that_breaks_the_layout_is_refused(read, blob, offset, value, message):
    assert blob[offset : offset + len(value)] != value
    with pytest.raises(CodecError, match=message):
        read(changed(blob, offset, value))


@pytest.mark.parametrize(
    ("read", "blob", "offset"),
    [
        *((read_mask, MASK, offset) for offset in (5, 6, 7)),
        *((read_hot, HOT, offset) for offset in (6, 7)),
    ],
)
def test_reserved_bytes_must_be_zero(read, blob, offset):
    with pytest.raises(CodecError, match="must be zero"):
        read(changed(blob, offset, b"\x01"))


@pytest.mark.parametrize("bit", range(COUNT % 8, 8))
def test_bits_past_the_last_weight_must_be_zero(bit):
    last = len(MASK) - 9
    with pytest.raises(CodecError, match="must be zero"):
        read_mask(changed(MASK, last, bytes([MASK[last] | 1 << bit])))


@pytest.mark.parametrize(("read", "blob"), BOTH)
@pytest.mark.parametrize("cut", [0, 1, 4, 8, 23, 31, 32, 47, 48, 60, -1])
def test_a_blob_that_was_cut_short_is_refused(read, blob, cut):
    with pytest.raises(CodecError, match="bytes"):
        read(blob[:cut])


@pytest.mark.parametrize(("read", "blob"), BOTH)
def test_a_blob_with_something_behind_it_is_refused(read, blob):
    with pytest.raises(CodecError, match=f"expected {len(blob)}"):
        read(blob + b"\0")
    with pytest.raises(CodecError, match=f"expected {len(blob)}"):
        read(sealed(blob))


@pytest.mark.parametrize(("read", "blob"), BOTH)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_single_bit_that_flipped_anywhere_is_noticed(read, blob, data):
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    damaged = bytearray(blob)
    damaged[bit // 8] ^= 1 << (bit % 8)
    with pytest.raises(CodecError):
        read(bytes(damaged))


def test_another_network_does_not_read_the_blob():
    other = tiny.network(replace(NET.spec, outputs=13))
    with pytest.raises(CodecError):
        decode_mask(other, MASK)
    with pytest.raises(CodecError, match="another architecture"):
        decode_hot(other, Adam(), HOT)


def test_another_architecture_of_the_same_number_of_weights_does_not_read_the_mask():
    one, other = (
        tiny.network(replace(tiny.SPEC, architecture="mlp-8", input_shape=(n,), outputs=36 - n)) for n in (16, 20)
    )
    assert one.architecture.weight_count == other.architecture.weight_count
    with pytest.raises(CodecError, match="another architecture"):
        decode_mask(other, encode_mask(one, one.untrained_mask(0)))


def test_a_mask_is_no_hot_state_and_a_hot_state_no_mask():
    with pytest.raises(CodecError):
        read_hot(MASK)
    with pytest.raises(CodecError):
        read_mask(HOT)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vector", range(3))
def test_a_state_with_a_number_that_is_not_finite_is_refused(value, vector):
    offset = 48 + 4 * (vector * COUNT + 5)
    with pytest.raises(CodecError, match="not finite"):
        read_hot(changed(HOT, offset, np.float32(value).tobytes()))


@pytest.mark.parametrize("read", [read_mask, read_hot])
@settings(max_examples=40, deadline=None)
@given(blob=st.binary(max_size=200))
def test_random_bytes_end_in_codec_error_and_nothing_else(read, blob):
    for candidate in (blob, sealed(blob)):
        with pytest.raises(CodecError):
            read(candidate)


@pytest.mark.parametrize(("read", "blob"), BOTH)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_bytes_with_a_right_checksum_are_read_or_end_in_codec_error_and_nothing_else(read, blob, data):
    body = bytearray(blob[:-8])
    for _ in range(data.draw(st.integers(1, 4))):
        offset = data.draw(st.one_of(st.integers(0, 60), st.integers(0, len(body) - 1)))
        body[offset : offset + 1] = data.draw(st.binary(max_size=3))
    try:
        found = read(sealed(bytes(body)))
    except CodecError:
        return
    if isinstance(found, np.ndarray):
        NET.layout.check(found)
        assert encode_mask(NET, found) == sealed(bytes(body)), "what is accepted has one spelling"
    elif found is not None:
        assert encode_hot(NET, Adam(), found) == sealed(bytes(body)), "what is accepted has one spelling"
