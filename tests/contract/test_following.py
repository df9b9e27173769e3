"""What `Follower` promises, held against a real Redis with commits as a trainer makes them."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis

from contract.test_redis_store import everything, writer
from daemon import redis_client as redis_clients
from daemon.embedded import EmbeddedRedis
from daemon.errors import AnotherBankError, BankMismatchError, DeniedError, LostGroundError, UnavailableError
from daemon.following import Follower
from daemon.redis_store import BankReader, CommitPlan
from supsup_online import codec
from supsup_online.snapshot import Snapshot
from supsup_online.stats import MaskStats
from unit import tiny

pytestmark = pytest.mark.integration

NETWORK = tiny.network()
PATTERNS = tiny.random_masks(NETWORK, 16)
# The rights of a replica, as docs/reference/security.md gives them.
RIGHTS = "+ping +select +get +mget +hgetall +zcard +zrange +zrangebyscore +xrange +xrevrange +xread +multi +exec"


class Trainer:
    """Commits in which everything says their number."""

    def __init__(self, redis: Redis, bank: str) -> None:
        self.redis = redis
        self.bank = bank
        self.number = 0
        self.store = writer(redis, bank, "first")

    def commit(self, *mask_ids: int, removed: Sequence[int] = (), decided: str = "") -> int:
        """Write the next number into these masks; returns it."""
        self.number += 1
        plan = CommitPlan(changed=list(mask_ids), removed=list(removed))
        for mask_id in mask_ids:
            plan.write("SET", self.store.keys.mask(mask_id), codec.encode_mask(NETWORK, pattern(self.number)))
            plan.hset(self.store.keys.stats(mask_id), MaskStats(entropy=float(self.number)).to_text())
        for mask_id in removed:
            plan.write("DEL", self.store.keys.mask(mask_id))
            plan.write("DEL", self.store.keys.stats(mask_id))
        if decided:
            plan.events.append({"type": decided, "number": self.number})
        plan.events.append({"type": "commit", "number": self.number})
        self.store.commit(plan, f"{self.store.term.epoch}:{self.number}")
        return self.number

    def lose(self, kept: dict[bytes, bytes]) -> None:
        """As if Redis came back with what it held when `kept` was taken; another trainer goes on with that."""
        self.redis.delete(*everything(self.redis, self.bank))
        for key, value in kept.items():
            self.redis.restore(key, 0, value)
        self.store = writer(self.redis, self.bank, "after")


def pattern(number: int) -> np.ndarray:
    """The mask that stands for a number."""
    return PATTERNS[number % len(PATTERNS)]


def numbers(snapshot: Snapshot) -> dict[int, int]:
    """Which commit each mask of a snapshot is of: statistics and bits have to agree on it."""
    found = dict(zip(snapshot.mask_ids.tolist(), map(int, snapshot.usual.tolist()), strict=True))
    for slot, number in zip(snapshot.slots, found.values(), strict=True):
        assert (snapshot.masks[slot] == pattern(number)).all(), "bits of one commit, statistics of another"
    return found


@pytest.fixture
def trainer(redis_client: Redis, bank_name: str) -> Trainer:
    return Trainer(redis_client, bank_name)


@pytest.fixture
def follower(trainer: Trainer) -> Follower:
    """A follower of a bank without masks that has not looked yet."""
    return Follower(BankReader(trainer.redis, trainer.bank), NETWORK)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The masks that followers ask Redis for, a list each time."""
    found: list[list[int]] = []
    ask_for = Follower._ask_for

    def watched(self: Follower, pipe: Any, mask_ids: list[int]) -> None:
        found.append(list(mask_ids))
        ask_for(self, pipe, mask_ids)

    monkeypatch.setattr(Follower, "_ask_for", watched)
    return found


def meanwhile(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], object], *, times: int = 1) -> None:
    """Something happens right before a follower's method does its work, the first few times."""
    method, left = getattr(Follower, name), [times]

    def interrupted(self: Follower, *arguments: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            happens()
        return method(self, *arguments, **options)

    monkeypatch.setattr(Follower, name, interrupted)


# -- from version to version


def test_before_the_first_look_there_is_no_mask_and_no_knowing_how_old_that_is(follower: Follower) -> None:
    assert (len(follower.snapshot), follower.staleness_s) == (0, float("inf"))


def test_a_bank_without_masks_is_followed_until_it_has_some(trainer: Trainer, follower: Follower) -> None:
    follower.catch_up()
    assert (follower.snapshot.version, len(follower.snapshot)) == (0, 0)
    assert follower.staleness_s < 10
    assert not follower.catch_up()
    trainer.commit(0)
    assert follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (1, {0: 1})


def test_the_first_look_takes_the_whole_bank(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0, 1, 2)
    trainer.commit(1)
    assert follower.catch_up()
    assert follower.snapshot.version == 2
    assert numbers(follower.snapshot) == {0: 1, 1: 2, 2: 1}
    assert follower.stats[1] == MaskStats(entropy=2.0).to_text()
    assert follower.budget == NETWORK.spec.budget


def test_a_bank_of_many_masks_is_read_in_pieces_and_each_mask_once(
    trainer: Trainer, follower: Follower, asked: list[list[int]]
) -> None:
    trainer.commit(*range(150))
    follower.catch_up()
    assert numbers(follower.snapshot) == dict.fromkeys(range(150), 1)
    assert [len(ids) for ids in asked] == [64, 64, 22, 0]


def test_only_masks_that_changed_are_read_again(trainer: Trainer, follower: Follower, asked: list[list[int]]) -> None:
    trainer.commit(0, 1, 2, 3)
    follower.catch_up()
    before = follower.snapshot
    asked.clear()
    trainer.commit(2)
    assert follower.catch_up()
    assert asked == [[2]]
    after = follower.snapshot
    assert numbers(after) == {0: 1, 1: 1, 2: 2, 3: 1}
    assert (before.slots == after.slots).tolist() == [True, True, False, True], "the others stay where they are"
    assert after.masks is before.masks


def test_where_nothing_was_committed_nothing_is_read(
    trainer: Trainer, follower: Follower, asked: list[list[int]]
) -> None:
    trainer.commit(0, 1)
    follower.catch_up()
    before = follower.snapshot
    asked.clear()
    assert not follower.catch_up()
    assert follower.snapshot is before
    assert asked == []


def test_a_commit_that_changed_no_mask_is_another_version_of_the_same_masks(
    trainer: Trainer, follower: Follower
) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.commit()
    assert follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (2, {0: 1})


def test_masks_come_and_go(trainer: Trainer, follower: Follower, asked: list[list[int]]) -> None:
    trainer.commit(0, 1)
    follower.catch_up()
    asked.clear()
    trainer.commit(2)
    follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1, 1: 1, 2: 2}
    trainer.commit(removed=[0])
    follower.catch_up()
    assert numbers(follower.snapshot) == {1: 1, 2: 2}
    assert follower.stats.keys() == {1, 2}
    assert follower.snapshot.place(0) is None
    trainer.commit(3, removed=[1])
    follower.catch_up()
    assert numbers(follower.snapshot) == {2: 2, 3: 4}
    assert asked == [[2], [], [3]]


def test_several_commits_between_two_looks_are_one_step(
    trainer: Trainer, follower: Follower, asked: list[list[int]]
) -> None:
    trainer.commit(0, 1)
    follower.catch_up()
    asked.clear()
    trainer.commit(1)
    trainer.commit(2, removed=[0])
    trainer.commit(3)
    trainer.commit(1, removed=[3])
    assert follower.catch_up()
    assert follower.snapshot.version == 5
    assert numbers(follower.snapshot) == {1: 5, 2: 3}
    assert asked == [[1, 2]]


def test_a_mask_that_was_allocated_and_evicted_between_two_looks_was_never_there(
    trainer: Trainer, follower: Follower
) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.commit(1)
    trainer.commit(removed=[1])
    follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (3, {0: 1})


def test_a_bank_that_lost_all_its_masks_has_none(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.commit(removed=[0])
    follower.catch_up()
    assert (follower.snapshot.version, len(follower.snapshot)) == (2, 0)


# -- one version and no other


def test_a_commit_between_the_two_transactions_is_noticed(
    trainer: Trainer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit(0, 1, 2)
    follower.catch_up()
    trainer.commit(0, 1)
    meanwhile(monkeypatch, "_masks", lambda: trainer.commit(1, 2), times=2)
    assert follower.catch_up()
    assert follower.snapshot.version == 4
    assert numbers(follower.snapshot) == {0: 2, 1: 4, 2: 4}


def test_a_commit_while_the_whole_bank_is_read_is_noticed(
    trainer: Trainer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit(0, 1, 2)
    meanwhile(monkeypatch, "_moment", lambda: trainer.commit(1, 3, removed=[2]))
    meanwhile(monkeypatch, "_masks", lambda: trainer.commit(4, removed=[3]))
    assert follower.catch_up()
    assert follower.snapshot.version == 3
    assert numbers(follower.snapshot) == {0: 1, 1: 2, 4: 3}


def test_an_eviction_between_the_two_transactions_is_noticed(
    trainer: Trainer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit(0, 1, 2)
    follower.catch_up()
    trainer.commit(3, removed=[0])
    meanwhile(monkeypatch, "_masks", lambda: trainer.commit(removed=[3]))
    assert follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (3, {1: 1, 2: 1})


def test_commits_faster_than_masks_can_be_read_are_given_up_and_the_snapshot_stays(
    trainer: Trainer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.commit(0)
    with monkeypatch.context() as patch:
        meanwhile(patch, "_masks", lambda: trainer.commit(0), times=1000)
        with pytest.raises(UnavailableError, match="100 commits came while masks were read"):
            follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1}
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 102}


def test_every_snapshot_taken_while_commits_go_on_is_of_one_version(redis_url: str, bank_name: str) -> None:
    rounds, seen, stop = 300, [], threading.Event()
    with Redis.from_url(redis_url) as writing, Redis.from_url(redis_url) as reading:
        trainer = Trainer(writing, bank_name)
        follower = Follower(BankReader(reading, bank_name), NETWORK)

        def train() -> None:
            for number in range(1, rounds + 1):
                # Four masks, one of them new each time: everything in a version carries the version's number.
                trainer.commit(*range(number, number + 4), removed=[number - 1] if number > 1 else [])
                time.sleep(0.002)  # else the follower would have to be quicker than this loop
            stop.set()

        thread = threading.Thread(target=train)
        thread.start()
        while not stop.is_set():
            if follower.catch_up():
                seen.append(follower.snapshot)
        thread.join()
        follower.catch_up()
        seen.append(follower.snapshot)
    versions = [snapshot.version for snapshot in seen]
    assert versions == sorted(versions)
    assert versions[-1] == rounds
    assert len(set(versions)) > 20, "it looked while commits went on"
    for snapshot in seen:  # also those of long ago: a snapshot that is held never changes
        version = snapshot.version
        assert numbers(snapshot) == (dict.fromkeys(range(version, version + 4), version) if version else {})


def test_a_snapshot_that_is_held_never_changes(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0, 1, 2)
    follower.catch_up()
    held, (first, mean) = follower.snapshot, (numbers(follower.snapshot), follower.snapshot.mean.copy())
    bits = held.masks[held.slots].copy()
    for _ in range(40):
        trainer.commit(0, 1, 2)
        follower.catch_up()
    assert numbers(held) == first == {0: 1, 1: 1, 2: 1}
    assert (held.masks[held.slots] == bits).all()
    assert (held.mean == mean).all()
    assert held.version == 1


# -- a Redis that is not what it was


def test_a_redis_that_lost_its_newest_commits_is_read_again_whole(
    trainer: Trainer, follower: Follower, asked: list[list[int]]
) -> None:
    trainer.commit(0, 1, 2, decided="allocate")
    kept = everything(trainer.redis, trainer.bank)
    trainer.commit(0, 1, 3, decided="allocate")
    trainer.commit(1)
    follower.catch_up()
    follower.wait(0.01)
    assert [decision["number"] for decision in follower.decisions] == ["2", "1"]
    trainer.lose(kept)
    asked.clear()
    assert follower.catch_up()
    follower.wait(0.01)
    assert [decision["number"] for decision in follower.decisions] == ["1"], "of commits that are lost, none is told"
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (1, {0: 1, 1: 1, 2: 1})
    assert follower.stats.keys() == {0, 1, 2}
    assert asked == [[0, 1, 2], []]


@pytest.mark.parametrize("others", [1, 2, 3], ids=["fewer", "as many", "more"])
def test_lost_commits_are_noticed_whatever_number_of_others_came_after(
    trainer: Trainer, follower: Follower, others: int
) -> None:
    trainer.commit(0, 1, 2)
    kept = everything(trainer.redis, trainer.bank)
    trainer.commit(0, 1)
    trainer.commit(1)
    follower.catch_up()
    trainer.lose(kept)
    for _ in range(others):
        newest = trainer.commit(0)
    assert follower.catch_up()
    assert follower.snapshot.version == 1 + others
    assert numbers(follower.snapshot) == {0: newest, 1: 1, 2: 1}
    trainer.commit(2)
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: newest, 1: 1, 2: newest + 1}


def test_commits_that_are_lost_while_the_whole_bank_is_read_leave_the_snapshot_as_it_was(
    trainer: Trainer, follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.commit(0)
    kept = everything(trainer.redis, trainer.bank)
    trainer.commit(0, 1)
    meanwhile(monkeypatch, "_moment", lambda: trainer.lose(kept))
    with pytest.raises(UnavailableError):
        follower.catch_up()
    assert (len(follower.snapshot), follower.staleness_s) == (0, float("inf"))
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1}


def test_an_event_stream_that_was_deleted_is_no_obstacle(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0, 1)
    follower.catch_up()
    trainer.redis.delete(trainer.store.keys.events)
    follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (1, {0: 1, 1: 1})
    assert not follower.catch_up(), "it is not read again and again"
    trainer.commit(1)
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1, 1: 2}


def test_an_event_stream_that_has_dropped_the_event_counted_from_is_read_again(
    trainer: Trainer, follower: Follower, asked: list[list[int]]
) -> None:
    trainer.commit(0, 1, 2)
    follower.catch_up()
    trainer.commit(1)
    trainer.redis.xtrim(trainer.store.keys.events, maxlen=1, approximate=False)
    asked.clear()
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1, 1: 2, 2: 1}
    assert asked == [[0, 1, 2], []]
    asked.clear()
    trainer.commit(0)
    follower.catch_up()
    assert asked == [[0]], "from there on it counts again"


@pytest.mark.parametrize(
    ("field", "value"), [("weight_seed", "8"), ("architecture", "mlp-16-9"), ("fingerprint", "0" * 64)]
)
def test_another_bank_under_the_same_name_is_refused(
    trainer: Trainer, follower: Follower, field: str, value: str
) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.redis.hset(trainer.store.keys.spec, field, value)
    trainer.commit(0)
    with pytest.raises(AnotherBankError, match=rf"is another one by now \(.*{field}.*: start this replica again"):
        follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1}


def test_a_bank_that_is_gone_is_called_so_and_the_snapshot_stays(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.redis.delete(*everything(trainer.redis, trainer.bank))
    for _ in range(2):
        with pytest.raises(LostGroundError, match=f"there is no bank '{trainer.bank}'"):
            follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1}
    trainer.store = writer(trainer.redis, trainer.bank, "anew")
    trainer.commit(5)
    assert follower.catch_up()
    assert (follower.snapshot.version, numbers(follower.snapshot)) == (1, {5: 2})


def test_a_bank_that_is_gone_before_the_first_look_is_called_so(redis_client: Redis, bank_name: str) -> None:
    with pytest.raises(LostGroundError, match=f"there is no bank '{bank_name}'"):
        Follower(BankReader(redis_client, bank_name), NETWORK).catch_up()


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda redis, keys: redis.set(keys.mask(1), b"SSMK"), "mask:1: mask: "),
        (lambda redis, keys: redis.delete(keys.mask(1)), "mask:1: mask: "),
        (lambda redis, keys: redis.setrange(keys.mask(1), 40, b"\xff\xff\xff\xff"), "mask:1: mask: "),
        (lambda redis, keys: redis.hset(keys.stats(1), "entropy", "much"), "stats:1: "),
        (lambda redis, keys: redis.delete(keys.stats(1)), "stats:1: "),
        (lambda redis, keys: redis.hset(keys.spec, "classes", "ten"), "the stored spec is damaged: "),
    ],
    ids=["cut short", "missing", "changed", "no number", "no statistics", "spec"],
)
@pytest.mark.parametrize("first", [True, False], ids=["first look", "later"])
def test_what_is_damaged_is_named_and_the_snapshot_stays(
    trainer: Trainer, follower: Follower, damage: Callable[..., None], key: str, first: bool
) -> None:
    trainer.commit(0, 1)
    if not first:
        follower.catch_up()
    trainer.commit(0, 1)
    before = follower.snapshot
    kept = everything(trainer.redis, trainer.bank)
    damage(trainer.redis, trainer.store.keys)
    with pytest.raises(BankMismatchError, match=key):
        follower.catch_up()
    assert follower.snapshot is before
    for name, value in kept.items():
        trainer.redis.restore(name, 0, value, replace=True)
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 2, 1: 2}


def test_a_changed_budget_is_taken_over(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0)
    follower.catch_up()
    trainer.store.begin(trainer.store.term, tiny.network(replace(NETWORK.spec, budget=99)))
    follower.catch_up()
    assert follower.budget == 99


# -- waiting


def test_waiting_ends_with_a_commit_and_else_after_its_time(
    trainer: Trainer, follower: Follower, redis_url: str
) -> None:
    trainer.commit(0)
    follower.catch_up()
    begun = time.monotonic()
    follower.wait(0.3)
    assert 0.25 < time.monotonic() - begun < 5
    with Redis.from_url(redis_url) as other:
        trainer.store.client = other
        later = threading.Timer(0.2, trainer.commit, [0])
        begun = time.monotonic()
        trainer.store._script = other.register_script(trainer.store._script.script)
        later.start()
        follower.wait(30)
        assert time.monotonic() - begun < 10
        later.join()
    assert follower.catch_up()


def test_waiting_ends_at_once_where_something_was_committed_since_the_last_look(
    trainer: Trainer, follower: Follower
) -> None:
    follower.catch_up()
    for _ in range(2):
        trainer.commit(0)
        begun = time.monotonic()
        follower.wait(30)
        assert time.monotonic() - begun < 10
        assert follower.catch_up()


def test_decisions_are_told_newest_first_and_each_once(trainer: Trainer, follower: Follower) -> None:
    trainer.commit(0, decided="allocate")
    follower.catch_up()
    trainer.commit(0, decided="reuse")  # before anybody has waited: the first wait reads what lies behind, too
    follower.wait(0.01)
    trainer.commit(1, decided="allocate")
    follower.wait(0.01)
    follower.wait(0.01)
    assert [(event["type"], event["number"], event["version"]) for event in follower.decisions] == [
        ("allocate", "3", "3"),
        ("reuse", "2", "2"),
        ("allocate", "1", "1"),
    ]
    for _ in range(40):
        trainer.commit(0, decided="reuse")
        follower.wait(0.01)
    assert [int(event["number"]) for event in follower.decisions] == list(range(43, 23, -1))


# -- rights


@pytest.fixture
def user(redis_client: Redis, redis_url: str, bank_name: str) -> Iterator[Callable[[str], Redis]]:
    """Clients of a user with rights of the test's choice."""
    clients: list[Redis] = []

    def with_rights(rights: str) -> Redis:
        redis_client.execute_command("ACL", "SETUSER", bank_name, "reset", "on", ">secret", *rights.split())
        clients.append(redis_clients.connect(redis_url, security={"username": bank_name, "password": "secret"}))
        return clients[-1]

    yield with_rights
    for client in clients:
        client.close()
    redis_client.execute_command("ACL", "DELUSER", bank_name)


@pytest.mark.parametrize(
    "rights", [RIGHTS, "+@read +@connection +multi +exec +watch +unwatch -@scripting"], ids=["least", "read"]
)
def test_a_user_with_the_right_to_read_follows(trainer: Trainer, user: Callable[[str], Redis], rights: str) -> None:
    reader = BankReader(user(f"{rights} ~supsup:{{{trainer.bank}}}:*"), trainer.bank)
    trainer.commit(0, 1, 2)
    follower = Follower(reader, reader.network(reader.spec()))
    assert follower.catch_up()
    trainer.commit(3, removed=[1], decided="allocate")
    follower.wait(0.01)
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1, 2: 1, 3: 2}
    assert follower._may_wait
    assert follower.decisions[0]["type"] == "allocate"
    kept = everything(trainer.redis, trainer.bank)
    trainer.commit(0)
    follower.catch_up()
    trainer.lose(kept)
    assert follower.catch_up()
    assert numbers(follower.snapshot) == {0: 1, 2: 1, 3: 2}


@pytest.mark.parametrize("missing", [right for right in RIGHTS.split() if right not in ("+ping", "+select", "+xread")])
def test_a_right_that_is_missing_is_named(trainer: Trainer, user: Callable[[str], Redis], missing: str) -> None:
    reader = BankReader(user(f"{RIGHTS} ~supsup:* -{missing[1:]}"), trainer.bank)
    trainer.commit(0)
    follower = Follower(reader, NETWORK)
    with pytest.raises(DeniedError, match=f"(?i){missing[1:]}"):  # noqa: PT012 - at the first look or at the second
        follower.catch_up()
        trainer.commit(1, removed=[0])  # as many as before, which takes all ids
        follower.catch_up()


def test_where_waiting_is_forbidden_the_bank_is_looked_at_now_and_then(
    trainer: Trainer, user: Callable[[str], Redis]
) -> None:
    reader = BankReader(user(f"{RIGHTS} -xread ~supsup:{{{trainer.bank}}}:*"), trainer.bank)
    trainer.commit(0, decided="allocate")
    follower = Follower(reader, NETWORK)
    follower.catch_up()
    follower.wait(0.01)
    for number in (2, 3):
        trainer.commit(0, decided="reuse")
        begun = time.monotonic()
        follower.wait(0.2)
        assert 0.15 < time.monotonic() - begun < 5
        assert follower.catch_up()
        assert numbers(follower.snapshot) == {0: number}
    assert [event["number"] for event in follower.decisions] == ["3", "2", "1"]


# -- a Redis that is away


def test_while_redis_is_away_the_snapshot_stays_and_its_staleness_grows(tmp_path: Path) -> None:
    now = [100.0]
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as writing:
        trainer = Trainer(writing, "away")
        trainer.commit(0)
        with redis_clients.connect(server.url, timeout_s=5, reply_s=0.3) as client:
            follower = Follower(BankReader(client, "away"), NETWORK, clock=lambda: now[0])
            follower.catch_up()
            assert follower.staleness_s == 0
            os.kill(server.pid, signal.SIGSTOP)
            try:
                for passed in (10.0, 20.0):
                    now[0] = 100 + passed
                    with pytest.raises(UnavailableError):
                        follower.wait(0.01)
                    with pytest.raises(UnavailableError):
                        follower.catch_up()
                    assert follower.staleness_s == passed
            finally:
                os.kill(server.pid, signal.SIGCONT)
            assert numbers(follower.snapshot) == {0: 1}
            trainer.commit(0)
            assert follower.catch_up()
            assert (follower.staleness_s, numbers(follower.snapshot)) == (0, {0: 2})
