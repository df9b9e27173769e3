"""The replica's addresses as an OpenAPI 3.1 document."""

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
        "paths": _paths(bank, shape),
        "components": {
            "schemas": _schemas(shape),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _paths(bank: str, shape: list[int]) -> dict[str, Any]:
    named = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": [bank]}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    paths: dict[str, Any] = {
        "/v2": _get("The server", "ServerMetadata"),
        "/v2/health/live": _get("Whether this process answers", "Object", public=True),
        "/v2/health/ready": _get("Whether this replica should get requests", "Readiness", 503, public=True),
        "/metrics": _get("Metrics in Prometheus' text format", None),
        "/openapi.json": _get("This document", "Object"),
        "/overview": _get("What the page shows", "Object"),
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
    kind = "text/plain" if schema is None else "application/json"
    content = {kind: {"schema": {"type": "string"} if schema is None else _ref(schema)}}
    responses = {"200": {"description": "As asked.", "content": content}}
    for status in errors:
        # A readiness that says no has a body of its own kind.
        body = schema if schema == "Readiness" and status == 503 else "Error"
        responses[str(status)] = _response(_ERRORS[status], body or "Error")
    if not public:
        responses["401"] = {"description": _ERRORS[401], "content": {"text/plain": {"schema": {"type": "string"}}}}
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


def _infer(parameters: list[dict[str, Any]], shape: list[int]) -> dict[str, Any]:
    responses: dict[str, Any] = {
        str(status): _response(text, "Error") for status, text in _ERRORS.items() if status != 401
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    answer = {"application/json": {"schema": _ref("InferenceResponse")}, "application/octet-stream": binary}
    responses["200"] = {"description": "The answers, of one bank version.", "content": answer}
    responses["401"] = {"description": _ERRORS[401], "content": {"text/plain": {"schema": {"type": "string"}}}}
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


def _response(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


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
                "items": _object(["name", "datatype", "shape"], name=text, datatype=text, shape=numbers),
            },
        ),
    }
