"""What a service manager is told: ready, stopping, a line of status, and that the loop still goes round.

The protocol is that of sd_notify(3): datagrams of `NAME=value` lines to the socket named in `NOTIFY_SOCKET`. Without
that variable everything here is silent. The watchdog is patted by the loop's own beat and by nothing else, so a loop
that hangs, or a process that is stopped, is not patted for.
"""

import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Self


class Notifier:
    """Datagrams to a service manager.

    Args:
        address: path of its socket, or `@name` for one in the abstract namespace; empty: say nothing.
        watchdog_s: seconds without a pat after which it ends the process; 0: it has no watchdog.
        clock: seconds.
    """

    def __init__(
        self, address: str = "", watchdog_s: float = 0.0, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = address.replace("@", "\0", 1) if address.startswith("@") else address
        self._pat_every_s = watchdog_s / 2
        self._clock = clock
        self._patted = float("-inf")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if address.startswith(("/", "@")) else None
        if self._socket is not None:
            self._socket.settimeout(0)  # a manager that does not read must not hold up the loop

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """The manager that started this process, if one did and asked to be told."""
        watched = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if watched else ""
        return cls(environment.get("NOTIFY_SOCKET", ""), int(microseconds) / 1e6 if microseconds.isdigit() else 0.0)

    def ready(self, status: str) -> None:
        """Starting is over; `status` is a line for people. The watchdog counts from here."""
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """A line for people."""
        self._send(f"STATUS={text}")

    def stopping(self) -> None:
        """The process is about to end on purpose."""
        self._send("STOPPING=1\nSTATUS=stopping")

    def pat(self) -> None:
        """The loop has come round: tell the watchdog, at most twice in its time."""
        now = self._clock()
        if self._pat_every_s and now - self._patted >= self._pat_every_s:
            self._patted = now
            self._send("WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; nothing is told any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # a manager that is gone, or busy, is no reason to stop training
                self._socket.sendto(message.encode(), self._address)
