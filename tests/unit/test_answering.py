"""Answers from a snapshot: the same as the predictor's, and novel where the allocation would start a new mask."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from daemon.settings import Settings
from supsup_online import allocation, inference
from supsup_online.answering import MARGIN, Answer, Inquiry, answer, answer_told
from supsup_online.decide import RuleSettings
from supsup_online.errors import BadBatchError, SpecError, SupsupError
from supsup_online.predictor import predict
from supsup_online.snapshot import Shelf, Snapshot
from unit import tiny

NET = tiny.network()
IDS = [3, 11, 12, 40]
MASKS = tiny.random_masks(NET, 4)
X = tiny.random_inputs(NET, 24)
KNOWING_NOTHING = math.log(tiny.SPEC.outputs)


def snapshot(usual: float | list[float] = 1.0, net=NET) -> Snapshot:
    """The masks under their ids, among rows that are somebody else's."""
    shelf = Shelf(net)
    levels = dict(zip(IDS, np.broadcast_to(usual, 4).tolist(), strict=True))
    others = {mask_id: tiny.random_masks(net, 1, seed=mask_id)[0] for mask_id in (1, 11, 20)}
    before = shelf.next(shelf.empty(), 1, others, dict.fromkeys(others, 0.0), set())
    masks = tiny.random_masks(net, 4)
    return shelf.next(before, 2, dict(zip(reversed(IDS), reversed(masks), strict=True)), levels, {1, 20})


CONFIDENT, DOUBTFUL = snapshot(KNOWING_NOTHING + 1), snapshot(0.0)


def entropies_under(mask_ids) -> np.ndarray:
    """Output entropy of every row of X under its mask."""
    rows = [NET.logits(X[i : i + 1], MASKS[IDS.index(mask_id)]) for i, mask_id in enumerate(mask_ids)]
    return np.concatenate([inference.entropy(logits).numpy() for logits in rows])


def assert_same(one: Answer, other: Answer) -> None:
    for name in ("labels", "mask_ids", "novel"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.confidences, other.confidences, rtol=1e-4, atol=1e-5)


# -- which mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 9, 24])
@pytest.mark.parametrize("scope", ["sample", "batch"])
def test_exact_inference_answers_as_the_predictor_does(scope: str, rows: int) -> None:
    expected = predict(NET, IDS, MASKS, X[:rows], scope)
    found = answer(snapshot(), X[:rows], Inquiry(scope=scope))
    for name in ("labels", "probabilities", "mask_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.inferred == rows


@pytest.mark.parametrize("objective", ["H", "G"])
@pytest.mark.parametrize("how", ["one-shot", "binary"])
def test_a_superposition_is_asked_row_by_row(how: str, objective: str) -> None:
    ask = {"one-shot": lambda *a: inference.one_shot(*a).best, "binary": inference.binary}[how]
    places = [ask(NET, MASKS, X[i : i + 1], objective) for i in range(len(X))]
    assert len(set(places)) > 1, "the rows disagree about their mask"
    found = answer(snapshot(), X, Inquiry(how, objective))
    assert found.mask_ids.tolist() == [IDS[place] for place in places]
    assert_same(found, answer_told(snapshot(), X, found.mask_ids, Inquiry()))


@pytest.mark.parametrize("objective", ["H", "G"])
@pytest.mark.parametrize("how", ["one-shot", "binary"])
def test_with_scope_batch_a_superposition_is_asked_once(how: str, objective: str) -> None:
    ask = {"one-shot": lambda *a: inference.one_shot(*a).best, "binary": inference.binary}[how]
    found = answer(snapshot(), X, Inquiry(how, objective, "batch"))
    assert found.mask_ids.tolist() == [IDS[ask(NET, MASKS, X, objective)]] * len(X)
    assert len(set(found.confidences.tolist())) == 1


def test_a_mask_that_is_told_answers_its_row() -> None:
    tasks = np.array([IDS[i % 4] for i in range(len(X))])
    found = answer_told(snapshot(), X, tasks, Inquiry())
    logits = np.concatenate([NET.logits(X[i : i + 1], MASKS[i % 4]).numpy() for i in range(len(X))])
    assert (found.mask_ids.tolist(), found.inferred) == (tasks.tolist(), 0)
    np.testing.assert_array_equal(found.labels, logits[:, : tiny.CLASSES].argmax(1))


@pytest.mark.parametrize("wrong", [-1, 0, 1, 13, 20, 41, 2**62])
def test_a_mask_that_is_told_and_not_there_is_named(wrong: int) -> None:
    with pytest.raises(BadBatchError, match=rf"version 2 of this bank has no mask {wrong}$"):
        answer_told(snapshot(), X[:3], np.array([3, wrong, 40]), Inquiry())


def test_an_empty_snapshot_cannot_answer() -> None:
    empty = Shelf(NET).empty()
    with pytest.raises(SupsupError, match="holds no mask yet"):
        answer(empty, X, Inquiry())
    with pytest.raises(SupsupError, match="holds no mask yet"):
        answer_told(empty, X, np.zeros(len(X), np.int64), Inquiry())


@pytest.mark.parametrize("how", ["one-shot", "binary"])
def test_objective_g_needs_superfluous_neurons(how: str) -> None:
    plain = tiny.network(replace(tiny.SPEC, outputs=tiny.CLASSES))
    with pytest.raises(SpecError, match="superfluous"):
        answer(snapshot(net=plain), X, Inquiry(how, "G"))


# -- confidence --------------------------------------------------------------------------------------------------------

LEVELS = st.floats(0, KNOWING_NOTHING - 0.01) | st.floats(KNOWING_NOTHING, 5)
MARGINS = st.floats(0.01, 0.99)


@given(st.floats(0, KNOWING_NOTHING), LEVELS, MARGINS)
def test_a_confidence_of_one_minus_the_margin_is_where_the_familiar_ends(entropy: float, usual: float, margin: float):
    bound = usual + margin * max(KNOWING_NOTHING - usual, 0)
    assume(abs(entropy - bound) > 1e-4)
    confidence = allocation.confidence(np.float32([entropy]), np.float32([usual]), tiny.SPEC.outputs)
    assert allocation.familiar(entropy, usual, tiny.SPEC.outputs, margin) == (confidence[0] >= 1 - margin)


@given(st.lists(LEVELS, min_size=4, max_size=4), MARGINS, st.sampled_from(["exact", "one-shot"]))
def test_a_row_is_novel_exactly_when_its_confidence_is_below_one_minus_the_margin(usual, margin, how) -> None:
    found = answer(snapshot(usual), X[:6], Inquiry(how, margin=margin))
    np.testing.assert_array_equal(found.novel, found.confidences < np.float32(1 - margin))
    assert ((found.confidences >= 0) & (found.confidences <= 1)).all()


@given(st.lists(LEVELS, min_size=4, max_size=4), MARGINS)
def test_novel_rows_are_those_that_are_not_familiar(usual: list[float], margin: float) -> None:
    found = answer(snapshot(usual), X, Inquiry(margin=margin))
    for mask_id, entropy, novel in zip(found.mask_ids, entropies_under(found.mask_ids), found.novel, strict=True):
        level = usual[IDS.index(mask_id)]
        if abs(entropy - level - margin * max(KNOWING_NOTHING - level, 0)) > 1e-4:
            assert novel != allocation.familiar(float(entropy), level, tiny.SPEC.outputs, margin)


def test_a_batch_of_one_task_is_novel_as_a_whole_by_its_mean_entropy() -> None:
    found = answer(snapshot(), X, Inquiry(scope="batch"))
    mean = entropies_under(found.mask_ids).mean()
    expected = allocation.confidence(np.float32([mean]), np.float32([1]), tiny.SPEC.outputs)[0]
    assert found.confidences.tolist() == pytest.approx([expected] * len(X), rel=1e-4)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_a_row_that_overflows_is_novel(damage: float) -> None:
    x = X.clone()
    x[0] = damage
    known = answer(snapshot(), X, Inquiry(margin=0.99))
    assert not known.novel.any()
    for found in (answer(snapshot(), x, Inquiry(margin=0.99)), answer_told(snapshot(), x, known.mask_ids, Inquiry())):
        assert found.novel[0]
        np.testing.assert_array_equal(found.labels[1:], known.labels[1:])


# -- the last mask of a stream -----------------------------------------------------------------------------------------


def test_a_last_mask_that_is_confident_answers_without_asking_others() -> None:
    found = answer(CONFIDENT, X, Inquiry(), last=11)
    assert (set(found.mask_ids.tolist()), found.inferred) == ({11}, 0)
    assert_same(found, answer_told(CONFIDENT, X, np.full(len(X), 11), Inquiry()))


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("how", ["exact", "one-shot", "binary"])
def test_a_last_mask_that_is_confident_of_nothing_leaves_all_as_it_would_be(how: str, scope: str) -> None:
    inquiry = Inquiry(how, scope=scope, margin=0.01)
    assert_same(answer(DOUBTFUL, X, inquiry, last=11), answer(DOUBTFUL, X, inquiry))
    assert answer(DOUBTFUL, X, inquiry, last=11).inferred == len(X)


def test_only_rows_that_the_last_mask_finds_novel_are_inferred_anew() -> None:
    middle = float(np.median(entropies_under([11] * len(X))))
    bank = snapshot((middle - 0.25 * KNOWING_NOTHING) / 0.75)
    tried = answer_told(bank, X, np.full(len(X), 11), Inquiry())
    assert 0 < tried.novel.sum() < len(X), "some rows are novel to the mask"
    found, fresh = answer(bank, X, Inquiry(), last=11), answer(bank, X, Inquiry())
    np.testing.assert_array_equal(found.mask_ids, np.where(tried.novel, fresh.mask_ids, 11))
    np.testing.assert_array_equal(found.labels, np.where(tried.novel, fresh.labels, tried.labels))
    assert found.inferred == tried.novel.sum()


@pytest.mark.parametrize("last", [1, 20, 77])
def test_a_last_mask_that_is_gone_is_ignored(last: int) -> None:
    assert_same(answer(snapshot(), X, Inquiry(), last=last), answer(snapshot(), X, Inquiry()))


# -- shapes ------------------------------------------------------------------------------------------------------------


def test_shapes_and_kinds_are_those_promised() -> None:
    for found in (answer(snapshot(), X, Inquiry()), answer(snapshot(), X, Inquiry("binary"), last=3)):
        kinds = {f.name: (getattr(found, f.name).dtype, getattr(found, f.name).shape) for f in fields(found)[:-1]}
        assert kinds == {
            "labels": (np.int64, (24,)),
            "probabilities": (np.float32, (24, tiny.CLASSES)),
            "mask_ids": (np.int64, (24,)),
            "confidences": (np.float32, (24,)),
            "novel": (np.bool_, (24,)),
        }
        np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-5)


def test_some_rows_of_an_answer_are_an_answer() -> None:
    whole = answer(snapshot(), X, Inquiry())
    part = whole.rows(5, 9)
    np.testing.assert_array_equal(part.probabilities, whole.probabilities[5:9])
    assert (part.mask_ids.tolist(), part.inferred) == (whole.mask_ids[5:9].tolist(), 4)


def test_novel_is_what_the_exact_rule_and_the_settings_call_so() -> None:
    assert MARGIN == RuleSettings().familiar == Settings().novel_margin
