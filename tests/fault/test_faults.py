"""One fault of each kind, on trainers in the middle of their stream: the bank must end as if nothing had happened.

`make faults` runs many more, drawn from a seed, one after the other on the same bank.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from fault.nursery import Nursery
from fault.plan import KINDS, Fault, Plan, draw, plan
from fault.points import POINTS, Point, seam
from fault.rounds import Lane, nursery

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def trainers_from(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    with nursery(tmp_path_factory.mktemp("nursery")) as running:
        yield running


@pytest.fixture(scope="module")
def lane(trainers_from: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with Lane(tmp_path_factory.mktemp("lane"), "embedded", trainers_from) as running:
        yield running


def ends_as_if_nothing_had_happened(
    lane: Lane, *faults: Fault, stream: str = "one-partition", pair: bool = False
) -> None:
    outcome = lane.run(Plan(random.randrange(2**32), stream, pair, faults))
    assert outcome.differences == []
    assert outcome.injected == list(faults)


def at_point(name: str, passage: int = 1, number: int = 0) -> Fault:
    return Fault("kill-at-point", {"passage": passage}, name, number)


def test_killed_between_the_step_and_its_commit(lane: Lane) -> None:
    ends_as_if_nothing_had_happened(lane, at_point("in-the-step", 17))


def test_killed_around_the_commit(lane: Lane) -> None:
    points = ("commit-not-sent", "commit-on-its-way", "commit-written")
    ends_as_if_nothing_had_happened(lane, *(at_point(name, 2, i) for i, name in enumerate(points)))


def test_killed_between_a_side_topic_and_the_commit(lane: Lane) -> None:
    points = ("dead-letter-sent", "side-topics-awaited")
    ends_as_if_nothing_had_happened(lane, *(at_point(name, 1, i) for i, name in enumerate(points)))


def test_killed_while_it_takes_over(lane: Lane) -> None:
    points = ("lease-taken", "partition-taken-up")
    ends_as_if_nothing_had_happened(
        lane, *(at_point(name, 1, i) for i, name in enumerate(points)), stream="three-partitions"
    )


def test_killed_at_any_moment_with_keys_interleaved_over_partitions(lane: Lane) -> None:
    faults = [draw(random.Random(i), "kill", i) for i in range(2)]
    ends_as_if_nothing_had_happened(lane, *faults, stream="three-partitions")


@pytest.mark.parametrize("kind", ["source-killed", "source-asleep"])
def test_what_happens_to_the_process_of_the_kafka_client(lane: Lane, kind: str) -> None:
    faults = [draw(random.Random(i), kind, i) for i in range(2)]
    ends_as_if_nothing_had_happened(lane, *faults, stream="three-partitions")


def test_asleep_past_its_session_with_a_standby_that_takes_over(lane: Lane) -> None:
    ends_as_if_nothing_had_happened(lane, draw(random.Random(0), "zombie"), pair=True)


@pytest.mark.parametrize("kind", ["redis-replies-lost", "redis-late", "redis-reset", "redis-refused"])
def test_what_a_network_does_to_redis(lane: Lane, kind: str) -> None:
    ends_as_if_nothing_had_happened(lane, draw(random.Random(1), kind))


@pytest.mark.parametrize("kind", ["broker-replies-lost", "broker-reset", "broker-stalled"])
def test_what_a_network_does_to_the_broker(lane: Lane, kind: str) -> None:
    ends_as_if_nothing_had_happened(lane, draw(random.Random(1), kind))


@pytest.mark.parametrize("kind", ["redis-killed", "redis-tail-cut"])
def test_redis_killed_and_started_again_with_and_without_its_last_commits(lane: Lane, kind: str) -> None:
    ends_as_if_nothing_had_happened(lane, draw(random.Random(2), kind))


def test_strangers_join_and_leave_the_group(lane: Lane) -> None:
    ends_as_if_nothing_had_happened(lane, draw(random.Random(3), "rebalances"), stream="three-partitions")


# -- the suite itself


def test_a_seed_draws_the_same_rounds_again() -> None:
    assert [plan(7, i, "apache") for i in range(20)] == [plan(7, i, "apache") for i in range(20)]
    assert plan(7, 0, "apache") != plan(8, 0, "apache")


def test_every_kind_is_drawn_where_it_is_possible() -> None:
    drawn = {fault.kind for i in range(200) for fault in plan(0, i, "apache").faults}
    assert drawn == set(KINDS)
    assert "broker-killed" not in {fault.kind for i in range(200) for fault in plan(0, i, "embedded").faults}


@pytest.mark.parametrize("name", sorted(POINTS))
def test_every_point_is_where_the_table_says(name: str) -> None:
    seam(POINTS[name])


def test_a_point_that_has_moved_is_told() -> None:
    with pytest.raises(LookupError, match=r"points\.py"):
        seam(Point("daemon.checkpoint:Checkpointer", "no_such_method", "after"))


def test_a_round_that_ends_with_other_bytes_is_told(lane: Lane, tmp_path: Path) -> None:
    lane.run(Plan(0, "one-partition", pair=False, faults=()))
    expected = lane._expected["one-partition"]
    lane._expected["one-partition"] = {**expected, "mask:0": b"other", "mask:99": b""}
    try:
        outcome = lane.run(Plan(1, "one-partition", pair=False, faults=()))
    finally:
        lane._expected["one-partition"] = expected
    assert "mask:99: missing" in outcome.differences
    assert any(line.startswith("mask:0: ") for line in outcome.differences)
