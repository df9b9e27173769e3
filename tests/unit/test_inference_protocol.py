"""Requests of the Open Inference Protocol as bytes, right and wrong, and responses that a stock client reads."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient import http as triton
from tritonclient.http._utils import _get_inference_request

from daemon.inference_protocol import (
    MOST_STREAM_BYTES,
    OUTPUTS,
    Request,
    RequestError,
    RequestLimits,
    decode,
    encode,
    options_of,
)
from supsup_online.answering import Answer, Inquiry

LIMITS = RequestLimits((4, 4), max_rows=8)
MARGIN = 0.25
PIXELS = (np.arange(48) * 5).astype(np.uint8).reshape(3, 4, 4)
HEAD = {"model_name": "bank", "model_version": "7", "parameters": {"inferred_rows": 3}}


def tensor(values: np.ndarray = PIXELS, datatype: str = "UINT8", name: str = "x", **more: Any) -> dict[str, Any]:
    """An input with its data in JSON, flat."""
    data = values.reshape(-1).tolist()
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": data} | more


def in_binary(values: np.ndarray = PIXELS, datatype: str = "UINT8", name: str = "x", **more: Any) -> dict[str, Any]:
    """An input whose data follow the JSON."""
    size = {"binary_data_size": values.nbytes}
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "parameters": size} | more


def asked(*inputs: dict[str, Any], tail: bytes | None = None, **more: Any) -> Request:
    """The request of these inputs and what else the JSON holds, decoded; `tail` follows the JSON."""
    text = json.dumps({"inputs": list(inputs) or [tensor()]} | more).encode()
    return decode(text + (tail or b""), None if tail is None else str(len(text)), LIMITS, MARGIN)


# -- requests that are right -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [PIXELS, PIXELS.reshape(3, 16)], ids=["shaped", "flat"])
@pytest.mark.parametrize("nested", [True, False], ids=["nested data", "flat data"])
def test_bytes_in_json_come_out_as_they_went_in(values: np.ndarray, nested: bool) -> None:
    request = asked(tensor(values, data=values.tolist() if nested else values.reshape(-1).tolist()))
    assert request.x.dtype == np.uint8
    np.testing.assert_array_equal(request.x, PIXELS)


@pytest.mark.parametrize(("datatype", "kind"), [("FP32", "<f4"), ("FP64", "<f8")])
@pytest.mark.parametrize("binary", [True, False])
def test_numbers_come_out_as_float32(datatype: str, kind: str, binary: bool) -> None:
    values = (PIXELS / 7 - 9).astype(kind)
    request = asked(in_binary(values, datatype), tail=values.tobytes()) if binary else asked(tensor(values, datatype))
    assert request.x.dtype == np.float32
    np.testing.assert_array_equal(request.x, values.astype(np.float32))


def test_whole_numbers_will_do_where_numbers_are_asked_for() -> None:
    np.testing.assert_array_equal(asked(tensor(PIXELS, "FP32")).x, PIXELS)


def test_binary_tensors_lie_behind_the_json_in_the_order_of_the_inputs() -> None:
    tasks = np.array([4, 2, 9], dtype="<i8")
    request = asked(in_binary(tasks, "INT64", "task"), in_binary(), tail=tasks.tobytes() + PIXELS.tobytes())
    np.testing.assert_array_equal(request.x, PIXELS)
    assert request.tasks is not None
    assert request.tasks.tolist() == [4, 2, 9]


@pytest.mark.parametrize("first", ["x", "task"])
def test_json_and_binary_may_be_mixed(first: str) -> None:
    inputs = [in_binary(), tensor(np.array([4, 2, 9]), "INT64", "task")]
    request = asked(*(inputs if first == "x" else inputs[::-1]), tail=PIXELS.tobytes())
    np.testing.assert_array_equal(request.x, PIXELS)
    assert request.tasks is not None
    assert request.tasks.tolist() == [4, 2, 9]


@pytest.mark.parametrize("tasks", [[5], [5, 5, 5], [[5], [5], [5]]])
def test_one_task_may_be_told_for_all_rows_or_one_for_each(tasks: list[Any]) -> None:
    told = asked(tensor(), tensor(np.array(tasks), "INT64", "task")).tasks
    assert told is not None
    assert told.tolist() == [5, 5, 5]


def test_what_is_not_said_is_exact_inference_row_by_row_and_all_outputs_in_json() -> None:
    request = asked()
    assert (request.inquiry, request.tasks, request.stream, request.id) == (Inquiry(margin=MARGIN), None, "", None)
    assert request.outputs == dict.fromkeys(OUTPUTS, False)


def test_parameters_say_how_to_infer() -> None:
    parameters = {"inference": "one-shot", "objective": "G", "scope": "batch", "stream": "camera-4"}
    assert options_of(parameters, 0.5) == (Inquiry("one-shot", "G", "batch", 0.5), "camera-4")


def test_outputs_are_those_that_are_named_in_their_order() -> None:
    wanted = [{"name": "novel", "parameters": {"binary_data": True}}, {"name": "label"}]
    assert list(asked(outputs=wanted).outputs.items()) == [("novel", True), ("label", False)]


def test_each_output_may_say_otherwise_than_the_request() -> None:
    wanted = [{"name": "novel", "parameters": {"binary_data": False}}, {"name": "label"}]
    request = asked(outputs=wanted, parameters={"binary_data_output": True})
    assert request.outputs == {"novel": False, "label": True}


@pytest.mark.parametrize("size", [0, 1, 1024])
def test_an_id_is_kept(size: int) -> None:
    assert asked(id="é" * size).id == "é" * size


# -- requests that are wrong -------------------------------------------------------------------------------------------

NAN = np.full((1, 16), np.nan, dtype="<f4")
TASKS = tensor(np.array([1, 2, 3]), "INT64", "task")
MISTAKES: dict[str, tuple[Callable[[], Any], int, str]] = {
    "no JSON": (lambda: decode(b"{", None, LIMITS, MARGIN), 400, "is no JSON"),
    "no body": (lambda: decode(b"", None, LIMITS, MARGIN), 400, "is no JSON"),
    "no UTF-8": (lambda: decode(b'{"id": "\xff"}', None, LIMITS, MARGIN), 400, "is no JSON"),
    "NaN in JSON": (lambda: decode(b'{"inputs": NaN}', None, LIMITS, MARGIN), 400, "is no JSON"),
    "deep nesting": (lambda: decode(b"[" * 10**5 + b"]" * 10**5, None, LIMITS, MARGIN), 400, "is no JSON"),
    "a list": (lambda: decode(b"[]", None, LIMITS, MARGIN), 400, "must be a JSON object, not a list"),
    "a number": (lambda: decode(b"17", None, LIMITS, MARGIN), 400, "must be a JSON object, not a number"),
    "millions of elements": (lambda: decode(b"," * 10**6, None, LIMITS, MARGIN), 413, "more elements than 8 rows"),
    "a length of no digits": (lambda: decode(b"{}", "two", LIMITS, MARGIN), 400, "Content-Length is 'two'"),
    "a length in other digits": (lambda: decode(b"{}", "٢", LIMITS, MARGIN), 400, "no number of bytes"),
    "an empty length": (lambda: decode(b"{}", "", LIMITS, MARGIN), 400, "no number of bytes"),
    "an endless length": (lambda: decode(b"{}", "9" * 5000, LIMITS, MARGIN), 400, "no number of bytes"),
    "a length of nothing": (lambda: decode(b"{}", "0", LIMITS, MARGIN), 400, "is 0, the body has 2"),
    "a length that lies": (lambda: decode(b"{}", "3", LIMITS, MARGIN), 400, "is 3, the body has 2"),
    "inputs missing": (lambda: decode(b"{}", None, LIMITS, MARGIN), 400, "inputs must be a list.*not nothing"),
    "inputs empty": (lambda: decode(b'{"inputs": []}', None, LIMITS, MARGIN), 400, "at least one tensor"),
    "inputs an object": (lambda: decode(b'{"inputs": {}}', None, LIMITS, MARGIN), 400, "inputs.*not an object"),
    "an input that is none": (lambda: decode(b'{"inputs": [1]}', None, LIMITS, MARGIN), 400, "each of inputs"),
    "x missing": (lambda: asked(TASKS), 400, r"no input x.*\[1, 4, 4\]"),
    "another input": (lambda: asked(tensor(name="y")), 400, "inputs has no 'y': choose x, task"),
    "a name that is no text": (lambda: asked(tensor(name=["x"])), 400, "inputs has no"),
    "x twice": (lambda: asked(tensor(), tensor()), 400, "inputs names x twice"),
    "no datatype": (lambda: asked(tensor(datatype=None)), 400, "datatype None: choose UINT8, FP32, FP64"),
    "another datatype": (lambda: asked(tensor(datatype="BYTES")), 400, "datatype 'BYTES'"),
    "x of whole numbers": (lambda: asked(tensor(datatype="INT64")), 400, "datatype 'INT64'"),
    "tasks of bytes": (lambda: asked(tensor(), TASKS | {"datatype": "UINT8"}), 400, "task has datatype 'UINT8'"),
    "no shape": (lambda: asked(tensor(shape=None)), 400, "shape None, expected a list"),
    "an empty shape": (lambda: asked(tensor(shape=[])), 400, r"shape \[\], expected a list"),
    "a long shape": (lambda: asked(tensor(shape=[1] * 9)), 400, "one to five whole numbers"),
    "a shape of truths": (lambda: asked(tensor(shape=[True, 16])), 400, "expected a list of one to five whole"),
    "a shape of halves": (lambda: asked(tensor(shape=[3.0, 16])), 400, "expected a list of one to five whole"),
    "another shape": (lambda: asked(tensor(shape=[3, 5, 5])), 400, r"\[3, 5, 5\], expected \[n, 4, 4\] or \[n, 16\]"),
    "rows alone": (lambda: asked(tensor(shape=[8])), 400, r"expected \[n, 4, 4\] or \[n, 16\]"),
    "no row": (lambda: asked(tensor(shape=[0, 16], data=[])), 400, "n at least 1"),
    "less than no row": (lambda: asked(tensor(shape=[-3, 16])), 400, "n at least 1"),
    "too many rows": (lambda: asked(tensor(shape=[9, 16])), 413, "9 rows, at most 8"),
    "rows without end": (lambda: asked(tensor(shape=[2**63, 16])), 413, "at most 8 are allowed"),
    "square tasks": (lambda: asked(tensor(), TASKS | {"shape": [3, 3]}), 400, r"expected \[n\]"),
    "no data": (lambda: asked(tensor(data=None)), 400, "data of input x are nothing, its shape says 48"),
    "data that are a text": (lambda: asked(tensor(data="AAAA")), 400, "data of input x are a text"),
    "too few values": (lambda: asked(tensor(data=[1, 2])), 400, "are 2 values, its shape says 48"),
    "too many values": (lambda: asked(tensor(data=[0] * 49)), 400, "are 49 values, its shape says 48"),
    "values beside lists": (lambda: asked(tensor(data=[[1], 2])), 400, "data of input x are ragged"),
    "lists of several lengths": (lambda: asked(tensor(data=[[0] * 47, [0]])), 400, "data of input x are ragged"),
    "lists within values": (lambda: asked(tensor(data=[0] * 47 + [[0]])), 400, "hold list, expected whole numbers"),
    "halves as bytes": (lambda: asked(tensor(data=[0.5] * 48)), 400, "hold float, expected whole numbers"),
    "truths as bytes": (lambda: asked(tensor(data=[True] * 48)), 400, "hold bool, expected whole numbers"),
    "truths as numbers": (lambda: asked(tensor(datatype="FP32", data=[True] * 48)), 400, "hold bool, expected numb"),
    "nothings as numbers": (lambda: asked(tensor(datatype="FP32", data=[None] * 48)), 400, "hold NoneType"),
    "a byte too large": (lambda: asked(tensor(data=[256] * 48)), 400, "lie outside of uint8"),
    "a byte too small": (lambda: asked(tensor(data=[-1] * 48)), 400, "lie outside of uint8"),
    "a huge task": (lambda: asked(tensor(), TASKS | {"data": [1, 2, 2**63]}), 400, "lie outside of int64"),
    "a huge number": (lambda: asked(tensor(datatype="FP32", data=[1e300] * 48)), 400, "beyond .-1e.06"),
    "NaN in binary": (lambda: asked(in_binary(NAN, "FP32"), tail=NAN.tobytes()), 400, "holds NaN"),
    "infinity in binary": (
        lambda: asked(in_binary(NAN, "FP32"), tail=np.full(16, np.inf, "<f4").tobytes()),
        400,
        "infinity",
    ),
    "both data": (lambda: asked(in_binary(data=[1]), tail=PIXELS.tobytes()), 400, "both data and binary_data_size"),
    "a size that lies": (
        lambda: asked(in_binary(parameters={"binary_data_size": 47}), tail=PIXELS.tobytes()),
        400,
        "has 48 bytes; binary_data_size says 47, and 48 are there",
    ),
    "a size of halves": (
        lambda: asked(in_binary(parameters={"binary_data_size": 48.0}), tail=PIXELS.tobytes()),
        400,
        "says 48.0",
    ),
    "a size without bytes": (lambda: asked(in_binary()), 400, "and 0 are there"),
    "bytes cut short": (lambda: asked(in_binary(), tail=PIXELS.tobytes()[:-1]), 400, "and 47 are there"),
    "bytes left over": (lambda: asked(in_binary(), tail=bytes(51)), 400, "3 bytes follow the last binary tensor"),
    "an input's own parameter": (
        lambda: asked(tensor(parameters={"shared_memory_region": "a"})),
        400,
        "unknown parameter 'shared_memory_region': choose binary_data_size",
    ),
    "an input's parameters as a list": (lambda: asked(tensor(parameters=[])), 400, "parameters of input x must be"),
    "parameters as a list": (lambda: asked(parameters=[]), 400, "parameters must be a JSON object"),
    "an unknown parameter": (lambda: asked(parameters={"priority": 1}), 400, "unknown parameter 'priority'"),
    "another inference": (lambda: asked(parameters={"inference": "magic"}), 400, "is 'magic': choose exact, one-shot"),
    "a scope that is a list": (lambda: asked(parameters={"scope": ["batch"]}), 400, "parameter scope is"),
    "an objective for nothing": (lambda: asked(parameters={"objective": "H"}), 400, "exact has no use for it"),
    "a stream that is a number": (lambda: asked(parameters={"stream": 4}), 400, "stream must be a text"),
    "a stream too long": (lambda: asked(parameters={"stream": "é" * 129}), 400, f"at most {MOST_STREAM_BYTES} bytes"),
    "a stream beside tasks": (lambda: asked(tensor(), TASKS, parameters={"stream": "a"}), 400, "leave one of them"),
    "two tasks for three rows": (
        lambda: asked(tensor(), tensor(np.array([1, 2]), "INT64", "task")),
        400,
        "task has 2 values for 3 rows",
    ),
    "a flag that is a number": (lambda: asked(parameters={"binary_data_output": 1}), 400, "must be true or false"),
    "no outputs": (lambda: asked(outputs=[]), 400, "outputs must be a list of at least one"),
    "another output": (lambda: asked(outputs=[{"name": "logits"}]), 400, "outputs has no 'logits': choose label"),
    "an output twice": (lambda: asked(outputs=[{"name": "label"}] * 2), 400, "outputs names label twice"),
    "an output's own parameter": (
        lambda: asked(outputs=[{"name": "label", "parameters": {"classification": 3}}]),
        400,
        "output label has an unknown parameter 'classification'",
    ),
    "an output's flag": (
        lambda: asked(outputs=[{"name": "label", "parameters": {"binary_data": "yes"}}]),
        400,
        "binary_data must be true or false, not 'yes'",
    ),
    "an id that is a number": (lambda: asked(id=7), 400, "id must be a text"),
    "an id too long": (lambda: asked(id="x" * 1025), 400, "at most 1024 letters"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named(mistake: str) -> None:
    attempt, status, message = MISTAKES[mistake]
    with pytest.raises(RequestError, match=message) as caught:
        attempt()
    assert caught.value.status == status


def test_what_a_client_sent_is_shown_in_part_only() -> None:
    with pytest.raises(RequestError) as caught:
        asked(parameters={"\u001b[31m" + "x" * 10_000: 1})
    assert len(str(caught.value)) < 300
    assert "\u001b" not in str(caught.value)


# -- anything at all ---------------------------------------------------------------------------------------------------


def is_decoded_or_refused(body: bytes, header_length: str | None) -> None:
    try:
        request = decode(body, header_length, LIMITS, MARGIN)
    except RequestError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.status in {400, 413}
        assert len(str(refused)) < 1000
        return
    assert request.x.shape[1:] == (4, 4)
    assert request.x.dtype in (np.uint8, np.float32)
    assert np.isfinite(request.x).all()
    assert request.tasks is None or request.tasks.shape == (len(request.x),)


@given(st.binary(max_size=200), st.none() | st.text(max_size=12) | st.integers(-5, 300).map(str))
def test_any_bytes_are_decoded_or_refused(body: bytes, header_length: str | None) -> None:
    is_decoded_or_refused(body, header_length)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=True)
    | st.text(max_size=5)
    | st.sampled_from(["x", "task", "label", "INT64", "FP32", "UINT8", "batch", "binary", "G"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
VALID: dict[str, Any] = {
    "id": "a",
    "parameters": {"inference": "one-shot", "objective": "H", "scope": "sample", "binary_data_output": False},
    "inputs": [in_binary(), in_binary(PIXELS[:, 0, 0].astype("<i8"), "INT64", "task")],
    "outputs": [{"name": "label", "parameters": {"binary_data": True}}, {"name": "novel"}],
}
TAIL = PIXELS.tobytes() + PIXELS[:, 0, 0].astype("<i8").tobytes()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something lies in a JSON value, outermost first."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))][not path :]


def changed(document: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The document with something else in one place; `...` takes what is there away."""
    document = copy.deepcopy(document)
    target: Any = document
    for key in place[:-1]:
        target = target[key]
    if value is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return document


@given(st.sampled_from(places(VALID)), JSON | st.just(...))
def test_a_request_with_another_value_somewhere_is_decoded_or_refused(place: tuple[Any, ...], value: Any) -> None:
    text = json.dumps(changed(VALID, place, value)).encode()
    is_decoded_or_refused(text + TAIL, str(len(text)))


@given(st.sampled_from(places(tensor(PIXELS[:1], "FP32"))), JSON | st.just(...))
def test_a_tensor_in_json_with_another_value_somewhere_is_decoded_or_refused(
    place: tuple[Any, ...], value: Any
) -> None:
    text = json.dumps({"inputs": [changed(tensor(PIXELS[:1], "FP32"), place, value)]}).encode()
    is_decoded_or_refused(text, None)


@given(st.data())
def test_a_request_with_damaged_bytes_is_decoded_or_refused(data: st.DataObject) -> None:
    text = json.dumps(VALID).encode()
    body = bytearray(text + TAIL)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(len(body) - 80, len(body)))
    is_decoded_or_refused(bytes(body[:cut]), str(len(text) + data.draw(st.sampled_from([0, 0, 0, -1, 1, 10**6]))))


@pytest.mark.parametrize(("datatype", "kind"), [("FP32", "<f4"), ("FP64", "<f8")])
@given(data=st.data())
def test_any_bits_as_numbers_are_decoded_or_refused(datatype: str, kind: str, data: st.DataObject) -> None:
    width = np.dtype(kind).itemsize
    some = np.frombuffer(data.draw(st.binary(min_size=2 * width, max_size=2 * width)), dtype=kind)
    values = np.resize(some, (1, 16)).astype(kind)
    text = json.dumps({"inputs": [in_binary(values, datatype)]}).encode()
    is_decoded_or_refused(text + values.tobytes(), str(len(text)))


# -- responses ---------------------------------------------------------------------------------------------------------

ANSWER = Answer(
    labels=np.array([3, 0, 1]),
    probabilities=np.random.default_rng(0).random((3, 4)).astype(np.float32),
    mask_ids=np.array([40, 2**40, 0]),
    confidences=np.array([1.0, 0.1, 0.75], dtype=np.float32),
    novel=np.array([False, True, False]),
    inferred=3,
)
EXPECTED = {name: of(ANSWER) for name, (_, _, of) in OUTPUTS.items()}


def read(request: Request, answer: Answer = ANSWER) -> triton.InferResult:
    """The response as Triton's own client reads it."""
    body, length = encode(request, answer, HEAD)
    return triton.InferResult.from_response_body(body, header_length=length)


def assert_all_are_there(result: triton.InferResult) -> None:
    for name, values in EXPECTED.items():
        found = result.as_numpy(name)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize("binary", [True, False])
def test_all_outputs_reach_a_stock_client(binary: bool) -> None:
    assert_all_are_there(read(asked(parameters={"binary_data_output": binary})))


@pytest.mark.parametrize("chosen", range(len(OUTPUTS)))
def test_outputs_in_binary_and_in_json_can_be_mixed(chosen: int) -> None:
    wanted = [{"name": name, "parameters": {"binary_data": i != chosen}} for i, name in enumerate(OUTPUTS)]
    assert_all_are_there(read(asked(outputs=wanted[::-1])))


def test_a_response_names_datatypes_shapes_model_and_id() -> None:
    body, length = encode(asked(id="mine"), ANSWER, HEAD)
    told = json.loads(body)
    assert length is None
    assert {name: told[name] for name in HEAD} == HEAD
    assert told["id"] == "mine"
    assert [(output["name"], output["datatype"], output["shape"]) for output in told["outputs"]] == [
        ("label", "INT64", [3]),
        ("probabilities", "FP32", [3, 4]),
        ("task", "INT64", [3]),
        ("confidence", "FP32", [3]),
        ("novel", "BOOL", [3]),
    ]


def test_a_request_without_an_id_gets_none_back() -> None:
    assert "id" not in json.loads(encode(asked(), ANSWER, HEAD)[0])


def test_binary_outputs_lie_behind_the_json_in_the_order_of_the_outputs() -> None:
    body, length = encode(asked(outputs=[{"name": "novel"}, {"name": "task"}], parameters={"binary_data_output": True}),
                          ANSWER, HEAD)  # fmt: skip
    assert body[length:] == b"\0\1\0" + ANSWER.mask_ids.astype("<i8").tobytes()


def test_a_confidence_that_is_no_number_is_still_a_response() -> None:
    answer = Answer(*(EXPECTED[name] for name in ("label", "probabilities", "task")),
                    np.full(3, np.nan, np.float32), np.ones(3, bool))  # fmt: skip
    assert np.isnan(read(asked(), answer).as_numpy("confidence")).all()


def stock_request(values: np.ndarray, datatype: str, binary: bool, **more: Any) -> tuple[bytes, str | None]:
    """A request as Triton's own client writes it, and its header."""
    x = triton.InferInput("x", list(values.shape), datatype)
    x.set_data_from_numpy(values, binary_data=binary)
    rest = {"request_id": "", "outputs": None, "sequence_id": 0, "sequence_start": False, "sequence_end": False}
    rest |= {"priority": 0, "timeout": None, "custom_parameters": None} | more
    body, size = _get_inference_request([x], **rest)
    return body, None if size is None else str(size)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("datatype", "kind"), [("UINT8", "u1"), ("FP32", "f4"), ("FP64", "f8")])
def test_a_request_of_a_stock_client_is_read(datatype: str, kind: str, binary: bool) -> None:
    body, size = stock_request(PIXELS.astype(kind), datatype, binary, request_id="77",
                               custom_parameters={"inference": "binary", "stream": "s"})  # fmt: skip
    request = decode(body, size, LIMITS, MARGIN)
    np.testing.assert_array_equal(request.x, PIXELS)
    assert (request.inquiry.inference, request.stream, request.id) == ("binary", "s", "77")
    assert request.outputs == dict.fromkeys(OUTPUTS, True)


def test_outputs_that_a_stock_client_asks_for_are_those_it_gets() -> None:
    wanted = [triton.InferRequestedOutput("label", binary_data=True), triton.InferRequestedOutput("task", False)]
    result = read(decode(*stock_request(PIXELS, "UINT8", binary=True, outputs=wanted), LIMITS, MARGIN))
    np.testing.assert_array_equal(result.as_numpy("label"), ANSWER.labels)
    np.testing.assert_array_equal(result.as_numpy("task"), ANSWER.mask_ids)
    assert result.as_numpy("novel") is None
