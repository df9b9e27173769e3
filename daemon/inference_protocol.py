"""Requests and responses of the Open Inference Protocol v2, JSON and with Triton's binary tensor extension.

    request     JSON                                        | JSON of `Inference-Header-Content-Length` bytes, tensors
    inputs      x     UINT8, FP32 or FP64, [n, *input_shape] or [n, values]
                task  INT64, [n] or [1]: masks that are told
    parameters  inference, objective, scope, stream (`options_of`), binary_data_output
    outputs     label INT64 [n], probabilities FP32 [n, classes], task INT64 [n], confidence FP32 [n], novel BOOL [n]

Binary tensors lie behind the JSON in the order of the inputs, little-endian, row-major, BOOL a byte each. Everything a
client sends is untrusted: sizes are looked at before anything is allocated, and each mistake is a `RequestError` that
names it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from supsup_online.answering import Answer, Inference, Inquiry
from supsup_online.errors import SupsupError
from supsup_online.learner import INPUT_LIMIT
from supsup_online.predictor import Scope
from supsup_online.types import Objective

LENGTH_HEADER: Final = "inference-header-content-length"
MOST_STREAM_BYTES: Final = 256
PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "inference": get_args(Inference),
    "objective": get_args(Objective),
    "scope": get_args(Scope),
}
INPUTS: Final = ("x", "task")
DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "UINT8": np.dtype("u1"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "INT64": np.dtype("<i8"),
}
OUTPUTS: Final[dict[str, tuple[str, str, Callable[[Answer], NDArray[Any]]]]] = {
    "label": ("INT64", "<i8", lambda answer: answer.labels),
    "probabilities": ("FP32", "<f4", lambda answer: answer.probabilities),
    "task": ("INT64", "<i8", lambda answer: answer.mask_ids),
    "confidence": ("FP32", "<f4", lambda answer: answer.confidences),
    "novel": ("BOOL", "?", lambda answer: answer.novel),
}
_SHOWN: Final = 80
_ID_BYTES: Final = 1024
_OTHER_JSON: Final = 10_000  # commas that a request may hold beside those between values


class RequestError(SupsupError):
    """What is wrong with a request; `status` is that of the response."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a request may be.

    Attributes:
        input_shape: of one input of the network.
        max_rows: most rows.
        max_bytes: of the body.
    """

    input_shape: tuple[int, ...]
    max_rows: int = 1024
    max_bytes: int = 16 * 2**20

    @property
    def size(self) -> int:
        """Number of values in one input."""
        return math.prod(self.input_shape)


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """A request, checked.

    Attributes:
        x: raw inputs, uint8 or float32 (n, *input_shape).
        inquiry: how to infer the task.
        tasks: the mask of each row, int64 (n,), where it is told.
        stream: name of the stream, or empty.
        id: to be given back; None where there was none.
        outputs: names wanted, each with whether in binary.
    """

    x: NDArray[np.generic]
    inquiry: Inquiry
    tasks: NDArray[np.int64] | None = None
    stream: str = ""
    id: str | None = None
    outputs: Mapping[str, bool] = field(default_factory=lambda: dict.fromkeys(OUTPUTS, False))


# -- a request


def decode(body: bytes, header_length: str | None, limits: RequestLimits, margin: float) -> Request:
    """A request from its bytes.

    Args:
        body: the whole body.
        header_length: value of `Inference-Header-Content-Length`, or None where all of the body is JSON.
        limits: what a request may be.
        margin: of novelty, for the inquiry.

    Raises:
        RequestError: anything that is wrong with it.
    """
    text, tensors = _parts(body, header_length)
    document = _parsed(text, limits)
    named = _named(document.get("inputs"), "inputs", INPUTS)
    if "x" not in named:
        raise RequestError(
            "there is no input x: name the images x, for instance with shape "
            f"{[1, *limits.input_shape]} and datatype UINT8"
        )
    parameters = _mapping(document.get("parameters", {}), "parameters")
    arrays: dict[str, NDArray[Any]] = {}
    for name, tensor in named.items():
        arrays[name], tensors = _array(name, tensor, tensors, limits)
    if len(tensors):
        raise RequestError(f"{len(tensors)} bytes follow the last binary tensor")
    x = _images(arrays["x"], limits)
    inquiry, stream = options_of(parameters, margin)
    tasks = _tasks(arrays["task"], len(x)) if "task" in arrays else None
    if tasks is not None and stream:
        raise RequestError("a request with the input task needs no stream: leave one of them out")
    return Request(x, inquiry, tasks, stream, _id(document), _outputs(document, parameters))


def options_of(parameters: Mapping[str, Any], margin: float) -> tuple[Inquiry, str]:
    """Inquiry and stream from a request's parameters.

    Raises:
        RequestError: an unknown parameter, or a value that none of them has.
    """
    known = (*PARAMETERS, "stream", "binary_data_output")
    for name in parameters:
        if name not in known:
            raise RequestError(f"unknown parameter {_shown(name)}: choose {', '.join(known)}")
    chosen = {}
    for name, values in PARAMETERS.items():
        value = parameters.get(name, values[0])
        if value not in values:
            raise RequestError(f"parameter {name} is {_shown(value)}: choose {', '.join(values)}")
        chosen[name] = value
    if "objective" in parameters and chosen["inference"] == "exact":
        raise RequestError("parameter objective is for one-shot and binary inference; exact has no use for it")
    stream = parameters.get("stream", "")
    if not isinstance(stream, str) or len(stream.encode(errors="replace")) > MOST_STREAM_BYTES:
        raise RequestError(f"parameter stream must be a text of at most {MOST_STREAM_BYTES} bytes")
    return Inquiry(**chosen, margin=margin), stream


def _parts(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """The JSON, and the binary tensors behind it."""
    if header_length is None:
        return body, memoryview(b"")
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 12):
        raise RequestError(f"Inference-Header-Content-Length is {_shown(header_length)}, no number of bytes")
    length = int(header_length)
    if not 0 < length <= len(body):
        raise RequestError(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    return body[:length], memoryview(body)[length:]


def _parsed(text: bytes, limits: RequestLimits) -> dict[str, Any]:
    # Every element but one brings a comma, and costs tens of bytes once it is parsed.
    if text.count(b",") > limits.max_rows * (limits.size + 2) + _OTHER_JSON:
        raise RequestError(f"the JSON has more elements than {limits.max_rows} rows hold", 413)
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise RequestError(f"the request is no JSON: {error}") from error
    return _mapping(document, "the request")


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{what} must be a JSON object, not {_kind(value)}")
    return value


def _named(tensors: Any, what: str, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The objects of a list by their names, in order."""
    if not isinstance(tensors, list) or not tensors:
        raise RequestError(f"{what} must be a list of at least one tensor, not {_kind(tensors)}")
    found: dict[str, dict[str, Any]] = {}
    for tensor in tensors:
        name = _mapping(tensor, f"each of {what}").get("name")
        if not isinstance(name, str) or name not in names:
            raise RequestError(f"{what} has no {_shown(name)}: choose {', '.join(names)}")
        if name in found:
            raise RequestError(f"{what} names {name} twice")
        found[name] = tensor
    return found


def _id(document: Mapping[str, Any]) -> str | None:
    value = document.get("id")
    if value is not None and (not isinstance(value, str) or len(value) > _ID_BYTES):
        raise RequestError(f"id must be a text of at most {_ID_BYTES} letters")
    return value


def _outputs(document: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, bool]:
    """Wanted outputs; all of them where none is named."""
    everything = _flag(parameters, "binary_data_output")
    if document.get("outputs") is None:
        return dict.fromkeys(OUTPUTS, everything)
    named = _named(document["outputs"], "outputs", tuple(OUTPUTS))
    wanted = {}
    for name, tensor in named.items():
        options = _mapping(tensor.get("parameters", {}), f"the parameters of output {name}")
        if unknown := options.keys() - {"binary_data"}:
            raise RequestError(f"output {name} has an unknown parameter {_shown(min(unknown))}: choose binary_data")
        wanted[name] = _flag(options, "binary_data", otherwise=everything)
    return wanted


def _flag(options: Mapping[str, Any], name: str, *, otherwise: bool = False) -> bool:
    value = options.get(name, otherwise)
    if not isinstance(value, bool):
        raise RequestError(f"parameter {name} must be true or false, not {_shown(value)}")
    return value


# -- tensors


def _array(
    name: str, tensor: Mapping[str, Any], tensors: memoryview, limits: RequestLimits
) -> tuple[NDArray[Any], memoryview]:
    """An input as an array of the shape it says, and the binary tensors behind it."""
    allowed = ("INT64",) if name == "task" else ("UINT8", "FP32", "FP64")
    datatype = tensor.get("datatype")
    if not isinstance(datatype, str) or datatype not in allowed:
        raise RequestError(f"input {name} has datatype {_shown(datatype)}: choose {', '.join(allowed)}")
    shape = _shape(name, tensor.get("shape"), limits)
    options = _mapping(tensor.get("parameters", {}), f"the parameters of input {name}")
    if unknown := options.keys() - {"binary_data_size"}:
        raise RequestError(f"input {name} has an unknown parameter {_shown(min(unknown))}: choose binary_data_size")
    dtype, count = DATATYPES[datatype], math.prod(shape)
    if "binary_data_size" not in options:
        return _numbers(name, tensor.get("data"), dtype, count).reshape(shape), tensors
    size = options["binary_data_size"]
    if "data" in tensor:
        raise RequestError(f"input {name} has both data and binary_data_size")
    if type(size) is not int or size != count * dtype.itemsize or len(tensors) < size:
        raise RequestError(
            f"input {name} of shape {list(shape)} and datatype {datatype} has {count * dtype.itemsize} bytes; "
            f"binary_data_size says {_shown(size)}, and {len(tensors)} are there"
        )
    return np.frombuffer(tensors[:size], dtype=dtype).reshape(shape), tensors[size:]


def _shape(name: str, shape: Any, limits: RequestLimits) -> tuple[int, ...]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 5 or any(type(n) is not int for n in shape):
        raise RequestError(f"input {name} has shape {_shown(shape)}, expected a list of one to five whole numbers")
    rows, *rest = shape
    if rows > limits.max_rows:
        raise RequestError(f"input {name} has {_shown(rows)} rows, at most {limits.max_rows} are allowed", 413)
    fits = rest in ([], [1]) if name == "task" else rest in ([*limits.input_shape], [limits.size])
    if rows < 1 or not fits:
        expected = "[n]" if name == "task" else f"{['n', *limits.input_shape]} or {['n', limits.size]}".replace("'", "")
        raise RequestError(f"input {name} has shape {_shown(shape)}, expected {expected}, n at least 1")
    return tuple(shape)


def _numbers(name: str, data: Any, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """The values of a JSON tensor, nested or flat."""
    flat = data
    while isinstance(flat, list) and flat and isinstance(flat[0], list):
        if set(map(type, flat)) != {list} or len(flat) > count or len(set(map(len, flat))) > 1:
            raise RequestError(f"the data of input {name} are ragged")
        flat = list(chain.from_iterable(flat))
    if not isinstance(flat, list) or len(flat) != count:
        found = f"{len(flat)} values" if isinstance(flat, list) else _kind(flat)
        raise RequestError(f"the data of input {name} are {found}, its shape says {count} values")
    whole = dtype.kind in "iu"
    if wrong := set(map(type, flat)) - ({int} if whole else {int, float}):
        names = ", ".join(sorted(kind.__name__ for kind in wrong))
        raise RequestError(f"the data of input {name} hold {names}, expected {'whole ' if whole else ''}numbers")
    if whole and not np.iinfo(dtype).min <= min(flat) <= max(flat) <= np.iinfo(dtype).max:
        raise RequestError(f"the data of input {name} lie outside of {dtype.name}")
    return np.array(flat, dtype=dtype if whole else np.float64)


def _images(x: NDArray[Any], limits: RequestLimits) -> NDArray[np.generic]:
    """Inputs in the network's shape, uint8 or float32, finite and of a size that float32 can be squared at."""
    shaped = x.reshape(len(x), *limits.input_shape)
    if shaped.dtype == np.uint8:
        return shaped
    if not np.abs(shaped).max() <= INPUT_LIMIT:  # NaN is not
        raise RequestError(f"input x holds NaN, infinity or a number beyond +-{INPUT_LIMIT:g}")
    return shaped.astype(np.float32)


def _tasks(tasks: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
    told = tasks.reshape(-1)
    if len(told) not in (1, rows):
        raise RequestError(f"input task has {len(told)} values for {rows} rows of x: give one, or one a row")
    return np.broadcast_to(told, (rows,))


# -- a response


def encode(request: Request, answer: Answer, head: Mapping[str, Any]) -> tuple[bytes, int | None]:
    """The body of a response, and how many bytes of it are JSON where tensors follow.

    Args:
        request: what was asked.
        answer: to it.
        head: model name, version and parameters.
    """
    outputs, binary = [], []
    for name, in_binary in request.outputs.items():
        datatype, dtype, of = OUTPUTS[name]
        values = np.ascontiguousarray(of(answer), dtype=dtype)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(values.shape)}
        if in_binary:
            binary.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            tensor["data"] = values.reshape(-1)
        outputs.append(tensor)
    document = {**head, **({} if request.id is None else {"id": request.id}), "outputs": outputs}
    text = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return b"".join([text, *binary]), len(text) if binary else None


def _kind(value: Any) -> str:
    return {type(None): "nothing", list: "a list", dict: "an object", str: "a text", bool: "true or false"}.get(
        type(value), "a number"
    )


def _shown(value: Any) -> str:
    """A piece of what a client sent, fit for a message."""
    if isinstance(value, list) and len(value) <= _SHOWN and not any(isinstance(part, list | dict) for part in value):
        text = f"[{', '.join(map(_shown, value))}]"
    else:
        text = ascii(value) if isinstance(value, str | int | float | type(None)) else _kind(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
