"""Record values: what is read, what is refused and why; hostile bytes end in BadBatchError, nothing else."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyarrow import ipc

from supsup_online.errors import BadBatchError, SpecError
from supsup_online.wire import (
    ARROW_CONTENT_TYPE,
    JSON_CONTENT_TYPE,
    RecordLimits,
    decode,
    encode_arrow,
    encode_json,
)

LIMITS = RecordLimits(input_shape=(2, 3), classes=10, max_bytes=2**16, max_rows=8)
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
LABELS = np.array([3, 9])

shapes = st.tuples(st.integers(1, 8), st.just(2), st.just(3))
batches = st.one_of(
    hnp.arrays(np.uint8, shapes),
    hnp.arrays(np.float32, shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
)


def tensor(x: np.ndarray, **options: object) -> pa.ExtensionArray:
    flat = pa.array(x.reshape(-1))
    storage = pa.FixedSizeListArray.from_arrays(flat, x[0].size)
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, x.shape[1:], **options), storage)


def stream(*batches: pa.RecordBatch, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    options = ipc.IpcWriteOptions(compression=compression)
    with ipc.new_stream(sink, batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue()


def columns(**named: object) -> bytes:
    return stream(pa.record_batch(named))


def reason_for(value: bytes | None, content_type: str | None = None, limits: RecordLimits = LIMITS) -> str:
    with pytest.raises(BadBatchError) as caught:
        decode(value, content_type, limits)
    assert len(str(caught.value)) < 400, "messages end up in headers and logs"
    return caught.value.reason


def json_reason(document: object) -> str:
    return reason_for(json.dumps(document).encode(), JSON_CONTENT_TYPE)


# ---- what comes back


@pytest.mark.parametrize(
    ("encode", "content_type"), [(encode_arrow, ARROW_CONTENT_TYPE), (encode_json, JSON_CONTENT_TYPE)]
)
@given(x=batches, data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_batch_comes_back_as_it_was_encoded(encode, content_type, x, data):
    y = data.draw(st.none() | hnp.arrays(np.int64, len(x), elements=st.integers(0, 9)))
    for kind in (content_type, None):
        got_x, got_y = decode(encode(x, y), kind, LIMITS)
        assert got_x.dtype == x.dtype
        assert got_x.tobytes() == x.tobytes(), "also the sign of zero survives"
        assert got_x.shape == x.shape
        assert (got_y is None) == (y is None)
        if y is not None:
            assert got_y.dtype == np.int64
            np.testing.assert_array_equal(got_y, y)


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
def test_arrays_are_contiguous_writable_and_independent_of_the_record(encode):
    x, y = decode(encode(PIXELS, LABELS), None, LIMITS)
    for array in (x, y):
        assert array.flags.c_contiguous
        assert array.flags.writeable


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
def test_flat_rows_take_the_input_shape(encode):
    x, _ = decode(encode(PIXELS.reshape(2, 6)), None, LIMITS)
    np.testing.assert_array_equal(x, PIXELS)


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
def test_a_flat_input_takes_images(encode):
    x, _ = decode(encode(PIXELS), None, RecordLimits(input_shape=(6,), classes=10))
    np.testing.assert_array_equal(x, PIXELS.reshape(2, 6))


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
@pytest.mark.parametrize("shape", [(3, 2), (1, 2, 3), (5,), (7,)])
def test_rows_of_another_shape_are_refused(encode, shape):
    assert reason_for(encode(np.zeros((2, *shape), np.uint8))) == "shape"


def test_the_encodings_of_non_contiguous_arrays_are_the_same():
    turned = np.asfortranarray(PIXELS)
    assert encode_arrow(turned, LABELS) == encode_arrow(PIXELS, LABELS)


def test_record_batches_are_concatenated_and_empty_ones_skipped():
    batch = pa.record_batch({"x": tensor(PIXELS), "y": pa.array(LABELS)})
    x, y = decode(stream(batch, batch.slice(0, 0), batch), None, LIMITS)
    np.testing.assert_array_equal(x, np.concatenate([PIXELS, PIXELS]))
    np.testing.assert_array_equal(y, np.concatenate([LABELS, LABELS]))


def test_a_sliced_record_batch_keeps_its_own_rows():
    batch = pa.record_batch({"x": tensor(PIXELS), "y": pa.array(LABELS)}).slice(1)
    x, y = decode(stream(batch), None, LIMITS)
    np.testing.assert_array_equal(x, PIXELS[1:])
    np.testing.assert_array_equal(y, LABELS[1:])


@pytest.mark.parametrize("width", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"])
def test_any_integer_type_of_labels_becomes_int64(width):
    _, y = decode(columns(x=tensor(PIXELS), y=pa.array(LABELS.astype(width))), None, LIMITS)
    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, LABELS)


def test_json_from_a_console_is_float32_unless_it_says_otherwise():
    x, y = decode(b'\n {"x": [[0, 0.5, 1, 2, 3, 4]], "y": [1]}', "Application/JSON; charset=utf-8", LIMITS)
    assert x.dtype == np.float32
    assert x[0, 0, 1] == 0.5
    assert y.tolist() == [1]


def test_a_json_null_for_labels_means_only_predict():
    assert decode(b'{"x": [[0, 1, 2, 3, 4, 5]], "y": null}', None, LIMITS)[1] is None


# ---- refused in either content type


@pytest.mark.parametrize("value", [None, b""])
def test_a_tombstone_is_an_empty_batch(value):
    assert reason_for(value) == "empty"


def test_a_record_over_the_byte_limit_is_refused_before_it_is_looked_at():
    assert reason_for(b"\0" * (LIMITS.max_bytes + 1)) == "too-large"


@pytest.mark.parametrize("content_type", ["", "text/csv", "application/x-" + "a" * 10_000])
def test_an_unknown_content_type_is_refused(content_type):
    assert reason_for(encode_arrow(PIXELS), content_type) == "content-type"


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
def test_a_record_of_too_many_rows_is_refused(encode):
    assert reason_for(encode(np.zeros((9, 2, 3), np.uint8))) == "rows"


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
@pytest.mark.parametrize("label", [-1, 10, 2**40])
def test_a_label_out_of_range_is_refused(encode, label):
    assert reason_for(encode(PIXELS, np.array([0, label]))) == "label-range"


@pytest.mark.parametrize(
    "fields",
    [{"input_shape": ()}, {"input_shape": (0, 3)}, {"classes": 0}, {"max_bytes": 0}, {"max_rows": 0}],
)
def test_limits_below_one_are_a_mistake_in_the_settings(fields):
    with pytest.raises(SpecError):
        RecordLimits(**{"input_shape": (2,), "classes": 2} | fields)


# ---- refused in Arrow


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_body_is_refused_before_it_is_unpacked(compression):
    bomb = pa.record_batch({"x": tensor(np.zeros((8, 100_000), np.uint8))})
    value = stream(bomb, compression=compression)
    limits = RecordLimits(input_shape=(100_000,), classes=10)
    before = pa.default_memory_pool().bytes_allocated()
    assert reason_for(value, None, limits) == "compressed"
    assert pa.default_memory_pool().bytes_allocated() <= before


@pytest.mark.parametrize(
    "value",
    [
        columns(x=tensor(PIXELS), z=pa.array(LABELS)),
        columns(x=tensor(PIXELS), y=pa.array(LABELS), z=pa.array(LABELS)),
        columns(y=pa.array(LABELS)),
        stream(pa.RecordBatch.from_arrays([tensor(PIXELS), tensor(PIXELS)], ["x", "x"])),
        columns(x=tensor(PIXELS), **{"column " * 500: pa.array(LABELS)}),
    ],
)
def test_columns_other_than_x_and_y_are_refused(value):
    assert reason_for(value) == "columns"


@pytest.mark.parametrize(
    "value",
    [
        columns(x=tensor(PIXELS.astype(np.float64))),
        columns(x=tensor(PIXELS.astype(np.int32))),
        columns(x=pa.FixedSizeListArray.from_arrays(pa.array(PIXELS.reshape(-1)), 6)),
        columns(x=pa.array([b"pickled", b"bytes"])),
        columns(x=tensor(PIXELS), y=pa.array([0.0, 1.0])),
        columns(x=tensor(PIXELS), y=pa.array([True, False])),
        columns(x=tensor(PIXELS), y=pa.array(["1", "2"]).dictionary_encode()),
    ],
)
def test_arrow_columns_of_another_type_are_refused(value):
    assert reason_for(value) == "dtype"


def test_a_tensor_that_is_not_row_major_is_refused():
    assert reason_for(columns(x=tensor(PIXELS, permutation=[1, 0]))) == "shape"
    identity = columns(x=tensor(PIXELS, permutation=[0, 1]))
    np.testing.assert_array_equal(decode(identity, None, LIMITS)[0], PIXELS)


def test_nulls_in_any_place_are_refused():
    kind = pa.fixed_shape_tensor(pa.uint8(), (2, 3))
    whole_row = pa.array([None, [1] * 6], pa.list_(pa.uint8(), 6))
    one_pixel = pa.array([[None] + [1] * 5, [1] * 6], pa.list_(pa.uint8(), 6))
    for storage in (whole_row, one_pixel):
        assert reason_for(columns(x=pa.ExtensionArray.from_storage(kind, storage))) == "nulls"
    assert reason_for(columns(x=tensor(PIXELS), y=pa.array([None, 1]))) == "nulls"


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_arrow_floats_must_be_finite(poison):
    x = PIXELS.astype(np.float32)
    x[1, 1, 1] = poison
    assert reason_for(columns(x=tensor(x))) == "not-finite"


def test_a_label_beyond_int64_does_not_wrap():
    assert reason_for(columns(x=tensor(PIXELS), y=pa.array([0, 2**64 - 1], pa.uint64()))) == "label-range"


def test_a_stream_without_rows_is_an_empty_batch():
    batch = pa.record_batch({"x": tensor(PIXELS)})
    assert reason_for(stream(batch.slice(0, 0))) == "empty"
    assert reason_for(batch.schema.serialize().to_pybytes()) == "empty"


def test_many_empty_record_batches_are_refused():
    empty = pa.record_batch({"x": tensor(PIXELS)}).slice(0, 0)
    assert reason_for(stream(*[empty] * 9)) == "rows"


def test_a_second_stream_after_the_first_is_refused():
    assert reason_for(encode_arrow(PIXELS) * 2) == "malformed"


def test_a_second_schema_inside_the_stream_is_refused():
    schema = pa.record_batch({"x": tensor(PIXELS)}).schema.serialize().to_pybytes()
    assert reason_for(schema + encode_arrow(PIXELS)) == "malformed"


def test_a_stream_must_start_with_a_schema():
    schema = pa.record_batch({"x": tensor(PIXELS)}).schema.serialize().to_pybytes()
    assert reason_for(encode_arrow(PIXELS)[len(schema) :]) == "malformed"


def test_dictionaries_are_refused():
    text = pa.array(["1", "2"]).dictionary_encode()
    schema = pa.record_batch({"x": tensor(PIXELS)}).schema.serialize().to_pybytes()
    with_dictionary = columns(t=text)
    offset = len(pa.record_batch({"t": text}).schema.serialize())
    assert reason_for(schema + with_dictionary[offset:]) == "malformed"


def test_extension_metadata_nested_without_end_is_refused():
    depth = 2000
    deep = b'{"shape":[6],"a":' + b"[" * depth + b"]" * depth + b"}"
    for metadata in (deep, deep * 5):
        field = pa.field(
            "x",
            pa.list_(pa.uint8(), 6),
            metadata={
                b"ARROW:extension:name": b"arrow.fixed_shape_tensor",
                b"ARROW:extension:metadata": metadata,
            },
        )
        assert reason_for(pa.schema([field]).serialize().to_pybytes()) == "malformed"


# ---- refused in JSON


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "1e39", "9" * 400])
def test_json_numbers_must_fit_in_float32(literal):
    assert reason_for(f'{{"x": [[{literal},0,0,0,0,0]]}}'.encode()) == "not-finite"


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([1], "malformed"),
        ({}, "columns"),
        ({"y": [1]}, "columns"),
        ({"x": [[0] * 6], "z": 1}, "columns"),
        ({"x": [[0] * 6], "dtype": "float64"}, "dtype"),
        ({"x": [[0] * 6], "dtype": ["uint8"]}, "dtype"),
        ({"x": [[0] * 6], "dtype": None}, "dtype"),
        ({"x": []}, "empty"),
        ({"x": {}}, "shape"),
        ({"x": "abcdef"}, "shape"),
        ({"x": [[]]}, "shape"),
        ({"x": [0] * 6}, "shape"),
        ({"x": [[0] * 6, [0] * 5]}, "shape"),
        ({"x": [[0] * 6, 0]}, "shape"),
        ({"x": [[[0, 0, 0], [0, 0]]]}, "shape"),
        ({"x": [[0, 0, 0, 0, 0, [0]]]}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, True]]}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, "1"]]}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, None]]}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, 1.0]], "dtype": "uint8"}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, 256]], "dtype": "uint8"}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, -1]], "dtype": "uint8"}, "dtype"),
        ({"x": [[0, 0, 0, 0, 0, 10**40]], "dtype": "uint8"}, "dtype"),
        ({"x": [[0] * 6], "y": []}, "shape"),
        ({"x": [[0] * 6], "y": 1}, "shape"),
        ({"x": [[0] * 6], "y": [1, 2]}, "shape"),
        ({"x": [[0] * 6], "y": [[1]]}, "dtype"),
        ({"x": [[0] * 6], "y": [True]}, "dtype"),
        ({"x": [[0] * 6], "y": [1.0]}, "dtype"),
        ({"x": [[0] * 6], "y": ["1"]}, "dtype"),
        ({"x": [[0] * 6], "y": [10**100]}, "label-range"),
    ],
)
def test_json_that_is_not_a_batch_is_refused(document, reason):
    assert json_reason(document) == reason


@pytest.mark.parametrize(
    "value",
    [
        b"{",
        b'{"x": [[1,2,3,4,5,6]]} trailing',
        b'{"x": [[1,2,3,4,5,6]], "x": [[1,2,3,4,5,6]]}',
        b'{"x": "\xff"}',
        b'{"x":' + b"[" * 60_000,
        b'{"x":' * 10_000,
        b'{"dtype": ' + b"[" * 900 + b"]" * 900 + b', "x": [[1,2,3,4,5,6]]}',
        b'{"x": [[' + b"9" * 5000 + b"]]}",
    ],
)
def test_unreadable_json_is_refused(value):
    assert reason_for(value, JSON_CONTENT_TYPE) in ("malformed", "dtype")


def test_json_with_more_elements_than_the_limits_allow_is_refused_before_parsing():
    assert reason_for(b'{"x": [' + b"[]," * 100 + b"[]]}") == "rows"


# ---- hostile bytes


@given(value=st.binary(max_size=400))
@example(b"\xff\xff\xff\xff\xff\xff\xff\x7f")
@example(b"\xff\xff\xff\x7f" + b"\0" * 8)
@example(b"\xff\xff\xff\xff\0\0\0\0")
@settings(max_examples=150, deadline=None)
def test_random_bytes_raise_nothing_but_bad_batch(value):
    for content_type in (None, ARROW_CONTENT_TYPE, JSON_CONTENT_TYPE):
        reason_for(value, content_type)


VALID = [
    encode_arrow(PIXELS, LABELS),
    encode_arrow(PIXELS.astype(np.float32)),
    stream(pa.record_batch({"x": tensor(PIXELS), "y": pa.array([1, 2], pa.int8())}), compression="lz4"),
    columns(x=tensor(PIXELS), y=pa.array(["1", "2"]).dictionary_encode()),
    encode_json(PIXELS, LABELS),
]


@given(value=st.sampled_from(VALID), keep=st.integers(0, 2000))
@settings(max_examples=100, deadline=None)
def test_truncated_records_raise_nothing_but_bad_batch(value, keep):
    try:
        x, _ = decode(value[:keep], None, LIMITS)
    except BadBatchError:
        return
    np.testing.assert_array_equal(x, PIXELS)


@given(
    value=st.sampled_from(VALID),
    edits=st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=300, deadline=None)
def test_mutated_records_raise_nothing_but_bad_batch(value, edits):
    hostile = bytearray(value)
    for position, byte in edits:
        hostile[position % len(hostile)] = byte
    try:
        x, y = decode(bytes(hostile), None, LIMITS)
    except BadBatchError:
        return
    assert x.shape[1:] == LIMITS.input_shape
    assert len(x) <= LIMITS.max_rows
    assert np.isfinite(x).all()
    assert y is None or (y.shape == x.shape[:1] and y.min() >= 0 and y.max() < LIMITS.classes)


# ---- encoding


@pytest.mark.parametrize("encode", [encode_arrow, encode_json])
@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        (np.zeros((2, 3)), None, "dtype"),
        (np.zeros(3, np.uint8), None, "shape"),
        (np.zeros((0, 3), np.uint8), None, "shape"),
        (np.full((1, 3), np.nan, np.float32), None, "not-finite"),
        (PIXELS, np.zeros(2), "dtype"),
        (PIXELS, np.zeros(3, np.int64), "shape"),
    ],
)
def test_arrays_that_make_no_batch_are_not_encoded(encode, x, y, reason):
    with pytest.raises(BadBatchError) as caught:
        encode(x, y)
    assert caught.value.reason == reason
