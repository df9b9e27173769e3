"""The lease and its keeper, held against a real Redis."""

import time
from collections.abc import Callable

import pytest
from redis import Redis

from contract.test_redis_store import plan_of
from daemon.errors import FencedError, RewoundError, UnavailableError
from daemon.health import Health
from daemon.lease import Held, Lease, LeaseKeeper, Term, new_owner
from daemon.redis_keys import BankKeys
from daemon.redis_store import RedisStore
from daemon.standby import Standby
from daemon.telemetry import Telemetry
from servers import wait_until
from unit import tiny

pytestmark = pytest.mark.integration

NETWORK = tiny.network()
TTL_S = 0.6


@pytest.fixture
def lease_of(redis_client: Redis, bank_name: str) -> Callable[..., Lease]:
    """Leases of the test's bank, one per owner."""
    return lambda owner, ttl_s=TTL_S: Lease(redis_client, BankKeys(bank_name), owner, ttl_s)


def taken(lease: Lease, **how: bool) -> Term:
    found = lease.acquire(**how)
    assert isinstance(found, Term), found
    return found


def test_each_term_has_the_next_epoch(lease_of: Callable[..., Lease]) -> None:
    first, second = lease_of("a"), lease_of("b")
    term = taken(first)
    first.release(term)
    assert (term, taken(second)) == (Term(1, "a"), Term(2, "b"))


def test_while_it_lasts_nobody_else_gets_it(lease_of: Callable[..., Lease]) -> None:
    taken(lease_of("a", 60.0))
    found = lease_of("b").acquire()
    assert isinstance(found, Held)
    assert found.owner == "a"
    assert 55 < found.left_s <= 60


def test_when_it_has_run_out_the_next_one_gets_it(lease_of: Callable[..., Lease]) -> None:
    taken(lease_of("a", 0.1))
    time.sleep(0.15)
    assert taken(lease_of("b")).epoch == 2


def test_a_renewed_lease_lasts_from_then_on(lease_of: Callable[..., Lease]) -> None:
    lease = lease_of("a", 0.4)
    term = taken(lease)
    time.sleep(0.25)
    lease.renew(term)
    time.sleep(0.25)
    assert isinstance(lease_of("b").acquire(), Held)


def test_it_can_be_taken_by_force(lease_of: Callable[..., Lease]) -> None:
    first = lease_of("a", 60.0)
    term = taken(first)
    assert taken(lease_of("b"), by_force=True).epoch == 2
    with pytest.raises(FencedError, match="epoch 2 has taken over from 1"):
        first.renew(term)


def test_one_whose_lease_ran_out_may_go_on_until_somebody_takes_it(lease_of: Callable[..., Lease]) -> None:
    lease = lease_of("a", 0.05)
    term = taken(lease)
    time.sleep(0.1)
    lease.renew(term)


@pytest.mark.parametrize("action", [Lease.renew, Lease.release])
def test_a_fenced_trainer_can_neither_renew_nor_release(
    lease_of: Callable[..., Lease], action: Callable[[Lease, Term], None], redis_client: Redis, bank_name: str
) -> None:
    first, second = lease_of("a", 0.05), lease_of("b", 60.0)
    term = taken(first)
    time.sleep(0.1)
    taken(second)
    with pytest.raises(FencedError):
        action(first, term)
    assert isinstance(lease_of("c").acquire(), Held)


def test_a_redis_that_forgot_the_term_is_called_rewound(
    lease_of: Callable[..., Lease], redis_client: Redis, bank_name: str
) -> None:
    lease = lease_of("a")
    term = taken(lease)
    redis_client.delete(BankKeys(bank_name).lease)
    with pytest.raises(RewoundError):
        lease.renew(term)
    taken(lease_of("b"))
    with pytest.raises(RewoundError):
        lease.renew(term)  # the same epoch, but another trainer's


def test_owners_are_never_the_same() -> None:
    assert new_owner() != new_owner()


# -- the keeper


def test_the_keeper_renews_and_gives_back(lease_of: Callable[..., Lease]) -> None:
    lease = lease_of("a")
    with LeaseKeeper(lease, taken(lease), Telemetry()) as keeper:
        time.sleep(2 * TTL_S)
        assert isinstance(lease_of("b").acquire(), Held)
        keeper.check()
    assert taken(lease_of("b")).epoch == 2


def test_the_keeper_of_a_trainer_that_hangs_lets_the_lease_run_out(lease_of: Callable[..., Lease]) -> None:
    lease, hanging = lease_of("a"), Telemetry(Health(limit_s=-1.0))
    with LeaseKeeper(lease, taken(lease), hanging) as keeper:
        wait_until(lambda: isinstance(lease_of("b").acquire(), Term), "it was renewed")
        keeper.check()
    with pytest.raises(FencedError):
        lease.renew(Term(1, "a"))


def keeper_is_told(keeper: LeaseKeeper) -> bool:
    try:
        keeper.check()
    except FencedError:
        return True
    return False


def test_the_keeper_tells_of_a_lost_lease(lease_of: Callable[..., Lease]) -> None:
    lease = lease_of("a")
    with LeaseKeeper(lease, taken(lease), Telemetry()) as keeper:
        taken(lease_of("b"), by_force=True)
        wait_until(lambda: keeper_is_told(keeper), "the loss was never told")
    assert isinstance(lease_of("c").acquire(), Held), "what is not ours is not given back"


def test_the_keeper_bears_a_redis_that_is_away(lease_of: Callable[..., Lease], monkeypatch: pytest.MonkeyPatch) -> None:
    lease, telemetry = lease_of("a"), Telemetry()
    term = taken(lease)
    failures = [UnavailableError("away", "redis"), UnavailableError("away", "redis")]
    renew = lease.renew

    def sometimes(of: Term) -> None:
        if failures:
            raise failures.pop()
        renew(of)

    monkeypatch.setattr(lease, "renew", sometimes)
    with LeaseKeeper(lease, term, telemetry) as keeper:
        wait_until(lambda: not failures, "it gave up")
        assert "lease" in telemetry.health.reasons
        time.sleep(TTL_S)
        assert "lease" not in telemetry.health.reasons
        keeper.check()
        assert isinstance(lease_of("b").acquire(), Held)


# -- standing by


def standby(lease: Lease, redis: Redis, **changed: float) -> Standby:
    store = RedisStore(redis, lease._keys.bank)
    store.open(NETWORK)
    return Standby(lease, store, NETWORK, patience_s=changed.get("patience_s", 1.0), telemetry=Telemetry())


def test_a_standby_takes_over_once_the_lease_has_run_out(lease_of: Callable[..., Lease], redis_client: Redis) -> None:
    taken(lease_of("a"))
    assert standby(lease_of("b"), redis_client).wait(lambda: False) == Term(2, "b")


def test_a_standby_that_is_stopped_takes_nothing(lease_of: Callable[..., Lease], redis_client: Redis) -> None:
    taken(lease_of("a", 60.0))
    looks = iter([False, False, True])
    assert standby(lease_of("b"), redis_client).wait(lambda: next(looks)) is None


def test_a_standby_has_the_masks_loaded_before_its_turn(lease_of: Callable[..., Lease], redis_client: Redis) -> None:
    lease = lease_of("a", 60.0)
    store = RedisStore(redis_client, lease._keys.bank)
    store.open(NETWORK)
    store.begin(taken(lease), NETWORK)
    store.commit(plan_of(store.keys, 1, (0, 1, 2)), "1")
    waiting = standby(lease_of("b"), redis_client)
    looks = iter([False, True])
    waiting.wait(lambda: next(looks))
    assert sorted(waiting.warm.words) == [0, 1, 2]


def test_a_standby_gives_up_when_redis_is_away_for_too_long(
    lease_of: Callable[..., Lease], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = lease_of("b")
    waiting = standby(lease, redis_client, patience_s=0.2)

    def away(**_: bool) -> Term:
        raise UnavailableError("away", "redis")

    monkeypatch.setattr(lease, "acquire", away)
    with pytest.raises(UnavailableError):
        waiting.wait(lambda: False)


def test_a_mask_evicted_between_two_reads_does_not_end_the_wait(
    lease_of: Callable[..., Lease], redis_client: Redis
) -> None:
    lease = lease_of("a")
    taken(lease)
    redis_client.zadd(lease._keys.index, {"7": 1})  # named, and gone
    assert standby(lease_of("b"), redis_client).wait(lambda: False) == Term(2, "b")
