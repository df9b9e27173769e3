"""Keeps one server alive exactly as long as the process that asked for it; run as a script, standard library only.

    python -I -S _guard.py COMMAND [ARGUMENT ...]

Standard input is a pipe whose other end only the parent holds: the kernel closes it when the parent ends, however it
ends, kill -9 included. On that end of file, or on SIGTERM, the server gets SIGTERM and after `STOP_GRACE_S` SIGKILL.
Standard output carries one line, the server's process id; the server itself writes to standard error, the log.
The exit code is the server's own, 128 + n if signal n ended it, 127 if it could not be started.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

STOP_GRACE_S = 5.0
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def _die_with_guard() -> Callable[[], None] | None:
    """What the server's process runs before exec: ask Linux to kill it when the guard is gone."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        import ctypes  # noqa: PLC0415  (a Python built without libffi has none; then a killed guard orphans its server)

        libc = ctypes.CDLL(None)
    except (ImportError, OSError):
        return None
    guard = os.getpid()

    def before_exec() -> None:
        # SIGKILL, not SIGTERM: with the guard gone nobody is left to insist.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # it died before the line above
            os._exit(127)

    return before_exec


def _wait_for_end_of_file(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _stop_when_asked(server: "subprocess.Popen[bytes]", stop: threading.Event) -> None:
    stop.wait()
    server.terminate()
    try:
        server.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()


def main(command: list[str]) -> int:
    """Start `command`, stop it when the parent ends or asks for it, and give its exit code."""
    stop = threading.Event()
    # Ctrl-C and a closed terminal are the parent's business: it commits first and then lets go of the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda _signal, _frame: stop.set())
    try:
        # close_fds=False hands on the descriptor that holds the directory's lock: it is free once the server is gone.
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            close_fds=False,
            preexec_fn=_die_with_guard(),  # noqa: PLW1509  (no thread runs yet)
        )
    except OSError as error:
        print(f"cannot start {command[0]}: {error}", file=sys.stderr)
        return 127
    for target, arguments in ((_wait_for_end_of_file, (stop,)), (_stop_when_asked, (server, stop))):
        threading.Thread(target=target, args=arguments, daemon=True).start()
    try:
        os.write(1, b"%d\n" % server.pid)
    except BrokenPipeError:
        stop.set()  # the parent is gone already
    code = server.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
