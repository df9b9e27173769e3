"""What a replica answers, over real connections."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import numpy as np
import openapi_spec_validator
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from structlog.testing import capture_logs
from tritonclient import http as triton

from daemon import openapi, overview, serving_app
from daemon import settings as table
from daemon.answerer import Answered
from daemon.http import Connections, HttpServer
from daemon.redis_store import BankReader
from daemon.replica import Replica
from daemon.serving_app import OPEN, serving_application
from daemon.serving_metrics import ServingMetrics
from supsup_online import __version__
from supsup_online.predictor import predict
from supsup_online.scenarios import pixel_order
from supsup_online.snapshot import Shelf, Snapshot
from unit import tiny

NET = tiny.network()
IDS = [3, 11, 12, 40]
MASKS = tiny.random_masks(NET, 4)
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 4), dtype=np.uint8)
INFER = "/v2/models/bank/infer"
HOSTILE = "<script>alert(1)</script>\u2028\x00"


def snapshot(version: int = 7) -> Snapshot:
    shelf = Shelf(NET)
    return shelf.next(shelf.empty(), version, dict(zip(IDS, MASKS, strict=True)), dict.fromkeys(IDS, 1.0), set())


@dataclass
class StandIn:
    """What a replica looks at of a follower; tests change it."""

    snapshot: Snapshot = field(default_factory=snapshot)
    stats: dict[int, dict[str, str]] = field(default_factory=dict)
    decisions: tuple[dict[str, str], ...] = ()
    budget: int = 10
    staleness_s: float = 0.0


def replica_of(follower: StandIn | None, **options: Any) -> Replica:
    return Replica(table.parse(options, {}), BankReader(None, "bank"), ServingMetrics("bank"), follower=follower)


@contextmanager
def serving(replica: Replica, token: str = "", *, answering: bool = True) -> Iterator[int]:
    """The port of a server of this replica; without `answering` requests stay in line until the end."""
    connections = Connections(most=64, short_lived=False, end_s=1)
    with HttpServer(serving_application(replica, token), host="127.0.0.1", port=0, connections=connections) as server:
        if answering:
            with replica.answerer:
                yield server.port
        else:
            yield server.port


@pytest.fixture
def follower() -> StandIn:
    return StandIn()


@pytest.fixture
def replica(follower: StandIn) -> Replica:
    return replica_of(follower)


@pytest.fixture
def port(replica: Replica) -> Iterator[int]:
    with serving(replica) as there:
        yield there


@pytest.fixture(scope="module")
def shared() -> Iterator[int]:
    """A server that several tests share: nothing happens to its bank."""
    with serving(replica_of(StandIn())) as there:
        yield there


@dataclass(frozen=True)
class Response:
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> Any:
        """Its JSON."""
        return json.loads(self.body)


def ask(port: int, path: str, body: bytes | None = None, method: str = "", **headers: str) -> Response:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        return Response(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def wanted(x: np.ndarray = PIXELS, **more: Any) -> bytes:
    """A request in JSON."""
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "UINT8", "data": x.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor]} | more).encode()


def told_tasks(*tasks: int) -> dict[str, Any]:
    """The input `task`, together with x."""
    task = {"name": "task", "shape": [len(tasks)], "datatype": "INT64", "data": list(tasks)}
    return {"inputs": [*json.loads(wanted())["inputs"], task]}


def outputs_of(response: Response) -> dict[str, Any]:
    return {output["name"]: output["data"] for output in response.told["outputs"]}


# -- what is there -----------------------------------------------------------------------------------------------------


def test_the_server_says_what_it_is(shared: int) -> None:
    assert ask(shared, "/v2").told == {
        "name": "supsup-daemon",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }


def test_a_replica_with_a_bank_is_alive_and_ready(shared: int) -> None:
    assert ask(shared, "/v2/health/live").told == {"live": True}
    response = ask(shared, "/v2/health/ready")
    assert (response.status, response.told) == (200, {"ready": True, "reasons": {}})


@pytest.mark.parametrize("version", ["", "/versions/7"])
def test_the_model_says_its_inputs_and_outputs(shared: int, version: str) -> None:
    model = ask(shared, f"/v2/models/bank{version}").told
    assert (model["name"], model["versions"], model["platform"]) == ("bank", ["7"], "supsup")
    assert [(tensor["name"], tensor["shape"]) for tensor in model["inputs"]] == [("x", [-1, 4, 4]), ("task", [-1])]
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in model["outputs"]] == [
        ("label", "INT64", [-1]),
        ("probabilities", "FP32", [-1, 4]),
        ("task", "INT64", [-1]),
        ("confidence", "FP32", [-1]),
        ("novel", "BOOL", [-1]),
    ]
    assert ask(shared, f"/v2/models/bank{version}/ready").told == {"name": "bank", "ready": True, "reasons": {}}


def test_metrics_come_in_the_text_format(port: int) -> None:
    ask(port, INFER, wanted())
    response = ask(port, "/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b'supsup_serve_requests_total{bank="bank",outcome="answered"} 1.0' in response.body
    assert b'supsup_serve_ready{bank="bank"} 1.0' in response.body


FILES = {
    "html": ["/", "/docs"],
    "javascript": ["/page.js", "/docs.js", "/parts.js"],
    "css": ["/page.css", "/docs.css"],
}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in FILES.items() for path in paths])
def test_a_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(shared: int, path: str, kind: str) -> None:
    response = ask(shared, path)
    assert response.status == 200
    assert response.headers["content-type"] == f"text/{kind}; charset=utf-8"
    policy = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
    assert response.headers["content-security-policy"] == policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert ask(shared, "/favicon.ico").status == 204


def test_the_order_of_pixels_is_that_of_the_scenario(shared: int) -> None:
    told = ask(shared, "/permutation?task=3&seed=5").told
    assert told == {"seed": 5, "task": 3, "order": pixel_order(5, 3, 784).tolist()}
    assert ask(shared, "/permutation").told["order"] == pixel_order(0, 0, 784).tolist()


def test_orders_of_pixels_are_not_kept_without_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_app, "_MOST_ORDERS", 2)
    orders = [ask(port, f"/permutation?task={task}").told["order"] for task in (0, 1, 2, 3, 0)]
    assert orders[0] == orders[-1] != orders[1]


@pytest.mark.parametrize("task", ["-1", "1.5", "", "x", "9" * 10, "%D9%A2", "1e3"])
def test_a_task_that_is_no_number_is_refused(shared: int, task: str) -> None:
    response = ask(shared, f"/permutation?task={task}")
    assert (response.status, response.told) == (400, {"error": "task must be a whole number of at most nine digits"})


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/bank", "/metrics", "/overview"])
def test_nobody_keeps_what_is_soon_out_of_date(shared: int, path: str) -> None:
    assert ask(shared, path).headers["cache-control"] == "no-store"


# -- inference ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["", "/versions/7"])
def test_a_request_is_answered_as_the_predictor_would(shared: int, version: str) -> None:
    response = ask(shared, f"/v2/models/bank{version}/infer", wanted(id="mine"))
    expected = predict(NET, IDS, MASKS, NET.inputs(PIXELS))
    found = outputs_of(response)
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert {name: value for name, value in response.told.items() if name != "outputs"} == {
        "model_name": "bank",
        "model_version": "7",
        "id": "mine",
        "parameters": {"inference": "exact", "inferred_rows": 3, "threshold": 0.75},
    }
    assert (found["label"], found["task"]) == (expected.labels.tolist(), expected.mask_ids.tolist())
    np.testing.assert_allclose(np.reshape(found["probabilities"], (3, 4)), expected.probabilities, rtol=1e-4)


def test_a_request_without_an_id_gets_none(shared: int) -> None:
    assert "id" not in ask(shared, INFER, wanted()).told


def test_a_task_that_is_told_is_the_one_that_answers(shared: int) -> None:
    response = ask(shared, INFER, json.dumps(told_tasks(40, 3, 12)).encode())
    assert outputs_of(response)["task"] == [40, 3, 12]
    assert response.told["parameters"] == {"inference": "told", "inferred_rows": 0, "threshold": 0.75}


@pytest.mark.parametrize("binary", [True, False])
def test_a_stock_client_is_answered(shared: int, binary: bool) -> None:
    with triton.InferenceServerClient(f"127.0.0.1:{shared}") as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("bank", "7")
        assert client.get_server_metadata()["name"] == "supsup-daemon"
        assert client.get_model_metadata("bank")["versions"] == ["7"]
        x = triton.InferInput("x", [3, 4, 4], "UINT8")
        x.set_data_from_numpy(PIXELS, binary_data=binary)
        names = ("label", "probabilities", "task", "confidence", "novel")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        result = client.infer("bank", [x], outputs=outputs, request_id="5", parameters={"stream": "a"})
    expected = predict(NET, IDS, MASKS, NET.inputs(PIXELS))
    np.testing.assert_array_equal(result.as_numpy("label"), expected.labels)
    np.testing.assert_array_equal(result.as_numpy("task"), expected.mask_ids)
    np.testing.assert_allclose(result.as_numpy("probabilities"), expected.probabilities, rtol=1e-4)
    assert result.get_response()["id"] == "5"


def test_a_body_in_chunks_is_read(shared: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", shared, timeout=20)
    connection.request("POST", INFER, iter([wanted()[:50], wanted()[50:]]), encode_chunked=True)
    assert connection.getresponse().status == 200
    connection.close()


def test_rows_are_counted_for_the_page(port: int, replica: Replica) -> None:
    ask(port, INFER, json.dumps(told_tasks(40, 3, 40)).encode())
    assert replica.traffic.shown()[0] == {40: 2, 3: 1}


# -- requests that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (INFER, b"{", 400, "no JSON"),
        (INFER, b"", 400, "no JSON"),
        (INFER, wanted(parameters={"priority": 1}), 400, "unknown parameter 'priority'"),
        (INFER, json.dumps(told_tasks(1, 3, 3)).encode(), 400, "version 7 of this bank has no mask 1"),
        ("/v2/models/other/infer", wanted(), 404, "the one here is bank"),
        ("/v2/models/bank/versions/8/infer", wanted(), 404, "this version does not answer here, 7 does"),
        ("/v2/models/bank/versions/07", None, 404, "7 does"),
        ("/v2/models/other", None, 404, "no such model"),
        ("/v2/models/other/ready", None, 404, "no such model"),
        ("/nowhere", None, 404, "Not Found"),
        ("/v2/", None, 404, "Not Found"),
        ("//v2", None, 404, "Not Found"),
        ("/%2e%2e/v2", None, 404, "Not Found"),
        (INFER, None, 405, "Method Not Allowed"),
        ("/v2", b"", 405, "Method Not Allowed"),
        ("/", b"", 405, "Method Not Allowed"),
        (INFER, wanted(np.zeros((1025, 4, 4), np.uint8)), 413, "1025 rows, at most 1024"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    shared: int, path: str, body: bytes | None, status: int, message: str
) -> None:
    response = ask(shared, path, body)
    assert (response.status, list(response.told)) == (status, ["error"])
    assert message in response.told["error"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity, gzip"])
def test_a_compressed_body_is_refused(shared: int, coding: str) -> None:
    assert ask(shared, INFER, wanted(), content_encoding=coding).status == 415
    assert ask(shared, INFER, wanted(), content_encoding="identity").status == 200


def test_a_body_that_is_too_large_is_refused_before_it_is_there() -> None:
    with serving(replica_of(StandIn(), request_bytes=1024)) as port:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 1025\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.1 413")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", INFER, iter([b" " * 600, b" " * 600]), encode_chunked=True)
        response = connection.getresponse()
        assert (response.status, json.load(response)["error"]) == (413, "the body has more than 1024 bytes")
        connection.close()


def test_a_body_that_does_not_come_is_given_up(shared: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_app, "_BODY_S", 0.1)
    with socket.create_connection(("127.0.0.1", shared), timeout=20) as client:
        client.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_goes_away_harms_nobody(shared: int) -> None:
    with socket.create_connection(("127.0.0.1", shared), timeout=20) as client:
        client.sendall(f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{{".encode())
    assert ask(shared, INFER, wanted()).status == 200


def test_refusals_are_counted(port: int, replica: Replica) -> None:
    statuses = [ask(port, INFER, body).status for body in (b"{", wanted(), wanted(id=4))]
    assert statuses == [400, 200, 400]
    assert (replica.metrics.counted("refused"), replica.metrics.counted("answered")) == (2, 1)


# -- when it cannot answer ---------------------------------------------------------------------------------------------


def test_before_there_is_a_bank_nothing_is_ready_and_the_rest_is_there() -> None:
    with serving(replica_of(None)) as port:
        for path in ("/v2/health/ready", "/v2/models/bank/ready", "/v2/models/bank/versions/1/ready"):
            response = ask(port, path)
            assert (response.status, list(response.told["reasons"])) == (503, ["no-bank"])
        for response in (ask(port, "/v2/models/bank"), ask(port, INFER, wanted())):
            assert (response.status, response.headers["retry-after"]) == (503, "1")
            assert "a trainer creates it" in response.told["error"]
        paths = ("/", "/v2", "/v2/health/live", "/metrics", "/openapi.json", "/overview")
        assert [ask(port, path).status for path in paths] == [200] * 6


def test_a_bank_without_masks_answers_nothing(port: int, follower: StandIn) -> None:
    follower.snapshot = Shelf(NET).empty(2)
    assert list(ask(port, "/v2/health/ready").told["reasons"]) == ["no-mask"]
    response = ask(port, INFER, wanted())
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert "nothing has been learnt" in response.told["error"]
    assert ask(port, "/v2/models/bank").told["versions"] == ["2"]


def test_a_replica_that_is_stale_or_stops_is_not_ready_and_still_answers(
    port: int, follower: StandIn, replica: Replica
) -> None:
    follower.staleness_s = 1e6
    replica.stopping = True
    response = ask(port, "/v2/health/ready")
    assert (response.status, list(response.told["reasons"])) == (503, ["stopping", "stale"])
    assert ask(port, INFER, wanted()).status == 200


def test_at_the_end_requests_are_sent_elsewhere(replica: Replica) -> None:
    with serving(replica, answering=False) as port:
        with replica.answerer:
            assert ask(port, INFER, wanted()).status == 200
        response = ask(port, INFER, wanted())
    assert (response.status, response.headers["retry-after"]) == (503, "1")
    assert "ask another one" in response.told["error"]


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    replica = replica_of(StandIn(), request_timeout_s=0.05)
    with serving(replica, answering=False) as port:
        response = ask(port, INFER, wanted())
    assert (response.status, response.told) == (504, {"error": "no answer within 0.05 s: ask for less, or try again"})
    assert replica.metrics.counted("failed") == 1


def test_too_many_rows_are_sent_away_for_a_while() -> None:
    replica = replica_of(StandIn(), queue_rows=3, request_timeout_s=5)
    with serving(replica, answering=False) as port:
        first: list[int] = []
        waits = threading.Thread(target=lambda: first.append(ask(port, INFER, wanted()).status))
        waits.start()
        while not replica.answerer.waiting:
            pass
        response = ask(port, INFER, wanted(PIXELS[:1]))
        assert (response.status, response.headers["retry-after"]) == (503, "1")
        assert "3 rows wait already" in response.told["error"]
        with replica.answerer:
            waits.join()
    assert first == [200]


def test_a_version_that_goes_while_a_request_waits_is_not_answered_by_the_next(follower: StandIn) -> None:
    replica = replica_of(follower)
    with serving(replica, answering=False) as port:
        found: list[Response] = []
        path = "/v2/models/bank/versions/7/infer"
        waits = threading.Thread(target=lambda: found.append(ask(port, path, wanted())))
        waits.start()
        while not replica.answerer.waiting:
            pass
        follower.snapshot = snapshot(8)
        with replica.answerer:
            waits.join()
    assert (found[0].status, found[0].told["error"]) == (
        404,
        "this version does not answer here, 8 does: leave the version out",
    )


def test_a_fault_of_ours_is_logged_and_told_without_its_text(port: int, replica: Replica) -> None:
    def broken(*_: Any) -> Answered:
        raise RuntimeError("a secret")

    replica.answerer.passed = broken
    with capture_logs() as lines:
        response = ask(port, INFER, wanted())
    assert (response.status, response.told) == (500, {"error": "internal error; the log of this replica tells more"})
    assert [(line["event"], line["path"]) for line in lines] == [("http.failed", INFER)]
    assert ask(port, "/v2/health/live").status == 200


# -- the token ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[int]:
    with serving(replica_of(StandIn()), token="correct-horse") as there:  # noqa: S106
        yield there


GUARDED = ("/v2", "/v2/models/bank", "/v2/models/bank/ready", "/metrics", "/openapi.json", "/overview", "/nowhere")


@pytest.mark.parametrize("path", GUARDED)
def test_without_the_token_nothing_is_told(guarded: int, path: str) -> None:
    response = ask(guarded, path, authorization="Bearer wrong")
    assert (response.status, response.headers["www-authenticate"], response.body) == (401, "Bearer", b"Unauthorized")
    assert ask(guarded, INFER, wanted()).status == 401


def test_with_the_token_everything_is_told(guarded: int) -> None:
    known = {"authorization": "Bearer correct-horse"}
    assert [ask(guarded, path, **known).status for path in GUARDED] == [200] * 6 + [404]
    assert ask(guarded, INFER, wanted(), **known).status == 200


@pytest.mark.parametrize("path", sorted(OPEN))
def test_health_and_the_pages_files_need_no_token(guarded: int, path: str) -> None:
    assert ask(guarded, path).status in {200, 204}


@pytest.mark.parametrize("path", ["/v2/health/live/", "/v2/health/live/../../models/bank", "/%2foverview", "//"])
def test_no_other_spelling_of_an_open_address_opens_anything(guarded: int, path: str) -> None:
    assert ask(guarded, path).status == 401


# -- the overview ------------------------------------------------------------------------------------------------------


def test_the_overview_shows_the_bank_its_masks_and_decisions(port: int, follower: StandIn) -> None:
    follower.stats = {11: {"batches": "4", "samples": "128", "accuracy": "0.5", "loss": "inf", "updated_ms": "99"}}
    event = {"id": "1700000000123-0", "type": "reuse", "mask": "11", "version": "6", "candidates": "[]", "why": "drift"}
    follower.decisions = (event | {"topic": "digits", "partition": "0", "offset": "90"},)
    ask(port, INFER, json.dumps(told_tasks(11, 3, 11)).encode())
    told = ask(port, "/overview").told
    assert (told["bank"], told["version"], told["masks"], told["budget"], told["ready"]) == ("bank", 7, 4, 10, True)
    assert told["network"] == {"architecture": "mlp-16-8", "input_shape": [4, 4], "classes": 4, "outputs": 12}
    assert told["requests"] == {"answered": 1, "refused": 0, "failed": 0, "rows": 3}
    (mask,) = told["mask_stats"]
    assert sum(mask.pop("traffic")) == 2
    assert mask == {"id": 11, "batches": 4, "samples": 128, "accuracy": 0.5, "loss": None, "entropy": None,
                    "density": None, "updated_ms": 99, "answered": 2}  # fmt: skip
    assert told["decisions"] == [
        {"version": 6, "time_ms": 1700000000123, "type": "reuse", "text": "digits:0@90  drift: mask 11"}
    ]


HUGE, SURROGATE = f"[[1, {10**400}, null, 0]]", '[["\\ud800", 1, null, 0]]'
NASTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["nan", "-inf", "1e308", "-1e308", "9" * 400, "[" * 10_000, HUGE, SURROGATE, "{}", "7", "[0]", "[[]]", HOSTILE]
)
STATS = st.dictionaries(st.sampled_from(["batches", "samples", "updated_ms", "accuracy", "loss", "entropy"]), NASTY)
EVENTS = st.fixed_dictionaries(
    {"id": st.sampled_from(["5-0", f"{2**64 - 1}-{2**64 - 1}", "0-1"])},
    optional={
        "type": st.sampled_from(["allocate", "reuse", "over-budget", "import"]) | NASTY,
        **dict.fromkeys(("version", "mask", "masks", "bank", "from", "candidates", "rule", "why", "topic"), NASTY),
        **dict.fromkeys(("partition", "offset"), NASTY),
    },
)


@given(st.dictionaries(st.integers(0, 2**31), STATS, max_size=2), st.lists(EVENTS, max_size=3), st.floats(min_value=0))
def test_whatever_the_bank_holds_the_overview_is_json(stats: Any, events: list[Any], staleness_s: float) -> None:
    replica = replica_of(StandIn(stats=stats, decisions=tuple(events), staleness_s=staleness_s))
    assert json.loads(orjson.dumps(overview.of(replica)), parse_constant=pytest.fail)["version"] == 7


@pytest.mark.parametrize("candidates", ["[" * 10_000, HUGE, SURROGATE], ids=["deep", "huge", "surrogate"])
def test_an_event_that_somebody_made_up_is_shown_as_far_as_it_can_be(candidates: str) -> None:
    event = dict.fromkeys(("mask", "version", "why", "topic", "partition", "offset", "rule"), "1e300")
    event |= {"id": f"{2**64 - 1}-0", "type": "reuse", "candidates": candidates}
    (shown,) = overview.of(replica_of(StandIn(decisions=(event,))))["decisions"]
    assert orjson.dumps(shown)
    assert (shown["version"], shown["time_ms"], shown["type"]) == (2**53, 2**53, "reuse")


# -- the OpenAPI document ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bank", [None, snapshot()], ids=["no bank", "a bank"])
def test_the_openapi_document_is_valid(bank: Snapshot | None) -> None:
    openapi_spec_validator.validate(openapi.document("bank", bank))


def test_every_address_for_programs_is_in_the_openapi_document_and_no_other() -> None:
    routes = {(route.path, method.lower()) for route in serving_application(replica_of(None)).routes
              for method in route.methods - {"HEAD"}}  # fmt: skip
    paths = openapi.document("bank", None)["paths"]
    files = {(path, "get") for path in OPEN if not path.startswith("/v2")}
    assert {(path, method) for path, item in paths.items() for method in item} == routes - files


def test_the_openapi_document_shows_a_request_that_is_answered(shared: int) -> None:
    document = ask(shared, "/openapi.json").told
    body = document["paths"]["/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
    assert ask(shared, INFER, json.dumps(body["example"]).encode()).status == 200


def bodies(part: Any) -> Iterator[dict[str, Any]]:
    """Every body in a part of the document that has an example."""
    if isinstance(part, dict):
        if part.keys() == {"schema", "example"}:
            yield part
        for inner in part.values():
            yield from bodies(inner)


def test_the_examples_of_the_openapi_document_fit_their_schemas() -> None:
    document = openapi.document("bank", snapshot())
    shown = list(bodies(document["paths"]))
    assert len(shown) > 20
    for body in shown:
        jsonschema.validate(body["example"], body["schema"] | {"components": document["components"]})


DOCUMENT = schemathesis.openapi.from_dict(openapi.document("bank", snapshot()))
OPERATIONS = {operation.ok().label: operation.ok() for operation in DOCUMENT.get_all_operations()}
FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


CASES = {
    f"{label}, {mode.name.lower()}": operation.as_strategy(generation_mode=mode)
    for label, operation in OPERATIONS.items()
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    if mode is schemathesis.GenerationMode.POSITIVE or "{" in label or "permutation" in label  # the others take nothing
}


@pytest.mark.parametrize("cases", CASES)
def test_whatever_is_asked_the_answer_is_one_that_is_documented(shared: int, cases: str) -> None:
    @FEW
    @given(CASES[cases])
    def asked(case: schemathesis.Case) -> None:
        response = case.call(base_url=f"http://127.0.0.1:{shared}")
        assert response.status_code not in {500, 504}
        case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    asked()
