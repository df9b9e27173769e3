"""The poll loop and its training thread, between a source that plays rounds from a list and a store that takes all."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from daemon import training
from daemon.apply import Applier
from daemon.checkpoint import Checkpointer
from daemon.errors import FencedError, LostGroundError, StopError, UnavailableError, UnreadableError
from daemon.loop import StopRequest, TrainerLoop
from daemon.records import Log, Partition, Position, Record
from unit import tiny
from unit.test_apply import HERE, LIMITS, FakeAnswers, FakeSide, FakeStore, record


@dataclass
class Script:
    """A source that plays rounds: each poll brings records, fails, changes the group (logs), or does something else."""

    rounds: deque[list[Record] | Exception | dict[Partition, Log] | Callable[[], object]]
    diary: list[Any]
    stop: StopRequest
    ends: bool = True
    idle: Callable[[], bool] = lambda: True
    placements: list[Mapping[Partition, int]] = field(default_factory=list)
    _ready: deque[Record] = field(default_factory=deque)
    _group: dict[Partition, Log] | None = None

    def poll(self, _: float) -> None:
        """The next round; once all of the script is applied, the request to stop."""
        if self._group is not None:
            return
        if not self.rounds:
            if self.ends and not self._ready and self.idle():
                self.stop.signal = "SIGTERM"
            return
        piece = self.rounds.popleft()
        if isinstance(piece, Exception):
            raise piece
        if isinstance(piece, dict):
            self._group = piece
        elif callable(piece):
            piece()
        else:
            self._ready.extend(piece)

    def next(self) -> Record | None:
        """The next record."""
        return self._ready.popleft() if self._ready and not self.unsettled else None

    @property
    def waiting(self) -> bool:
        """Whether there is one."""
        return bool(self._ready)

    @property
    def unsettled(self) -> bool:
        """Whether the group has changed."""
        return self._group is not None

    def hold(self) -> None:
        """Forget what is ready."""
        self.diary.append("hold")
        self._ready.clear()

    def logs(self) -> dict[Partition, Log]:
        """The partitions given."""
        return self._group or {}

    def settle_again(self) -> None:
        """It is still unsettled."""
        self.diary.append("again")

    def place(self, positions: Mapping[Partition, int]) -> None:
        """Settled."""
        self.placements.append(dict(positions))
        self._group = None

    elsewhere = ""
    placed = True

    def lags(self) -> dict[Partition, int | None]:
        """What is ready."""
        return {HERE: len(self._ready)}

    @property
    def caught_up(self) -> bool:
        """Whether the script is played."""
        return not self.rounds and not self._ready and not self.unsettled

    def tell_group(self, positions: Mapping[Partition, Position]) -> None:
        """Note it."""
        self.diary.append(("group", positions[HERE].offset if HERE in positions else None))


@dataclass
class Play:
    """A loop and everything around it."""

    loop: TrainerLoop
    source: Script
    store: FakeStore
    applier: Applier

    @property
    def records(self) -> int:
        """Records applied."""
        return self.applier.checkpoint.totals["records"]


def play(
    rounds: Sequence[Any], *, every: int = 100, interval_s: float = 1e9, ends: bool = True, **options: Any
) -> Play:
    diary: list[Any] = []
    store = FakeStore(diary)
    learner = tiny.learner()
    side = FakeSide(diary)
    checkpoint = Checkpointer(store, learner, side.wait, every=every, interval_s=interval_s)
    checkpoint.assign(HERE, {}, Log("log", 0))
    stop = StopRequest()
    source = Script(deque(rounds), diary, stop, ends)
    values: dict[str, Any] = {
        "still_leading": lambda: None,
        "burst": False,
        "patience_s": 0.0,
        "stop_deadline_s": 10.0,
        "rebalance_budget_s": 10.0,
    }
    answers = FakeAnswers(diary)
    applier = Applier(learner, side, answers, checkpoint, patience_s=options.get("patience_s", 0.0), max_bytes=10_000)
    loop = TrainerLoop(source, applier, LIMITS, stop, **(values | options), telemetry=applier.telemetry)
    source.idle = lambda: loop.training.idle and loop._in_hand is None
    return Play(loop, source, store, applier)


def slowly(applier: Applier, before: Callable[[], None]) -> None:
    """Have something done before each step."""
    step = applier.learner.step

    def slow(batch: Any) -> Any:
        before()
        return step(batch)

    applier.learner.step = slow  # type: ignore[method-assign]


def test_everything_handed_on_is_applied_in_order_committed_and_told() -> None:
    found = play([[record(i) for i in range(20)], [record(i) for i in range(20, 40)]], every=15)
    found.loop.run()
    assert found.records == 40
    assert [entry for entry in found.source.diary if entry[0] == "commit"] == [
        ("commit", f"1:me:{n}") for n in (15, 30, 40)
    ]
    assert found.source.diary[-1] == ("group", 40)


def test_a_request_to_stop_is_heard_after_the_batch_in_hand() -> None:
    found = play([[record(i) for i in range(50)]])
    begun: list[int] = []

    def stop_at_the_second() -> None:
        begun.append(len(begun))
        if len(begun) == 2:
            found.loop.stop.signal = "SIGTERM"
            time.sleep(0.5)  # the loop hears it meanwhile

    slowly(found.applier, stop_at_the_second)
    found.loop.run()
    assert 2 <= found.records <= 3, "at most one more was begun before the loop had heard"
    assert found.source.diary[-1] == ("group", found.records), "and it is committed"


def test_an_end_that_takes_too_long_is_an_error_and_commits_nothing() -> None:
    found = play([[record(0)]], ends=False, stop_deadline_s=0.1)
    release = threading.Event()

    def hang() -> None:
        found.loop.stop.signal = "SIGTERM"
        release.wait(10)

    slowly(found.applier, hang)
    with pytest.raises(StopError, match=r"not committed within 0\.1 s \(--stop-deadline-s\) of SIGTERM"):
        found.loop.run()
    release.set()
    assert found.loop.training.ended(10)
    assert "commit" not in found.store.kinds()


def test_a_burst_ends_when_everything_is_read_and_applied() -> None:
    found = play([[record(0)], [], [record(1)], []], burst=True, ends=False)
    found.loop.run()
    assert found.records == 2
    assert not found.loop.stop.requested()
    assert found.source.diary[-1] == ("group", 2)


def test_what_gathered_is_committed_after_a_while_though_no_record_comes() -> None:
    found = play([[record(0)]], interval_s=0.05, ends=False)
    thread = threading.Thread(target=found.loop.run)
    thread.start()
    deadline = time.monotonic() + 10
    while ("group", 1) not in found.source.diary and time.monotonic() < deadline:
        time.sleep(0.01)
    found.loop.stop.signal = "SIGTERM"
    thread.join(10)
    assert [entry for entry in found.source.diary if entry[0] == "commit"] == [("commit", "1:me:1")]


def records_waiting(found: Play) -> list[int]:
    """How many decoded records wait at each step."""
    waiting: list[int] = []
    slowly(found.applier, lambda: (time.sleep(0.01), waiting.append(len(found.loop.training._line))))
    found.loop.run()
    return waiting


def test_a_full_line_of_decoded_records_runs_down_before_it_is_filled_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.loop._OFFER_S", 30.0)  # so that it is not woken for a look around
    waiting = records_waiting(play([[record(i) for i in range(60)]]))
    assert max(waiting) == training.AHEAD == 16
    first = waiting.index(16)
    assert waiting[first : first + 12] == list(range(16, 4, -1)), "nobody wakes the poll loop sooner"
    assert max(waiting[first + 14 : -16]) > 4


def test_two_large_records_fill_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "AHEAD_BYTES", 1)
    assert max(records_waiting(play([[record(i) for i in range(20)]]))) == 2


# -- servers that are away


def test_a_broker_that_is_away_for_a_while_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.loop._AWAY_PAUSE_S", 0.0)
    away = UnavailableError("away")
    found = play([[record(0)], away, away, [record(1)], away, [record(2)]], patience_s=100)
    found.loop.run()
    assert found.records == 3


def test_patience_with_a_broker_counts_from_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.loop._AWAY_PAUSE_S", 0.06)
    away = UnavailableError("away")
    found = play([away, [record(0)], away, away, away, away, [record(1)]], patience_s=0.1)
    with pytest.raises(UnavailableError, match="away"):
        found.loop.run()
    assert found.records == 1
    assert "commit" not in found.store.kinds(), "whoever gives up commits nothing"


def test_patience_with_redis_ends() -> None:
    found = play([[record(0)]], every=1, ends=False, patience_s=0.2)
    found.store.commits_that_fail = [UnavailableError("loading", "redis")] * 1000
    with pytest.raises(UnavailableError, match="loading"):
        found.loop.run()
    assert all(entry[0] != "group" for entry in found.source.diary)


def test_a_stop_while_redis_is_away_does_not_wait_for_it() -> None:
    found = play([[record(0)]], patience_s=1000)
    found.store.commits_that_fail = [UnavailableError("loading", "redis")] * 1000
    with pytest.raises(UnavailableError, match="loading"):
        found.loop.run()


def test_a_fenced_trainer_stops_at_once_and_tells_the_group_nothing() -> None:
    found = play([[record(0)]], patience_s=30)
    found.store.commits_that_fail = [FencedError("epoch 2 has taken over")]
    with pytest.raises(FencedError):
        found.loop.run()
    assert all(entry[0] != "group" for entry in found.source.diary)


def test_a_lost_lease_stops_the_loop_and_nothing_is_committed_any_more() -> None:
    def lost() -> None:
        if found.records:
            raise FencedError("epoch 2 has taken over")

    found = play([[record(0)]], ends=False, still_leading=lost)
    with pytest.raises(FencedError):
        found.loop.run()
    assert "commit" not in found.store.kinds()


def test_what_lies_before_an_unreadable_record_is_committed_before_the_end() -> None:
    found = play([[record(i) for i in range(40)], UnreadableError("behind digits:0 from 40")])
    with pytest.raises(UnreadableError):
        found.loop.run()
    assert found.source.diary[-1] == ("group", 40)


# -- the group changes


def test_partitions_go_on_where_the_store_says() -> None:
    there = Partition("digits", 1)
    found = play([{HERE: Log("log", 0), there: Log("log", 7)}, [record(0)]])
    found.loop.run()
    assert found.source.placements == [{HERE: 0, there: 7}]
    assert found.records == 1


def test_what_was_applied_is_committed_before_a_position_is_believed() -> None:
    begun = threading.Event()
    found = play([[record(i) for i in range(5)], lambda: begun.wait(10), {HERE: Log("log", 0)}, [record(5)]])
    slowly(found.applier, lambda: (time.sleep(0.01), begun.set()))
    found.store.stored = {"offset": "0", "log": "log"}
    found.loop.run()
    first = next(entry for entry in found.source.diary if entry[0] == "commit")
    assert found.source.diary.index("hold") < found.source.diary.index(first)
    assert found.source.placements == [{HERE: int(first[1].rpartition(":")[2])}], (
        "no record is applied twice or left out"
    )


def test_a_change_of_the_group_waits_for_the_step_in_hand_while_the_loop_polls_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun = threading.Event()
    found = play([[record(0)], lambda: begun.wait(10), {HERE: Log("log", 0)}], rebalance_budget_s=0.05)
    polls: list[bool] = []
    poll = found.source.poll
    monkeypatch.setattr(found.source, "poll", lambda wait: (polls.append(found.source.unsettled), poll(wait)))
    slowly(found.applier, lambda: (begun.set(), time.sleep(0.3)))
    with capture_logs() as lines:
        found.loop.run()
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == ["rebalance.slow"]
    assert sum(polls) >= 3, "it polled while it waited"
    assert found.records == 1


def test_a_broker_that_cannot_say_where_logs_start_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.loop._AWAY_PAUSE_S", 0.0)
    found = play([{HERE: Log("log", 0)}, [record(0)]], patience_s=10)
    answers: list[Any] = [UnavailableError("away"), UnavailableError("away"), {HERE: Log("log", 0)}]

    def logs() -> dict[Partition, Log]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(found.source, "logs", logs)
    found.loop.run()
    assert found.source.diary.count("again") == 2
    assert found.records == 1


def test_a_position_that_does_not_fit_the_log_stops_the_loop() -> None:
    found = play([{HERE: Log("log", 9)}])
    found.store.stored = {"offset": "4", "log": "log"}
    with pytest.raises(LostGroundError, match="retention has removed 5 records"):
        found.loop.run()
