"""Alive, ready, and the file that says so."""

import os
import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.errors import ConfigError
from daemon.health import AliveFile, Health


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """What it shows, seconds."""
        return self.now


def test_a_process_that_starts_is_alive_and_not_ready_however_long_it_takes() -> None:
    clock = Clock()
    health = Health(30, clock=clock)
    clock.now += 1000
    assert (health.alive, health.age_s, health.ready) == (True, 0.0, False)
    assert list(health.reasons) == ["starting"]


def test_the_age_is_that_of_the_newest_beat() -> None:
    clock = Clock()
    health = Health(30, clock=clock)
    health.beat()
    clock.now += 20
    assert health.age_s == 20
    health.beat()
    assert health.age_s == 0


def test_a_loop_without_a_beat_for_longer_than_the_limit_is_stuck_and_recovers_with_the_next() -> None:
    clock = Clock()
    health = Health(30, clock=clock)
    health.role = "leader"
    health.beat()
    clock.now += 30
    assert health.alive, "the limit itself is still allowed"
    clock.now += 1
    assert not health.alive
    assert health.reasons == {"stuck": "the poll loop came round 31.0 s ago, more than 30 s"}
    health.beat()
    assert health.alive
    assert health.ready


@pytest.mark.parametrize(("role", "ready"), [("starting", False), ("standby", False), ("leader", True)])
def test_only_a_leader_is_ready(role: str, ready: bool) -> None:
    health = Health()
    health.role = role  # type: ignore[assignment]
    assert health.alive
    assert health.ready is ready
    assert list(health.reasons) == ([] if ready else [role])


def test_every_reason_is_told_until_it_is_cleared() -> None:
    health = Health()
    health.role = "leader"
    health.hold("redis", "out of memory")
    health.hold("kafka", "away")
    health.hold("redis", "read-only")
    assert health.reasons == {"redis": "read-only", "kafka": "away"}
    health.clear("redis")
    health.clear("redis")
    assert health.reasons == {"kafka": "away"}
    health.clear("kafka")
    assert health.ready


def test_a_dependency_that_is_away_does_not_make_a_process_dead() -> None:
    health = Health()
    health.beat()
    health.hold("redis", "away")
    assert health.alive


def test_the_alive_file_is_touched_at_most_once_a_second(tmp_path: Path) -> None:
    clock, path = Clock(), tmp_path / "alive"
    alive = AliveFile(path, clock=clock)
    assert path.exists()
    os.utime(path, (0, 0))
    alive.touch()
    assert path.stat().st_mtime > 0
    os.utime(path, (0, 0))
    clock.now += 0.9
    alive.touch()
    assert path.stat().st_mtime == 0
    clock.now += 0.2
    alive.touch()
    assert path.stat().st_mtime > 0


def test_an_alive_file_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--alive-file \(SUPSUP_ALIVE_FILE\) .*name a file in a directory that exists"
    ):
        AliveFile(tmp_path / "missing" / "alive")


def test_an_alive_file_that_cannot_be_touched_later_is_told_once_and_harms_nothing(tmp_path: Path) -> None:
    clock, directory = Clock(), tmp_path / "run"
    directory.mkdir()
    alive = AliveFile(directory / "alive", clock=clock)
    (directory / "alive").unlink()
    directory.rmdir()
    with capture_logs() as lines:
        for _ in range(3):
            clock.now += 2
            alive.touch()
    assert [line["event"] for line in lines] == ["alive_file.failed"]
    directory.mkdir()
    clock.now += 2
    alive.touch()
    assert stat.S_ISREG((directory / "alive").stat().st_mode)
