"""Answers without a task: per row or per batch, always by the mask that fits best."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Categorical

from supsup_online.errors import SupsupError
from supsup_online.inference import exact_entropies, misfit
from supsup_online.predictor import predict
from unit import tiny

NET = tiny.network()
MASKS = tiny.random_masks(NET, 4)
IDS = [3, 11, 12, 40]
X = tiny.random_inputs(NET, 9)


LOGITS = torch.stack([NET.logits(X, words) for words in MASKS])
PLAIN = tiny.network(replace(tiny.SPEC, outputs=tiny.CLASSES))


def assert_answered_by(answer, positions):
    """Every answer is the one of the mask at its row's position."""
    logits = LOGITS[positions, torch.arange(len(X))]
    probabilities = logits[:, : tiny.CLASSES].softmax(1).numpy()
    assert answer.mask_ids.tolist() == [IDS[i] for i in positions]
    np.testing.assert_allclose(answer.entropies, Categorical(logits=logits).entropy(), rtol=1e-5)
    np.testing.assert_allclose(answer.probabilities, probabilities, rtol=1e-5)
    np.testing.assert_array_equal(answer.labels, probabilities.argmax(1))


def test_with_scope_sample_every_row_is_answered_by_its_own_best_mask():
    positions = misfit(LOGITS, tiny.CLASSES).argmin(0)
    assert len(set(positions.tolist())) > 1, "the rows below disagree about their mask"
    assert_answered_by(predict(NET, IDS, MASKS, X, scope="sample"), positions)


def test_with_scope_batch_one_mask_answers_all_rows():
    position = misfit(LOGITS, tiny.CLASSES).mean(1).argmin()
    assert_answered_by(predict(NET, IDS, MASKS, X, scope="batch"), position.expand(len(X)))


def test_without_superfluous_neurons_the_surest_mask_answers():
    masks = tiny.random_masks(PLAIN, 4)
    entropies = exact_entropies(PLAIN, masks, X)
    assert len(set(entropies.argmin(0).tolist())) > 1, "the rows disagree about their mask"
    answer = predict(PLAIN, IDS, masks, X)
    assert answer.mask_ids.tolist() == [IDS[i] for i in entropies.argmin(0)]
    np.testing.assert_allclose(answer.entropies, entropies.min(0), rtol=1e-5)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_inputs_that_overflow_every_mask_are_still_answered(damage):
    x = X.clone()
    x[0, 0, 0] = damage
    answer = predict(NET, IDS, MASKS, x)
    assert answer.mask_ids[0] == IDS[0]
    assert answer.mask_ids[1:].tolist() == predict(NET, IDS, MASKS, X).mask_ids[1:].tolist()


def test_the_misfit_is_the_entropy_and_the_log_of_what_lies_on_superfluous_neurons():
    expected = np.log(12) + np.log(8 / 12 + 1e-3)
    assert misfit(torch.zeros(3, 12), 4).tolist() == pytest.approx([expected] * 3)


def test_an_image_that_could_be_two_labels_fits_better_than_one_that_might_be_none():
    either, none = torch.full((12,), -9.0), torch.full((12,), -9.0)
    either[1], either[2] = 9.0, 9.0
    none[1], none[7] = 9.0, 5.0
    assert Categorical(logits=either).entropy() > Categorical(logits=none).entropy()
    assert misfit(either, 4) < misfit(none, 4)


def test_of_masks_that_waste_hardly_anything_the_surer_fits_better():
    sure, unsure = torch.full((12,), -20.0), torch.full((12,), -30.0)
    sure[1], unsure[1], unsure[2] = 9.0, 9.0, 8.0
    assert misfit(sure, 4) < misfit(unsure, 4)


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


def test_of_two_masks_that_fit_equally_the_first_answers():
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
