"""A Redis killed in the middle of writing a commit to its file, twice: no half of it may ever take effect."""

import os
import signal
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from structlog.testing import capture_logs

from contract.test_redis_store import NETWORK, plan_of, writer
from daemon import redis_restart
from daemon.embedded import EmbeddedRedis
from daemon.errors import BankMismatchError
from daemon.redis_store import CommitPlan
from supsup_online.optimisers import OptimiserChoice

pytestmark = pytest.mark.integration

BANK = "torn"


class Crashing:
    """A Redis that is killed and started again on the same data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = EmbeddedRedis(directory)
        self.server.start()

    @property
    def file(self) -> Path:
        """The append-only file."""
        return self.directory / "redis" / "appendonly.aof"

    def crash(self, *, lost: int = 0) -> None:
        """Kill it, let it lose so many bytes of its file's end, start it again."""
        os.kill(self.server.pid, signal.SIGKILL)
        self.server.stop()
        if lost:
            os.truncate(self.file, self.file.stat().st_size - lost)
        self.server = EmbeddedRedis(self.directory)
        self.server.start()

    def client(self) -> Redis:
        """A client of the process that runs now."""
        return Redis.from_url(self.server.url)


def stored(client: Redis) -> dict[bytes, bytes | None]:
    """What commits write, apart from what tells of terms and versions."""
    keys = [key for key in client.keys("supsup:*") if not key.endswith((b":lease", b":events", b":version"))]
    return {key: client.dump(key) for key in keys}


def torn(directory: Path) -> tuple[dict[bytes, bytes | None], dict[bytes, bytes | None]]:
    """What is stored before and after a crash that follows a crash in the middle of a commit."""
    redis = Crashing(directory)
    try:
        with redis.client() as client:
            store = writer(client, BANK, "first")
            store.commit(plan_of(store.keys, 1, (0, 1)), store.term.commit_id(1))
            size = redis.file.stat().st_size
            store.commit(plan_of(store.keys, 2, (0, 1, 2)), store.term.commit_id(2))
            written = redis.file.stat().st_size - size
        redis.crash(lost=written // 2)  # in the middle of it
        with redis.client() as client:
            store = writer(client, BANK, "second")
            store.commit(CommitPlan(), store.term.commit_id(3))
            before = stored(client)
        redis.crash()
        with redis.client() as client:
            return before, stored(client)
    finally:
        redis.server.stop()


def test_half_of_a_commit_does_not_come_back(tmp_path: Path) -> None:
    before, after = torn(tmp_path)
    assert after == before
    assert not any(b"mask:2" in key for key in after)


def test_it_would_if_the_file_were_not_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_restart, "_write_anew", lambda _: None)
    before, after = torn(tmp_path)
    if after == before:
        pytest.skip("this Redis does not tear transactions")
    assert after.keys() > before.keys() or any(after[key] != before[key] for key in before)


def test_a_bank_with_a_part_of_a_commit_is_refused(redis_client: Redis, bank_name: str) -> None:
    store = writer(redis_client, bank_name, "first")
    store.commit(CommitPlan(), store.term.commit_id(1))
    optimiser = OptimiserChoice().build()
    store.load(NETWORK, optimiser)
    redis_client.incr(store.keys.version)  # the first write of the next commit, and no more of it
    with pytest.raises(BankMismatchError, match="at version 2, but its newest whole commit is 1"):
        store.load(NETWORK, optimiser)


def test_a_redis_that_was_not_restarted_is_left_alone(redis_client: Redis, bank_name: str) -> None:
    first = writer(redis_client, bank_name, "first")
    with capture_logs() as lines:
        second = writer(redis_client, bank_name, "second")
    assert second.lease()["server"] == first.lease()["server"] == redis_client.info("server")["run_id"]
    assert "redis.file_written_anew" not in [line["event"] for line in lines]


def test_a_user_who_may_not_ask_is_told_and_goes_on() -> None:
    class Locked:
        """Refuses INFO."""

        def info(self, _: str) -> dict[str, str]:
            """No."""
            raise NoPermissionError("this user has no permissions to run the 'info' command")

    with capture_logs() as lines:
        assert redis_restart.settle(Locked(), "known") == "known"
    assert [line["event"] for line in lines] == ["redis.file_not_written_anew"]


def test_after_trouble_a_commit_looks_whether_redis_was_restarted(tmp_path: Path) -> None:
    redis = Crashing(tmp_path)
    try:
        store = writer(redis.client(), BANK, "first")
        store.commit(plan_of(store.keys, 1), store.term.commit_id(1))
        before = store.lease()["server"]
        redis.crash()
        store.client = redis.client()
        store._script = store.client.register_script(store._script.script)
        store._troubled = True
        with capture_logs() as lines:
            store.commit(plan_of(store.keys, 2), store.term.commit_id(2))
        assert [line["event"] for line in lines] == ["redis.file_written_anew"]
        assert store._server != before
    finally:
        redis.server.stop()
