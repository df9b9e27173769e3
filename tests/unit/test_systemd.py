"""What a service manager hears, on real sockets."""

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.systemd import Notifier
from daemon.telemetry import Telemetry
from unit.test_health import Clock


class Manager:
    """The other end: a socket as systemd makes one."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0", 1))
        self.socket.settimeout(0)

    def heard(self) -> list[str]:
        """The datagrams since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"@supsup-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "notify")
    found = Manager(name)
    yield found
    found.socket.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notifier(manager: Manager, clock: Clock) -> Iterator[Notifier]:
    found = Notifier(manager.address, 60.0, clock=clock)
    yield found
    found.close()


def test_a_manager_hears_of_start_status_and_end(notifier: Notifier, manager: Manager) -> None:
    notifier.ready("leader")
    notifier.status("standby")
    notifier.stopping()
    assert manager.heard() == ["READY=1\nSTATUS=leader", "STATUS=standby", "STOPPING=1\nSTATUS=stopping"]


def test_the_watchdog_is_patted_twice_in_its_time_and_only_when_the_loop_comes_round(
    notifier: Notifier, manager: Manager, clock: Clock
) -> None:
    telemetry = Telemetry(manager=notifier)
    for _ in range(121):
        telemetry.beat()
        clock.now += 1
    assert manager.heard() == ["WATCHDOG=1"] * 5, "at 0, 30, 60, 90 and 120 seconds"
    clock.now += 300
    assert manager.heard() == [], "no beat, no pat"
    telemetry.beat()
    assert manager.heard() == ["WATCHDOG=1"]


def test_the_environment_says_who_is_to_be_told(manager: Manager) -> None:
    mine = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}
    for changed, pats in (({}, 1), ({"WATCHDOG_PID": "1"}, 0), ({"WATCHDOG_USEC": ""}, 0), ({"WATCHDOG_USEC": "x"}, 0)):
        notifier = Notifier.from_environment(mine | changed)
        notifier.pat()
        notifier.close()
        assert manager.heard() == ["WATCHDOG=1"] * pats, changed


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1234"}])
def test_without_a_manager_nothing_is_said(environment: dict[str, str]) -> None:
    notifier = Notifier.from_environment(environment)
    notifier.ready("leader")
    notifier.pat()
    notifier.close()


def test_a_manager_that_is_gone_or_does_not_read_holds_up_nobody(notifier: Notifier, manager: Manager) -> None:
    for _ in range(10_000):  # more than any queue takes
        notifier.status("x" * 100)
    manager.heard()
    manager.socket.close()
    notifier.status("is anybody there?")
