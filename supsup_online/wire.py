"""Record values: one labelled mini-batch as bytes, and back.

A record value is one batch of n images (or vectors) and, unless it is only to be predicted, their n labels.
Everything a producer sends is untrusted: `decode` either returns arrays that are safe to train on or raises
`BadBatchError`; it runs nothing it reads (no pickle), and looks at sizes before it allocates.

`application/vnd.apache.arrow.stream` is one Arrow IPC stream:

    | part              | bytes                                                                              |
    |-------------------|------------------------------------------------------------------------------------|
    | schema message    | column `x`: arrow.fixed_shape_tensor of uint8 or float32, row-major;               |
    |                   | column `y`: int64 (any integer type is read), may be absent; no other column       |
    | record batch 1..m | rows in order, batches are concatenated; no nulls, not compressed                  |
    | end of stream     | `ff ff ff ff 00 00 00 00`, or the end of the value; nothing may follow             |

    The metadata of a message takes at most 8 KiB. Bodies must not be compressed: a compressed body itself says
    how much memory to set aside, so a few bytes could ask for gigabytes. Kafka compresses record sets anyway.

`application/json` is one UTF-8 object, for people with a console producer:

    | key     | value                                                                                        |
    |---------|----------------------------------------------------------------------------------------------|
    | `x`     | n rows of numbers, nested or flat; no booleans, strings, NaN or Infinity                     |
    | `y`     | n whole numbers; absent or null: only predict                                                |
    | `dtype` | `"float32"` (when absent) or `"uint8"` (whole numbers from 0 to 255)                         |

In both, a row may have the input shape itself, or be flat; a flat input takes rows of any shape of that size.
`BadBatchError.reason` is one of `too-large`, `empty`, `content-type`, `malformed`, `compressed`, `columns`,
`dtype`, `shape`, `rows`, `nulls`, `not-finite`, `label-range`.
"""

import io
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from supsup_online.errors import BadBatchError, SpecError

__all__ = ["ARROW_CONTENT_TYPE", "JSON_CONTENT_TYPE", "RecordLimits", "decode", "encode_arrow", "encode_json"]

ARROW_CONTENT_TYPE = "application/vnd.apache.arrow.stream"
JSON_CONTENT_TYPE = "application/json"

# A schema of two columns takes some 400 bytes, with pandas' notes 1.5 KiB. Older Arrow releases parse the
# extension's own JSON recursively, so its length also bounds how deep a hostile schema drives the stack.
_MAX_METADATA_BYTES = 8 * 1024
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_ARROW_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, LookupError, EOFError, struct.error)


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """What a record may be, given by the bank and by the operator.

    Attributes:
        input_shape: shape of one input of the network, for example (28, 28) or (784,).
        classes: labels run from 0 to classes - 1.
        max_bytes: longest record value read, in bytes.
        max_rows: most rows in one record.

    Raises:
        SpecError: a limit or an input dimension is below one.
    """

    input_shape: tuple[int, ...]
    classes: int
    max_bytes: int = 16 * 2**20
    max_rows: int = 4096

    def __post_init__(self) -> None:
        if not self.input_shape or min(*self.input_shape, self.classes, self.max_bytes, self.max_rows) < 1:
            raise SpecError(f"every record limit and input dimension must be at least 1, got {self}")

    @property
    def size(self) -> int:
        """Number of values in one input."""
        return math.prod(self.input_shape)


def decode(value: bytes | None, content_type: str | None, limits: RecordLimits) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn a record value into arrays that own their memory.

    Args:
        value: the bytes of the record; None is Kafka's tombstone.
        content_type: the `content-type` header; parameters such as `; charset=utf-8` are ignored. None: the
            value is JSON when its first byte that is not white space is `{`, else Arrow.
        limits: what the bank accepts.

    Returns:
        x, uint8 or float32, C-contiguous and writable, shape (n, *limits.input_shape), 1 <= n <= max_rows;
        y, int64, shape (n,), each in 0 .. classes - 1, or None where the record carries no labels.

    Raises:
        BadBatchError: the value breaks the layout or the limits in any way.
    """
    if not value:
        raise BadBatchError("empty", "the record has no value, expected a batch")
    if len(value) > limits.max_bytes:
        raise BadBatchError("too-large", f"found {len(value)} bytes, expected at most {limits.max_bytes}")
    if content_type is None:
        content_type = JSON_CONTENT_TYPE if value.lstrip().startswith(b"{") else ARROW_CONTENT_TYPE
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _DECODERS:
        return _DECODERS[kind](value, limits)
    expected = " or ".join(_DECODERS)
    raise BadBatchError("content-type", f"content-type is {_shown(content_type)}, expected {expected}")


def encode_arrow(x: np.ndarray, y: np.ndarray | None = None) -> bytes:
    """Encode a batch as an Arrow IPC stream.

    Args:
        x: uint8 or float32, shape (n, ...) with at least two dimensions.
        y: any integer type, shape (n,), or None for a batch that is only to be predicted.

    Raises:
        BadBatchError: the arrays do not make a batch.
    """
    _check_arrays(x, y)
    flat = pa.array(np.ascontiguousarray(x).reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, math.prod(x.shape[1:]))
    columns = {"x": pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, x.shape[1:]), storage)}
    if y is not None:
        columns["y"] = pa.array(y.astype(np.int64))
    batch = pa.record_batch(columns)
    sink = io.BytesIO()
    with ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def encode_json(x: np.ndarray, y: np.ndarray | None = None) -> bytes:
    """Encode a batch as JSON, float32 values exactly; arguments and errors as in `encode_arrow`."""
    _check_arrays(x, y)
    document: dict[str, Any] = {"dtype": str(x.dtype), "x": x.tolist()}
    if y is not None:
        document["y"] = y.tolist()
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _shown(found: object, limit: int = 80) -> str:
    """A piece of the record for an error message: hostile text must not flood logs and headers."""
    text = ascii(found) if isinstance(found, str) else str(found).encode("ascii", "replace").decode()
    return text if len(text) <= limit else text[:limit] + "..."


def _check_arrays(x: np.ndarray, y: np.ndarray | None) -> None:
    if x.dtype not in (np.uint8, np.float32):
        raise BadBatchError("dtype", f"x is {x.dtype}, expected uint8 or float32")
    if x.ndim < 2 or 0 in x.shape:
        raise BadBatchError("shape", f"x has shape {x.shape}, expected (n, ...) with at least one value")
    if x.dtype == np.float32 and not np.isfinite(x).all():
        raise BadBatchError("not-finite", "x holds NaN or infinity")
    if y is not None and y.dtype.kind not in "iu":
        raise BadBatchError("dtype", f"y is {y.dtype}, expected integers")
    if y is not None and y.shape != x.shape[:1]:
        raise BadBatchError("shape", f"y has shape {y.shape}, expected ({len(x)},)")


def _check_row_shape(shape: tuple[int, ...], limits: RecordLimits) -> None:
    exact = shape == limits.input_shape
    if not exact and not (math.prod(shape) == limits.size and 1 in (len(shape), len(limits.input_shape))):
        expected = f"{list(limits.input_shape)} or [{limits.size}]"
        raise BadBatchError("shape", f"a row of x has shape {_shown(list(shape))}, expected {expected}")


def _check_row_count(rows: int, limits: RecordLimits) -> None:
    if rows > limits.max_rows:
        raise BadBatchError("rows", f"found {rows} rows or more, expected at most {limits.max_rows}")


def _check_label_range(lowest: int, highest: int, limits: RecordLimits) -> None:
    if lowest < 0 or highest >= limits.classes:
        worst = lowest if lowest < 0 else highest
        found = str(worst) if abs(worst) < 2**64 else "a number of more than 64 bits"
        raise BadBatchError("label-range", f"a label is {found}, expected 0 to {limits.classes - 1}")


def _decode_arrow(value: bytes, limits: RecordLimits) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        batches = _read_batches(value, limits)
        x = np.concatenate([_tensor_rows(batch, limits) for batch in batches])
        labels = [_labels(batch, limits) for batch in batches if "y" in batch.schema.names]
    except _ARROW_ERRORS as error:
        raise BadBatchError("malformed", f"not a readable Arrow IPC stream: {_shown(error, 200)}") from error
    if x.dtype == np.float32 and not np.isfinite(x).all():
        raise BadBatchError("not-finite", "x holds NaN or infinity, expected finite numbers")
    return x, np.concatenate(labels) if labels else None


def _read_batches(value: bytes, limits: RecordLimits) -> list[Any]:
    """The validated record batches, as views of `value`; those without rows are dropped."""
    messages = _messages(value)
    first = next(messages, None)
    if first is None or first.type != "schema":
        raise BadBatchError("malformed", "the Arrow stream does not start with a schema")
    schema = ipc.read_schema(first)
    _check_schema(schema, limits)
    batches, rows = [], 0
    for count, message in enumerate(messages, start=1):
        if message.type != "record batch":
            raise BadBatchError("malformed", f"found a {message.type} message, expected a record batch")
        length, compressed = _batch_header(message.metadata)
        if length < 0:
            raise BadBatchError("malformed", f"a record batch says it has {length} rows")
        if compressed:
            raise BadBatchError("compressed", "the Arrow body is compressed, expected plain buffers")
        rows += length
        # Empty batches carry no rows but cost time: they count against the same limit.
        _check_row_count(max(rows, count), limits)
        batch = ipc.read_record_batch(message, schema)
        batch.validate(full=True)
        if batch.num_rows:
            batches.append(batch)
    if not batches:
        raise BadBatchError("empty", "the Arrow stream holds no rows, expected at least one")
    return batches


def _messages(value: bytes) -> Iterator[Any]:
    """The messages of the stream in order; Arrow verifies the structure of each one's flatbuffer."""
    source = pa.BufferReader(value)
    while True:
        try:
            message = ipc.read_message(source)
        except EOFError:
            break
        if message.metadata.size > _MAX_METADATA_BYTES:
            raise BadBatchError("malformed", f"Arrow metadata of more than {_MAX_METADATA_BYTES} bytes")
        yield message
    if source.tell() != len(value):
        rest = len(value) - source.tell()
        raise BadBatchError("malformed", f"{rest} bytes follow the end of the Arrow stream")


def _check_schema(schema: Any, limits: RecordLimits) -> None:
    if sorted(schema.names) not in (["x"], ["x", "y"]):
        raise BadBatchError("columns", f"columns are {_shown(schema.names)}, expected x, or x and y")
    kind = schema.field("x").type
    if not isinstance(kind, pa.FixedShapeTensorType):
        raise BadBatchError("dtype", f"column x is {_shown(kind)}, expected arrow.fixed_shape_tensor")
    if kind.value_type not in (pa.uint8(), pa.float32()):
        raise BadBatchError("dtype", f"column x holds {_shown(kind.value_type)}, expected uint8 or float32")
    if kind.permutation is not None and list(kind.permutation) != list(range(len(kind.shape))):
        raise BadBatchError("shape", f"column x has permutation {_shown(kind.permutation)}, expected none")
    _check_row_shape(tuple(kind.shape), limits)
    if "y" in schema.names and not pa.types.is_integer(schema.field("y").type):
        raise BadBatchError("dtype", f"column y is {_shown(schema.field('y').type)}, expected int64")


def _batch_header(metadata: Any) -> tuple[int, bool]:
    """Row count, and whether the body is compressed, of a record batch message.

    pyarrow shows neither before it has unpacked the body, so two fields of the flatbuffer are read by hand:
    field 2 of a Message is its header; of a RecordBatch field 0 is `length` (int64), field 3 `compression`.
    """
    raw = memoryview(metadata)
    message = struct.unpack_from("<I", raw)[0]
    header = _flatbuffer_field(raw, message, 2)
    if header is None:
        raise ValueError("a message without a header")
    record_batch = header + struct.unpack_from("<I", raw, header)[0]
    length = _flatbuffer_field(raw, record_batch, 0)
    rows = 0 if length is None else struct.unpack_from("<q", raw, length)[0]
    return rows, _flatbuffer_field(raw, record_batch, 3) is not None


def _flatbuffer_field(raw: memoryview, table: int, field: int) -> int | None:
    """Where in `raw` a field of the table lies, or None where the table leaves it out."""
    vtable = table - struct.unpack_from("<i", raw, table)[0]
    entry = 4 + 2 * field
    if entry + 2 > struct.unpack_from("<H", raw, vtable)[0]:
        return None
    offset: int = struct.unpack_from("<H", raw, vtable + entry)[0]
    return table + offset if offset else None


def _tensor_rows(batch: Any, limits: RecordLimits) -> np.ndarray:
    column = batch.column("x")
    # Not `flatten`, which goes through Arrow's compute functions; a batch read from a stream begins at its first row.
    values = column.storage.values[: batch.num_rows * math.prod(limits.input_shape)]
    if column.null_count or values.null_count:
        raise BadBatchError("nulls", "column x holds nulls, expected none")
    rows: np.ndarray = values.to_numpy(zero_copy_only=True)
    return rows.reshape(batch.num_rows, *limits.input_shape)


def _labels(batch: Any, limits: RecordLimits) -> np.ndarray:
    column = batch.column("y")
    if column.null_count:
        raise BadBatchError("nulls", "column y holds nulls, expected none")
    labels: np.ndarray = column.to_numpy(zero_copy_only=False)
    # Before the cast: a large uint64 would wrap to a negative int64.
    _check_label_range(int(labels.min()), int(labels.max()), limits)
    return labels.astype(np.int64)


def _decode_json(value: bytes, limits: RecordLimits) -> tuple[np.ndarray, np.ndarray | None]:
    document = _parse_json(value, limits)
    if not isinstance(document, dict):
        raise BadBatchError("malformed", 'the JSON is not an object, expected {"x": [...], "y": [...]}')
    if "x" not in document or not document.keys() <= {"x", "y", "dtype"}:
        raise BadBatchError("columns", f"keys are {_shown(list(document)[:5])}, expected x, y and dtype")
    dtype = document.get("dtype", "float32")
    if dtype not in ("uint8", "float32"):
        found = _shown(dtype) if isinstance(dtype, str) else f"a {type(dtype).__name__}"
        raise BadBatchError("dtype", f"dtype is {found}, expected uint8 or float32")
    x = document["x"]
    if not isinstance(x, list) or not x:
        raise BadBatchError("empty" if x == [] else "shape", "x is not a list of at least one row")
    _check_row_count(len(x), limits)
    flat = _flatten_rows(x, limits)
    array = _json_uint8(flat) if dtype == "uint8" else _json_float32(flat)
    labels = document.get("y")
    y = None if labels is None else _json_labels(labels, len(x), limits)
    return array.reshape(len(x), *limits.input_shape), y


def _parse_json(value: bytes, limits: RecordLimits) -> Any:
    # Each parsed element costs tens of bytes of objects; every element but one brings a comma.
    most = limits.max_rows * (limits.size + 2)
    if value.count(b",") > most:
        raise BadBatchError("rows", f"the JSON has more elements than {limits.max_rows} rows hold")
    try:
        text = value.decode("utf-8")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise BadBatchError("malformed", "the JSON is nested too deeply") from error
    except ValueError as error:  # also UnicodeDecodeError, and integers of more than 4300 digits
        raise BadBatchError("malformed", f"not readable JSON: {_shown(error, 200)}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise BadBatchError("not-finite", f"the JSON holds {name}, expected finite numbers")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise BadBatchError("malformed", "the JSON names a key twice")
    return document


def _flatten_rows(x: list[Any], limits: RecordLimits) -> list[Any]:
    """All numbers of x in row-major order; all rows must be nested like the first one."""
    shape: list[int] = []
    inner: Any = x[0]
    while isinstance(inner, list) and inner:
        shape.append(len(inner))
        inner = inner[0]
    _check_row_shape(tuple(shape), limits)
    flat: list[Any] = x
    for length in shape:
        if set(map(type, flat)) != {list} or set(map(len, flat)) != {length}:
            raise BadBatchError("shape", f"rows of x are ragged, expected shape {shape} like the first")
        flat = list(chain.from_iterable(flat))
    return flat


def _check_types(flat: list[Any], allowed: set[type], name: str, expected: str) -> None:
    # Exact types: bool is an int to isinstance, and a label `true` is a mistake.
    wrong = sorted(kind.__name__ for kind in set(map(type, flat)) - allowed)
    if wrong:
        raise BadBatchError("dtype", f"{name} holds {', '.join(wrong)}, expected {expected}")


def _json_uint8(flat: list[Any]) -> np.ndarray:
    _check_types(flat, {int}, "x", "whole numbers, for dtype uint8")
    try:
        return np.frombuffer(bytearray(flat), dtype=np.uint8)  # over a bytearray an array can be written
    except (ValueError, OverflowError) as error:
        raise BadBatchError("dtype", "x holds a number outside 0 to 255, the range of uint8") from error


def _json_float32(flat: list[Any]) -> np.ndarray:
    _check_types(flat, {int, float}, "x", "numbers")
    # Compared as Python numbers, so that integers of any length are caught before numpy sees them.
    if max(flat) > _FLOAT32_MAX or min(flat) < -_FLOAT32_MAX:
        raise BadBatchError("not-finite", "x holds a number beyond float32")
    return np.array(flat, dtype=np.float32)


def _json_labels(labels: Any, rows: int, limits: RecordLimits) -> np.ndarray:
    if not isinstance(labels, list) or len(labels) != rows:
        found = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise BadBatchError("shape", f"y is {found}, expected a list of {rows} labels, one for each row of x")
    _check_types(labels, {int}, "y", "whole numbers")
    _check_label_range(min(labels), max(labels), limits)
    return np.array(labels, dtype=np.int64)


_DECODERS = {ARROW_CONTENT_TYPE: _decode_arrow, JSON_CONTENT_TYPE: _decode_json}
