"""The decoders under hypothesis, under every input that was ever a finding, and shortly under the guided fuzzer."""

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import run
from fuzz.targets import LIMITS, TARGETS, Target
from supsup_online.errors import BadBatchError, CodecError

FOUND = [
    pytest.param(folder.name, path, id=f"{folder.name}-{path.name}")
    for folder in sorted(run.REGRESSIONS.iterdir())
    for path in sorted(folder.iterdir())
]


def damaged(target: Target) -> st.SearchStrategy[bytes]:
    """A seed with some pieces taken out and others put in: nearer to valid than random bytes are."""
    pieces = st.one_of(st.binary(max_size=8), st.sampled_from(target.words or (b"\0", b"\xff")))
    edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 16), pieces), max_size=6)
    return st.builds(_edited, st.sampled_from(list(target.seeds())), edits)


def _edited(seed: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, removed, piece in edits:
        at = int(place * len(seed))
        seed = seed[:at] + piece + seed[at + removed :]
    return seed


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_the_bytes_a_decoder_decodes_or_refuses_them(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=400), damaged(target)))
    def decodes_or_refuses(data: bytes) -> None:
        target.run(data)

    decodes_or_refuses()


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_of_a_target_are_mostly_valid(name: str) -> None:
    target = TARGETS[name]
    refused = 0
    for seed in (seeds := list(target.seeds())):
        try:
            target.decode(seed)
        except target.allowed:
            refused += 1
    assert refused <= len(seeds) / 2


@pytest.mark.parametrize(("name", "path"), FOUND)
def test_what_once_was_a_finding_is_none_any_more(name: str, path: Path) -> None:
    TARGETS[name].run(path.read_bytes())


def test_a_decoder_that_fails_otherwise_is_a_finding() -> None:
    def broken(data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Target("broken", broken, CodecError, lambda: iter(())).run(b"")


def test_a_decoder_that_lets_arrow_set_too_much_aside_is_a_finding() -> None:
    pa = pytest.importorskip("pyarrow")

    def greedy(data: bytes) -> None:
        pa.allocate_buffer(pa.default_memory_pool().max_memory() + 2**20)
        raise BadBatchError("malformed", "and says nothing")

    with pytest.raises(AssertionError, match="Arrow set"):
        Target("greedy", greedy, BadBatchError, lambda: iter(())).run(b"")


def test_limits_of_the_record_targets_are_below_their_inputs() -> None:
    assert LIMITS.max_bytes == run.MAX_BYTES


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
@pytest.mark.parametrize("name", TARGETS)
def test_some_thousand_guided_inputs_find_nothing(name: str, tmp_path: Path) -> None:
    result = run.fuzz(TARGETS[name], tmp_path, seconds=120, runs=5000)
    assert result["exit_code"] == 0, Path(str(result["log"])).read_text(errors="replace")[-3000:]
    assert result["findings"] == []
    assert result["executions"] >= 5000
    assert result["edges"] > 0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform")
@pytest.mark.parametrize(
    ("body", "finding"),
    [
        ("if data[:1] == b'!': raise ZeroDivisionError", "ZeroDivisionError"),
        ("import numpy; numpy.empty(2**33, numpy.uint8)", "MemoryError"),
        ("import numpy; numpy.ones(2**26, numpy.uint8)", "bytes of memory for an input of"),
    ],
    ids=["an exception", "memory set aside", "memory touched"],
)
def test_the_guided_fuzzer_reports(body: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real engine, on a table with one target that is broken on purpose."""
    folder = tmp_path / "fuzz"
    folder.mkdir()
    real = Path(run.__file__).parent / "engine.py"
    (folder / "engine.py").write_text(real.read_text())
    (folder / "targets.py").write_text(
        "from supsup_online.errors import CodecError\n"
        "class Broken:\n"
        "    memory = (16 * 2**20, 128)\n"
        "    def seeds(self): return ()\n"
        f"    def run(self, data):\n        {body}\n"
        "TARGETS = {'broken': Broken()}\n"
    )
    monkeypatch.setattr(run, "HERE", folder)
    broken = Target("broken", lambda _: None, CodecError, lambda: iter([b"?"]))
    result = run.fuzz(broken, tmp_path / "out", seconds=60)
    assert result["exit_code"] != 0
    assert len(result["findings"]) == 1
    assert finding in Path(str(result["log"])).read_text(errors="replace")
