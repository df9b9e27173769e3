"""The Triton kernels give what the plain twins give; without a GPU they are interpreted, on few and small masks."""

import os

import numpy as np
import pytest
import torch

from supsup_online import inference, many_masks
from supsup_online.bank import MaskBank
from supsup_online.decide import RULES
from unit import tiny

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
pytest.importorskip("triton", reason="Triton comes with torch for CUDA; to test without: pip install triton")

from supsup_online.kernels import gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NET = tiny.network()
LAYOUT = NET.layout


def on_device(masks):
    return torch.from_numpy(masks.view(np.int64)).to(DEVICE)


@pytest.mark.parametrize("count", [1, 7, 8, 21])
def test_dots_counts_and_logits_equal_the_plain_ones(count):
    masks = tiny.random_masks(NET, count)
    vector = np.random.default_rng(count).normal(size=LAYOUT.weight_count).astype(np.float32)
    padded = torch.from_numpy(LAYOUT.pad(vector)).to(DEVICE)
    dots = gpu.masked_dots(on_device(masks), padded).cpu().numpy()
    np.testing.assert_allclose(dots, many_masks.masked_dots_reference(LAYOUT, masks, vector), rtol=1e-4, atol=1e-4)
    counts = gpu.superposed_counts(on_device(masks)).cpu().numpy()
    np.testing.assert_array_equal(LAYOUT.unpad(counts), sum(LAYOUT.unpack(words).astype(int) for words in masks))
    x = tiny.random_inputs(NET, 3)
    weights = torch.from_numpy(NET.padded_weights).to(DEVICE)
    logits = gpu.exact_logits(LAYOUT, on_device(masks), weights, x.flatten(1).to(DEVICE)).cpu()
    torch.testing.assert_close(logits, many_masks.exact_logits_reference(NET, masks, x), rtol=1e-4, atol=1e-4)


def test_no_mask_gives_nothing():
    none = on_device(tiny.random_masks(NET, 1)[:0])
    weights = torch.from_numpy(NET.padded_weights).to(DEVICE)
    assert gpu.masked_dots(none, weights).shape == (0,)
    assert not gpu.superposed_counts(none).any()
    assert gpu.exact_logits(LAYOUT, none, weights, torch.zeros(2, 16, device=DEVICE)).shape == (0, 2, 12)


# ---- a bank that lies on the device


def banks(count):
    """The same masks in memory and on the device, with a hole where one was taken away and one more behind it."""
    pair = MaskBank(LAYOUT, 50), MaskBank(LAYOUT, 50, torch.device(DEVICE))
    for bank in pair:
        for words in tiny.random_masks(NET, count):
            bank.allocate(words)
        bank.remove(1)
        bank.put(2, tiny.random_masks(NET, count + 1)[-1])
        bank.allocate(tiny.random_masks(NET, count + 2)[-1])
    return pair


@pytest.mark.parametrize("ids", [[0], [0, 2, 3], [4, 0], [2, 3, 4, 5, 6, 7, 8, 9]])
def test_a_bank_on_the_device_stacks_the_masks_that_the_bank_in_memory_has(ids):
    here, there = banks(9)
    stack = there.stacked(ids)
    assert isinstance(stack, torch.Tensor)
    np.testing.assert_array_equal(stack.cpu().numpy().view(np.uint64), here.stacked(ids))


@pytest.mark.parametrize("rows", [1, 5, many_masks.FEW + 1])
def test_every_kind_of_inference_finds_there_what_it_finds_here(rows):
    here, there = banks(9)
    ids, x = list(here), tiny.random_inputs(NET, rows)
    y = torch.arange(rows) % tiny.CLASSES
    near, far = (here.stacked(ids), x), (there.stacked(ids), x.to(DEVICE))
    assert len(near[0]) > tiny.SPEC.classes
    for objective in ("H", "G"):
        expected, found = (inference.one_shot(NET, *pair, objective) for pair in (near, far))
        np.testing.assert_allclose(found.gradient, expected.gradient, rtol=1e-4, atol=1e-6)
        assert inference.binary(NET, *near, objective) == inference.binary(NET, *far, objective)
    np.testing.assert_allclose(
        inference.exact_entropies(NET, *far), inference.exact_entropies(NET, *near), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        inference.exact_losses(NET, *far, y.to(DEVICE)), inference.exact_losses(NET, *near, y), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        many_masks.superposed_mean(NET, far[0]), many_masks.superposed_mean(NET, near[0]), rtol=1e-6
    )
    vector = NET.weights.cpu().numpy()
    np.testing.assert_allclose(
        many_masks.masked_dots(NET, far[0], vector), many_masks.masked_dots(NET, near[0], vector), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rule", RULES)
def test_rules_decide_over_a_bank_on_the_device_as_over_one_in_memory(rule):
    settings = tiny.with_rule(rule)
    plain, resident = tiny.learner(settings), tiny.learner(settings)
    resident.bank = MaskBank(resident.network.layout, resident.bank.budget, torch.device(DEVICE))
    batches = [*tiny.permuted(0)(25), *tiny.permuted(1)(25), *tiny.permuted(0)(10, seed=7)]
    expected, found = ([r.mask_id for r in tiny.run(subject, iter(batches))] for subject in (plain, resident))
    assert found == expected
    assert len(set(found)) > 1 or rule == "paper"
