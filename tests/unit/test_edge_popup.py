"""Edge-popup: which edges are kept, what the gradient passes through, and scores that start or return."""

import hashlib
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from supsup_online import models
from supsup_online.edge_popup import (
    Threshold,
    TopK,
    TopM,
    initial_scores,
    rekindled_scores,
    score_bounds,
    straight_through_reference,
    transferred_scores,
)
from supsup_online.errors import SpecError
from unit import tiny

ARCHITECTURE = tiny.network().architecture
VARIANTS = [TopK(0.5), TopK(0.1), TopK(1.0), TopM(1), TopM(3), Threshold()]
relaxed = settings(max_examples=50, deadline=None)
reals = st.floats(-3, 3, width=32, allow_nan=False)
tied = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0])
scores_of_any_kind = hnp.arrays(np.float32, st.integers(1, 150), elements=st.one_of(reals, tied)).map(torch.from_numpy)
fractions = st.one_of(st.floats(0.0, 1.0, exclude_min=True), st.sampled_from([1.0, 0.5, 1e-9]))

INITIAL_GOLDEN = "31191969c717adf0235137b435c23cac971662397379a70200549f50f6189169"
REKINDLED_GOLDEN = [
    (TopK(), "951942880cb6cc62edc4699a6bbef2dd52814eac29dcd34ae0e452e5a39f3be2"),
    (Threshold(), "f40568ae6b2e046e52944e65bb7d3514bdf81bbd6da6978ce8427ecdc18d567f"),
]


def sha256(values):
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def kept_by_sorting(scores, kept):
    """The plain truth: indices by falling magnitude, equal ones by rising index."""
    order = sorted(range(len(scores)), key=lambda i: (-abs(float(scores[i])), i))
    return set(order[:kept])


# ---- TopK


@relaxed
@given(scores_of_any_kind, fractions)
def test_top_k_keeps_exactly_the_largest_and_of_equal_ones_those_with_the_lower_index(scores, fraction):
    variant = TopK(fraction)
    mask = variant.select(scores)
    assert mask.dtype == torch.bool
    assert set(torch.nonzero(mask).flatten().tolist()) == kept_by_sorting(scores, variant.kept(scores.shape))


@relaxed
@given(scores_of_any_kind, fractions)
def test_top_k_chooses_the_same_on_the_cpu_and_on_a_device(scores, fraction):
    variant = TopK(fraction)
    assert torch.equal(variant.select(scores), variant._select_on_device(scores.abs()))


def test_top_k_chooses_the_same_on_the_cpu_and_on_a_device_for_a_whole_layer_with_many_ties():
    scores = torch.randint(-20, 20, (300, 784), generator=torch.Generator().manual_seed(0)).float()
    mask = TopK(0.37).select(scores)
    assert mask.shape == scores.shape
    assert int(mask.sum()) == int(0.37 * 300 * 784)
    assert torch.equal(mask, TopK(0.37)._select_on_device(scores.abs()))


@pytest.mark.parametrize(
    ("fraction", "edges", "kept"), [(1.0, 7, 7), (0.5, 7, 3), (0.5, 8, 4), (1e-9, 7, 1), (0.5, 1, 1), (0.99, 100, 99)]
)
def test_the_count_kept_is_rounded_down_but_never_zero(fraction, edges, kept):
    assert TopK(fraction).kept((edges,)) == kept
    assert int(TopK(fraction).select(torch.randn(edges, generator=torch.Generator().manual_seed(0))).sum()) == kept


@pytest.mark.parametrize(
    ("m", "shape", "kept"),
    [
        (1, (300, 784), 1084),
        (32, (300, 784), 32 * 1084),
        (200, (300, 784), 300 * 784 // 2),
        (4, (40, 20, 3, 3), 240),
        (8, (160, 160, 1, 1), 2560),
        (1, (3, 1), 1),
        (1, (1, 1), 1),
    ],
)
def test_top_m_keeps_m_edges_per_channel_and_never_more_than_half(m, shape, kept):
    variant, scores = TopM(m), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert variant.kept(shape) == kept
    out, inputs, *kernel = shape
    density = min(0.5, m * (out + inputs) / (out * inputs * math.prod(kernel)))
    assert kept == max(1, int(density * math.prod(shape)))
    mask = variant.select(scores)
    assert int(mask.sum()) == kept
    assert torch.equal(mask, variant._select_on_device(scores.abs()))
    assert scores.abs()[mask].min() >= scores.abs()[~mask].max() if mask.numel() > kept else True


def test_top_m_needs_an_edge_per_channel():
    with pytest.raises(SpecError, match="edges_per_channel"):
        TopM(0)


def test_top_k_with_all_scores_equal_keeps_the_first():
    assert TopK(0.4).select(torch.zeros(2, 5)).tolist() == [[True] * 4 + [False], [False] * 5]


def test_top_k_counts_a_negative_score_by_its_magnitude():
    assert TopK(0.5).select(torch.tensor([-3.0, 1.0, 2.0, -0.5])).tolist() == [True, False, True, False]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_keep_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(SpecError, match="keep_fraction"):
        TopK(fraction)


def test_selecting_leaves_the_scores_as_they_are():
    scores = torch.tensor([-3.0, 1.0, 2.0, -0.5])
    TopK(0.5).select(scores)
    assert scores.tolist() == [-3.0, 1.0, 2.0, -0.5]


# ---- Threshold


def test_threshold_keeps_scores_from_zero_up():
    scores = torch.tensor([[-1.0, -1e-38, -0.0], [0.0, 1e-38, 2.0]])
    assert Threshold().select(scores).tolist() == [[False, False, True], [True, True, True]]


# ---- gradients


def test_the_gradient_passes_through_top_k_with_the_sign_of_the_score_kept_or_not():
    scores = torch.tensor([-3.0, 1.0, 2.0, -0.5], requires_grad=True)
    mask = straight_through_reference(scores, TopK(0.5))
    assert mask.tolist() == [1, 0, 1, 0]
    (mask * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert scores.grad.tolist() == [-1, 2, 3, -4]


def test_the_gradient_passes_through_the_threshold_unchanged_kept_or_not():
    scores = torch.tensor([-3.0, 1.0, 0.0], requires_grad=True)
    mask = straight_through_reference(scores, Threshold())
    assert mask.tolist() == [0, 1, 1]
    (mask * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert scores.grad.tolist() == [1, 2, 3]


# ---- scores that start


def test_initial_scores_fill_plus_minus_one_over_the_root_of_fan_in_in_each_layer():
    scores = initial_scores(ARCHITECTURE, 0, 0)
    assert scores.dtype == torch.float32
    for layer, part in zip(ARCHITECTURE.layers, ARCHITECTURE.split(scores), strict=True):
        bound = 1 / math.sqrt(layer.fan_in)
        assert part.abs().max() <= bound
        assert part.max() > 0.9 * bound
        assert part.min() < -0.9 * bound


def test_score_bounds_are_those_of_each_weights_layer():
    expected = [1 / math.sqrt(layer.fan_in) for layer in ARCHITECTURE.layers]
    for bound, part in zip(expected, ARCHITECTURE.split(score_bounds(ARCHITECTURE)), strict=True):
        assert torch.equal(part, torch.full_like(part, bound))


def test_initial_scores_depend_on_seed_and_mask_id_alone():
    first = initial_scores(ARCHITECTURE, 1, 2)
    assert torch.equal(first, initial_scores(ARCHITECTURE, 1, 2))
    assert not torch.equal(first, initial_scores(ARCHITECTURE, 2, 2))
    assert not torch.equal(first, initial_scores(ARCHITECTURE, 1, 3))


@pytest.mark.parametrize(("variant", "density"), [("top-k", 0.3), ("threshold", 0.5)])
def test_an_untrained_mask_is_the_choice_among_its_initial_scores(variant, density):
    net = tiny.network(replace(tiny.SPEC, variant=variant, keep_fraction=0.3))
    bits = net.layout.unpack(net.untrained_mask(5))
    np.testing.assert_array_equal(bits, net.select(initial_scores(net.architecture, net.spec.weight_seed, 5)))
    assert abs(bits.mean() - density) < 0.07


@pytest.mark.parametrize("variant", ["top-k", "threshold"])
def test_transferred_scores_keep_what_all_masks_keep_and_leave_the_rest_to_the_draw(variant):
    net = tiny.network(replace(tiny.SPEC, variant=variant))
    drawn = initial_scores(net.architecture, 0, 9)
    bits = net.select(drawn.flip(0))
    agreed = torch.from_numpy(bits.astype(np.float32))
    np.testing.assert_array_equal(net.select(transferred_scores(net.architecture, net.variant, drawn, agreed)), bits)
    undecided = torch.full_like(drawn, 0.5)
    np.testing.assert_array_equal(
        net.select(transferred_scores(net.architecture, net.variant, drawn, undecided)), net.select(drawn)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_transferred_scores_reach_no_further_than_drawn_ones(variant):
    drawn, bounds = initial_scores(ARCHITECTURE, 0, 0), score_bounds(ARCHITECTURE)
    for share in (0.0, 0.5, 1.0):
        for mean in (torch.zeros_like(drawn), torch.rand_like(drawn), torch.ones_like(drawn)):
            scores = transferred_scores(ARCHITECTURE, variant, drawn, mean, share)
            assert scores.dtype == torch.float32
            assert (scores.abs() <= bounds * 1.000001).all()


def test_a_share_of_nothing_is_a_fresh_mask():
    drawn = initial_scores(ARCHITECTURE, 0, 0)
    assert torch.equal(transferred_scores(ARCHITECTURE, Threshold(), drawn, torch.ones_like(drawn), 0.0), drawn)


def test_a_mask_keeps_its_share_layer_by_layer_not_over_the_whole_network():
    net = tiny.network(replace(tiny.SPEC, keep_fraction=0.3))
    scores = torch.cat([torch.full((size,), float(i + 1)) for i, size in enumerate(net.architecture.sizes)])
    parts = net.architecture.split(torch.from_numpy(net.select(scores)))
    assert [int(part.sum()) for part in parts] == [int(0.3 * size) for size in net.architecture.sizes]


def test_initial_scores_never_change():
    assert sha256(initial_scores(ARCHITECTURE, 7, 3)) == INITIAL_GOLDEN


# ---- scores that return


@pytest.mark.parametrize(("variant", "golden"), REKINDLED_GOLDEN)
def test_rekindled_scores_never_change(variant, golden):
    mask = np.arange(ARCHITECTURE.weight_count) % 3 == 0
    assert sha256(rekindled_scores(ARCHITECTURE, variant, 7, 3, mask)) == golden


def test_signs_and_magnitudes_of_rekindled_top_k_scores_are_drawn_apart():
    mask = np.ones(ARCHITECTURE.weight_count, dtype=np.bool_)
    scores = rekindled_scores(ARCHITECTURE, TopK(), 0, 0, mask) / score_bounds(ARCHITECTURE)
    correlation = np.corrcoef(torch.sign(scores).numpy(), scores.abs().numpy())[0, 1]
    assert abs(correlation) < 4 / ARCHITECTURE.weight_count**0.5


@pytest.mark.parametrize("variant", VARIANTS)
@settings(max_examples=25, deadline=None)
@given(scores=hnp.arrays(np.float32, ARCHITECTURE.weight_count, elements=reals), mask_id=st.integers(0, 2**46))
def test_rekindled_scores_reproduce_exactly_the_bits_of_the_mask(variant, scores, mask_id):
    parts = ARCHITECTURE.split(torch.from_numpy(scores))
    mask = torch.cat([variant.select(part).flatten() for part in parts])
    returned = rekindled_scores(ARCHITECTURE, variant, 3, mask_id, mask.numpy())
    again = torch.cat([variant.select(part).flatten() for part in ARCHITECTURE.split(returned)])
    assert torch.equal(again, mask)


@given(tiny.masks(ARCHITECTURE.weight_count))
@settings(max_examples=25, deadline=None)
def test_a_threshold_mask_of_any_density_returns(mask):
    returned = rekindled_scores(ARCHITECTURE, Threshold(), 3, 0, mask)
    np.testing.assert_array_equal(Threshold().select(returned).numpy(), mask)


def test_rekindled_top_k_scores_leave_a_gap_between_kept_and_dropped_edges():
    mask = np.random.default_rng(0).random(ARCHITECTURE.weight_count) < 0.5
    magnitude = rekindled_scores(ARCHITECTURE, TopK(), 0, 0, mask).abs() / score_bounds(ARCHITECTURE)
    kept, dropped = magnitude[mask], magnitude[~mask]
    assert (round(float(kept.min()), 1), round(float(kept.max()), 1)) == (1, 2)
    assert (round(float(dropped.min()), 1), round(float(dropped.max()), 1)) == (0, 0.5)


def test_rekindled_top_k_scores_have_signs_that_ignore_the_mask():
    mask = np.random.default_rng(0).random(ARCHITECTURE.weight_count) < 0.5
    scores = rekindled_scores(ARCHITECTURE, TopK(), 0, 0, mask)
    assert 0.4 < (scores[mask] > 0).float().mean() < 0.6
    assert 0.4 < (scores[~mask] > 0).float().mean() < 0.6


def test_rekindled_threshold_scores_leave_a_gap_around_zero():
    mask = np.random.default_rng(0).random(ARCHITECTURE.weight_count) < 0.5
    scores = rekindled_scores(ARCHITECTURE, Threshold(), 0, 0, mask) / score_bounds(ARCHITECTURE)
    for part in (scores[mask], -scores[~mask]):
        assert 0.25 <= float(part.min()) < 0.3
        assert 0.95 < float(part.max()) <= 1


def test_rekindled_scores_are_the_same_every_time_and_differ_between_masks():
    mask = np.ones(ARCHITECTURE.weight_count, dtype=np.bool_)
    first = rekindled_scores(ARCHITECTURE, TopK(), 0, 4, mask)
    assert torch.equal(first, rekindled_scores(ARCHITECTURE, TopK(), 0, 4, mask))
    assert not torch.equal(first, rekindled_scores(ARCHITECTURE, TopK(), 0, 5, mask))
    assert not torch.equal(first, rekindled_scores(ARCHITECTURE, TopK(), 1, 4, mask))


def test_a_lenet_mask_returns_bit_for_bit():
    architecture = models.build("lenet-300-100", (28, 28), 500)
    variant = TopK(0.5)
    scores = initial_scores(architecture, 0, 0)
    mask = torch.cat([variant.select(part).flatten() for part in architecture.split(scores)])
    returned = rekindled_scores(architecture, variant, 0, 0, mask.numpy())
    assert torch.equal(torch.cat([variant.select(p).flatten() for p in architecture.split(returned)]), mask)
