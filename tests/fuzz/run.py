"""`make fuzz`: every target under the coverage-guided fuzzer, one after the other.

    python tests/fuzz/run.py [TARGET ...] [--seconds S] [--runs N] [--folder build/fuzz]

Each target runs in a child process (`engine.py`). A crash, a time-out or too much memory ends that target: the input is
saved, and the exit code is 1. Copy it to `tests/fuzz/regressions/TARGET/` with the fix: `test_fuzz.py` runs it from
then on. Ends with one JSON object a target: `executions`, `edges` (of Python code), `corpus`, `seconds`, `findings`.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fuzz.targets import MAX_BYTES, TARGETS, Target

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
REGRESSIONS = HERE / "regressions"
INPUT_SECONDS = 10  # longest for one input; none takes a tenth of a second on an idle machine
RSS_MB = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets that are asked for; returns the exit code."""
    options = _parser().parse_args(arguments)
    failed = False
    for name in options.targets or TARGETS:
        result = fuzz(TARGETS[name], options.folder / name, seconds=options.seconds, runs=options.runs)
        print(json.dumps(result), flush=True)  # noqa: T201 - the result
        failed |= bool(result["findings"]) or result["exit_code"] != 0
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of the decoders.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=-1, help="executions of each target at most")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="corpus, findings and logs")
    return parser


def fuzz(target: Target, folder: Path, *, seconds: int, runs: int = -1) -> dict[str, object]:
    """One target in a child process.

    Returns:
        `target`, `executions`, `edges`, `corpus` (inputs kept), `seconds`, `exit_code`, `findings` (files), `log`.
    """
    corpus, findings = folder / "corpus", folder / "findings"
    for place in (corpus, findings):
        place.mkdir(parents=True, exist_ok=True)
    _write_seeds(target, corpus)
    known = set(findings.iterdir())
    command = [sys.executable, str(HERE / "engine.py"), target.name]
    command += [f"-max_total_time={seconds}", f"-runs={runs}", f"-max_len={MAX_BYTES}", f"-timeout={INPUT_SECONDS}"]
    command += [f"-rss_limit_mb={RSS_MB}", f"-artifact_prefix={findings}/", "-print_final_stats=1"]
    if target.words:  # an empty file is an error to libFuzzer
        words = folder / "words"
        words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words))
        command.append(f"-dict={words}")
    log, begun = folder / "log", time.monotonic()
    with log.open("wb") as output:
        code = subprocess.run(
            [*command, str(corpus)], stdout=output, stderr=subprocess.STDOUT, env=_environment(), cwd=ROOT, check=False
        ).returncode
    text = log.read_text(errors="replace")
    edges = re.findall(r"\bcov: (\d+)", text)
    executions = re.findall(r"^#(\d+)\t", text, flags=re.MULTILINE)
    return {
        "target": target.name,
        "executions": int(executions[-1]) if executions else 0,
        "edges": int(edges[-1]) if edges else 0,
        "corpus": len(list(corpus.iterdir())),
        "seconds": round(time.monotonic() - begun, 1),
        "exit_code": code,
        "findings": sorted(str(path) for path in set(findings.iterdir()) - known),
        "log": str(log),
    }


def _write_seeds(target: Target, corpus: Path) -> None:
    regressions = REGRESSIONS / target.name
    found = [path.read_bytes() for path in regressions.iterdir()] if regressions.is_dir() else []
    for seed in (*target.seeds(), *found):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)


def _escaped(word: bytes) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\x{b:02x}" for b in word)


def _environment() -> dict[str, str]:
    """The caller's, with this tree first; one thread, as more would each reserve address space."""
    path = os.pathsep.join([str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    without = {name: value for name, value in os.environ.items() if not name.startswith("SUPSUP_")}
    return without | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    sys.exit(main())
