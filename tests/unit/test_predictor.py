"""Answers without a task: per row or per batch, always by the mask that is surest."""

import numpy as np
import pytest
import torch

from supsup_online.errors import SupsupError
from supsup_online.inference import exact_entropies
from supsup_online.predictor import predict
from unit import tiny

NET = tiny.network()
MASKS = tiny.random_masks(NET, 4)
IDS = [3, 11, 12, 40]
X = tiny.random_inputs(NET, 9)


def expected_answers(positions):
    """Probabilities over the classes of each row under the mask at its position."""
    logits = torch.stack([NET.logits(X, words) for words in MASKS])[positions, torch.arange(len(X))]
    return logits[:, : tiny.CLASSES].softmax(1).numpy()


def test_with_scope_sample_every_row_is_answered_by_its_own_surest_mask():
    entropies = exact_entropies(NET, MASKS, X)
    positions = entropies.argmin(0)
    assert len(set(positions.tolist())) > 1, "the rows below disagree about their mask"
    answer = predict(NET, IDS, MASKS, X, scope="sample")
    assert answer.mask_ids.tolist() == [IDS[i] for i in positions]
    np.testing.assert_allclose(answer.entropies, entropies.min(0), rtol=1e-5)
    np.testing.assert_allclose(answer.probabilities, expected_answers(positions), rtol=1e-5)
    np.testing.assert_array_equal(answer.labels, expected_answers(positions).argmax(1))


def test_with_scope_batch_one_mask_answers_all_rows():
    entropies = exact_entropies(NET, MASKS, X)
    position = int(entropies.mean(1).argmin())
    answer = predict(NET, IDS, MASKS, X, scope="batch")
    assert answer.mask_ids.tolist() == [IDS[position]] * len(X)
    np.testing.assert_allclose(answer.entropies, entropies[position], rtol=1e-5)
    np.testing.assert_allclose(answer.probabilities, expected_answers([position] * len(X)), rtol=1e-5)


def test_every_row_is_its_own_task_unless_told_otherwise():
    assert predict(NET, IDS, MASKS, X).mask_ids.tolist() == predict(NET, IDS, MASKS, X, "sample").mask_ids.tolist()


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_shapes_and_kinds_are_those_promised(scope):
    answer = predict(NET, IDS, MASKS, X, scope)
    assert (answer.labels.shape, answer.labels.dtype) == ((9,), np.int64)
    assert (answer.probabilities.shape, answer.probabilities.dtype) == ((9, tiny.CLASSES), np.float32)
    assert (answer.mask_ids.shape, answer.mask_ids.dtype) == ((9,), np.int64)
    assert (answer.entropies.shape, answer.entropies.dtype) == ((9,), np.float32)
    np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)


def test_of_two_equally_sure_masks_the_first_answers():
    answer = predict(NET, [8, 9], np.stack([MASKS[0], MASKS[0]]), X)
    assert set(answer.mask_ids.tolist()) == {8}


def test_rows_of_different_tasks_in_one_batch_are_told_apart():
    subject = tiny.learner()
    for task in range(2):
        assert tiny.run(subject, tiny.permuted(task)(40, seed=task))[-1].mask_id == task
    subject.sync()
    pairs = [next(tiny.permuted(task)(1, seed=50 + task)) for task in range(2)]
    x = subject.network.inputs(np.concatenate([pair.x for pair in pairs]))
    answer = predict(subject.network, [0, 1], subject.bank.stacked([0, 1]), x)
    assert (answer.mask_ids == np.repeat([0, 1], 32)).mean() > 0.9
    assert (answer.labels == np.concatenate([pair.y for pair in pairs])).mean() > 0.9


@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_an_empty_bank_cannot_answer(scope):
    with pytest.raises(SupsupError, match="holds no mask yet"):
        predict(NET, [], MASKS[:0], X, scope)
