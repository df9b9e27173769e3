"""The lock that gives a state directory to one process at a time."""

import fcntl
import os
import time
from pathlib import Path

from daemon.errors import EmbeddedError

_POLL_S = 0.02


class DirectoryLock:
    """An exclusive lock on a state directory, shared with the servers started under it.

    The guards and servers inherit the descriptor, so after kill -9 of the owner the directory becomes free when its
    last server has gone, and never earlier: two Redis servers on one append-only file would destroy it.

    Args:
        directory: The directory to lock; made if it is missing.
        orphan_timeout_s: How long to wait for the servers of an owner that has died.
    """

    def __init__(self, directory: Path, *, orphan_timeout_s: float = 10.0) -> None:
        self.directory = directory
        self._orphan_timeout_s = orphan_timeout_s
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            EmbeddedError: Another process holds it, or the directory cannot be written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise EmbeddedError(f"cannot use {self.directory} for the embedded servers: {error}") from error
        deadline = time.monotonic() + self._orphan_timeout_s
        while not _try_lock(descriptor):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            if _is_alive(holder) or time.monotonic() > deadline:
                os.close(descriptor)
                raise EmbeddedError(
                    f"{self.directory} is in use by process {holder or 'unknown'}: stop it or choose another directory"
                )
            time.sleep(_POLL_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go; the lock itself ends with its last holder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def fileno(self) -> int:
        """The descriptor for a child to inherit."""
        if self._descriptor is None:
            raise ValueError(f"the lock on {self.directory} is not held")
        return self._descriptor


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's process
    return True
