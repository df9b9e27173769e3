"""Records that can never be used, of many kinds, drawn from a seed."""

import io
import json
from collections.abc import Callable, Iterator
from itertools import cycle

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from streams import ARROW, CLASSES, JSON, Outgoing, batch
from supsup_online import wire

MAX_BYTES, MAX_ROWS = 30_000, 64  # what the trainer must be told: a batch of 32 rows has 9 KB
Draw = np.random.Generator
Columns = tuple[np.ndarray, np.ndarray | None]


def arrow(x: np.ndarray, y: np.ndarray | None) -> bytes:
    """An Arrow stream of whatever it is given; `wire.encode_arrow` refuses what is wanted here."""
    storage = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), int(np.prod(x.shape[1:])))
    tensor = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.from_numpy_dtype(x.dtype), x.shape[1:]), storage)
    table = pa.record_batch({"x": tensor} if y is None else {"x": tensor, "y": pa.array(y)})
    sink = io.BytesIO()
    with ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table)
    return sink.getvalue()


def _good(draw: Draw, rows: int = 32) -> tuple[np.ndarray, np.ndarray]:
    return batch(0, int(draw.integers(2**31)), rows)


def _one_wrong(draw: Draw, value: float) -> Outgoing:
    x, y = _good(draw)
    x.flat[draw.integers(x.size)] = value
    return Outgoing(arrow(x, y))


def _wrong_label(draw: Draw) -> Outgoing:
    x, y = _good(draw)
    y[draw.integers(len(y))] = draw.choice([-1, CLASSES, 2**62, -(2**62)])
    return Outgoing(arrow(x, y))


def _wrong_shape(draw: Draw) -> Outgoing:
    x, y = _good(draw)
    return Outgoing(arrow(np.ascontiguousarray(x[:, : draw.integers(1, 8)]), y))


def _wrong_dtype(draw: Draw) -> Outgoing:
    x, y = _good(draw, rows=16)
    kind = draw.choice([np.float64, np.int32, np.int8, np.uint16])
    return Outgoing(arrow((100 * x).astype(kind), y))


def _cut(draw: Draw) -> Outgoing:
    """The last bytes only mark the end, so a cut there would leave a batch that can be used."""
    whole = wire.encode_arrow(*_good(draw))
    return Outgoing(whole[: draw.integers(1, len(whole) - 300)])


def _noise(draw: Draw) -> Outgoing:
    headers = [list(ARROW), list(JSON), []][draw.integers(3)]
    return Outgoing(draw.bytes(int(draw.integers(1, 4000))), headers)


def _flipped(draw: Draw) -> Outgoing:
    """The length of the schema is another one."""
    whole = bytearray(wire.encode_arrow(*_good(draw)))
    whole[4 + draw.integers(4)] ^= 0x5A
    return Outgoing(bytes(whole))


def _json(draw: Draw) -> Outgoing:
    x, y = _good(draw, rows=3)
    rows = x.reshape(3, 64).tolist()
    wrong = [
        {"x": rows, "y": y.tolist()[:2]},
        {"x": [*rows[:2], rows[2][:-1]], "y": y.tolist()},
        {"x": rows, "y": [0, 1, "two"]},
        {"x": [], "y": []},
        {"rows": rows},
        {"x": rows, "y": [float("nan")] * 3},
    ]
    return Outgoing(json.dumps(wrong[draw.integers(len(wrong))]).encode(), list(JSON))


KINDS: dict[str, Callable[[Draw], Outgoing]] = {
    "noise": _noise,
    "cut": _cut,
    "flipped": _flipped,
    "shape": _wrong_shape,
    "dtype": _wrong_dtype,
    "label": _wrong_label,
    "NaN": lambda draw: _one_wrong(draw, np.nan),
    "infinity": lambda draw: _one_wrong(draw, -np.inf),
    "unscaled": lambda draw: _one_wrong(draw, 1e30),
    "JSON": _json,
    "too many rows": lambda draw: Outgoing(arrow(*_good(draw, rows=MAX_ROWS + 1 + int(draw.integers(8))))),
    "too large": lambda draw: Outgoing(draw.bytes(int(draw.integers(MAX_BYTES + 1, 3 * MAX_BYTES)))),
    "empty": lambda _: Outgoing(b""),
    "tombstone": lambda _: Outgoing(None, key=b"k"),
    "no rows": lambda draw: Outgoing(arrow(*(part[:0] for part in _good(draw)))),
    "content type": lambda draw: Outgoing(wire.encode_arrow(*_good(draw)), [("content-type", draw.bytes(20))]),
    "large headers": lambda draw: Outgoing(
        wire.encode_arrow(*_good(draw)), [*ARROW, *((f"h{i}", draw.bytes(900)) for i in range(80))]
    ),
    "long key": lambda draw: Outgoing(wire.encode_arrow(*_good(draw)), key=draw.bytes(2000)),
}


def drawn(seed: int) -> Iterator[tuple[str, Outgoing]]:
    """Without end: the kinds in turn, each time another one of its kind."""
    draw = np.random.default_rng([3, seed])
    for name in cycle(KINDS):
        yield name, KINDS[name](draw)
