"""Packed arithmetic against its plain twins: any shape, any number of masks, inputs and threads."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online import many_masks
from supsup_online.bitpack import MaskLayout
from supsup_online.kernels import cpu
from unit import tiny

NET = tiny.network()
COUNTS = [1, 2, 3, 4, 7, 8, 9, 64, 70]
SHAPES = [(1, 1), (4, 64), (5, 65), (3, 63), (300, 784), (17, 129)]


def network(name, outputs=5):
    return tiny.network(replace(tiny.SPEC, architecture=name, outputs=outputs))


def layout_and_masks(shape, count, seed=0):
    layout = MaskLayout((shape,))
    rng = np.random.default_rng(seed)
    return layout, np.stack([layout.pack(rng.random(layout.weight_count) < 0.5) for _ in range(count)])


# ---- the ways that are taken


@pytest.mark.parametrize("count", COUNTS)
def test_the_superposed_mean_equals_its_twin(count):
    masks = tiny.random_masks(NET, count)
    found = many_masks.superposed_mean(NET, masks)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, many_masks.superposed_mean_reference(NET.layout, masks))


@pytest.mark.parametrize("count", COUNTS)
def test_masked_dots_equal_their_twin(count):
    masks, vector = tiny.random_masks(NET, count), np.random.default_rng(1).normal(size=NET.layout.weight_count)
    found = many_masks.masked_dots(NET, masks, vector)
    assert found.dtype == np.float32
    twin = many_masks.masked_dots_reference(NET.layout, masks, vector)
    np.testing.assert_allclose(found, twin, rtol=1e-5, atol=1e-5)


def test_slots_choose_the_masks():
    masks, vector = tiny.random_masks(NET, 9), np.random.default_rng(1).normal(size=NET.layout.weight_count)
    slots = np.array([7, 0, 0, 3, 8])
    np.testing.assert_array_equal(
        many_masks.masked_dots(NET, masks, vector, slots), many_masks.masked_dots(NET, masks[slots], vector)
    )
    np.testing.assert_array_equal(
        many_masks.superposed_mean(NET, masks, slots), many_masks.superposed_mean(NET, masks[slots])
    )


@pytest.mark.parametrize("name", ["mlp-1", "mlp-7", "mlp-64-5", "mlp-65-3-130", "lenet-300-100"])
@pytest.mark.parametrize("inputs", [1, 2, many_masks.FEW, many_masks.FEW + 1, 50])
def test_exact_logits_equal_one_forward_pass_per_mask(name, inputs):
    net = network(name)
    masks, x = tiny.random_masks(net, 7), tiny.random_inputs(net, inputs)
    found = torch.cat(list(many_masks.exact_logits(net, masks, x)))
    torch.testing.assert_close(found, many_masks.exact_logits_reference(net, masks, x), rtol=1e-4, atol=1e-5)


def test_exact_logits_come_in_pieces_that_fit_the_memory(monkeypatch):
    monkeypatch.setattr(many_masks, "_AT_ONCE", 3 * 2 * NET.spec.outputs)
    masks, x = tiny.random_masks(NET, 8), tiny.random_inputs(NET, 2)
    pieces = list(many_masks.exact_logits(NET, masks, x))
    assert [len(piece) for piece in pieces] == [3, 3, 2]
    torch.testing.assert_close(torch.cat(pieces), many_masks.exact_logits_reference(NET, masks, x))


def test_over_no_masks_there_is_nothing():
    none = tiny.random_masks(NET, 1)[:0]
    assert list(many_masks.exact_logits(NET, none, tiny.random_inputs(NET, 2))) == []
    assert many_masks.masked_dots(NET, none, np.zeros(NET.layout.weight_count)).shape == (0,)


# ---- the kernels


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 5, 19])
def test_kernels_know_every_row_length(shape, count):
    layout, masks = layout_and_masks(shape, count)
    vector = np.random.default_rng(2).normal(size=layout.weight_count).astype(np.float32)
    slots, padded = np.arange(count), layout.pad(vector)
    dense = np.stack([layout.unpack(words) for words in masks])
    np.testing.assert_allclose(
        cpu.masked_dots(masks, slots, padded), dense @ vector.astype(float), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(layout.unpad(cpu.superposed_counts(masks, slots)), dense.sum(0))
    np.testing.assert_allclose(
        layout.unpad(cpu.superposed_weights(masks, slots, padded)), vector * dense.mean(0), rtol=1e-5, atol=1e-7
    )
    out = np.empty_like(vector)
    cpu.apply_mask(layout, masks[0], vector, out)
    np.testing.assert_array_equal(out, vector * dense[0])


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 3), min_size=1, max_size=300), seed=st.integers(0, 100))
def test_counts_are_whole_however_often_a_mask_is_taken(counts, seed):
    layout, masks = layout_and_masks((3, 70), 4, seed)
    dense = np.stack([layout.unpack(words) for words in masks]).astype(int)
    np.testing.assert_array_equal(
        layout.unpad(cpu.superposed_counts(masks, np.array(counts))), np.sum([dense[i] for i in counts], axis=0)
    )


@pytest.mark.parametrize("threads", [2, 3, 5])
def test_the_number_of_threads_changes_no_bit(threads):
    masks, x = tiny.random_masks(NET, 61), tiny.random_inputs(NET, 3).flatten(1).numpy()
    slots, vector = np.arange(61), np.random.default_rng(3).normal(size=NET.layout.word_count * 64).astype(np.float32)

    def ask(number):
        return (
            cpu.masked_dots(masks, slots, vector, threads=number),
            cpu.superposed_counts(masks, slots, threads=number),
            cpu.superposed_weights(masks, slots, vector, threads=number),
            cpu.exact_logits(NET.layout, masks, slots, NET.padded_weights, x, threads=number),
        )

    for one, many in zip(ask(1), ask(threads), strict=True):
        np.testing.assert_array_equal(one, many)


def test_what_a_mask_leaves_out_does_not_count_not_even_infinity():
    layout, masks = layout_and_masks((4, 70), 1)
    vector = np.where(layout.unpack(masks[0]), 1, np.inf).astype(np.float32)
    assert cpu.masked_dots(masks, np.array([0]), layout.pad(vector)) == layout.unpack(masks[0]).sum()


@pytest.mark.parametrize(
    ("masks", "slots", "length", "why"),
    [
        (np.zeros((2, 4), np.int64), [0], 256, "uint64"),
        (np.zeros((4, 2), np.uint64).T, [0], 256, "C-contiguous"),
        (np.zeros((2, 4), np.uint64), [2], 256, "slot"),
        (np.zeros((2, 4), np.uint64), [-1], 256, "slot"),
        (np.zeros((2, 4), np.uint64), [0], 255, "padded"),
    ],
)
def test_what_would_lead_outside_an_array_is_refused(masks, slots, length, why):
    with pytest.raises(ValueError, match=why):
        cpu.masked_dots(masks, np.array(slots), np.zeros(length, np.float32))


def test_padding_and_back_keeps_every_number_and_fills_up_with_zeros():
    layout = MaskLayout(((3, 70), (2, 64)))
    vector = np.arange(1, layout.weight_count + 1)
    padded = layout.pad(vector)
    assert len(padded) == layout.word_count * 64
    np.testing.assert_array_equal(layout.unpad(padded), vector)
    assert padded.sum() == vector.sum()
    np.testing.assert_array_equal(np.flatnonzero(padded), np.flatnonzero(layout.pad(np.ones_like(vector))))
