"""What becomes of one record, with a store and side topics that take everything."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.apply import Applier, decode
from daemon.checkpoint import Checkpointer
from daemon.errors import FencedError, PoisonedError, UnavailableError
from daemon.lease import Term
from daemon.records import AnswerMark, Log, Partition, Record
from daemon.redis_keys import BankKeys
from daemon.redis_store import CommitPlan
from daemon.side_topics import Headers
from supsup_online import wire
from unit import tiny

HERE = Partition("digits", 0)
LIMITS = wire.RecordLimits((4, 4), tiny.CLASSES, max_bytes=10_000, max_rows=100)


@dataclass
class FakeSide:
    """Takes every record."""

    diary: list[Any]

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, may_be_cut: bool = False
    ) -> None:
        """Note it."""
        self.diary.append(("send", topic, key, value, headers, may_be_cut))

    def wait(self) -> dict[Partition, AnswerMark]:
        """Note it."""
        self.diary.append(("wait",))
        return {}


@dataclass
class FakeAnswers:
    """Takes every answer that is not there already."""

    diary: list[Any]
    there: list[int] = field(default_factory=list)

    def send(self, record: Record, value: bytes, headers: Headers, mark: AnswerMark | None) -> bool:
        """Note it."""
        self.diary.append(("answer", record, value, headers, mark))
        return record.offset not in self.there


@dataclass
class FakeStore:
    """Takes every commit that is not to fail."""

    diary: list[Any]
    commits_that_fail: list[Exception] = field(default_factory=list)
    progress_that_fails: list[Exception] = field(default_factory=list)
    stored: Mapping[str, str] = field(default_factory=dict)
    keys = BankKeys("fake")
    term = Term(1, "me")

    def commit(self, plan: CommitPlan, commit_id: str) -> int:
        """Note it, and keep the positions."""
        if self.commits_that_fail:
            raise self.commits_that_fail.pop(0)
        self.diary.append(("commit", commit_id))
        for _, key, values in plan.writes:
            if key == self.keys.progress("digits", 0):
                fields = dict(zip(values[::2], values[1::2], strict=True))
                self.stored = {**self.stored, **{k: str(v) for k, v in fields.items() if k in {"offset", "log"}}}
        return 1

    def progress(self, _topic: str, partition: int) -> Mapping[str, str]:
        """What was stored of the one partition."""
        if self.progress_that_fails:
            raise self.progress_that_fails.pop(0)
        return self.stored if partition == 0 else {}

    def kinds(self) -> list[str]:
        """The kinds of what happened."""
        return [entry[0] for entry in self.diary]


def record(
    offset: int, value: bytes | None = None, *, key: bytes | None = None, headers: Headers | None = None
) -> Record:
    """A record; by default a labelled batch of task 0."""
    if value is None:
        [batch] = tiny.permuted(0)(1, offset)
        value = wire.encode_arrow(batch.x, batch.y)
    return Record(HERE, offset, key, value, tuple(headers or ()), 1234)


class Bench:
    """An applier and what it did."""

    def __init__(self, **options: Any) -> None:
        self.diary: list[Any] = []
        self.store = FakeStore(self.diary)
        side = FakeSide(self.diary)
        checkpoint = Checkpointer(self.store, tiny.learner(), side.wait, every=100, interval_s=1e9)
        checkpoint.assign(HERE, {}, Log("log", 0))
        values: dict[str, Any] = {"patience_s": 0.0, "max_bytes": LIMITS.max_bytes} | options
        self.applier = Applier(checkpoint.learner, side, FakeAnswers(self.diary), checkpoint, **values)

    @property
    def totals(self) -> dict[str, int]:
        """The counters."""
        return self.applier.checkpoint.totals

    def apply(self, *records: Record) -> None:
        """Decode and apply."""
        for one in records:
            self.applier.apply(decode(one, LIMITS))

    @property
    def answers(self) -> list[Any]:
        """What was answered: record, answer, headers, mark."""
        return [entry[1:] for entry in self.diary if entry[0] == "answer"]

    def sent(self, side: str) -> list[Any]:
        """What went to a side topic."""
        return [entry[1:] for entry in self.diary if entry[0] == "send" and entry[1] == f"digits{side}"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_side_topics_then_the_bank(bench: Bench) -> None:
    bench.apply(record(0), record(1, b"garbage"))
    bench.applier.commit()
    assert bench.store.kinds() == ["send", "wait", "commit"]
    assert bench.applier.committed is not None
    assert bench.applier.committed[HERE].offset == 2


def test_nothing_applied_is_nothing_to_commit(bench: Bench) -> None:
    bench.applier.commit()
    assert bench.diary == []
    assert bench.applier.committed is None


@pytest.mark.parametrize(("key", "value"), [(None, None), (b"k", None), (None, b"")])
def test_a_record_of_nothing_is_put_aside(bench: Bench, key: bytes | None, value: bytes | None) -> None:
    bench.apply(Record(HERE, 0, key, value, (), 1234))
    [(_, sent_key, sent_value, headers, may_be_cut)] = bench.sent(".dlq")
    assert (sent_key, sent_value) == (key, value)
    assert dict(headers)["reason"] == b"empty"
    assert may_be_cut
    assert bench.applier.checkpoint.positions[HERE].offset == 1


def test_a_dead_letter_says_where_it_came_from_when_why_and_whose_it_was(bench: Bench) -> None:
    bench.apply(record(7, b"garbage", headers=[("own", b"1")]))
    [(_, _, _, headers, _)] = bench.sent(".dlq")
    told = dict(headers)
    assert headers[0] == ("own", b"1")
    assert int(told.pop("failed-at")) > 1_700_000_000_000
    assert told == {
        "own": b"1",
        "source-topic": b"digits",
        "source-partition": b"0",
        "source-offset": b"7",
        "source-timestamp": b"1234",
        "bank": b"fake",
        "reason": b"malformed",
        "error": told["error"],
    }


@pytest.mark.parametrize(
    "headers",
    [[("content-type", b"")], [("content-type", b"text/plain"), ("content-type", wire.ARROW_CONTENT_TYPE.encode())]],
    ids=["empty", "doubled"],
)
def test_odd_headers_do_no_harm(bench: Bench, headers: Headers) -> None:
    bench.apply(record(0, headers=headers))
    assert bench.totals["batches"] == 1


def test_a_content_type_that_is_no_text_is_refused_like_any_other(bench: Bench) -> None:
    bench.apply(record(0, headers=[("content-type", b"\xff\xfe")]))
    assert dict(bench.sent(".dlq")[0][3])["reason"] == b"content-type"


@pytest.mark.parametrize(
    "odd", [{"key": b"k" * 2000}, {"headers": [("h", b"v" * 70_000)]}], ids=["endless key", "endless header"]
)
def test_keys_and_headers_have_limits_too(bench: Bench, odd: dict[str, Any]) -> None:
    bench.apply(record(0, **odd))
    [(_, key, _, headers, _)] = bench.sent(".dlq")
    assert dict(headers)["reason"] == b"too-large"
    assert len(key or b"") <= 1024


def test_an_unlabelled_record_is_answered_without_training(bench: Bench) -> None:
    bench.apply(*map(record, range(20)))
    before = tiny.whole_state(bench.applier.learner)
    [batch] = tiny.permuted(0)(1, 99)
    bench.apply(record(20, wire.encode_arrow(batch.x), key=b"who"))
    [(asked, value, headers, _)] = bench.answers
    answer = json.loads(value)
    assert (asked.key, asked.offset) == (b"who", 20)
    assert (answer["task"], len(answer["labels"])) == (0, 32)
    assert dict(headers)["source-offset"] == b"20"
    assert tiny.whole_state(bench.applier.learner) == before
    assert (bench.totals["answered"], bench.totals["batches"]) == (1, 20)


def test_an_unlabelled_record_before_anything_was_learnt_is_put_aside(bench: Bench) -> None:
    [batch] = tiny.permuted(0)(1)
    bench.apply(record(0, wire.encode_arrow(batch.x)))
    headers = dict(bench.sent(".dlq")[0][3])
    assert headers["reason"] == b"no-mask"
    assert b"nothing has been learnt yet" in headers["error"]
    assert not bench.answers


def test_a_batch_without_room_is_handed_on_as_it_came(bench: Bench) -> None:
    bench.applier.learner.bank.budget = 0
    came = record(0, key=b"k", headers=[("a", b"1"), ("a", b"2")])
    bench.apply(came)
    [(_, key, value, headers, may_be_cut)] = bench.sent(".overflow")
    assert (key, value, headers[:2]) == (came.key, came.value, [("a", b"1"), ("a", b"2")])
    assert not may_be_cut, "all of it or nothing"


# -- too many bad records


def test_so_many_bad_records_in_a_row_stop_the_trainer_once_they_are_committed() -> None:
    bench = Bench(dead_letters_in_a_row=3)
    bench.apply(record(0, b"x"), record(1, b"x"), record(2), record(3, b"x"), record(4, b"x"))
    with pytest.raises(PoisonedError, match=r"3 records in a row were of no use, the newest at digits:0 offset 5"):
        bench.apply(record(5, b"x"))
    assert bench.diary[-1] == ("commit", "1:me:6")
    assert bench.totals["dead_lettered"] == 5


def test_without_that_setting_bad_records_never_stop_it(bench: Bench) -> None:
    bench.apply(*(record(i, b"x") for i in range(50)))
    assert bench.totals["dead_lettered"] == 50


# -- servers that are away


def test_a_commit_is_tried_again_while_redis_is_away() -> None:
    bench = Bench(patience_s=30)
    bench.store.commits_that_fail = [UnavailableError("loading", "redis"), UnavailableError("loading", "redis")]
    bench.apply(record(0))
    bench.applier.commit()
    assert bench.store.kinds() == ["wait", "wait", "wait", "commit"]


def test_a_position_is_read_again_while_redis_is_away() -> None:
    bench = Bench(patience_s=30)
    bench.store.progress_that_fails = [UnavailableError("loading", "redis")]
    assert bench.applier.settle({HERE: Log("log", 7)}) == {HERE: 7}


def test_in_a_hurry_nothing_is_tried_again() -> None:
    bench = Bench(patience_s=30)
    bench.applier.hurry = True
    bench.store.commits_that_fail = [UnavailableError("loading", "redis")]
    bench.apply(record(0))
    with pytest.raises(UnavailableError):
        bench.applier.commit()


def test_what_is_no_outage_is_not_tried_again() -> None:
    bench = Bench(patience_s=30)
    bench.store.commits_that_fail = [FencedError("epoch 2 has taken over")]
    bench.apply(record(0))
    with pytest.raises(FencedError):
        bench.applier.commit()


# -- the group has changed


def test_partitions_taken_away_are_committed_first(bench: Bench) -> None:
    bench.apply(record(0))
    assert bench.applier.settle({}) == {}
    assert bench.store.kinds() == ["wait", "commit"]
    assert bench.applier.checkpoint.positions == {}


def test_a_partition_given_again_goes_on_behind_what_was_committed(bench: Bench) -> None:
    bench.apply(record(0), record(1))
    assert bench.applier.settle({HERE: Log("log", 0), Partition("digits", 1): Log("log", 7)}) == {
        HERE: 2,
        Partition("digits", 1): 7,
    }
