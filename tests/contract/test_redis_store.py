"""What `RedisStore` and `BankReader` promise, held against a real Redis."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from daemon.embedded import EmbeddedRedis
from daemon.errors import BankMismatchError, FencedError, LostGroundError, UnavailableError
from daemon.lease import Lease, Term
from daemon.redis_keys import BankKeys
from daemon.redis_store import BankReader, CommitPlan, EventTail, RedisStore, WarmMasks
from supsup_online import codec
from supsup_online.optimisers import OptimiserChoice
from supsup_online.stats import MaskStats
from unit import tiny

pytestmark = pytest.mark.integration

NETWORK = tiny.network()
MASKS = tiny.random_masks(NETWORK, 4)


@pytest.fixture
def opened(redis_client: Redis, bank_name: str) -> RedisStore:
    """The store of a bank just created."""
    return writer(redis_client, bank_name, "first")


def writer(redis: Redis, bank: str, owner: str) -> RedisStore:
    """A store that has taken over the bank, from whoever had it."""
    store = RedisStore(redis, bank)
    store.open(NETWORK)
    term = Lease(redis, store.keys, owner, 10.0).acquire(by_force=True)
    assert isinstance(term, Term)
    store.begin(term, NETWORK)
    return store


def plan_of(keys: BankKeys, number: int, mask_ids: tuple[int, ...] = (0, 1)) -> CommitPlan:
    """A commit in which everything says `number`."""
    plan = CommitPlan(changed=list(mask_ids), events=[{"type": "commit", "number": number}])
    for mask_id in mask_ids:
        plan.write("SET", keys.mask(mask_id), codec.encode_mask(NETWORK, MASKS[number % 4]))
        plan.hset(keys.stats(mask_id), {"number": number})
    plan.hset(keys.totals, {"number": number})
    plan.hset(keys.progress("t", 0), {"offset": number})
    return plan


def everything(redis: Redis, bank: str) -> dict[bytes, bytes]:
    return {key: redis.dump(key) for key in redis.scan_iter(match=f"supsup:{{{bank}}}:*", count=1000)}


# -- opening


def test_a_new_bank_stores_its_spec_as_text_and_the_fingerprint_of_its_weights(opened: RedisStore) -> None:
    assert opened.spec() == NETWORK.spec
    assert opened.spec_text() == {**NETWORK.spec.to_text(), "fingerprint": NETWORK.fingerprint}
    assert (opened.version(), opened.mask_ids(), opened.totals(), opened.positions()) == (0, [], {}, {})
    assert opened.lease()["owner"] == "first"


def test_a_bank_with_the_same_spec_opens_again_under_a_higher_epoch(opened: RedisStore, redis_client: Redis) -> None:
    again = writer(redis_client, opened.keys.bank, "second")
    assert again.term.epoch == opened.term.epoch + 1
    assert again.lease()["owner"] == "second"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight_seed": 8}, "weight_seed: 8, 7"),
        ({"architecture": "mlp-16-9"}, "architecture: mlp-16-9, mlp-16-8"),
        ({"outputs": 13, "keep_fraction": 0.25}, "keep_fraction: 0.25, 0.5"),
    ],
)
def test_another_spec_is_refused_and_the_difference_named(
    opened: RedisStore, redis_client: Redis, change: dict[str, object], named: str
) -> None:
    before = everything(redis_client, opened.keys.bank)
    other = RedisStore(redis_client, opened.keys.bank)
    with pytest.raises(BankMismatchError, match=named):
        other.open(tiny.network(replace(NETWORK.spec, **change)))
    assert everything(redis_client, opened.keys.bank) == before, "nothing was touched, the lease least of all"


def test_a_changed_budget_is_taken_over(opened: RedisStore, redis_client: Redis) -> None:
    other = tiny.network(replace(NETWORK.spec, budget=99))
    store = RedisStore(redis_client, opened.keys.bank)
    store.open(other)
    assert opened.spec().budget == NETWORK.spec.budget, "not before it is this trainer's turn"
    store.begin(Term(2, "second"), other)
    assert opened.spec().budget == 99


def test_weights_with_another_fingerprint_are_refused(opened: RedisStore, redis_client: Redis) -> None:
    redis_client.hset(opened.keys.spec, "fingerprint", "0" * 64)
    with pytest.raises(BankMismatchError, match=r"fingerprint .* its masks mean nothing here"):
        writer(redis_client, opened.keys.bank, "second")
    with pytest.raises(BankMismatchError, match="fingerprint"):
        BankReader(redis_client, opened.keys.bank).network(NETWORK.spec)


def test_a_reader_regenerates_the_network_from_the_spec_alone(opened: RedisStore, redis_client: Redis) -> None:
    reader = BankReader(redis_client, opened.keys.bank)
    assert reader.network(reader.spec()).fingerprint == NETWORK.fingerprint


def test_a_bank_that_does_not_exist_is_called_so(redis_client: Redis, bank_name: str) -> None:
    with pytest.raises(BankMismatchError, match=f"there is no bank '{bank_name}'"):
        BankReader(redis_client, bank_name).spec()


@pytest.mark.parametrize(("field", "value"), [("classes", "ten"), ("outputs", "1"), ("schema", "2")])
def test_a_damaged_spec_is_called_so(opened: RedisStore, redis_client: Redis, field: str, value: str) -> None:
    redis_client.hset(opened.keys.spec, field, value)
    with pytest.raises(BankMismatchError, match=opened.keys.bank):
        opened.spec()


# -- committing


def test_a_commit_raises_the_version_by_one_and_writes_everything(opened: RedisStore) -> None:
    keys = opened.keys
    assert opened.commit(plan_of(keys, 1), "1:1") == 1
    assert opened.commit(plan_of(keys, 2, (1, 2)), "1:2") == 2
    assert opened.version() == 2
    assert opened.mask_ids() == [0, 1, 2]
    found = opened.masks(NETWORK, [0, 1, 2])
    assert (found[0] == MASKS[1]).all()
    assert (found[2] == MASKS[2]).all()
    assert opened.totals() == {"number": 2}
    assert opened.positions() == {"t:0": 2}
    rows = opened.stats_text([0, 1])
    assert rows == [{"id": "0", "number": "1", "version": "1"}, {"id": "1", "number": "2", "version": "2"}]


def test_a_removed_mask_leaves_the_index(opened: RedisStore) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    opened.commit(CommitPlan(removed=[0]), "1:2")
    assert opened.mask_ids() == [1]


def test_the_same_commit_id_twice_is_applied_once(opened: RedisStore, redis_client: Redis) -> None:
    # redis-py sends a command again whose reply was lost.
    assert opened.commit(plan_of(opened.keys, 1), "1:1") == 1
    before = everything(redis_client, opened.keys.bank)
    assert opened.commit(plan_of(opened.keys, 1), "1:1") == 1
    assert everything(redis_client, opened.keys.bank) == before
    assert opened.commit(plan_of(opened.keys, 2), "1:2") == 2


def test_a_second_trainer_fences_the_first_one(opened: RedisStore, redis_client: Redis) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    second = writer(redis_client, opened.keys.bank, "second")
    before = everything(redis_client, opened.keys.bank)
    with pytest.raises(FencedError, match="epoch 2 has taken over from 1"):
        opened.commit(plan_of(opened.keys, 2), "1:2")
    assert everything(redis_client, opened.keys.bank) == before
    assert second.commit(plan_of(second.keys, 3), "2:3") == 2


def test_a_fenced_trainer_is_told_so_even_when_it_repeats_its_newest_commit(
    opened: RedisStore, redis_client: Redis
) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    writer(redis_client, opened.keys.bank, "second")
    with pytest.raises(FencedError):
        opened.commit(plan_of(opened.keys, 1), "1:1")


def test_a_reader_never_sees_half_a_commit(opened: RedisStore, redis_url: str) -> None:
    keys, torn, looks, stop = opened.keys, [], [], threading.Event()

    def look() -> None:
        with Redis.from_url(redis_url) as client:
            while not stop.is_set():
                pipe = client.pipeline(transaction=True)
                pipe.get(keys.version)
                pipe.hget(keys.totals, "number")
                pipe.hget(keys.progress("t", 0), "offset")
                pipe.hget(keys.stats(0), "number")
                pipe.hget(keys.stats(1), "number")
                pipe.zscore(keys.index, 0)
                pipe.zscore(keys.index, 1)
                pipe.xlen(keys.events)
                pipe.get(keys.mask(0))
                pipe.get(keys.mask(1))
                *numbers, first, second = pipe.execute()
                looks.append(int(numbers[0] or 0))
                wanted = codec.encode_mask(NETWORK, MASKS[looks[-1] % 4]) if looks[-1] else None
                if len({int(n or 0) for n in numbers}) > 1 or {first, second} != {wanted}:
                    torn.append((numbers, first == wanted, second == wanted))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in range(1, 301):
        opened.commit(plan_of(keys, number), f"1:{number}")
    stop.set()
    for reader in readers:
        reader.join()
    assert not torn
    assert len(set(looks)) > 20, "the readers looked while commits went on"


def test_events_are_told_once_and_in_order(opened: RedisStore) -> None:
    tail = EventTail(opened)
    assert tail.read() == []
    for number in (1, 2):
        opened.commit(plan_of(opened.keys, number), f"1:{number}")
    seen = tail.read()
    assert [(event["type"], event["number"], event["version"]) for event in seen] == [
        ("commit", "1", "1"),
        ("commit", "2", "2"),
    ]
    opened.commit(plan_of(opened.keys, 3), "1:3")
    assert [event["number"] for event in tail.read()] == ["3"]


def test_a_bank_whose_name_begins_anothers_has_its_own_positions(opened: RedisStore, redis_client: Redis) -> None:
    opened.commit(plan_of(opened.keys, 5), "1:5")
    assert BankReader(redis_client, opened.keys.bank[:-1]).positions() == {}


# -- a Redis that cannot take it


@pytest.mark.skipif("SUPSUP_TEST_REDIS" in os.environ, reason="fills the server up, so not with somebody's own")
def test_a_full_redis_refuses_the_whole_commit(opened: RedisStore, redis_client: Redis) -> None:
    used = redis_client.info("memory")["used_memory"]
    before_limit = redis_client.config_get("maxmemory")["maxmemory"]
    before = everything(redis_client, opened.keys.bank)
    redis_client.config_set("maxmemory", max(1, used // 2))
    try:
        with pytest.raises(UnavailableError, match="Redis does not take it"):
            opened.commit(plan_of(opened.keys, 1), "1:1")
    finally:
        redis_client.config_set("maxmemory", before_limit)
    assert everything(redis_client, opened.keys.bank) == before
    assert opened.commit(plan_of(opened.keys, 1), "1:1") == 1


def test_a_redis_that_became_a_replica_refuses_a_commit_until_it_no_longer_is_one(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        store = writer(client, "moved", "first")
        before = everything(client, "moved")
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(UnavailableError, match="read only replica") as caught:
            store.commit(plan_of(store.keys, 1), "1:1")
        assert caught.value.server == "redis"
        client.execute_command("REPLICAOF", "NO", "ONE")
        assert everything(client, "moved") == before
        assert store.commit(plan_of(store.keys, 1), "1:1") == 1


@pytest.mark.parametrize(
    ("damage", "key"),
    [
        (lambda redis, keys: redis.set(keys.mask(1), b"SSMK"), "mask:1"),
        (lambda redis, keys: redis.delete(keys.mask(1)), "mask:1"),
        (lambda redis, keys: redis.setrange(keys.mask(0), 40, b"\xff\xff\xff\xff"), "mask:0"),
    ],
    ids=["cut short", "missing", "changed"],
)
def test_a_damaged_mask_is_named(
    opened: RedisStore, redis_client: Redis, damage: Callable[[Redis, BankKeys], None], key: str
) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    damage(redis_client, opened.keys)
    with pytest.raises(BankMismatchError, match=f"supsup:{{{opened.keys.bank}}}:{key}: mask: "):
        opened.masks(NETWORK, [0, 1])


def test_a_redis_that_has_lost_the_newest_commit_is_not_written_over(opened: RedisStore, redis_client: Redis) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    kept = everything(redis_client, opened.keys.bank)
    opened.commit(plan_of(opened.keys, 2), "1:2")
    for key, value in kept.items():  # as if it came back without its last second
        redis_client.restore(key, 0, value, replace=True)
    with pytest.raises(LostGroundError, match=r"Redis has lost commits .*Nothing was written over it"):
        opened.commit(plan_of(opened.keys, 3), "1:3")
    assert opened.totals() == {"number": 1}


def test_a_redis_that_was_emptied_is_not_written_to(opened: RedisStore, redis_client: Redis) -> None:
    opened.commit(plan_of(opened.keys, 1), "1:1")
    redis_client.delete(*everything(redis_client, opened.keys.bank))
    with pytest.raises(LostGroundError, match="it was emptied"):
        opened.commit(plan_of(opened.keys, 2), "1:2")
    assert everything(redis_client, opened.keys.bank) == {}


# -- standing by


def test_warm_masks_read_only_what_changed(
    opened: RedisStore, redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, warm = BankReader(redis_client, opened.keys.bank), WarmMasks()
    read: list[list[int]] = []
    masks = reader.masks
    monkeypatch.setattr(reader, "masks", lambda network, ids: (read.append(list(ids)), masks(network, ids))[1])
    opened.commit(plan_of(opened.keys, 1, (0, 1, 2)), "1")
    warm.refresh(reader, NETWORK)
    opened.commit(plan_of(opened.keys, 2, (1,)), "2")
    opened.commit(CommitPlan(removed=[2]), "3")
    warm.refresh(reader, NETWORK)
    warm.refresh(reader, NETWORK)
    assert read == [[0, 1, 2], [1], []]
    assert warm.version == 3
    assert {i: words.tolist() for i, words in warm.words.items()} == {0: MASKS[1].tolist(), 1: MASKS[2].tolist()}


def test_warm_masks_of_a_redis_that_lost_commits_are_read_again(opened: RedisStore, redis_client: Redis) -> None:
    warm = WarmMasks()
    opened.commit(plan_of(opened.keys, 1), "1")
    kept = everything(redis_client, opened.keys.bank)
    opened.commit(plan_of(opened.keys, 2), "2")
    warm.refresh(opened, NETWORK)
    for key, value in kept.items():
        redis_client.restore(key, 0, value, replace=True)
    warm.refresh(opened, NETWORK)
    assert (warm.words[0] == MASKS[1]).all()


def test_a_load_with_warm_masks_equals_one_without(opened: RedisStore) -> None:
    warm, plan = WarmMasks(), plan_of(opened.keys, 1)
    for mask_id in (0, 1):
        plan.hset(opened.keys.stats(mask_id), MaskStats().to_text())
    opened.commit(plan, "1")
    warm.refresh(opened, NETWORK)
    opened.commit(plan_of(opened.keys, 2, (1,)), "2")
    cold = opened.load(NETWORK, OptimiserChoice().build())
    mixed = opened.load(NETWORK, OptimiserChoice().build(), warm)
    assert {i: words.tolist() for i, words in mixed.masks.items()} == {
        i: words.tolist() for i, words in cold.masks.items()
    }
    assert (mixed.stats, mixed.totals, mixed.version) == (cold.stats, cold.totals, cold.version)
