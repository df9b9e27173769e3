"""What is fuzzed: each decoder as a function of bytes that may raise its own error and nothing else.

One table, `TARGETS`, for hypothesis (`test_fuzz.py`, in every test run) and for the coverage-guided fuzzer
(`engine.py`, `make fuzz`). To add a decoder: a function and a row. Where a format carries a checksum it takes two rows,
since a fuzzer never guesses a checksum: one with the bytes as they are, one that makes the checksum right.
"""

import contextlib
import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pyarrow as pa
import torch
from safetensors.numpy import save

from daemon import bank_transfer, checkpoint, cli, settings_file
from daemon import settings as setting_table
from daemon.dead_letters import DeadLetter
from daemon.errors import BankMismatchError, ConfigError, StopError
from daemon.preview import hexdump, printable, readable
from daemon.replay import Ledger, refusal
from supsup_online import backbone, bank_file, cifar, codec, models, wire
from supsup_online.errors import BadBatchError, CodecError, DataError, SpecError, WeightsFileError
from supsup_online.learner import OnlineLearner
from supsup_online.network import Network
from supsup_online.optimisers import Adam, OptimiserState
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats
from supsup_online.trainer import HotMask
from unit import tiny

MAX_BYTES = 2**16  # longest input
LIMITS = wire.RecordLimits(input_shape=(2, 3), classes=10, max_bytes=MAX_BYTES, max_rows=64)
MIB = 2**20


@dataclass(frozen=True)
class Target:
    """A decoder under test.

    Attributes:
        name: what `TARGET=` calls it.
        decode: takes bytes; returns None.
        allowed: what it may raise.
        seeds: valid inputs, and close to valid ones.
        words: what the fuzzer may insert in one piece.
        memory: bytes of memory one input may take, and per byte of its length.
        arrow: as `memory`, for what Arrow sets aside.
    """

    name: str
    decode: Callable[[bytes], None]
    allowed: type[Exception]
    seeds: Callable[[], Iterator[bytes]]
    words: tuple[bytes, ...] = ()
    memory: tuple[int, int] = (16 * MIB, 128)
    arrow: tuple[int, int] = (2**12, 4)

    def run(self, data: bytes) -> None:
        """Decode; what is refused is fine, anything else is a finding.

        Raises:
            AssertionError: more memory was set aside than this input justifies.
        """
        pool = pa.default_memory_pool()
        before = pool.max_memory()
        with contextlib.suppress(self.allowed):
            self.decode(data)
        fixed, each = self.arrow
        most = fixed + each * len(data)
        # The pool tells its peak since the start, so only a new peak can be too high: engine.py looks at the rest.
        assert pool.max_memory() <= max(before, most), f"Arrow set {pool.max_memory()} bytes aside for {len(data)}"


# -- records


def _arrow(data: bytes) -> None:
    _check_batch(*wire.decode(data, wire.ARROW_CONTENT_TYPE, LIMITS))


def _json(data: bytes) -> None:
    _check_batch(*wire.decode(data, wire.JSON_CONTENT_TYPE, LIMITS))


def _record(data: bytes) -> None:
    """The content type, a newline, the value."""
    content_type, _, value = data.partition(b"\n")
    _check_batch(*wire.decode(value, content_type.decode("latin-1") or None, LIMITS))


def _check_batch(x: np.ndarray, y: np.ndarray | None) -> None:
    assert x.dtype in (np.uint8, np.float32)
    assert x.shape[1:] == LIMITS.input_shape
    assert 1 <= len(x) <= LIMITS.max_rows
    assert x.flags.c_contiguous
    assert x.flags.writeable
    assert np.isfinite(x).all()
    assert y is None or (y.dtype == np.int64 and y.shape == x.shape[:1] and 0 <= y.min() <= y.max() < LIMITS.classes)


def _batches() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    generator = np.random.default_rng(0)
    for rows in (1, 5, 64):
        pixels = generator.integers(0, 256, (rows, 2, 3), dtype=np.uint8)
        labels = generator.integers(0, 10, rows)
        yield pixels, labels
        yield generator.normal(size=(rows, 6)).astype(np.float32), labels
        yield pixels, None


def _arrow_seeds() -> Iterator[bytes]:
    for x, y in _batches():
        yield wire.encode_arrow(x, y)
    yield from _odd_arrow_seeds()


def _odd_arrow_seeds() -> Iterator[bytes]:
    """Streams that writers make and this one has to refuse or to bear: several batches, nulls, compression, others."""
    flat = pa.array(np.arange(12, dtype=np.float32))
    kind = pa.fixed_shape_tensor(pa.float32(), (2, 3), dim_names=["rows", "columns"])
    tensor = pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, 6))
    plain = pa.record_batch({"x": tensor, "y": pa.array([1, 2], pa.int8())})
    nulls = pa.record_batch({"x": tensor, "y": pa.array([1, None], pa.uint64())})
    words = pa.record_batch({"x": pa.array(["a", "b"]).dictionary_encode(), "y": pa.array([[1], [2, 3]])})
    for batches, compression in (([plain, plain], None), ([nulls], None), ([plain], "lz4"), ([words], None)):
        sink = io.BytesIO()
        with pa.ipc.new_stream(
            sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(compression=compression)
        ) as writer:
            for batch in batches:
                writer.write_batch(batch)
        yield sink.getvalue()


def _json_seeds() -> Iterator[bytes]:
    for x, y in _batches():
        yield wire.encode_json(x, y)
    yield b'{"x": [[[1, 2.5e0, -3], [4, 5, 6]]], "y": [9], "dtype": "float32"}'
    yield b'{"x": [[0, 0, 0, 0, 0, NaN]], "y": null}'


def _record_seeds() -> Iterator[bytes]:
    for kind, seeds in ((b"", _json_seeds), (b"application/json; charset=utf-8", _json_seeds), (b"", _arrow_seeds)):
        for seed in seeds():
            yield kind + b"\n" + seed


# -- stored masks and states


@cache
def _network() -> Network:
    return tiny.network(replace(tiny.SPEC, architecture="mlp-3"))  # 84 weights: the last byte of a mask has padding


def _sealed(body: bytes) -> bytes:
    return body + hashlib.sha256(body).digest()[:8]


def _mask(data: bytes) -> None:
    network = _network()
    words = codec.decode_mask(network, data)
    assert codec.encode_mask(network, words) == data, "there is one encoding of a mask"


def _hot(data: bytes) -> None:
    network = _network()
    hot = codec.decode_hot(network, Adam(), data)
    assert hot is None or codec.encode_hot(network, Adam(), hot) == data, "there is one encoding of a state"


def _images() -> Network:
    return tiny.network(tiny.CONVOLUTIONAL)


def _mask_with_statistics(data: bytes) -> None:
    words = codec.decode_mask(_images(), data)
    assert codec.encode_mask(_images(), words) == data, "there is one encoding of a mask"


def _hot_with_statistics(data: bytes) -> None:
    hot = codec.decode_hot(_images(), Adam(), data)
    assert hot is None or codec.encode_hot(_images(), Adam(), hot) == data, "there is one encoding of a state"


def _mask_with_statistics_seeds() -> Iterator[bytes]:
    for words in tiny.random_masks(_images(), 3):
        yield codec.encode_mask(_images(), words)


def _hot_with_statistics_seeds() -> Iterator[bytes]:
    count, rng = _images().architecture.weight_count, np.random.default_rng(0)
    scores, *moments = (torch.from_numpy(rng.normal(size=count).astype(np.float32)) for _ in range(3))
    statistics = torch.from_numpy(tiny.random_statistics(_images(), rng))
    yield codec.encode_hot(_images(), Adam(), HotMask(scores, OptimiserState(7, moments), statistics))


def _backbone(data: bytes) -> None:
    architecture = _images().architecture
    found = backbone.decode(data, architecture)
    shapes = {layer.name: layer.weight_shape for layer in architecture.layers}
    for name, weights in found.items():
        assert weights.size == np.prod(shapes[name])
        assert np.isfinite(weights).all()


def _backbone_seeds() -> Iterator[bytes]:
    layers = _images().architecture.layers
    tensors = {f"{layer.name}.weight": np.ones(layer.weight_shape, np.float32) for layer in layers}
    yield save(tensors)
    yield save({"conv1.weight": tensors["conv1.weight"].astype(np.float16), "bn1.bias": np.zeros(3, np.float32)})


def _mask_seeds() -> Iterator[bytes]:
    for words in tiny.random_masks(_network(), 3):
        yield codec.encode_mask(_network(), words)


def _hot_seeds() -> Iterator[bytes]:
    count = _network().architecture.weight_count
    generator = torch.Generator().manual_seed(0)
    for step in range(2):
        scores, *moments = (torch.randn(count, generator=generator) for _ in range(3))
        yield codec.encode_hot(_network(), Adam(), HotMask(scores, OptimiserState(step, moments)))


def _without_checksum(seeds: Callable[[], Iterator[bytes]]) -> Callable[[], Iterator[bytes]]:
    return lambda: (seed[:-8] for seed in seeds())


# -- bank files


def _bank_file(data: bytes) -> None:
    file = bank_file.BankFile(io.BytesIO(data))
    file.verify_checksum()
    again = io.BytesIO()
    bank_file.write_bank(again, dict(file.payloads()))
    assert again.getvalue() == data, "there is one spelling of a bank"
    try:
        bank_transfer.check(bank_file.BankFile(io.BytesIO(data)))
    except (BankMismatchError, ConfigError) as error:  # or it asks for a file of trained weights
        raise CodecError(str(error)) from error


def _bank_file_sealed(data: bytes) -> None:
    _bank_file(data + hashlib.sha256(data).digest())


def _bank_file_seeds() -> Iterator[bytes]:
    network = _network()
    spec = network.spec.to_text() | {"fingerprint": network.fingerprint}
    entries = {
        "bank": _packed({"name": "digits", "version": "7", "epoch": "2"}),
        "spec": _packed(spec),
        "totals": _packed({"records": "3", "next_id": "0"}),
    }
    yield _written(entries)
    mask, hot = next(_mask_seeds()), next(_hot_seeds())
    yield _written(
        entries
        | {
            "totals": _packed({"records": "3", "next_id": "1", "steps": "3"}),
            "progress:t:0": _packed({"offset": "3", "log": "", "stream:t/0": next(_stream_seeds()).decode()}),
            "mask:0": mask,
            "stats:0": _packed(_seen().to_text()),
            "state:0": hot,
        }
    )


def _packed(text: dict[str, str]) -> bytes:
    return bank_file.encode_fields({name.encode(): value.encode() for name, value in text.items()})


def _written(entries: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    bank_file.write_bank(file, entries)
    return file.getvalue()


# -- text in Redis: one `field=value` a line, over valid ones; `-field` takes one away


def _fields(data: bytes, valid: dict[str, str]) -> dict[str, str]:
    found = dict(valid)
    for line in data.decode("utf-8", errors="replace").split("\n"):
        name, is_set, value = line.partition("=")
        if is_set:
            found[name] = value
        else:
            found.pop(name.removeprefix("-"), None)
    return found


def _lines(fields: dict[str, str]) -> bytes:
    return "\n".join(f"{name}={value}" for name, value in fields.items()).encode()


def _spec(data: bytes) -> None:
    spec = BankSpec.from_text(_fields(data, tiny.SPEC.to_text()))
    spec.mask_variant()
    models.build(spec.architecture, spec.input_shape, spec.outputs)
    assert BankSpec.from_text(spec.to_text()) == spec


def _spec_seeds() -> Iterator[bytes]:
    yield _lines(tiny.SPEC.to_text())
    yield b"architecture=mlp-8-8-8\ninput_shape=1,2,3,4\nkeep_fraction=1e-3\nvariant=threshold"
    yield b"architecture=resnet18-2-batch\ninput_shape=3,9,9\nvariant=top-m\nedges_per_channel=2"
    yield b"architecture=conv-2-3\nweight_init=trained:" + b"0f" * 32
    yield b"-schema"


def _seen() -> MaskStats:
    stats = MaskStats(stream="digits/0/k")
    stats.observe(np.array([0.5, 2.5], np.float32), 1, 0.25)
    return stats


def _stats(data: bytes) -> None:
    stats = MaskStats.from_text(_fields(data, _seen().to_text()))
    assert MaskStats.from_text(stats.to_text()).to_text() == stats.to_text(), "exact there and back"
    stats.observe(np.array([0.5, 2.5], np.float32), 1, 0.25)  # what the next batch does with it


def _stats_seeds() -> Iterator[bytes]:
    yield _lines(_seen().to_text())
    yield b"batches=3\nloss=1e-300\nloss_variance=0.0"


@cache
def _learner() -> OnlineLearner:
    """A learner with the masks 0, 1 and 2."""
    learner = tiny.learner(spec=replace(tiny.SPEC, architecture="mlp-3"))
    masks = dict(enumerate(tiny.random_masks(learner.network, 3)))
    learner.restore(masks, {mask_id: _seen() for mask_id in masks}, {}, steps=9, next_id=3)
    return learner


def _stream(data: bytes) -> None:
    stream = checkpoint._parse_stream(data.decode("utf-8", errors="replace"), _learner())
    assert checkpoint._parse_stream(checkpoint._stream_text(stream), _learner()).position == stream.position
    assert stream.mask_id is None or (type(stream.mask_id) is int and 0 <= stream.mask_id < 3)
    assert type(stream.position) is int
    assert stream.position >= 0
    stream.drift.update(1.0)


def _stream_seeds() -> Iterator[bytes]:
    yield b'{"mask": 2, "position": 17, "last_used": 123, "residuals": [0.25, -1.5, 3e-05]}'
    yield b'{"mask": null, "position": 0, "last_used": 0, "residuals": []}'


# -- settings


def _settings(data: bytes) -> None:
    with _file_of(data) as path:
        values = settings_file.read_file(path)
        problems = setting_table.unknown_keys(path, values)
    settings = setting_table.parse(values, dict.fromkeys(values, "file"), problems)
    settings.bank_spec()
    settings.learner()


def _config_file(data: bytes) -> None:
    """As `_settings`, through the command line."""
    with (
        _file_of(data) as path,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(click.ClickException),
    ):
        cli.cli(["config", "show", "--json", "--config", str(path)], standalone_mode=False)


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="supsup-fuzz-", suffix=".toml") as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def _settings_seeds() -> Iterator[bytes]:
    yield b'kafka = ["broker:9092"]\ntopic = "digits"\nbank = "digits"\narch = "mlp-32-16"\ninput_shape = [8, 8]\n'
    yield b"classes = 4\noutputs = 0x14\nlearning-rate = 1e-2\nburst = true\nstate_dir = '''/tmp'''\n"
    yield b'input_shape = "8x8"\nbudget = 1_000\nrule = "paper"\nepsilon = inf\n[table]\nkey = {a = 1979-05-27}\n'


# -- dead letters


def _record_of(data: bytes) -> SimpleNamespace:
    """A consumer's record from lines: the first is the value, `name=value` are headers."""
    value, *lines = data.split(b"\n")
    headers = [(name.decode("utf-8", errors="replace"), text) for name, _, text in (h.partition(b"=") for h in lines)]
    return SimpleNamespace(
        topic="t.dlq", partition=0, offset=1, timestamp=1, key=value[:3] or None, value=value, headers=headers
    )


def _letter(data: bytes) -> None:
    letter = DeadLetter.of(_record_of(data))
    assert (letter.own, letter.failed_ms, letter.origin, refusal(letter, frozenset({0}))) is not None
    for text in (printable(data), readable(data) or "", hexdump(data)):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert len(text) < 2**16


def _letter_seeds() -> Iterator[bytes]:
    yield (
        b"value\ncontent-type=application/json\nsource-topic=t\nsource-partition=0\nsource-offset=17\n"
        b"source-timestamp=1700000000000\nreason=shape\nerror=\x1b[2J\ntruncated-from=99\nfailed-at=1700000000001"
    )


def _ledger(data: bytes) -> None:
    ledger = object.__new__(Ledger)  # without a broker
    ledger.topic, ledger._log, ledger._sent = "t.dlq.replayed", "log", {}
    ledger._take(SimpleNamespace(value=data, partition=0, offset=0), "t")


def _ledger_seeds() -> Iterator[bytes]:
    entry = {"log": "log", "to": "t", "partition": 0, "ranges": [[0, 99], [1000, 1000]], "at_ms": 1}
    yield json.dumps(entry).encode()


# -- data sets


def _cifar(data: bytes) -> None:
    x, y = cifar.parse_records(data, 10)
    assert x.shape[1:] == (3, 32, 32)
    assert x.dtype == np.uint8
    assert len(x) == len(y) > 0
    assert 0 <= y.min() <= y.max() < 10


def _cifar_seeds() -> Iterator[bytes]:
    yield bytes(3073)
    yield b"\x09" + bytes(range(256)) * 12 + b"\x03" + b"\xff" * 3072


_TOML = (b"[", b"]", b"=", b'"""', b"'''", b"\n[[a]]\n", b"0x", b"inf", b"nan", b"1979-05-27T07:32:00Z")
_NAMES = tuple(name.encode() for name in setting_table.NAMES)
_JSON = (b'"x":', b'"y":', b'"dtype":', b"uint8", b"float32", b"NaN", b"Infinity", b"1e999", b"[[", b"null", b"true")
_NUMBERS = (b"inf", b"-inf", b"nan", b"1e999", b"-1", b"1_0", b"9" * 20)
_SPEC_FIELDS = tuple(f"\n{name}=".encode() for name in tiny.SPEC.to_text())
_STATS_FIELDS = tuple(f"\n{name}=".encode() for name in _seen().to_text())
_STREAM = (b'"mask":', b'"position":', b'"last_used":', b'"residuals":', b"NaN", b"Infinity", b"1e999", b"true")
_HEADERS = (b"\nsource-topic=", b"\nsource-partition=", b"\nfailed-at=", b"\ntruncated-from=", b"\nreplayed-from=")
_LEDGER = (b'"log":"log"', b'"to":"t"', b'"partition":', b'"ranges":', b"Infinity", b"1e999", b"[[0,1]]")
_TENSORS = (b'"dtype":"F32"', b'"shape":[', b'"data_offsets":[', b"__metadata__", b"conv1.weight", b"fc.weight")

TARGETS = {
    target.name: target
    for target in (
        Target("arrow", _arrow, BadBatchError, _arrow_seeds, arrow=(2**14, 8)),
        Target("json", _json, BadBatchError, _json_seeds, _JSON),
        Target("record", _record, BadBatchError, _record_seeds, (b"application/", b"; charset="), arrow=(2**14, 8)),
        Target("mask", _mask, CodecError, _mask_seeds),
        Target("mask-sealed", lambda data: _mask(_sealed(data)), CodecError, _without_checksum(_mask_seeds)),
        Target("hot-state", _hot, CodecError, _hot_seeds),
        Target("hot-state-sealed", lambda data: _hot(_sealed(data)), CodecError, _without_checksum(_hot_seeds)),
        Target("mask-with-statistics", _mask_with_statistics, CodecError, _mask_with_statistics_seeds),
        Target(
            "mask-with-statistics-sealed",
            lambda data: _mask_with_statistics(_sealed(data)),
            CodecError,
            _without_checksum(_mask_with_statistics_seeds),
        ),
        Target(
            "hot-state-with-statistics-sealed",
            lambda data: _hot_with_statistics(_sealed(data)),
            CodecError,
            _without_checksum(_hot_with_statistics_seeds),
        ),
        Target("backbone", _backbone, WeightsFileError, _backbone_seeds, _TENSORS),
        Target("bank-file", _bank_file, CodecError, _bank_file_seeds),
        Target("bank-file-sealed", _bank_file_sealed, CodecError, lambda: (seed[:-32] for seed in _bank_file_seeds())),
        Target("spec", _spec, SpecError, _spec_seeds, _SPEC_FIELDS + _NUMBERS),
        Target("stats", _stats, CodecError, _stats_seeds, _STATS_FIELDS + _NUMBERS),
        Target("stream-state", _stream, CodecError, _stream_seeds, _STREAM),
        Target("settings", _settings, ConfigError, _settings_seeds, _TOML + _NAMES),
        Target("config-file", _config_file, ConfigError, _settings_seeds, _TOML + _NAMES),
        Target("dead-letter", _letter, StopError, _letter_seeds, _HEADERS),
        Target("ledger", _ledger, StopError, _ledger_seeds, _LEDGER),
        Target("cifar", _cifar, DataError, _cifar_seeds),
    )
}
