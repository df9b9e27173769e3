"""The replica's addresses as an OpenAPI 3.1 document; `page/docs.js` shows it to people."""

from typing import Any

from daemon import inference_protocol as protocol
from supsup_online import __version__
from supsup_online.snapshot import Snapshot

_ANY_SHAPE = [1, 28, 28]


def document(bank: str, snapshot: Snapshot | None) -> dict[str, Any]:
    """The document for a bank; shapes are the bank's own once there is one."""
    shape = _ANY_SHAPE if snapshot is None else [1, *snapshot.network.spec.input_shape]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "supsup-daemon replica",
            "version": __version__,
            "description": "Open Inference Protocol v2. The model is the bank, its version the bank's version. "
            "The JSON of a request may be followed by binary tensors (Triton's binary tensor extension).",
        },
        "paths": _paths(bank, shape, snapshot),
        "components": {
            "schemas": _schemas(shape),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _paths(bank: str, shape: list[int], snapshot: Snapshot | None) -> dict[str, Any]:
    named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": [bank]}}
    number = {"type": "string", "pattern": "^[0-9]+$"}
    if snapshot is not None:
        number["default"] = str(snapshot.version)
    version = {"name": "version", "in": "path", "required": True, "schema": number}
    paths: dict[str, Any] = {
        "/v2": _get("The server", "ServerMetadata"),
        "/v2/health/live": _get("Whether this process answers", "Object", public=True),
        "/v2/health/ready": _get("Whether this replica should get requests", "Readiness", 503, public=True),
        "/metrics": _get("Metrics in Prometheus' text format", None),
        "/openapi.json": _get("This document", "Object"),
        "/overview": _get("What the page at / shows", "Object"),
        "/permutation": _get(
            "The order of pixels in a task of the permuted scenario",
            "Object",
            400,
            parameters=[*_numbers("task", "seed")],
        ),
    }
    for path, parameters in (("", [named]), ("/versions/{version}", [named, version])):
        model = f"/v2/models/{{name}}{path}"
        paths[model] = _get("The model: its inputs and outputs", "ModelMetadata", 404, 503, parameters=parameters)
        paths[f"{model}/ready"] = _get("Whether the model is ready", "Readiness", 404, 503, parameters=parameters)
        paths[f"{model}/infer"] = {"post": _infer(parameters, shape)}
    return paths


def _numbers(*names: str) -> list[dict[str, Any]]:
    whole = {"type": "integer", "minimum": 0, "maximum": 999_999_999, "default": 0}
    return [{"name": name, "in": "query", "required": False, "schema": whole} for name in names]


def _get(
    summary: str, schema: str | None, *errors: int, parameters: list[dict[str, Any]] | None = None, public: bool = False
) -> dict[str, Any]:
    responses = {"200": _text("As asked.") if schema is None else _response(200, "As asked.", schema)}
    for status in errors:
        # A readiness that says no has a body of its own kind.
        kind = "Readiness" if schema == "Readiness" and status == 503 else "Error"
        responses[str(status)] = _response(status, _ERRORS[status], kind)
    if not public:
        responses["401"] = _text(_ERRORS[401])
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    if parameters:
        operation["parameters"] = parameters
    if public:
        operation["security"] = []
    return {"get": operation}


_ERRORS = {
    400: "The request is wrong; the error says where.",
    401: "The token is missing or wrong.",
    404: "No such model, or a version that does not answer here.",
    408: "The body took too long to arrive.",
    413: "Too many bytes or rows.",
    415: "A compressed body.",
    503: "Nothing to answer with yet, too much to do, or about to end; try again, or another replica.",
    504: "No answer in time.",
}


_EXAMPLES: dict[tuple[str, int], Any] = {  # by schema and status
    ("ServerMetadata", 200): {"name": "supsup-daemon", "version": __version__, "extensions": ["binary_tensor_data"]},
    ("Readiness", 200): {"ready": True, "reasons": {}},
    ("Readiness", 503): {"ready": False, "reasons": {"stopping": "this replica was asked to stop"}},
    ("ModelMetadata", 200): {
        "name": "digits",
        "versions": ["40"],
        "platform": "supsup",
        "inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1, 28, 28]}],
        "outputs": [{"name": "label", "datatype": "INT64", "shape": [-1]}],
    },
    ("InferenceResponse", 200): {
        "model_name": "digits",
        "model_version": "40",
        "parameters": {"inference": "exact", "inferred_rows": 1, "threshold": 0.75},
        "outputs": [
            {"name": "label", "datatype": "INT64", "shape": [1], "data": [7]},
            {"name": "task", "datatype": "INT64", "shape": [1], "data": [3]},
        ],
    },
    ("Error", 404): {"error": "there is no such model; the one here is digits"},
    ("Error", 408): {"error": "the body did not arrive within 30 s"},
    ("Error", 413): {"error": "the body has more than 16777216 bytes"},
    ("Error", 415): {"error": "a compressed body is not read here: send it as it is"},
    ("Error", 503): {"error": "there is no bank 'digits' yet: a trainer creates it"},
    ("Error", 504): {"error": "no answer within 30 s: ask for less, or try again"},
}


def _infer(parameters: list[dict[str, Any]], shape: list[int]) -> dict[str, Any]:
    responses = {str(status): _response(status, text, "Error") for status, text in _ERRORS.items()}
    responses["200"] = _response(200, "The answers, of one bank version.", "InferenceResponse")
    responses["200"]["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    responses["400"]["content"]["application/json"]["example"] = {
        "error": "parameter inference is 'guess': choose exact, one-shot, binary"
    }
    responses["401"] = _text(_ERRORS[401])
    size = 1
    for dimension in shape:
        size *= dimension
    example = {"inputs": [{"name": "x", "shape": shape, "datatype": "UINT8", "data": [0] * size}]}
    return {
        "summary": "Infer the task of each row, and answer",
        "parameters": parameters,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ref("InferenceRequest"), "example": example}},
        },
        "responses": responses,
    }


def _response(status: int, text: str, schema: str) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": _ref(schema)}
    if (example := _EXAMPLES.get((schema, status))) is not None:
        body["example"] = example
    return {"description": text, "content": {"application/json": body}}


def _text(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _schemas(shape: list[int]) -> dict[str, Any]:
    text, numbers = {"type": "string"}, {"type": "array", "items": {"type": "integer"}}
    parameters = {name: {"type": "string", "enum": list(values)} for name, values in protocol.PARAMETERS.items()}
    metadata = {
        "type": "array",
        "items": _object(["name", "datatype", "shape"], name=text, datatype=text, shape=numbers),
    }
    return {
        "Object": {"type": "object"},
        "Error": _object(["error"], error=text),
        "ServerMetadata": _object(
            ["name", "version", "extensions"], name=text, version=text, extensions={"type": "array", "items": text}
        ),
        "Readiness": _object(["ready", "reasons"], ready={"type": "boolean"}, reasons={"type": "object"}),
        "ModelMetadata": _object(
            ["name", "versions", "platform", "inputs", "outputs"],
            name=text,
            versions={"type": "array", "items": text},
            platform=text,
            inputs=metadata,
            outputs=metadata,
        ),
        "InferenceRequest": _object(
            ["inputs"],
            id=text,
            inputs={"type": "array", "minItems": 1, "items": _ref("InputTensor")},
            parameters={
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    **parameters,
                    "stream": {"type": "string", "maxLength": protocol.MOST_STREAM_BYTES},
                    "binary_data_output": {"type": "boolean"},
                },
            },
            outputs={
                "type": "array",
                "minItems": 1,
                "items": _object(["name"], name={"type": "string", "enum": list(protocol.OUTPUTS)}),
            },
        ),
        "InputTensor": _object(
            ["name", "shape", "datatype"],
            name={"type": "string", "enum": list(protocol.INPUTS)},
            shape={**numbers, "example": shape},
            datatype={"type": "string", "enum": list(protocol.DATATYPES)},
            data={"type": "array", "description": "values, flat in row-major order or nested"},
        ),
        "InferenceResponse": _object(
            ["model_name", "model_version", "outputs"],
            model_name=text,
            model_version=text,
            id=text,
            parameters={"type": "object"},
            outputs={
                "type": "array",
                "items": _object(
                    ["name", "datatype", "shape"],
                    name=text,
                    datatype=text,
                    shape=numbers,
                    data={
                        "type": "array",
                        "description": "values, flat in row-major order; absent where they are binary",
                    },
                ),
            },
        ),
    }
