"""Trainers that start in a moment: a process with everything imported and no thread begun forks them on request.

Each is a real process with a pid of its own, its own standard error, and the entry point that people start. What is
done to it beforehand, and nowhere else: its steps can be slowed down and held (`brake`), and it can be told to kill
itself at a named point (`points`).

    python -m fault.nursery        requests as JSON lines on standard input, answers on standard output
"""

import gc
import json
import mmap
import os
import random
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Final, NoReturn, Self

_POLL_S: Final = 0.02
_START_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Death:
    """A point of `points` and the passage at which to die there."""

    point: str
    passage: int
    number: int = 0  # tells deaths of one round apart


class Brake:
    """A file that trainers look at before each step: byte 0 holds them, byte 1 is a pause in milliseconds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(2))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 2)

    def hold(self) -> None:
        """No step begins until `release`."""
        self._bytes[0] = 1

    def release(self, pause_ms: int = 0) -> None:
        """Steps go on, with so long a pause before each."""
        self._bytes[1] = pause_ms
        self._bytes[0] = 0

    def close(self) -> None:
        """Unmap it."""
        self._bytes.close()


class Nursery:
    """Starts trainers and knows how they ended, as a context manager. For any thread."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "nursery.log"
        self._environment = environment
        self._news = Condition()
        self._born: dict[int, int] = {}  # request -> pid
        self._codes: dict[int, int] = {}  # pid -> exit code, minus the signal when one ended it
        self._requests = 0
        self._ready = False

    def start(self, arguments: list[str], log: Path, brake: Path, death: Death | None = None) -> int:
        """Start `supsup-daemon ARGUMENTS`; returns its pid.

        Args:
            arguments: of the command line.
            log: where its standard error goes.
            brake: see `Brake`.
            death: where it shall kill itself.
        """
        with self._news:
            self._requests += 1
            number = self._requests
            request = {
                "number": number,
                "arguments": arguments,
                "log": str(log),
                "brake": str(brake),
                "death": [death.point, death.passage] if death else None,
            }
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            assert self._news.wait_for(lambda: number in self._born, _START_S), f"no trainer; see {self._log}"
            return self._born.pop(number)

    def exit_code(self, pid: int) -> int | None:
        """How a trainer ended: its exit code, or minus the signal; None while it runs."""
        with self._news:
            return self._codes.get(pid)

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fault.nursery"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
            )
        self._reader = Thread(target=self._read, name="nursery", daemon=True)
        self._reader.start()
        with self._news:
            self._news.wait_for(
                lambda: self._ready or not self._reader.is_alive() or self._process.poll() is not None, _START_S
            )
        if not self._ready:
            self._process.kill()
            self.__exit__()
            raise AssertionError(f"no nursery; see {self._log}")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._reader.join(10)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            told = json.loads(line)
            with self._news:
                self._ready = True
                if "born" in told:
                    self._born[told["number"]] = told["born"]
                elif "ended" in told:
                    self._codes[told["ended"]] = told["code"]
                self._news.notify_all()
        with self._news:
            self._news.notify_all()  # it has ended


# -- in the process of the nursery


def _tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Import everything, then fork on request until standard input ends; then nothing that was forked lives on."""
    _import_everything()
    # jemalloc, which pyarrow brings, starts its own thread anew after a fork.
    threads = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]
    assert len([name for name in threads if "jemalloc" not in name]) <= 1, f"a fork would lose threads: {threads}"
    gc.collect()
    gc.freeze()
    _tell(ready=True)
    living: set[int] = set()
    waiting = b""
    while True:
        readable, _, _ = select.select([0], [], [], _POLL_S)
        if readable:
            data = os.read(0, 1 << 16)
            if not data:
                break
            *lines, waiting = (waiting + data).split(b"\n")
            for line in lines:
                living.add(_fork(json.loads(line)))
        _reap(living)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _import_everything() -> None:
    import kafka  # noqa: F401, PLC0415 - so that a fork need not
    import torch  # noqa: F401, PLC0415

    from daemon import bootstrap, cli, options, redis_store  # noqa: F401, PLC0415
    from fault import points  # noqa: PLC0415

    for point in points.POINTS.values():
        points.seam(point)


def _reap(living: set[int]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        living.discard(pid)
        _tell(ended=pid, code=os.waitstatus_to_exitcode(status))


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid == 0:
        _be_a_trainer(request)
    _tell(number=request["number"], born=pid)
    return pid


def _be_a_trainer(request: dict[str, Any]) -> NoReturn:
    code = 1
    try:
        os.setsid()
        random.seed()
        _redirect(request["log"])
        _brake(request["brake"])
        if request["death"]:
            from fault import points  # noqa: PLC0415 - imported before the fork

            points.arm(*request["death"])
        sys.argv = ["supsup-daemon", *request["arguments"]]
        from daemon import cli  # noqa: PLC0415

        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:  # noqa: BLE001 - as the interpreter would
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _redirect(log: str) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(file, 2)


def _brake(path: str) -> None:
    """Look at the brake before each step of the learner."""
    from supsup_online.learner import OnlineLearner  # noqa: PLC0415

    with Path(path).open("r+b") as file:
        state = mmap.mmap(file.fileno(), 2)
    step: Callable[..., Any] = OnlineLearner.step

    def braked(learner: OnlineLearner, batch: Any) -> Any:
        while state[0]:
            time.sleep(0.002)
        if state[1]:
            time.sleep(state[1] / 1000)
        return step(learner, batch)

    OnlineLearner.step = braked  # type: ignore[method-assign]


if __name__ == "__main__":
    main()
