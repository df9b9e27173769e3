"""A bank out of Redis and into it, against a real Redis: all of one moment, and all of it or nothing."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
import torch
from redis import Redis
from redis.client import Pipeline

from daemon import bank_transfer
from daemon.bank_check import BankSummary
from daemon.bank_transfer import Imported, Snapshots, check, check_entries, put
from daemon.cli_bank import describe
from daemon.errors import BankMismatchError, ConfigError, FencedError, RewoundError, UnavailableError
from daemon.lease import Lease, Term
from daemon.redis_keys import BankKeys
from daemon.redis_store import BankReader, CommitPlan, EventTail, RedisStore, WarmMasks
from daemon_process import clean_environment, here
from supsup_online import codec
from supsup_online.bank_file import BankFile, decode_fields, write_bank
from supsup_online.learner import OnlineLearner
from supsup_online.optimisers import SGD, OptimiserState
from supsup_online.stats import MaskStats
from supsup_online.trainer import HotMask
from unit import tiny

pytestmark = pytest.mark.integration

NETWORK = tiny.network()
MASKS = tiny.random_masks(NETWORK, 16)
OPTIMISER = SGD()


def writer(redis: Redis, bank: str, owner: str = "trainer") -> tuple[RedisStore, Lease]:
    """A store that has taken over the bank, and its lease."""
    store = RedisStore(redis, bank)
    store.open(NETWORK)
    lease = Lease(redis, store.keys, owner, 10.0)
    term = lease.acquire(by_force=True)
    assert isinstance(term, Term)
    store.begin(term, NETWORK)
    return store, lease


def commit(store: RedisStore, number: int, changed: list[int], removed: tuple[int, ...] = ()) -> int:
    """A commit in which everything says `number`; the masks that it changes are hot."""
    keys, plan = store.keys, CommitPlan(changed=changed, removed=list(removed))
    for mask_id in changed:
        plan.write("SET", keys.mask(mask_id), codec.encode_mask(NETWORK, MASKS[number % 16]))
        plan.hset(keys.stats(mask_id), {**MaskStats(batches=number).to_text(), "density": 0.5})
        scores = torch.full((NETWORK.architecture.weight_count,), float(number))
        hot = HotMask(scores, OptimiserState(number, [scores]))
        plan.write("SET", keys.state(mask_id), codec.encode_hot(NETWORK, OPTIMISER, hot))
    for mask_id in removed:
        for key in (keys.mask(mask_id), keys.stats(mask_id), keys.state(mask_id)):
            plan.write("DEL", key)
    plan.hset(keys.totals, {"records": number, "next_id": 1 + max(number, *changed)})
    plan.hset(keys.progress("t", 0), {"offset": number, "log": "log"})
    return store.commit(plan, store.term.commit_id(number))


def everything(redis: Redis, bank: str) -> dict[bytes, bytes]:
    return {key: redis.dump(key) for key in redis.scan_iter(match=f"supsup:{{{bank}}}:*", count=1000)}


def contents(redis: Redis, bank: str) -> dict[str, object]:
    """Name behind the prefix -> bytes, of all that its stream determines."""
    prefix = f"supsup:{{{bank}}}:"
    by_process = {"version", "index", "lease", "events"}
    names = {key.decode().removeprefix(prefix): key for key in redis.scan_iter(match=f"{prefix}*", count=1000)}
    return {
        name: redis.hgetall(key) if redis.type(key) == b"hash" else redis.get(key)
        for name, key in names.items()
        if name not in by_process
    }


@pytest.fixture
def stored(redis_client: Redis, bank_name: str) -> tuple[RedisStore, Lease]:
    """A bank of three masks after three commits, its trainer gone."""
    store, lease = writer(redis_client, bank_name)
    for number in range(1, 4):
        commit(store, number, [number])
    lease.release(store.term)
    return store, lease


@pytest.fixture
def other_name(redis_client: Redis, bank_name: str) -> Iterator[str]:
    """The name of another bank, which is not there yet."""
    yield f"{bank_name}-other"
    if keys := list(redis_client.scan_iter(match=f"supsup:{{{bank_name}-other}}:*", count=1000)):
        redis_client.delete(*keys)


def taken(redis: Redis, bank: str) -> tuple[dict[str, bytes], BankSummary]:
    entries = Snapshots(BankReader(redis, bank)).take()
    return entries, check_entries(entries)


def imported(redis: Redis, bank: str, what: tuple[dict[str, bytes], BankSummary], *, replace: bool = False) -> Imported:
    return put(redis, BankKeys(bank), *what, replace=replace)


# -- out of Redis


def test_a_snapshot_has_all_that_the_stream_determines(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    entries, summary = taken(redis_client, store.keys.bank)
    held = contents(redis_client, store.keys.bank)
    assert {
        n: p if n.startswith(("mask", "state")) else decode_fields(p) for n, p in entries.items() if n != "bank"
    } == held
    assert decode_fields(entries["bank"]) == {b"name": store.keys.bank.encode(), b"version": b"3", b"epoch": b"1"}
    assert (summary.masks, summary.hot, summary.positions) == (3, 3, {"t:0": 3})


def test_a_bank_without_any_commit_can_be_taken_and_put(redis_client: Redis, bank_name: str, other_name: str) -> None:
    RedisStore(redis_client, bank_name).open(NETWORK)
    done = imported(redis_client, other_name, taken(redis_client, bank_name))
    assert (done.version, done.epoch) == (1, 1)
    assert contents(redis_client, other_name) == contents(redis_client, bank_name)


def test_a_snapshot_is_of_one_moment_although_a_trainer_commits_meanwhile(redis_client: Redis, bank_name: str) -> None:
    store, _ = writer(redis_client, bank_name)
    for number in range(1, 200):
        commit(store, number, [number])
    stop, numbers = threading.Event(), random.Random(0)

    def train() -> None:
        number = 200
        while not stop.wait(0.002):  # a trainer also trains
            removed = (number // 3 - 66,) if number % 3 == 0 and number < 490 else ()
            commit(store, number, [numbers.randrange(100, 200), 180 + number // 10], removed)
            number += 1

    thread = threading.Thread(target=train)
    thread.start()
    try:
        with Redis.from_url(_url(redis_client)) as client:
            snapshots = [taken(client, bank_name) for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert len({summary.version for _, summary in snapshots}) > 1, "nothing was committed meanwhile"
    for entries, summary in snapshots:
        assert summary.version == summary.totals["records"] == summary.positions["t:0"]
        for name, payload in entries.items():
            if name.startswith("stats:"):  # each mask is of the commit that its statistics are of
                number = int(decode_fields(payload)[b"batches"])
                mask_id = int(name.removeprefix("stats:"))
                assert number <= summary.version
                assert entries[f"mask:{mask_id}"] == codec.encode_mask(NETWORK, MASKS[number % 16])
                state = codec.decode_hot(NETWORK, OPTIMISER, entries[f"state:{mask_id}"])
                assert state is not None
                assert state.optimiser.step == number


def _url(client: Redis) -> str:
    where = client.connection_pool.connection_kwargs
    return f"redis://{where['host']}:{where['port']}/{where.get('db', 0)}"


class Meddler(BankReader):
    """A reader at whose side something happens between two of its reads."""

    def __init__(self, client: Redis, bank: str, meddle: Callable[[int], object]) -> None:
        super().__init__(client, bank)
        self.calls, self.meddle = 0, meddle
        real = client.pipeline

        def pipeline(**options: object) -> object:
            self.calls += 1
            meddle(self.calls)
            return real(**options)

        self.client = _With(client, pipeline)


class _With:
    def __init__(self, client: Redis, pipeline: Callable[..., object]) -> None:
        self._client, self.pipeline = client, pipeline

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)


def test_what_changes_between_two_reads_is_read_again(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    steps = {
        1: lambda: commit(store, 4, [1]),  # before the masks are read
        2: lambda: commit(store, 5, [2, 9], (1,)),  # after them: a mask changed, one new, one evicted
        3: lambda: redis_client.hset(store.keys.progress("t", 1), "offset", 5),  # a partition appears
    }
    reader = Meddler(redis_client, store.keys.bank, lambda call: steps.get(call, lambda: None)())
    entries = Snapshots(reader).take()
    assert check_entries(entries).version == 5
    held = contents(redis_client, store.keys.bank)
    assert {
        n: p if n.startswith(("mask", "state")) else decode_fields(p) for n, p in entries.items() if n != "bank"
    } == held


def test_masks_read_before_redis_lost_commits_are_read_again(
    stored: tuple[RedisStore, Lease], redis_client: Redis
) -> None:
    store, _ = stored
    before = {key: redis_client.dump(key) for key in everything(redis_client, store.keys.bank)}

    def meddle(call: int) -> None:
        if call == 2:  # the masks are read, the rest is not
            commit(store, 4, [1])
        if call == 3:  # it was noticed, and is about to be read again
            for key, value in before.items():
                redis_client.restore(key, 0, value, replace=True)
            redis_client.set(store.keys.mask(2), codec.encode_mask(NETWORK, MASKS[7]))

    entries = Snapshots(Meddler(redis_client, store.keys.bank, meddle)).take()
    assert check_entries(entries).version == 3
    assert entries["mask:2"] == codec.encode_mask(NETWORK, MASKS[7])


def test_a_bank_that_never_rests_is_given_up_with_advice(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    reader = Meddler(redis_client, store.keys.bank, lambda call: commit(store, 3 + call, [100 * call]))
    with pytest.raises(UnavailableError, match="changed faster than it could be read"):
        Snapshots(reader).take()


@pytest.mark.parametrize("kind", ["mask", "stats"])
def test_what_the_index_names_must_be_there(stored: tuple[RedisStore, Lease], redis_client: Redis, kind: str) -> None:
    store, _ = stored
    redis_client.delete(getattr(store.keys, kind)(2))
    with pytest.raises(BankMismatchError, match=rf"{kind}:2 is missing although the bank's index names it"):
        Snapshots(store).take()


def test_a_bank_that_is_not_there_cannot_be_taken(redis_client: Redis, bank_name: str) -> None:
    with pytest.raises(BankMismatchError, match="there is no bank"):
        Snapshots(BankReader(redis_client, bank_name)).take()


# -- into Redis


def test_a_bank_put_under_another_name_holds_the_same(
    stored: tuple[RedisStore, Lease], redis_client: Redis, other_name: str
) -> None:
    store, _ = stored
    done = imported(redis_client, other_name, taken(redis_client, store.keys.bank))
    assert (done.version, done.epoch, done.replaced) == (4, 2, 0)
    assert contents(redis_client, other_name) == contents(redis_client, store.keys.bank)
    reader = BankReader(redis_client, other_name)
    assert reader.changes() == {1: 4, 2: 4, 3: 4}
    (event,) = EventTail(reader).read()
    assert event.pop("id")
    assert event == {"version": "4", "type": "import", "bank": store.keys.bank, "from": "3", "masks": "3"}
    assert describe(event) == f"imported 3 masks of bank {store.keys.bank} at version 3"
    assert reader.lease().keys() == {"epoch", "owner", "since", "expires_ms", "commit", "version"}


def test_a_trainer_takes_over_an_imported_bank_at_once(
    stored: tuple[RedisStore, Lease], redis_client: Redis, other_name: str
) -> None:
    imported(redis_client, other_name, taken(redis_client, stored[0].keys.bank))
    store = RedisStore(redis_client, other_name)
    store.open(NETWORK)
    term = Lease(redis_client, store.keys, "new", 10.0).acquire()
    assert isinstance(term, Term)
    assert term.epoch == 3
    store.begin(term, NETWORK)
    loaded = store.load(NETWORK, OPTIMISER)
    OnlineLearner(NETWORK, tiny.SETTINGS).restore(loaded.masks, loaded.stats, loaded.hot, steps=0, next_id=9)
    assert commit(store, 4, [1]) == 5


def test_a_bank_that_exists_is_only_replaced_when_asked(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    what, before = taken(redis_client, store.keys.bank), everything(redis_client, store.keys.bank)
    with pytest.raises(ConfigError, match="is in this Redis already: --replace it"):
        imported(redis_client, store.keys.bank, what)
    assert everything(redis_client, store.keys.bank) == before


def test_a_replaced_bank_leaves_nothing_behind_but_its_events(
    stored: tuple[RedisStore, Lease], redis_client: Redis
) -> None:
    store, lease = stored
    what, before = taken(redis_client, store.keys.bank), contents(redis_client, store.keys.bank)
    term = lease.acquire()
    assert isinstance(term, Term)
    store.begin(term, NETWORK)
    commit(store, 4, [1, 50], (2,))
    redis_client.hset(store.keys.progress("u", 0), "offset", 1)
    lease.release(term)
    warm = WarmMasks()
    warm.refresh(store, NETWORK)
    done = imported(redis_client, store.keys.bank, what, replace=True)
    assert contents(redis_client, store.keys.bank) == before
    assert (done.version, done.epoch) == (5, 3)
    warm.refresh(store, NETWORK)  # a follower comes to hold the same
    assert sorted(warm.words) == [1, 2, 3]
    assert all((warm.words[i] == MASKS[i]).all() for i in (1, 2, 3))
    assert EventTail(store).read()[-1]["type"] == "import"


def test_a_bank_whose_trainer_lives_is_left_alone(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, lease = stored
    what = taken(redis_client, store.keys.bank)
    lease.acquire()
    before = everything(redis_client, store.keys.bank)
    with pytest.raises(FencedError, match="trainer trainer holds bank"):
        imported(redis_client, store.keys.bank, what, replace=True)
    assert everything(redis_client, store.keys.bank) == before


def test_a_lease_alone_is_no_bank(stored: tuple[RedisStore, Lease], redis_client: Redis, other_name: str) -> None:
    redis_client.hset(BankKeys(other_name).lease, mapping={"epoch": 70, "owner": "of old"})
    done = imported(redis_client, other_name, taken(redis_client, stored[0].keys.bank))
    assert done.epoch == 71


def test_no_old_trainer_can_write_on(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    what = taken(redis_client, store.keys.bank)
    imported(redis_client, store.keys.bank, what, replace=True)
    before = everything(redis_client, store.keys.bank)
    with pytest.raises(FencedError):
        commit(store, 4, [1])
    # And in a Redis that was emptied, where its epoch is the higher one.
    redis_client.delete(*everything(redis_client, store.keys.bank))
    store.term = Term(50, "trainer")
    imported(redis_client, store.keys.bank, what)
    with pytest.raises(RewoundError):
        commit(store, 4, [1])
    assert everything(redis_client, store.keys.bank).keys() == before.keys()


def test_a_bank_of_another_spec_is_not_replaced(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    what = taken(redis_client, store.keys.bank)
    redis_client.hset(store.keys.spec, "weight_seed", 8)
    with pytest.raises(BankMismatchError, match="weight_seed: 7, 8"):
        imported(redis_client, store.keys.bank, what, replace=True)
    redis_client.hset(store.keys.spec, "weight_seed", "damaged")  # nobody can read that one
    imported(redis_client, store.keys.bank, what, replace=True)
    assert store.spec() == NETWORK.spec


@contextmanager
def meddling(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[], object]) -> Iterator[None]:
    """Something happens after the bank was looked at, and before it is written."""
    real = bank_transfer._queue

    def queue(*arguments: object) -> None:
        meddle()
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(bank_transfer, "_queue", queue)
        yield


def test_a_trainer_that_starts_at_the_same_moment_wins(
    stored: tuple[RedisStore, Lease], redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, lease = stored
    what, before = taken(redis_client, store.keys.bank), contents(redis_client, store.keys.bank)
    with (
        meddling(monkeypatch, lease.acquire),
        pytest.raises(FencedError, match="at the same moment; nothing was imported"),
    ):
        imported(redis_client, store.keys.bank, what, replace=True)
    assert contents(redis_client, store.keys.bank) == before


@pytest.mark.parametrize("arrived", [True, False])
def test_a_lost_reply_is_asked_for_again(
    stored: tuple[RedisStore, Lease], redis_client: Redis, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    store, _ = stored
    what, real = taken(redis_client, store.keys.bank), Pipeline.execute

    def execute(pipe: Pipeline) -> object:
        if arrived:
            real(pipe)
        raise redis.ConnectionError("connection reset")

    before = everything(redis_client, store.keys.bank)
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "execute", execute)
        if arrived:
            assert imported(redis_client, store.keys.bank, what, replace=True).version == 4
        else:
            with pytest.raises(UnavailableError, match="connection reset"):
                imported(redis_client, store.keys.bank, what, replace=True)
    assert store.version() == (4 if arrived else 3)
    assert arrived or everything(redis_client, store.keys.bank) == before


def test_a_redis_that_is_full_takes_nothing(stored: tuple[RedisStore, Lease], redis_client: Redis) -> None:
    store, _ = stored
    what, before = taken(redis_client, store.keys.bank), everything(redis_client, store.keys.bank)
    limit = redis_client.config_get("maxmemory")["maxmemory"]
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(UnavailableError, match="Redis does not take it"):
            imported(redis_client, store.keys.bank, what, replace=True)
    finally:
        redis_client.config_set("maxmemory", limit)
    assert everything(redis_client, store.keys.bank) == before


# -- the commands


@pytest.fixture
def file(stored: tuple[RedisStore, Lease], redis_client: Redis, tmp_path: Path) -> Path:
    """The stored bank as a file."""
    path = tmp_path / "a.bank"
    with path.open("wb") as target:
        write_bank(target, taken(redis_client, stored[0].keys.bank)[0])
    return path


def test_export_makes_a_file_that_verify_and_import_take(
    stored: tuple[RedisStore, Lease], redis_client: Redis, redis_url: str, other_name: str, tmp_path: Path
) -> None:
    bank, path = stored[0].keys.bank, tmp_path / "b.bank"
    ended = here("bank", "export", path, f"--redis={redis_url}", f"--bank={bank}", "--json")
    assert (ended.code, ended.json["file"], ended.json["bytes"]) == (0, str(path), path.stat().st_size)
    with path.open("rb") as source:
        assert check(BankFile(source)).masks == 3
    assert "fingerprint=" in here("bank", "verify", path).stdout
    verified = here("bank", "verify", path, "--json").json
    assert verified == ended.json
    done = here("bank", "import", path, f"--redis={redis_url}", "--json", SUPSUP_BANK=other_name)
    assert done.json == {
        **{name: value for name, value in verified.items() if name != "bytes"},
        "imported_as": other_name,
        "new_version": 4,
        "new_epoch": 2,
    }
    assert contents(redis_client, other_name) == contents(redis_client, bank)
    assert here("bank", "import", path, f"--redis={redis_url}").code == 2
    assert here("bank", "import", path, f"--redis={redis_url}", "--replace").code == 0


def test_export_writes_to_a_pipe_the_bytes_that_it_writes_to_a_file(
    stored: tuple[RedisStore, Lease], redis_url: str, file: Path
) -> None:
    where = [f"--redis={redis_url}", f"--bank={stored[0].keys.bank}"]
    command = [sys.executable, "-m", "daemon", "bank", "export", "-", *where]
    ended = subprocess.run(command, capture_output=True, timeout=90, env=clean_environment(), check=True)
    assert ended.stdout == file.read_bytes()
    stored_now, from_file = (here("bank", "verify", *which, "--json").json for which in (where, [file]))
    assert from_file == {"file": str(file), "bytes": len(ended.stdout)} | stored_now


def test_export_does_not_overwrite_unless_forced_and_leaves_no_pieces(
    stored: tuple[RedisStore, Lease], redis_url: str, tmp_path: Path
) -> None:
    where = [f"--redis={redis_url}", f"--bank={stored[0].keys.bank}"]
    path = tmp_path / "b.bank"
    path.write_text("something of value")
    ended = here("bank", "export", path, *where)
    assert (ended.code, path.read_text()) == (2, "something of value")
    assert "--force" in ended.stderr
    assert here("bank", "export", path, *where, "--force").code == 0
    assert here("bank", "verify", path).code == 0
    assert list(tmp_path.iterdir()) == [path]


def test_an_export_that_fails_leaves_what_was_there(
    stored: tuple[RedisStore, Lease], redis_client: Redis, redis_url: str, tmp_path: Path
) -> None:
    redis_client.set(stored[0].keys.mask(2), b"overwritten")
    path = tmp_path / "b.bank"
    path.write_text("the backup of yesterday")
    ended = here("bank", "export", path, f"--redis={redis_url}", f"--bank={stored[0].keys.bank}", "--force")
    assert ended.code == 65
    assert path.read_text() == "the backup of yesterday"
    missing = here("bank", "export", tmp_path / "no" / "b.bank", f"--redis={redis_url}", "--bank=none")
    assert missing.code == 65
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_told(stored: tuple[RedisStore, Lease], redis_url: str, tmp_path: Path) -> None:
    where = [f"--redis={redis_url}", f"--bank={stored[0].keys.bank}"]
    ended = here("bank", "export", tmp_path / "no" / "b.bank", *where)
    assert ended.code == 2
    assert "cannot be written" in ended.stderr


def test_a_damaged_file_is_refused_and_nothing_is_written(
    file: Path, redis_client: Redis, redis_url: str, other_name: str
) -> None:
    good, numbers = file.read_bytes(), random.Random(1)
    cuts = [good[: numbers.randrange(len(good))] for _ in range(10)]
    flips = []
    for _ in range(10):
        blob = bytearray(good)
        blob[numbers.randrange(len(blob))] ^= 1 << numbers.randrange(8)
        flips.append(bytes(blob))
    for blob in (*cuts, *flips, good + b"\0", b""):
        file.write_bytes(blob)
        for command in (["import", file, f"--redis={redis_url}", f"--bank={other_name}"], ["verify", file]):
            ended = here("bank", *command)
            assert (ended.code, ended.stdout) == (65, "")
            assert "error: " in ended.stderr
            assert str(file) in ended.stderr
    assert everything(redis_client, other_name) == {}


def test_a_file_of_other_weights_is_refused_and_nothing_is_written(
    file: Path, redis_client: Redis, redis_url: str, other_name: str
) -> None:
    with file.open("rb") as source:
        entries = dict(BankFile(source).payloads())
    entries["spec"] = entries["spec"].replace(NETWORK.fingerprint.encode(), b"0" * 64)
    with file.open("wb") as target:
        write_bank(target, entries)
    ended = here("bank", "import", file, f"--redis={redis_url}", f"--bank={other_name}")
    assert ended.code == 65
    assert "its masks mean nothing here" in ended.stderr
    assert everything(redis_client, other_name) == {}


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda redis, keys: redis.set(keys.mask(2), b"x"), "mask:2"),
        (lambda redis, keys: redis.setrange(keys.state(2), 100, b"x"), "state:2: hot state: the checksum"),
        (lambda redis, keys: redis.hdel(keys.stats(2), "loss"), "stats:2: stored statistics are damaged"),
        (lambda redis, keys: redis.hset(keys.spec, "weight_seed", 1), "spec: weights regenerated from seed 1"),
        (lambda redis, keys: redis.hset(keys.totals, "next_id", 0), "totals: next_id"),
        (lambda redis, keys: redis.hset(keys.progress("t", 0), "stream:x", "{"), "progress:t:0"),
        (lambda redis, keys: redis.delete(keys.mask(2)), "mask:2 is missing"),
        (lambda redis, keys: (redis.delete(keys.stats(2)), redis.set(keys.stats(2), "x")), "another type"),
    ],
)
def test_verify_finds_damage_in_redis(
    stored: tuple[RedisStore, Lease],
    redis_client: Redis,
    redis_url: str,
    damage: Callable[[Redis, BankKeys], object],
    complaint: str,
) -> None:
    where = [f"--redis={redis_url}", f"--bank={stored[0].keys.bank}"]
    assert here("bank", "verify", *where).code == 0
    damage(redis_client, stored[0].keys)
    ended = here("bank", "verify", *where)
    assert (ended.code, ended.stdout) == (65, "")
    assert complaint in ended.stderr
