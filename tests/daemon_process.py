"""Trainers and replicas in processes of their own, started as a person would start them, and what they say."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import structlog

from daemon import cli

# A network that trains a batch in a millisecond; `streams` makes the data that goes with it.
SMALL = ("--arch=mlp-32-16", "--input-shape=8x8", "--classes=4", "--outputs=20", "--learning-rate=0.01", "--threads=1")

_POLL_S = 0.02


def clean_environment(**variables: str) -> dict[str, str]:
    """The tests' environment without any setting of the daemon, and with these variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SUPSUP_")} | variables


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document and nothing else."""
        return json.loads(self.stdout)


def run(
    *arguments: object, stdin: str = "", timeout_s: float = 90.0, environment: dict[str, str] | None = None
) -> Ended:
    """`supsup-daemon ARGUMENTS` to its end, in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "daemon", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=clean_environment(**(environment or {})),
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def here(*arguments: object, stdin: str = "", **variables: str) -> Ended:
    """`supsup-daemon ARGUMENTS` through its entry point, but in this process: a start costs no five seconds."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with (
        patch.object(sys, "argv", ["supsup-daemon", *map(str, arguments)]),
        patch.object(sys, "stdin", io.StringIO(stdin)),
        patch.dict(os.environ, clean_environment(**variables), clear=True),
        redirect_stdout(stdout),
        redirect_stderr(stderr),
    ):
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            structlog.reset_defaults()
    return Ended(code, stdout.getvalue(), stderr.getvalue())


class Trainer:
    """A running `supsup-daemon start`.

    Args:
        arguments: behind the command.
        directory: where its output goes, a fresh file for each process.
        environment: variables on top of a clean environment.
    """

    command = "start"
    kind = "trainer"

    def __init__(self, *arguments: object, directory: Path, environment: dict[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"{self.kind}-{len(list(directory.glob(f'{self.kind}-*.log')))}"
        self._stdout, self._stderr = directory / f"{name}.out", directory / f"{name}.log"
        with self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon", self.command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=clean_environment(**(environment or {})),
                cwd=directory,
            )
        self.pid = self._process.pid
        self.directory = directory

    # -- what it says

    @property
    def stdout(self) -> str:
        """All of its standard output."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """All of its standard error."""
        return self._stderr.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its log lines, in order; other lines and one still being written are left out."""
        complete = self.stderr.rpartition("\n")[0].split("\n")
        found = []
        for line in complete:
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    @property
    def other_lines(self) -> list[str]:
        """Lines on standard error that are no JSON."""
        return [line for line in self.stderr.splitlines() if line and not line.startswith("{")]

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """The log lines of an event whose fields are these."""
        return [
            line
            for line in self.lines
            if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
        ]

    def wait_for(self, event: str, *, count: int = 1, timeout_s: float = 60.0, **fields: object) -> dict[str, Any]:
        """The `count`-th log line of an event, as soon as it is there.

        Raises:
            AssertionError: It did not come in time, or the process ended before.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self._process.poll() is not None
            found = self.said(event, **fields)
            if len(found) >= count:
                return found[count - 1]
            assert not ended, f"ended with {self._process.returncode} before {event} {fields}:\n{self._tail()}"
            assert time.monotonic() < deadline, f"no {event} {fields} within {timeout_s:g} s:\n{self._tail()}"
            time.sleep(_POLL_S)

    def _tail(self) -> str:
        return "\n".join(self.stderr.splitlines()[-25:])

    # -- how it ends

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def send(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, expected: int = 0, *, timeout_s: float = 60.0) -> str:
        """Wait for its end and return its standard error.

        Raises:
            AssertionError: It goes on, ended with another exit code, or wrote to standard output.
        """
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self._tail()}") from None
        assert code == expected, f"exit code {code}, expected {expected}:\n{self._tail()}"
        assert self.stdout == "", f"a {self.kind}'s standard output is empty"
        return self.stderr

    def stop(self, number: int = signal.SIGTERM) -> str:
        """Ask it to stop and expect that it does so in good order."""
        self.send(number)
        return self.wait()

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self.running:
            self._process.kill()
            self._process.wait()


class Replica(Trainer):
    """A running `supsup-daemon serve`, on a port that was free."""

    command = "serve"
    kind = "replica"

    @property
    def port(self) -> int:
        """The port it answers on, as soon as it does."""
        return int(self.wait_for("http.started")["port"])


@contextmanager
def trainer(
    *arguments: object, directory: Path, ready: bool = True, environment: dict[str, str] | None = None
) -> Iterator[Trainer]:
    """A trainer for the length of a `with` block: awaited until it is ready, stopped at the end if it still runs."""
    process = Trainer(*arguments, directory=directory, environment=environment)
    try:
        if ready:
            process.wait_for("trainer.ready")
        yield process
        if process.running:
            process.stop()
    finally:
        process.kill()


@contextmanager
def replica(
    *arguments: object, directory: Path, ready: bool = True, environment: dict[str, str] | None = None
) -> Iterator[Replica]:
    """A replica for the length of a `with` block: awaited until it has a bank, stopped at the end if it still runs."""
    process = Replica("--port=0", "--threads=1", *arguments, directory=directory, environment=environment)
    try:
        process.wait_for("replica.ready" if ready else "http.started")
        yield process
        if process.running:
            process.stop()
    finally:
        process.kill()
