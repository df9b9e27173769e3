"""The main loop, between a source that plays records from a list and a store that takes every commit."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from daemon.checkpoint import Checkpointer, Partition, Position
from daemon.errors import FencedError, UnavailableError, UnreadableError
from daemon.kafka_source import Record
from daemon.loop import StopRequest, TrainerLoop
from daemon.redis_keys import BankKeys
from daemon.redis_store import CommitPlan
from daemon.side_topics import Headers
from supsup_online import wire
from unit import tiny

HERE = Partition("digits", 0)
LIMITS = wire.RecordLimits((4, 4), tiny.CLASSES, max_bytes=10_000, max_rows=100)


@dataclass
class Stage:
    """What happened, in order, and what is still to fail."""

    polls: list[list[Record] | Exception]
    diary: list[Any] = field(default_factory=list)
    commits_that_fail: list[Exception] = field(default_factory=list)
    stop: StopRequest = field(default_factory=StopRequest)
    stop_at: int | None = None

    # source
    def poll(self, _: TrainerLoop) -> list[Record]:
        """The next piece of the script; at its end the request to stop."""
        if not self.polls:
            self.stop.signal = "SIGTERM"
            return []
        piece = self.polls.pop(0)
        if isinstance(piece, Exception):
            raise piece
        return piece

    @property
    def caught_up(self) -> bool:
        """Whether the script is played."""
        return not self.polls

    def lags(self) -> dict[Partition, int | None]:
        """How much of the script is left."""
        return {HERE: sum(len(piece) for piece in self.polls if isinstance(piece, list))}

    def tell_group(self, positions: dict[Partition, Position]) -> None:
        """Note it."""
        self.diary.append(("group", positions[HERE].offset if HERE in positions else None))

    # side topics
    def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers, *, may_be_cut: bool = False
    ) -> None:
        """Note it."""
        self.diary.append(("send", topic, key, value, headers, may_be_cut))

    def wait(self) -> None:
        """Note it."""
        self.diary.append(("wait",))

    # store
    keys = BankKeys("fake")
    epoch = 1

    def commit(self, _: CommitPlan, commit_id: str) -> int:
        """Note it, unless it is to fail."""
        if self.commits_that_fail:
            raise self.commits_that_fail.pop(0)
        self.diary.append(("commit", commit_id))
        return 1

    def progress(self, _topic: str, _partition: int) -> dict[str, str]:
        """Nothing was read before."""
        return {}

    def sent(self, side: str) -> list[Any]:
        """What went to a side topic."""
        return [entry[1:] for entry in self.diary if entry[0] == "send" and entry[1] == f"digits{side}"]

    def steps(self) -> list[str]:
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


def loop_over(
    polls: Sequence[list[Record] | Exception],
    *,
    burst: bool = False,
    every: int = 100,
    patience_s: float = 0.0,
    **settings: Any,
) -> tuple[TrainerLoop, Stage]:
    stage = Stage(list(polls))
    learner = tiny.learner(**settings)
    checkpoint = Checkpointer(stage, learner, stage.wait, every=every, interval_s=1e9)
    checkpoint.assign(HERE, {}, "log", 0)
    return TrainerLoop(stage, stage, learner, checkpoint, LIMITS, stage.stop, burst, patience_s), stage


def test_side_topics_then_the_bank_then_the_group() -> None:
    loop, stage = loop_over([[record(0), record(1, b"garbage")]])
    loop.run()
    assert stage.steps() == ["send", "wait", "commit", "group"]
    assert stage.diary[-1] == ("group", 2)


def test_a_commit_comes_after_so_many_records_and_at_the_end() -> None:
    loop, stage = loop_over([[record(i) for i in range(5)]], every=2)
    loop.run()
    assert [entry for entry in stage.diary if entry[0] == "commit"] == [
        ("commit", "1:2"),
        ("commit", "1:4"),
        ("commit", "1:5"),
    ]


def test_a_request_to_stop_is_heard_after_the_batch_in_hand() -> None:
    loop, stage = loop_over([[record(i) for i in range(5)]])
    step = loop.learner.step

    def step_and_stop(batch: Any) -> Any:
        if loop.learner.steps == 1:
            stage.stop.signal = "SIGTERM"
        return step(batch)

    loop.learner.step = step_and_stop  # type: ignore[method-assign]
    loop.run()
    assert loop.checkpoint.totals["records"] == 2
    assert stage.diary[-1] == ("group", 2), "and it is committed"


def test_a_burst_ends_when_everything_is_read() -> None:
    loop, stage = loop_over([[record(0)], [], [record(1)], [], []], burst=True)
    loop.run()
    assert loop.checkpoint.totals["records"] == 2
    assert not stage.stop.requested()


def test_a_broker_that_is_away_for_a_while_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.loop.time.sleep", lambda _: None)
    away = UnavailableError("away")
    loop, _ = loop_over([[record(0)], away, away, [record(1)], away, [record(2)]], patience_s=100)
    loop.run()
    assert loop.checkpoint.totals["records"] == 3


def test_patience_with_a_broker_counts_from_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("daemon.loop.time.monotonic", lambda: now[0])
    monkeypatch.setattr("daemon.loop.time.sleep", lambda _: now.__setitem__(0, now[0] + 6))
    away = UnavailableError("away")
    loop, stage = loop_over([away, away, [record(0)], away, away, away, [record(1)]], patience_s=10)
    with pytest.raises(UnavailableError, match="away"):
        loop.run()
    assert loop.checkpoint.totals["records"] == 1
    assert "commit" not in stage.steps(), "whoever gives up commits nothing"


def test_what_lies_before_an_unreadable_record_is_committed_before_the_end() -> None:
    loop, stage = loop_over([[record(0), record(1)], UnreadableError("behind digits:0 from 2")])
    with pytest.raises(UnreadableError):
        loop.run()
    assert stage.diary[-2:] == [("commit", "1:2"), ("group", 2)]


def test_a_commit_is_tried_again_while_redis_is_away() -> None:
    loop, stage = loop_over([[record(0)]], patience_s=30)
    stage.commits_that_fail = [UnavailableError("loading"), UnavailableError("loading")]
    step = stage.stop
    loop.stop = StopRequest()  # asked to stop, it would not wait
    loop.source.poll(loop)
    loop.apply(record(0))
    loop.commit()
    assert stage.steps() == ["wait", "wait", "wait", "commit", "group"]
    assert not step.requested()


def test_patience_with_redis_ends() -> None:
    loop, stage = loop_over([[record(0)]], patience_s=0.01)
    stage.commits_that_fail = [UnavailableError("loading")] * 1000
    with pytest.raises(UnavailableError, match="loading"):
        loop.run()
    assert "group" not in stage.steps()


def test_a_fenced_trainer_stops_at_once_and_tells_the_group_nothing() -> None:
    loop, stage = loop_over([[record(0)]], patience_s=30)
    stage.commits_that_fail = [FencedError("epoch 2 has taken over")]
    with pytest.raises(FencedError):
        loop.run()
    assert "group" not in stage.steps()


def test_partitions_taken_away_are_committed_first() -> None:
    loop, stage = loop_over([])
    loop.apply(record(0))
    loop.revoked([HERE])
    assert stage.steps() == ["wait", "commit", "group"]
    assert stage.diary[-1] == ("group", 1)
    assert HERE not in loop.checkpoint.positions


def test_a_partition_is_taken_up_where_the_store_says() -> None:
    loop, _ = loop_over([])
    assert loop.assigned(Partition("digits", 1), "log", 7) == 7


def test_a_partition_lost_without_a_word_is_committed_before_its_position_is_read_again() -> None:
    loop, stage = loop_over([])
    loop.apply(record(0))
    loop.assigned(HERE, "log", 0)
    assert stage.steps() == ["wait", "commit", "group"]


@pytest.mark.parametrize(("key", "value"), [(None, None), (b"k", None), (None, b"")])
def test_a_record_of_nothing_is_put_aside(key: bytes | None, value: bytes | None) -> None:
    loop, stage = loop_over([])
    loop.apply(Record(HERE, 0, key, value, (), 1234))
    [(_, sent_key, sent_value, headers, may_be_cut)] = stage.sent(".dlq")
    assert (sent_key, sent_value) == (key, value)
    assert dict(headers)["reason"] == b"empty"
    assert may_be_cut
    assert loop.checkpoint.positions[HERE].offset == 1


@pytest.mark.parametrize(
    "headers",
    [[("content-type", b"")], [("content-type", b"text/plain"), ("content-type", wire.ARROW_CONTENT_TYPE.encode())]],
    ids=["empty", "doubled"],
)
def test_odd_headers_do_no_harm(headers: Headers) -> None:
    loop, _ = loop_over([])
    loop.apply(record(0, headers=headers))
    assert loop.checkpoint.totals["batches"] == 1


def test_a_content_type_that_is_no_text_is_refused_like_any_other() -> None:
    loop, stage = loop_over([])
    loop.apply(record(0, headers=[("content-type", b"\xff\xfe")]))
    assert dict(stage.sent(".dlq")[0][3])["reason"] == b"content-type"


@pytest.mark.parametrize(
    "odd", [{"key": b"k" * 2000}, {"headers": [("h", b"v" * 70_000)]}], ids=["endless key", "endless header"]
)
def test_keys_and_headers_have_limits_too(odd: dict[str, Any]) -> None:
    loop, stage = loop_over([])
    loop.apply(record(0, **odd))
    [(_, key, _, headers, _)] = stage.sent(".dlq")
    assert dict(headers)["reason"] == b"too-large"
    assert len(key or b"") <= 1024


def test_an_unlabelled_record_is_answered_without_training() -> None:
    loop, stage = loop_over([])
    for offset in range(20):
        loop.apply(record(offset))
    before = tiny.whole_state(loop.learner)
    [batch] = tiny.permuted(0)(1, 99)
    loop.apply(record(20, wire.encode_arrow(batch.x), key=b"who"))
    [(_, key, value, headers, _)] = stage.sent(".predictions")
    answer = json.loads(value)
    assert key == b"who"
    assert (answer["task"], len(answer["labels"])) == (0, 32)
    assert dict(headers)["source-offset"] == b"20"
    assert tiny.whole_state(loop.learner) == before
    assert (loop.checkpoint.totals["answered"], loop.checkpoint.totals["batches"]) == (1, 20)


def test_an_unlabelled_record_before_anything_was_learnt_is_put_aside() -> None:
    loop, stage = loop_over([])
    [batch] = tiny.permuted(0)(1)
    loop.apply(record(0, wire.encode_arrow(batch.x)))
    headers = dict(stage.sent(".dlq")[0][3])
    assert headers["reason"] == b"no-mask"
    assert b"nothing has been learnt yet" in headers["error"]
    assert not stage.sent(".predictions")


def test_a_batch_without_room_is_handed_on_as_it_came() -> None:
    loop, stage = loop_over([])
    loop.learner.bank.budget = 0
    came = record(0, key=b"k", headers=[("a", b"1"), ("a", b"2")])
    loop.apply(came)
    [(_, key, value, headers, may_be_cut)] = stage.sent(".overflow")
    assert (key, value, headers[:2]) == (came.key, came.value, [("a", b"1"), ("a", b"2")])
    assert not may_be_cut, "all of it or nothing"
    assert loop.checkpoint.totals["overflowed"] == 1
