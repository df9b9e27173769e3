"""The step on fixed buffers: masks take turns in them, and sizes of batches too.

On a machine with CUDA it is recorded and replayed there, else its functions are called as they are. That they are the
step of autograd is tested in test_fused_trainer.
"""

import copy

import numpy as np
import pytest
import torch

from supsup_online.device_trainer import DeviceTrainer
from supsup_online.fused_trainer import trainer_for
from supsup_online.network import Network
from supsup_online.optimisers import OPTIMISERS, OptimiserChoice
from supsup_online.trainer import EdgePopupTrainer
from unit import tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NET = Network.build(tiny.SPEC, DEVICE)


def step(trainer, hot, rows, seed):
    x = tiny.random_inputs(tiny.network(), rows, seed).to(DEVICE)
    y = (torch.arange(rows) % tiny.CLASSES).to(DEVICE)
    evaluation = trainer.evaluate(hot, x, y)
    losses = evaluation.losses.cpu().numpy().copy()
    trainer.update(hot, evaluation)
    return losses


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_masks_that_take_turns_learn_as_they_do_alone(optimiser):
    rule = OptimiserChoice(optimiser, 0.002).build()
    together, alone = DeviceTrainer(NET, rule), EdgePopupTrainer(NET, rule)
    pairs = [(together.start(mask), alone.start(mask)) for mask in range(3)]
    for turn in range(12):
        ours, theirs = pairs[turn % 3]
        found, expected = (step(*who, 5 + turn % 2, turn) for who in ((together, ours), (alone, theirs)))
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.scores, theirs.scores, rtol=1e-3, atol=1e-4)
        assert ours.optimiser.step == theirs.optimiser.step == 4
        np.testing.assert_array_equal(together.pack(ours), alone.pack(ours))


def test_a_state_that_was_put_back_is_what_goes_on():
    trainer = DeviceTrainer(NET, OptimiserChoice().build())
    hot = trainer.start(0)
    step(trainer, hot, 8, 0)
    saved = copy.deepcopy(hot)
    expected = step(trainer, hot, 8, 1)
    assert step(trainer, saved, 8, 1).tobytes() == expected.tobytes()
    assert saved.scores.cpu().numpy().tobytes() == hot.scores.cpu().numpy().tobytes()


def test_only_the_sizes_used_last_keep_their_buffers():
    trainer = DeviceTrainer(NET, OptimiserChoice().build())
    hot = trainer.start(0)
    for rows in (1, 2, 3, 4, 1, 5, 6):
        step(trainer, hot, rows, rows)
    assert list(trainer._passes) == [4, 1, 5, 6]


def test_an_update_of_a_mask_that_was_not_evaluated_last_is_refused():
    trainer = DeviceTrainer(NET, OptimiserChoice().build())
    one, other = trainer.start(0), trainer.start(1)
    x, y = torch.zeros(2, 4, 4, device=DEVICE), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    evaluation = trainer.evaluate(one, x, y)
    trainer.evaluate(other, x, y)
    with pytest.raises(ValueError, match="right after"):
        trainer.update(one, evaluation)


def test_a_copy_has_buffers_of_its_own():
    trainer = DeviceTrainer(NET, OptimiserChoice().build())
    hot = trainer.start(0)
    step(trainer, hot, 4, 0)
    twin, same = copy.deepcopy(trainer), copy.deepcopy(hot)
    assert step(twin, same, 4, 1).tobytes() == step(trainer, hot, 4, 1).tobytes()


@pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
def test_a_gpu_gets_this_trainer():
    assert isinstance(trainer_for(NET, OptimiserChoice().build()), DeviceTrainer)
