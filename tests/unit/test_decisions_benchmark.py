"""The benchmark of rules and streams: its plans, its delays and its table."""

import json
from pathlib import Path

import numpy as np

from benchmarks import decisions


def test_a_gradual_switch_shows_both_tasks_and_then_only_the_new_one() -> None:
    visited = [0] * 40 + [1] * 40
    mixed = decisions.blended(visited, [40], np.random.default_rng(0))
    assert mixed[:40] == [0] * 40
    assert mixed[59:] == [1] * 21
    assert 0 < sum(mixed[40:59]) < 19


def test_positions_count_the_batches_of_each_task() -> None:
    assert [(p.task, p.position) for p in decisions.placed([0, 1, 0, 0, 1])] == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1)]


def test_a_delay_runs_from_a_switch_to_the_first_decision_before_the_next() -> None:
    decided = [True, False, False, True, False, False, False, True]
    assert decisions.delays([2, 4, 6], decided) == [1, 1]


def test_unequal_tasks_have_lengths_within_the_limits() -> None:
    plan, switches = decisions.planned("unequal", 10, 800, 0, {})
    lengths = np.bincount([place.task for place in plan])
    assert lengths.min() >= decisions.SHORTEST
    assert lengths.max() <= decisions.LONGEST
    assert switches == np.cumsum(lengths)[:-1].tolist()


def test_every_stream_can_be_planned_as_it_stands() -> None:
    for _, order, tasks, _, timing in decisions.STREAMS.values():
        options = {name: value for name, value in timing.items() if name != "label_noise"}
        plan, _ = decisions.planned(order, tasks, 800, 0, options)
        assert {place.task for place in plan} == set(range(tasks))


def test_stored_rows_are_found_again(tmp_path: Path) -> None:
    rows = [{"stream": "s", "label": "l", "seed": 0, "asked": 800}, {"stream": "old", "label": "l", "seed": 0}]
    decisions.store(tmp_path / "rows.json", rows)
    known = [decisions.row_key(row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert known == [("s", "l", 0, 800), ("old", "l", 0, None)]
