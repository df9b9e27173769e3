"""SupsupClassifier is a river estimator like any other, and one that remembers concepts which return."""

import copy
import doctest
import pickle
import subprocess
import sys
from collections.abc import Hashable, Iterable, Iterator
from itertools import chain

import numpy as np
import pandas as pd
import pytest
import torch
from river import base, checks, datasets, evaluate, metrics, preprocessing
from river.datasets import synth
from sklearn.datasets import load_digits

from supsup_online import river_estimator
from supsup_online.errors import BadBatchError, SpecError
from supsup_online.river_estimator import SupsupClassifier

Rows = list[tuple[dict[Hashable, object], Hashable]]

# Checks of river that are not run, each with its reason.
SKIPPED: dict[str, str] = {}

# Many checks show a model 30 rows: the default has not made a step by then, with small batches it is a trained one.
MODELS = {"default": SupsupClassifier(), "batches-of-8": SupsupClassifier(batch_size=8)}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A row is too little work to share: with two threads on two busy cores it takes four times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def all_checks() -> Iterator[object]:
    for name, model in MODELS.items():
        for number, check in enumerate(checks.yield_checks(model)):
            yield pytest.param(model, check, id=f"{name}-{number}-{check.__name__}")


def rows_of(concept: int, count: int, seed: int = 1) -> Rows:
    """Three binary features of STAGGER; concepts 0, 1 and 2 differ in their labels only."""
    stream = synth.STAGGER(classification_function=concept, seed=seed).take(count)
    return [({f"{name}={value}": 1.0 for name, value in x.items()}, y) for x, y in stream]


def digits_of(task: int, count: int, seed: int = 0) -> Rows:
    """Digits, 8 x 8 pixels permuted in one way per task."""
    bunch = load_digits()
    order = np.random.default_rng(task).permutation(64)
    chosen = np.random.default_rng(seed).integers(0, len(bunch.data), count)
    x = ((bunch.data / 16 - 0.3) / 0.38)[chosen][:, order]
    return [(dict(enumerate(row)), label) for row, label in zip(x.tolist(), bunch.target[chosen].tolist(), strict=True)]


def frame_of(rows: Rows) -> tuple[pd.DataFrame, pd.Series]:
    return pd.DataFrame([x for x, _ in rows]).fillna(0.0), pd.Series([y for _, y in rows])


def small(**arguments: object) -> SupsupClassifier:
    return SupsupClassifier(**{"features": 9, "classes": 2, "batch_size": 16, **arguments})


def learn(model: SupsupClassifier, rows: Iterable[tuple[dict[Hashable, object], Hashable]]) -> SupsupClassifier:
    for x, y in rows:
        model.learn_one(x, y)
    return model


def bits(model: SupsupClassifier) -> dict[int, bytes]:
    return {mask_id: model.learner.bank.words(mask_id).tobytes() for mask_id in model.learner.bank}


def accuracy(model: base.Classifier, rows: Rows) -> float:
    return evaluate.progressive_val_score(rows, model, metrics.Accuracy()).get()


@pytest.mark.parametrize(("model", "check"), list(all_checks()))
def test_every_check_of_river_passes(model, check):
    if check.__name__ in SKIPPED:
        pytest.skip(SKIPPED[check.__name__])
    check(model.clone())


def test_river_checks_it_as_a_mini_batch_classifier_and_is_asked_to_skip_nothing():
    names = {check.__name__ for check in checks.yield_checks(SupsupClassifier())}
    assert {
        "check_learn_many_matches_learn_one",
        "check_predict_many_matches_predict_one",
        "check_predict_proba_many_matches_predict_proba_one",
        "check_classifier_tracks_seen_labels",
    } <= names
    assert SKIPPED.keys() <= names
    assert SupsupClassifier()._unit_test_skips() == set()


def test_the_example_in_the_docstring_runs():
    outcome = doctest.testmod(river_estimator)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_a_concept_that_returns_is_remembered_when_its_features_tell_it_apart():
    model = SupsupClassifier(features=64)
    accuracy(model, digits_of(0, 640) + digits_of(1, 640))
    returned = digits_of(0, 320, seed=5)
    assert accuracy(model, returned) > accuracy(SupsupClassifier(features=64), returned) + 0.2
    assert model.masks_allocated == 2


def test_rows_of_two_concepts_in_turn_are_each_answered_under_their_own_mask():
    model = learn(SupsupClassifier(features=64), digits_of(0, 640) + digits_of(1, 640))
    mixed = list(chain.from_iterable(zip(digits_of(0, 100, seed=5), digits_of(1, 100, seed=6), strict=True)))
    assert np.mean([model.predict_one(x) == y for x, y in mixed]) > 0.7


def test_a_concept_that_differs_in_its_labels_only_is_remembered_by_the_current_mask():
    model = small(batch_size=32, answer_with="current")
    accuracy(model, rows_of(0, 640) + rows_of(1, 640))
    returned = rows_of(0, 320, seed=5)
    assert accuracy(model, returned) > accuracy(small(batch_size=32, answer_with="current"), returned) + 0.03
    assert model.masks_allocated == 2


def test_it_learns_a_stream_without_drift_under_one_mask_behind_a_scaler():
    model = preprocessing.StandardScaler() | SupsupClassifier(features=9, classes=2)
    assert evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy()).get() > 0.84
    assert model["SupsupClassifier"].masks_allocated == 1


def test_a_pipeline_learns_and_answers_frames():
    model = preprocessing.StandardScaler() | SupsupClassifier(features=9, classes=2)
    x, y = frame_of(list(datasets.Phishing().take(640)))
    for start in range(0, 640, 32):
        model.learn_many(x[start : start + 32], y[start : start + 32])
    assert (model.predict_many(x) == y).mean() > 0.85


@pytest.mark.parametrize("size", [1, 7, 16, 100, 320])
def test_frames_of_any_size_teach_the_same_bits_as_single_rows(size):
    rows = rows_of(0, 160) + rows_of(1, 160)
    x, y = frame_of(rows)
    model = small()
    for start in range(0, len(x), size):
        model.learn_many(x[start : start + size], y[start : start + size])
    assert bits(model) == bits(
        learn(small(), [(row, label) for row, label in zip(x.to_dict("records"), y, strict=True)])
    )
    assert model.learner.steps == 20


def test_a_frame_of_batch_size_rows_is_one_step():
    model = small(batch_size=50)
    model.learn_many(*frame_of(rows_of(0, 50)))
    assert model.learner.steps == 1


def test_rows_wait_until_a_batch_is_full():
    rows = rows_of(0, 16)
    model = learn(small(), rows[:15])
    assert model.learner.steps == 0
    labels = {y for _, y in rows[:15]}
    assert model.predict_proba_one(rows[0][0]) == dict.fromkeys(labels, 1 / len(labels))
    model.learn_one(*rows[15])
    assert model.learner.steps == 1


def test_an_empty_frame_changes_nothing():
    model = learn(small(), rows_of(0, 20))
    before = pickle.dumps(model)
    x, y = frame_of(rows_of(0, 3))
    model.learn_many(x.rename(columns=str.upper)[:0], y[:0])
    assert pickle.dumps(model) == before
    assert len(model.predict_many(x[:0])) == len(model.predict_proba_many(x[:0])) == 0


def test_the_order_of_features_means_nothing():
    rows = rows_of(0, 64)
    ordered = learn(small(), [(dict(sorted(x.items())), y) for x, y in rows])
    backwards = learn(small(), [(dict(sorted(x.items(), reverse=True)), y) for x, y in rows])
    assert bits(ordered) == bits(backwards)
    x, y = frame_of(rows)
    permuted = small()
    permuted.learn_many(x[x.columns[::-1]], y)
    straight = small()
    straight.learn_many(x, y)
    assert bits(permuted) == bits(straight)
    pd.testing.assert_frame_equal(straight.predict_proba_many(x), straight.predict_proba_many(x[x.columns[::-1]]))


def test_missing_none_nan_and_zero_are_the_same():
    model = learn(small(), [({**dict.fromkeys("abc", 1.0), "d": i % 2}, i % 2) for i in range(64)])
    expected = model.predict_proba_one({"a": 1.0, "d": 0.0})
    for x in ({"a": 1.0}, {"a": 1.0, "d": None}, {"a": 1.0, "d": float("nan")}, {"a": True, "d": np.bool_(0)}):
        assert model.predict_proba_one(x) == expected
    frame = pd.DataFrame({"a": [1, 1], "d": pd.array([None, 0], dtype="Int64")})
    for row in model.predict_proba_many(frame).to_dict("records"):
        assert row == pytest.approx(expected)


def test_a_name_never_learnt_from_is_ignored_in_predictions():
    rows = rows_of(0, 64)
    model = learn(small(), rows)
    before = pickle.dumps(model)
    x = rows[0][0]
    assert model.predict_proba_one({**x, "new": 7.0}) == model.predict_proba_one(x)
    assert pickle.dumps(model) == before, "predictions only read"


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ({f"f{i}": 1.0 for i in range(3)}, 0, "too-many-features"),
        ({"a": 1.0}, 2, "too-many-classes"),
        ({"a": 1.0}, None, "label"),
        ({"a": 1.0}, float("nan"), "label"),
        ({"a": "red"}, 0, "dtype"),
        ({"a": [1.0, 2.0]}, 0, "dtype"),
        ({"a": float("inf")}, 0, "out-of-range"),
        ({"a": -2e6}, 0, "out-of-range"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_leaves_no_trace(x, y, reason):
    model = learn(SupsupClassifier(features=3, classes=2), [({"a": 1.0}, 0), ({"b": 1.0}, 1)])
    before = pickle.dumps(model)
    with pytest.raises(BadBatchError) as caught:
        model.learn_one({**x, "new": 0.5}, y)
    assert caught.value.reason == reason
    with pytest.raises(BadBatchError) as caught:
        model.learn_many(pd.DataFrame([{"a": 1.0}, {**x, "new": 0.5}], dtype=object), pd.Series([0, y], dtype=object))
    assert caught.value.reason == reason
    assert pickle.dumps(model) == before


def test_the_message_names_the_argument_to_raise_and_what_did_not_fit():
    model = SupsupClassifier(features=1, classes=2)
    with pytest.raises(BadBatchError, match=r"features=1 leaves no room for 'height', 'width'"):
        model.learn_one({"width": 1.0, "height": 2.0}, 0)
    learn(model, [({"width": 1.0}, "cat"), ({"width": 1.0}, "dog")])
    with pytest.raises(BadBatchError, match=r"classes=2 leaves no room for 'mouse'"):
        model.learn_one({"width": 1.0}, "mouse")


def test_a_frame_and_labels_of_other_lengths_are_refused():
    x, y = frame_of(rows_of(0, 10))
    with pytest.raises(BadBatchError, match="10 rows and 9 labels"):
        small().learn_many(x, y[:9])


def test_missing_labels_of_nullable_columns_are_refused():
    with pytest.raises(BadBatchError, match="None or NaN"):
        small().learn_many(pd.DataFrame({"a": [1.0, 2.0]}), pd.Series([1, None], dtype="Int64"))


def test_labels_are_arbitrary_hashables():
    labels = ["cat", ("a", "pair"), 3, True, frozenset({1})]
    model = SupsupClassifier(features=5, classes=5, batch_size=5)
    rows = [({f"f{i}": 1.0}, label) for i, label in enumerate(labels)] * 40
    learn(model, rows)
    x, y = frame_of(rows[:5])
    assert list(model.predict_proba_many(x).columns) == labels
    assert model.predict_many(x).tolist() == y.tolist() == [model.predict_one(row) for row, _ in rows[:5]]


def test_before_anything_is_learnt_nothing_is_likely():
    model, (x, _) = SupsupClassifier(), frame_of(rows_of(0, 3))
    assert model.predict_proba_one({"a": 1.0}) == {}
    assert model.predict_one({"a": 1.0}) is None
    assert model.predict_proba_many(x).shape == (3, 0)
    assert model.predict_many(x).tolist() == [None] * 3


def test_over_budget_the_oldest_mask_is_evicted_or_the_rows_are_left_out_and_counted():
    rows = rows_of(0, 640) + rows_of(1, 640)
    evicting = learn(small(batch_size=32, budget=1), rows)
    assert (evicting.masks_allocated, len(evicting.learner.bank), evicting.rows_left_out) == (2, 1, 0)
    keeping = learn(small(batch_size=32, budget=1, over_budget="overflow", answer_with="current"), rows)
    assert (keeping.masks_allocated, len(keeping.learner.bank)) == (1, 1)
    assert keeping.rows_left_out > 500
    assert keeping.predict_one(rows[0][0]) in {True, False}


@pytest.mark.parametrize("duplicate", [lambda model: pickle.loads(pickle.dumps(model)), copy.deepcopy])  # noqa: S301
def test_a_pickle_or_copy_taken_in_mid_stream_goes_on_as_the_original(duplicate):
    rows = rows_of(0, 200) + rows_of(1, 200) + rows_of(2, 200) + rows_of(0, 200)
    model = learn(small(budget=2, hot_masks=1), rows[:490])
    other = duplicate(model)
    frozen = bits(other)
    learn(model, rows[490:])
    assert bits(other) == frozen
    learn(other, rows[490:])
    assert bits(other) == bits(model)
    assert other.learner.stats == model.learner.stats
    assert other.masks_allocated == model.masks_allocated > 2


def test_a_pickle_carries_no_weights():
    assert len(pickle.dumps(SupsupClassifier(architecture="mlp-1000"))) < 1000


def test_a_clone_is_untrained_unless_the_learnt_is_asked_for():
    model = learn(small(), rows_of(0, 64))
    assert model.clone().masks_allocated == 0
    full = model.clone(include_attributes=True)
    assert bits(full) == bits(model)
    learn(full, rows_of(0, 64))
    assert bits(full) != bits(model)


def test_the_seed_settles_everything():
    rows = rows_of(0, 200)
    assert bits(learn(small(seed=3), rows)) == bits(learn(small(seed=3), rows)) != bits(learn(small(seed=4), rows))
    checks.common.check_seeding_is_idempotent(small(batch_size=4), datasets.Phishing().take(100))


@pytest.mark.parametrize(
    "arguments",
    [
        {"features": 0},
        {"classes": 1},
        {"batch_size": 1},
        {"answer_with": "best"},
        {"outputs": 5},
        {"keep_fraction": 2.0},
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments):
    with pytest.raises(SpecError):
        SupsupClassifier(**arguments)


def test_without_pandas_it_imports_learns_and_answers():
    program = (
        "import sys; sys.modules['pandas'] = None\n"
        "from supsup_online.river_estimator import SupsupClassifier\n"
        "model = SupsupClassifier(features=1, classes=2, batch_size=2)\n"
        "for i in range(4): model.learn_one({'a': i}, i % 2)\n"
        "print(model.predict_one({'a': 1}), model.learner.steps)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split()[-1:] == ["2"], done.stderr
