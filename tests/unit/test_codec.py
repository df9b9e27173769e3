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

from supsup_online.codec import decode_hot, decode_mask, encode_hot, encode_mask
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
