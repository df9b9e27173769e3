"""What is committed comes back: a learner restored from Redis equals the one that was stored, to the last bit."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import pytest
from redis import Redis

from daemon.checkpoint import Checkpointer
from daemon.errors import BankMismatchError, LostGroundError, UnavailableError
from daemon.lease import Lease, Term, new_owner
from daemon.records import AnswerMark, Log, Partition
from daemon.redis_keys import BankKeys
from daemon.redis_store import RedisStore
from supsup_online.learner import OnlineLearner
from supsup_online.optimisers import OptimiserChoice
from supsup_online.types import Batch
from unit import tiny

pytestmark = pytest.mark.integration

HERE = Partition("digits", 0)
LOG = "log-1"


class Run:
    """A trainer without Kafka: batches in, commits out."""

    def __init__(self, redis: Redis, bank: str, **changed: object) -> None:
        self.learner = tiny.learner(**changed)
        self.store = RedisStore(redis, bank)
        self.store.open(self.learner.network)
        term = Lease(redis, self.store.keys, new_owner(), 10.0).acquire(by_force=True)
        assert isinstance(term, Term)
        self.store.begin(term, self.learner.network)
        self.waits: list[int] = []
        self.checkpoint = Checkpointer(self.store, self.learner, self.wait, every=10, interval_s=1e9)
        stored = self.store.load(self.learner.network, self.learner.trainer.optimiser)
        self.learner.restore(
            stored.masks,
            stored.stats,
            stored.hot,
            steps=stored.totals.get("steps", 0),
            next_id=stored.totals.get("next_id", 0),
        )
        self.checkpoint.totals |= {name: stored.totals.get(name, 0) for name in self.checkpoint.totals}
        self.assigned = self.checkpoint.assign(HERE, self.store.progress(HERE.topic, HERE.number), Log(LOG, 0))

    def wait(self) -> dict[Partition, AnswerMark]:
        """Nothing was sent to any topic; notes at which version this was asked."""
        self.waits.append(self.store.version())
        return {}

    def feed(self, batches: Iterator[Batch], count: int) -> None:
        """Apply the next batches, as the loop does with records."""
        for batch in islice(batches, count):
            offset = self.checkpoint.positions[HERE].offset
            self.checkpoint.note_stream(batch.stream, HERE)
            result = self.learner.step(batch)
            if result.decision is not None:
                self.checkpoint.note_decision(result.decision, batch.stream, HERE, offset)
            self.checkpoint.advance(HERE, offset)


@pytest.fixture
def open_run(redis_client: Redis, bank_name: str) -> Callable[..., Run]:
    """Start a trainer on the test's bank, as often as asked."""
    return lambda **changed: Run(redis_client, bank_name, **changed)


def state(learner: OnlineLearner) -> dict[str, object]:
    return tiny.whole_state(learner)


def test_a_restored_learner_equals_the_stored_one_and_goes_on_alike(open_run: Callable[..., Run]) -> None:
    options = {"hot_masks": 2, "decision_every": 15}
    first = open_run(**options)
    for task in (0, 1, 2, 0):
        first.feed(tiny.permuted(task, "a")(7, task), 7)
        first.feed(tiny.permuted(task + 3, "b")(9, task), 9)
        first.checkpoint.commit()
    assert len(first.learner.bank) > len(first.learner.hot) == 2

    second = open_run(**options)
    assert state(second.learner) == state(first.learner)
    assert second.assigned == 64
    assert second.checkpoint.totals == first.checkpoint.totals

    for run in (first, second):
        run.feed(tiny.permuted(1, "a")(30, 9), 30)
        run.feed(tiny.permuted(7, "b")(5, 9), 5)
    assert state(second.learner) == state(first.learner)


def test_what_was_not_committed_is_not_there(open_run: Callable[..., Run]) -> None:
    first = open_run()
    first.feed(tiny.permuted(0)(6), 6)
    first.checkpoint.commit()
    before = state(first.learner)
    first.feed(tiny.permuted(1)(6), 6)
    second = open_run()
    assert state(second.learner) == before
    assert second.assigned == 6


def test_evicted_masks_and_forgotten_streams_stay_gone(open_run: Callable[..., Run], redis_client: Redis) -> None:
    options = {"spec": replace(tiny.LEARNING, budget=2), "over_budget": "evict", "max_streams": 2, "hot_masks": 3}
    first = open_run(**options)
    for task in range(5):
        first.feed(tiny.permuted(task, f"s{task}")(15), 15)
        first.checkpoint.commit()
    second = open_run(**options)
    assert state(second.learner) == state(first.learner)
    assert list(second.learner.bank) == [3, 4]
    assert set(second.learner.streams) == {"s3", "s4"}
    keys = [key.decode() for key in redis_client.scan_iter(match=second.store.keys.mask(0)[:-1] + "*")]
    assert sorted(keys) == [second.store.keys.mask(3), second.store.keys.mask(4)]


@pytest.mark.parametrize("commit_between", [True, False])
def test_a_mask_taken_back_by_a_look_again_stays_gone(
    open_run: Callable[..., Run], redis_client: Redis, commit_between: bool
) -> None:
    first = open_run()
    first.feed(tiny.permuted(0)(30), 30)
    first.feed(tiny.permuted(1)(1, 1), 1)
    assert list(first.learner.bank) == [0, 1]
    if commit_between:
        first.checkpoint.commit()
    first.feed(tiny.permuted(0)(3, 2), 3)
    first.checkpoint.commit()
    second = open_run()
    assert state(second.learner) == state(first.learner)
    assert list(second.learner.bank) == [0]
    assert second.learner.bank.next_id == 2, "an id is never given out twice"
    keys = [key.decode() for key in redis_client.scan_iter(match=second.store.keys.mask(0)[:-1] + "*")]
    assert keys == [second.store.keys.mask(0)]


def test_nothing_to_commit_is_no_commit(open_run: Callable[..., Run]) -> None:
    run = open_run()
    assert run.checkpoint.commit() is None
    assert run.store.version() == 0
    assert run.waits == []


def test_side_topics_are_awaited_before_the_commit(open_run: Callable[..., Run]) -> None:
    run = open_run()
    run.feed(tiny.permuted(0)(3), 3)
    assert run.checkpoint.commit() == 1
    assert run.waits == [0], "the version at the time of waiting"


def test_a_failed_commit_keeps_everything_for_the_next_try(open_run: Callable[..., Run]) -> None:
    run = open_run()
    run.feed(tiny.permuted(0)(3), 3)

    def refuse() -> None:
        raise UnavailableError("not now")

    run.checkpoint.before_commit = refuse
    with pytest.raises(UnavailableError):
        run.checkpoint.commit()
    assert run.store.version() == 0
    run.checkpoint.before_commit = dict
    assert run.checkpoint.commit() == 1
    assert state(open_run().learner) == state(run.learner)


def test_a_commit_whose_reply_was_lost_is_not_applied_twice(
    open_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run()
    run.feed(tiny.permuted(0)(3), 3)
    commit = RedisStore.commit

    def lose_the_reply(*args: object, **kwargs: object) -> int:
        commit(*args, **kwargs)
        raise UnavailableError("connection reset")

    with monkeypatch.context() as patch:
        patch.setattr(RedisStore, "commit", lose_the_reply)
        with pytest.raises(UnavailableError):
            run.checkpoint.commit()
    assert run.checkpoint.commit() == 1
    assert run.store.version() == 1
    assert [event["type"] for _, event in run.store.events()] == ["allocate", "commit"]


def test_another_optimiser_finds_the_masks_cold(open_run: Callable[..., Run]) -> None:
    first = open_run()
    first.feed(tiny.permuted(0)(5), 5)
    first.checkpoint.commit()
    second = open_run(optimiser=OptimiserChoice("rmsprop"))
    assert not second.learner.hot
    assert tiny.bank_bytes(second.learner) == tiny.bank_bytes(first.learner)


def test_a_mask_whose_state_is_gone_is_cold(open_run: Callable[..., Run], redis_client: Redis) -> None:
    first = open_run()
    first.feed(tiny.permuted(0)(5), 5)
    first.checkpoint.commit()
    redis_client.delete(first.store.keys.state(0))
    assert not open_run().learner.hot


@pytest.mark.parametrize(
    ("key_of", "damage"),
    [
        (lambda keys: keys.mask(0), lambda redis, key: redis.setrange(key, 30, b"\xaa\x55")),
        (lambda keys: keys.mask(0), lambda redis, key: redis.delete(key)),
        (lambda keys: keys.state(0), lambda redis, key: redis.setrange(key, 100, b"\xaa\x55")),
        (lambda keys: keys.state(0), lambda redis, key: redis.set(key, b"")),
        (lambda keys: keys.stats(0), lambda redis, key: redis.hset(key, "loss", "low")),
        (lambda keys: keys.stats(0), lambda redis, key: redis.hdel(key, "batches")),
        (lambda keys: keys.stats(0), lambda redis, key: redis.delete(key)),
        (lambda keys: keys.totals, lambda redis, key: redis.hset(key, "steps", "many")),
        (lambda keys: keys.progress("digits", 0), lambda redis, key: redis.hset(key, "offset", "far")),
        (lambda keys: keys.progress("digits", 0), lambda redis, key: redis.hdel(key, "offset")),
        (lambda keys: keys.progress("digits", 0), lambda redis, key: redis.hset(key, "stream:", "{")),
        (lambda keys: keys.progress("digits", 0), lambda redis, key: redis.hset(key, "stream:", '{"mask": 0}')),
    ],
    ids=[
        *("mask changed", "mask missing", "state changed", "state empty", "stats no number", "stats field missing"),
        *("stats missing", "totals no number", "offset no number", "offset missing", "stream no JSON", "stream empty"),
    ],
)
def test_damage_stops_the_start_and_names_the_key(
    open_run: Callable[..., Run],
    redis_client: Redis,
    key_of: Callable[[BankKeys], str],
    damage: Callable[[Redis, str], None],
) -> None:
    first = open_run()
    first.feed(tiny.permuted(0)(5), 5)
    first.checkpoint.commit()
    key = key_of(first.store.keys)
    damage(redis_client, key)
    with pytest.raises(BankMismatchError) as caught:
        open_run()
    assert key in str(caught.value)


# -- where to go on


def reassign(run: Run, log: str, start: int, *, new_log_is_fine: bool = False) -> int:
    run.checkpoint.new_log_is_fine = new_log_is_fine
    return run.checkpoint.assign(HERE, run.store.progress(HERE.topic, HERE.number), Log(log, start))


@pytest.fixture
def committed(open_run: Callable[..., Run]) -> Run:
    """A run that stands at offset 5."""
    run = open_run()
    run.feed(tiny.permuted(0)(5), 5)
    run.checkpoint.commit()
    return run


def test_a_partition_never_read_starts_where_its_log_starts(committed: Run) -> None:
    assert committed.checkpoint.assign(Partition("digits", 1), {}, Log(LOG, 17)) == 17


def test_the_same_log_goes_on_at_the_stored_offset(committed: Run) -> None:
    assert reassign(committed, LOG, 0) == 5
    assert reassign(committed, LOG, 5) == 5


def test_a_position_set_by_a_person_needs_no_log_id(open_run: Callable[..., Run]) -> None:
    run = open_run()
    assert run.checkpoint.assign(Partition("digits", 1), {"offset": "42"}, Log(LOG, 0)) == 42


def test_records_lost_to_retention_are_counted(committed: Run) -> None:
    with pytest.raises(LostGroundError, match="retention has removed 2 records that were never trained"):
        reassign(committed, LOG, 7)


def test_another_log_is_refused_with_advice(committed: Run) -> None:
    with pytest.raises(LostGroundError) as caught:
        reassign(committed, "log-2", 0)
    assert f"DEL '{committed.store.keys.progress('digits', 0)}'" in str(caught.value)


def test_an_embedded_broker_may_have_a_new_log_and_its_streams_go_on(committed: Run) -> None:
    before = committed.learner.streams[""].position
    assert reassign(committed, "log-2", 0, new_log_is_fine=True) == 0
    assert committed.learner.streams[""].position == before == 5
