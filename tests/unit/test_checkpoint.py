"""The commit's bookkeeping; what it stores and how it comes back is in tests/contract/test_checkpoint.py."""

import json
import time
from types import SimpleNamespace

import pytest

from daemon.checkpoint import Checkpointer
from daemon.lease import Term
from daemon.records import Log, Partition
from daemon.redis_keys import BankKeys
from daemon.redis_store import CommitPlan
from supsup_online.types import Decision, Examined
from unit import tiny

HERE = Partition("digits", 0)


class FakeStore:
    """Takes every plan and counts."""

    def __init__(self) -> None:
        self.keys = BankKeys("fake")
        self.term = Term(4, "me")
        self.commits: list[tuple[str, CommitPlan]] = []

    def commit(self, plan: CommitPlan, commit_id: str) -> int:
        """Take it."""
        self.commits.append((commit_id, plan))
        return len(self.commits)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


def checkpointer(store: FakeStore, **changed: object) -> Checkpointer:
    options = {"every": 3, "interval_s": 1e9, "before_commit": dict} | changed
    found = Checkpointer(store=store, learner=tiny.learner(), **options)
    found.assign(HERE, {}, Log("log", 10))
    return found


def decision(action: str = "allocate", **changed: object) -> Decision:
    values: dict[str, object] = {"action": action, "mask_id": 0, "why": "start", "rule": "loss"}
    return Decision(**(values | changed))


@pytest.mark.parametrize(
    ("key", "name"),
    [(None, "digits/0"), (b"a", "digits/0/a"), (b"", "digits/0/"), (b"\xff\x00", "digits/0/\\xff\x00")],
)
def test_a_stream_is_named_by_its_partition_and_key(key: bytes | None, name: str) -> None:
    assert HERE.stream(key) == name
    json.dumps(name)
    name.encode()


def test_partitions_sort_and_read_like_an_address() -> None:
    assert str(HERE) == "digits:0"
    assert Partition("a", 9) < Partition("a", 10) < Partition("b", 0)


def test_a_commit_is_due_after_so_many_records(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    due = []
    for offset in range(10, 14):
        checkpoint.advance(HERE, offset)
        due.append(checkpoint.due)
    assert due == [False, False, True, True]
    checkpoint.commit()
    assert checkpoint.empty
    assert not checkpoint.due


def test_a_commit_is_due_after_so_long_but_only_if_there_is_something(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpointer(store, interval_s=5.0)
    now = time.monotonic() + 6
    monkeypatch.setattr("daemon.checkpoint.time.monotonic", lambda: now)
    assert not checkpoint.due
    checkpoint.advance(HERE, 10)
    assert checkpoint.due
    checkpoint.commit()
    checkpoint.advance(HERE, 11)
    assert not checkpoint.due, "the clock starts anew with each commit"


def test_the_commit_id_names_the_term_and_the_record_count(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    for offset in (10, 11):
        checkpoint.advance(HERE, offset)
        checkpoint.commit()
    assert [commit_id for commit_id, _ in store.commits] == ["4:me:1", "4:me:2"]


def test_positions_name_the_next_offset_and_the_log(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    checkpoint.advance(HERE, 10)
    checkpoint.commit()
    [(_, plan)] = store.commits
    writes = {key: dict(zip(values[::2], values[1::2], strict=True)) for _, key, values in plan.writes}
    assert writes[store.keys.progress("digits", 0)] == {"offset": 11, "log": "log"}
    assert writes[store.keys.totals]["records"] == 1
    assert json.loads(plan.events[-1]["positions"]) == {"digits:0": 11}


def test_partitions_that_did_not_move_are_not_written(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    checkpoint.assign(Partition("digits", 1), {}, Log("log", 0))
    checkpoint.advance(HERE, 10)
    checkpoint.commit()
    [(_, plan)] = store.commits
    assert store.keys.progress("digits", 1) not in {key for _, key, _ in plan.writes}


def test_a_decision_becomes_an_event_with_its_candidates(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    candidates = (Examined(3, 0.5, 1.25, agrees=True), Examined(1, 0.75))
    checkpoint.note_decision(
        decision("reuse", mask_id=3, previous=1, candidates=candidates, ratio=1.5), "digits/0", HERE, 10
    )
    checkpoint.advance(HERE, 10)
    checkpoint.commit()
    [(_, plan)] = store.commits
    told, commit = plan.events
    assert (told["type"], told["mask"], told["previous"], told["evicted"], told["ratio"]) == ("reuse", 3, 1, "", 1.5)
    assert (told["topic"], told["partition"], told["offset"], told["stream"]) == ("digits", 0, 10, "digits/0")
    assert [candidate[:3] for candidate in json.loads(told["candidates"])] == [[3, 0.5, 1.25], [1, 0.75, None]]
    assert commit["type"] == "commit"


def test_of_a_stretch_over_budget_the_first_batch_is_an_event(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    over = decision("over-budget", mask_id=None)
    for what, stream in ((over, "a"), (over, "a"), (over, "b"), (decision("reuse"), "a"), (over, "a")):
        checkpoint.note_decision(what, stream, HERE, 10)
    checkpoint.advance(HERE, 10)
    checkpoint.commit()
    [(_, plan)] = store.commits
    told = [(event["type"], event["stream"]) for event in plan.events[:-1]]
    assert told == [("over-budget", "a"), ("over-budget", "b"), ("reuse", "a"), ("over-budget", "a")]


def test_allocations_and_evictions_are_counted(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    for what in (decision(), decision(evicted=7), decision("reuse")):
        checkpoint.note_decision(what, "a", HERE, 10)
    assert (checkpoint.totals["allocated"], checkpoint.totals["evicted"]) == (2, 1)


def test_streams_without_a_home_are_not_stored(store: FakeStore) -> None:
    checkpoint = checkpointer(store)
    checkpoint.learner.changes.streams.add("nowhere")
    checkpoint.learner.streams["nowhere"] = SimpleNamespace()
    checkpoint.advance(HERE, 10)
    assert checkpoint.commit() == 1
