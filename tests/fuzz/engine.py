"""One target under the coverage-guided fuzzer, in a process of its own: `python engine.py TARGET LIBFUZZER-OPTIONS...`.

The process may have no more address space than it has after the imports and `HEADROOM`, so an allocation out of
proportion fails at once even when nobody touches it (MemoryError, which no target allows). What is touched shows in the
peak of the resident set, which is read and reset around each input.
"""

import resource
import sys
from pathlib import Path

import atheris

HEADROOM = 512 * 2**20
_PAGE = resource.getpagesize()
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    """`VmRSS` or `VmHWM` (its peak since it was reset), in bytes."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {field} in {_STATUS}")


def _limit_address_space() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * _PAGE + HEADROOM,) * 2)


def main() -> None:
    """Fuzz until libFuzzer's limits are reached or something is found."""
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["supsup_online", "daemon", "tomllib", "json"]):
        from fuzz.targets import TARGETS  # noqa: PLC0415 - what is imported here counts as covered code
    target = TARGETS[name]
    for seed in target.seeds():
        target.run(seed)  # what is imported or cached at first use is not the input's fault
    _limit_address_space()
    fixed, each = target.memory

    def one(data: bytes) -> None:
        before = _resident("VmRSS")
        _RESET.write_text("5")
        target.run(data)
        grown = _resident("VmHWM") - before
        assert grown <= fixed + each * len(data), f"{grown} bytes of memory for an input of {len(data)}"

    atheris.Setup([sys.argv[0], *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
