"""What holds for every method of the paper's comparisons."""

from dataclasses import replace

import numpy as np
import pytest

from supsup_online.paper.methods import TaskNeededError
from unit import paper_methods, tiny
from unit.paper_methods import CONVOLUTIONAL, METHODS, SETUP, accuracy, bytes_of, learn

every_method = pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
methods_that = lambda fits: pytest.mark.parametrize(  # noqa: E731 - a decorator with a name
    "case", [case for case in METHODS.values() if fits(case)], ids=[name for name in METHODS if fits(METHODS[name])]
)


@every_method
def test_a_task_is_learnt_and_so_is_a_second_one(case):
    method = learn(case.make(SETUP), 0)
    assert accuracy(method, 0) > 0.9
    assert accuracy(learn(method, 1), 1) > 0.9


@methods_that(lambda case: case.keeps)
def test_what_is_answered_for_a_task_does_not_change_with_later_ones(case):
    x, _ = paper_methods.unseen(0)
    method = learn(case.make(SETUP), 0)
    before = method.answer(x, 0).labels
    np.testing.assert_array_equal(learn(method, 1, 2).answer(x, 0).labels, before)


@methods_that(lambda case: case.keeps)
def test_tasks_that_contradict_each_other_are_learnt_side_by_side(case):
    method = learn(case.make(SETUP), 0, 1, make_task=tiny.relabelled, count=120)
    assert min(accuracy(method, task, make_task=tiny.relabelled) for task in (0, 1)) > 0.9


@methods_that(lambda case: case.told)
def test_a_method_that_has_to_be_told_refuses_to_guess(case):
    method = learn(case.make(SETUP), 0, count=2)
    with pytest.raises(TaskNeededError, match="scenario GG"):
        method.answer(paper_methods.unseen(0)[0], None)


@every_method
def test_answers_are_labels_of_the_data_and_tasks_that_were_learnt_or_none(case):
    method = learn(case.make(SETUP), 0, 1, count=5)
    x, _ = paper_methods.unseen(1)
    told = method.answer(x, 1)
    assert told.labels.dtype == np.int64
    assert told.labels.shape == (len(x),)
    assert set(told.labels.tolist()) <= set(range(SETUP.classes))
    assert told.tasks is None or told.tasks.dtype == np.int64
    assert not case.told or (told.tasks == 1).all()
    if not case.told:
        for scope in ("row", "first", "batch"):
            found = method.answer(x, None, scope)
            assert found.labels.shape == (len(x),)
            assert found.tasks is None or set(found.tasks.tolist()) <= {0, 1}


@every_method
def test_a_run_that_was_killed_goes_on_with_the_same_bytes(case):
    whole = learn(case.make(SETUP), 0, 1, count=20)
    begun = learn(case.make(SETUP), 0, count=20)
    state = {name: array.copy() for name, array in begun.state().items()}
    resumed = case.make(SETUP)
    resumed.restore(state)
    assert bytes_of(resumed) == bytes_of(begun)
    assert bytes_of(learn(resumed, 1, count=20)) == bytes_of(whole)
    for task in (0, 1):
        x, _ = paper_methods.unseen(task)
        np.testing.assert_array_equal(resumed.answer(x, task).labels, whole.answer(x, task).labels)


@every_method
def test_nothing_but_learning_changes_what_was_learnt(case):
    method = learn(case.make(SETUP), 0, count=5)
    before, state = bytes_of(method), method.state()
    method.answer(paper_methods.unseen(0)[0], 0)
    case.make(SETUP).restore(state)
    assert bytes_of(method) == before
    learn(method, 1, count=5)
    assert {name: array.tobytes() for name, array in state.items()} == before, "a state is a copy"


@every_method
def test_a_state_is_plain_arrays_from_the_very_beginning(case):
    fresh, restored = case.make(SETUP), case.make(SETUP)
    restored.restore(fresh.state())
    assert all(array.dtype != object for array in fresh.state().values())
    assert bytes_of(learn(restored, 0, count=5)) == bytes_of(learn(fresh, 0, count=5))


@every_method
def test_a_seed_always_gives_the_same_bytes_and_another_seed_gives_others(case):
    first, second = (learn(case.make(SETUP), 0, 1, count=10) for _ in range(2))
    assert bytes_of(first) == bytes_of(second)
    other = learn(case.make(replace(SETUP, seed=8)), 0, 1, count=10)
    assert bytes_of(first) != bytes_of(other)


@methods_that(lambda case: case.counted)
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_storage_is_the_bytes_of_the_arrays_that_are_kept(case, tasks):
    method = learn(case.make(SETUP), *range(tasks), count=4)
    kept = sum(array.nbytes for name, array in method.state().items() if name not in case.uncounted)
    assert method.storage().total(tasks) == kept + 8 * case.seeds


@every_method
def test_raw_images_are_scaled_as_the_set_up_says(case):
    raw = np.random.default_rng(0).integers(0, 256, (32, 4, 4)).astype(np.uint8)
    scaled = ((raw / 255 - SETUP.mean) / SETUP.std).astype(np.float32)
    y = np.arange(32) % SETUP.classes
    of_raw, of_scaled = case.make(SETUP), case.make(SETUP)
    of_raw.learn(0, [(raw, y)])
    of_scaled.learn(0, [(scaled, y)])
    np.testing.assert_array_equal(of_raw.answer(raw, 0).labels, of_scaled.answer(scaled, 0).labels)


@every_method
def test_images_that_may_not_be_written_to_are_fine(case):
    raw, y = np.zeros((8, 4, 4), dtype=np.uint8), np.arange(8) % SETUP.classes
    y.flags.writeable = False
    method = case.make(SETUP)
    method.learn(0, [(raw, y)])
    assert len(method.answer(raw, 0).labels) == 8


@every_method
def test_convolutions_are_learnt_as_well(case):
    method = learn(case.make(CONVOLUTIONAL), 0, 1)
    assert accuracy(method, 1) > case.convolutions
    assert case.told or len(method.answer(paper_methods.unseen(0)[0], None, "batch").labels)
