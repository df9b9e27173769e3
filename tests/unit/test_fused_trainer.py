"""The step written out against the step by autograd, and its top-k against a selection among all scores."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online.device_trainer import DeviceTrainer
from supsup_online.errors import SpecError
from supsup_online.fused_trainer import FusedTrainer, trainer_for
from supsup_online.network import Network
from supsup_online.optimisers import OPTIMISERS, SGD, OptimiserChoice
from supsup_online.trainer import EdgePopupTrainer, HotMask
from unit import tiny

LENET = replace(tiny.SPEC, architecture="lenet-300-100", input_shape=(28, 28), classes=10, outputs=50)
DEEP = replace(tiny.SPEC, architecture="mlp-33-20-9")
SPECS = {
    f"{name}, {variant}": replace(spec, variant=variant)
    for name, spec in (("tiny", tiny.SPEC), ("lenet", LENET), ("deep", DEEP))
    for variant in ("top-k", "threshold", "top-m")
}


def batches(net, count, rows):
    rng = np.random.default_rng(0)
    for seed in range(count):
        yield tiny.random_inputs(net, rows, seed), torch.from_numpy(rng.integers(0, net.spec.classes, rows))


def trained(trainer, count, rows=32, hot=None):
    """A mask after some steps, and the losses it had."""
    hot, losses = hot or trainer.start(0), []
    for x, y in batches(trainer.network, count, rows):
        evaluation = trainer.evaluate(hot, x, y)
        losses.append(evaluation.losses.numpy())
        trainer.update(hot, evaluation)
    return hot, np.array(losses)


def same_bits(net, one, other):
    """Share of edges on which two packed masks agree."""
    return float(np.mean(net.layout.unpack(one) == net.layout.unpack(other)))


# ---- against autograd


@pytest.mark.parametrize("kind", [FusedTrainer, DeviceTrainer])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("count", "rows"), [(1, 1), (1, 128), (30, 7)])
def test_the_step_equals_that_of_autograd(spec, optimiser, count, rows, kind):
    net, rule = Network.build(spec), OptimiserChoice(optimiser, 0.002).build()
    if count > 1 and not isinstance(rule, SGD):
        # Divided by its own size, a gradient near zero is all sign, and a last bit that another processor rounds
        # otherwise moves a score by the whole learning rate: thirty such steps lead anywhere.
        rule = replace(rule, eps=1e-3)
    reference, fused = EdgePopupTrainer(net, rule), kind(net, rule)
    (expected, theirs), (found, ours) = trained(reference, count, rows), trained(fused, count, rows)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
    assert same_bits(net, reference.pack(expected), fused.pack(found)) > 0.999
    assert found.optimiser.step == expected.optimiser.step == count
    if count == 1:
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        for ours_moment, moment in zip(found.optimiser.moments, expected.optimiser.moments, strict=True):
            torch.testing.assert_close(ours_moment, moment, rtol=1e-4, atol=1e-7)


def test_logits_and_losses_before_an_update_are_those_of_autograd():
    net = tiny.network()
    rule = OptimiserChoice().build()
    x, y = next(batches(net, 1, 6))
    ours, theirs = (t.evaluate(t.start(3), x, y) for t in (FusedTrainer(net, rule), EdgePopupTrainer(net, rule)))
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.losses, theirs.losses)
    torch.testing.assert_close(ours.mean_loss, theirs.mean_loss.detach())


def test_in_bfloat16_a_task_is_learnt_as_well():
    net, rule = Network.build(LENET), OptimiserChoice().build()
    x, y = tiny.random_inputs(net, 64), torch.arange(64) % 10
    last = {}
    for precision in ("float32", "bfloat16"):
        trainer = trainer_for(net, rule, precision)
        hot = trainer.start(0)
        for _ in range(60):
            evaluation = trainer.evaluate(hot, x, y)
            trainer.update(hot, evaluation)
        last[precision] = float(evaluation.mean_loss)
    assert last["bfloat16"] < 0.5
    assert last["bfloat16"] == pytest.approx(last["float32"], abs=0.2)


# ---- the exact threshold


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.3])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_after_every_step_the_mask_is_that_of_the_scores(optimiser, rate, precision):
    net = Network.build(LENET)
    trainer, hot = FusedTrainer(net, OptimiserChoice(optimiser, rate).build(), precision), None
    for _ in range(6):
        hot, _ = trained(trainer, 1, hot=hot)
        mask = net.select(hot.scores)
        np.testing.assert_array_equal(net.layout.unpack(trainer.pack(hot)), mask)
        np.testing.assert_array_equal(hot.derived.flat.float().numpy() != 0, mask)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1e-30, 0.5, -0.5, 0.25, 1.0, -3e38]), min_size=1, max_size=40),
    keep=st.sampled_from([0.01, 0.3, 0.5, 1.0]),
    rate=st.sampled_from([1e-6, 1e-2, 10.0]),
    seed=st.integers(0, 50),
)
def test_ties_zeros_and_extremes_are_selected_as_among_all_scores(values, keep, rate, seed):
    net = Network.build(replace(DEEP, keep_fraction=keep))
    trainer = FusedTrainer(net, OptimiserChoice("sgd", rate).build())
    scores = np.random.default_rng(seed).choice(np.array(values, dtype=np.float32), net.layout.weight_count)
    fresh = trainer.start(0)
    hot = HotMask(torch.from_numpy(scores), fresh.optimiser)
    for _ in range(3):
        np.testing.assert_array_equal(net.layout.unpack(trainer.pack(hot)), net.select(hot.scores))
        hot, _ = trained(trainer, 1, rows=3, hot=hot)


def test_a_mask_whose_derived_weights_were_lost_goes_on_with_the_same_bytes():
    trainer = FusedTrainer(Network.build(LENET), OptimiserChoice().build())
    kept, _ = trained(trainer, 5)
    lost, _ = trained(trainer, 5)
    for _ in range(5):
        lost.derived = None
        kept, lost = (trained(trainer, 1, hot=hot)[0] for hot in (kept, lost))
        assert kept.scores.numpy().tobytes() == lost.scores.numpy().tobytes()
        assert trainer.pack(kept).tobytes() == trainer.pack(lost).tobytes()


# ---- what fits


def test_bfloat16_is_refused_where_masked_weights_are_not_exact_in_it():
    net = Network.build(replace(tiny.SPEC, weight_init="kaiming-normal"))
    with pytest.raises(SpecError, match="signed-constant"):
        trainer_for(net, OptimiserChoice().build(), "bfloat16")


def test_random_weights_of_any_size_train_in_float32():
    net = Network.build(replace(LENET, weight_init="kaiming-normal"))
    rule = OptimiserChoice().build()
    (_, ours), (_, theirs) = trained(FusedTrainer(net, rule), 10), trained(EdgePopupTrainer(net, rule), 10)
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("duplicate", [lambda pair: pickle.loads(pickle.dumps(pair)), copy.deepcopy])  # noqa: S301
def test_a_copy_of_trainer_and_mask_goes_on_alone(duplicate):
    trainer = FusedTrainer(Network.build(LENET), OptimiserChoice().build())
    hot, _ = trained(trainer, 3)
    other_trainer, other = duplicate((trainer, hot))
    trained(trainer, 3, hot=hot)
    trained(other_trainer, 3, hot=other)
    assert other.scores.numpy().tobytes() == hot.scores.numpy().tobytes()
    assert other_trainer.pack(other).tobytes() == trainer.pack(hot).tobytes()
