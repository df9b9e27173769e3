"""What a replica answers over HTTP: the Open Inference Protocol v2, metrics, and pages for people.

    GET  /v2                                        the server
    GET  /v2/health/live  /v2/health/ready          200 or 503; for everybody
    GET  /v2/models/BANK[/versions/V]               the model: inputs and outputs
    GET  /v2/models/BANK[/versions/V]/ready         200 or 503
    POST /v2/models/BANK[/versions/V]/infer         see `inference_protocol`
    GET  /metrics                                   Prometheus' text format
    GET  /openapi.json                              all this, for programs
    GET  /  /docs  and their files                  pages; for everybody, they hold nothing of the bank
    GET  /overview  /permutation?task=T&seed=S      what the page at / shows

The model is the bank, its version the bank's. Errors are `{"error": "sentence"}`: 4xx where the request is wrong, 503
where this replica has nothing to answer with, is about to end or has too much to do, 504 where it was too slow.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib import resources
from typing import Any, Final

import orjson
import structlog
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from daemon import inference_protocol as protocol
from daemon import openapi, overview
from daemon.answerer import Answered, BusyError, ClosedError, Question
from daemon.http import guarded, uncached
from daemon.inference_protocol import RequestError, RequestLimits
from daemon.replica import Replica
from supsup_online import __version__
from supsup_online.errors import BadBatchError, NothingLearntError, SpecError
from supsup_online.scenarios import pixel_order
from supsup_online.snapshot import Snapshot

log = structlog.get_logger()

_BODY_S: Final = 30.0  # a body that takes longer to arrive is given up
_SMALL_BYTES: Final = 65_536
_PAD_PIXELS: Final = 28 * 28
_MOST_ORDERS: Final = 100  # of pixels, kept: drawing one takes a millisecond or two
_PAGES: Final = {
    "/": ("index.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/parts.js": ("parts.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/docs.css": ("docs.css", "text/css"),
}
OPEN: Final = frozenset({*_PAGES, "/favicon.ico", "/v2/health/live", "/v2/health/ready"})
_PAGE_HEADERS: Final = {
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

Endpoint = Callable[[Request], Awaitable[Response]]


def serving_application(replica: Replica, token: str = "") -> ASGIApp:
    """All addresses as an ASGI application."""
    app = _Application(replica)
    gets: dict[str, Endpoint] = {
        "/v2": app.server,
        "/v2/health/live": app.live,
        "/v2/health/ready": app.ready,
        "/v2/models/{name}": app.model,
        "/v2/models/{name}/versions/{version}": app.model,
        "/v2/models/{name}/ready": app.model_ready,
        "/v2/models/{name}/versions/{version}/ready": app.model_ready,
        "/metrics": app.metrics,
        "/openapi.json": app.openapi,
        "/overview": app.overview,
        "/permutation": app.permutation,
        "/favicon.ico": app.no_icon,
    }
    posts: dict[str, Endpoint] = {
        "/v2/models/{name}/infer": app.infer,
        "/v2/models/{name}/versions/{version}/infer": app.infer,
    }
    routes = [Route(path, uncached(endpoint), methods=["GET"]) for path, endpoint in gets.items()]
    routes += [Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()]
    routes += [Route(path, _file(*what), methods=["GET"]) for path, what in _PAGES.items()]
    handlers: Any = {HTTPException: _http_error, RequestError: app.refused, Exception: app.failed}
    starlette = Starlette(routes=routes, exception_handlers=handlers)
    starlette.router.redirect_slashes = False
    return guarded(starlette, token, OPEN)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type="application/json")


def _error(message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    return _json({"error": message}, status, headers)


async def _http_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return _error(error.detail, error.status_code, dict(error.headers or {}))


def _file(name: str, kind: str) -> Endpoint:
    body = resources.files("daemon").joinpath(f"page/{name}").read_bytes()

    async def send(_: Request) -> Response:
        return Response(body, media_type=kind, headers=_PAGE_HEADERS)

    return send


class _Application:
    """The endpoints, over one replica."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._bank = replica.reader.keys.bank
        self._orders: dict[tuple[int, int], list[int]] = {}

    # -- what is there

    async def server(self, _: Request) -> Response:
        return _json({"name": "supsup-daemon", "version": __version__, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        return _json({"live": True})

    async def ready(self, _: Request) -> Response:
        reasons = self._replica.reasons
        return _json({"ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def model_ready(self, request: Request) -> Response:
        self._require_model(request)
        reasons = self._replica.reasons
        return _json({"name": self._bank, "ready": not reasons, "reasons": reasons}, 503 if reasons else 200)

    async def model(self, request: Request) -> Response:
        self._require_model(request)
        snapshot = self._replica.newest()
        if snapshot is None:
            return _error(self._replica.reasons["no-bank"], 503, {"retry-after": "1"})
        return _json(model_metadata(self._bank, snapshot))

    def _require_model(self, request: Request) -> str | None:
        """The version that the path names, or None.

        Raises:
            RequestError: another model, or a version that does not answer.
        """
        if request.path_params["name"] != self._bank:
            raise RequestError(f"there is no such model; the one here is {self._bank}", 404)
        version: str | None = request.path_params.get("version")
        snapshot = self._replica.newest()
        if version is not None and snapshot is not None:
            _require_version(version, snapshot.version)
        return version

    # -- inference

    async def infer(self, request: Request) -> Response:
        begun = time.perf_counter()
        version = self._require_model(request)
        snapshot = self._replica.newest()
        if snapshot is None:
            return self._unable(self._replica.reasons["no-bank"])
        settings = self._replica.settings
        limits = RequestLimits(snapshot.network.spec.input_shape, settings.request_rows, settings.request_bytes)
        body = await self._body(request, limits)
        told = (body, request.headers.get(protocol.LENGTH_HEADER), limits, settings.novel_margin)
        # A megabyte of JSON takes a while, and nobody else would be heard meanwhile.
        small = len(body) <= _SMALL_BYTES
        wanted = protocol.decode(*told) if small else await asyncio.to_thread(protocol.decode, *told)
        question = Question(wanted.x, wanted.inquiry, wanted.tasks, wanted.stream)
        try:
            answered = await self._answered(self._replica.answerer.ask(question))
        except (BusyError, NothingLearntError, ClosedError) as error:
            return self._unable(str(error))
        except (BadBatchError, SpecError) as error:
            raise RequestError(str(error)) from error
        except TimeoutError:
            self._replica.metrics.responded("failed")
            return _error(f"no answer within {settings.request_timeout_s:g} s: ask for less, or try again", 504)
        if version is not None:
            _require_version(version, answered.version)
        response = self._response(wanted, answered)
        how = "told" if wanted.tasks is not None else wanted.inquiry.inference
        self._replica.metrics.responded("answered", how, time.perf_counter() - begun)
        return response

    async def _body(self, request: Request, limits: RequestLimits) -> bytes:
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RequestError("a compressed body is not read here: send it as it is", 415)
        told = request.headers.get("content-length", "0")
        if told.isascii() and told.isdigit() and int(told[:20]) > limits.max_bytes:
            raise _too_large(limits)
        pieces, size = [], 0
        try:
            async with asyncio.timeout(_BODY_S):
                async for piece in request.stream():
                    size += len(piece)
                    if size > limits.max_bytes:
                        raise _too_large(limits)
                    pieces.append(piece)
        except TimeoutError as error:
            raise RequestError(f"the body did not arrive within {_BODY_S:g} s", 408) from error
        except ClientDisconnect as error:
            raise RequestError("the client went away", 400) from error
        return b"".join(pieces)

    async def _answered(self, asked: "Future[Answered]") -> Answered:
        async with asyncio.timeout(self._replica.settings.request_timeout_s):
            return await asyncio.wrap_future(asked)

    def _response(self, wanted: protocol.Request, answered: Answered) -> Response:
        head = {
            "model_name": self._bank,
            "model_version": str(answered.version),
            "parameters": {
                "inference": "told" if wanted.tasks is not None else wanted.inquiry.inference,
                "inferred_rows": answered.answer.inferred,
                "threshold": round(1 - wanted.inquiry.margin, 6),
            },
        }
        body, length = protocol.encode(wanted, answered.answer, head)
        if length is None:
            return Response(body, media_type="application/json")
        headers = {protocol.LENGTH_HEADER: str(length)}
        return Response(body, media_type="application/octet-stream", headers=headers)

    def _unable(self, message: str) -> Response:
        self._replica.metrics.responded("failed")
        return _error(message, 503, {"retry-after": "1"})

    async def refused(self, _: Request, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        self._replica.metrics.responded("refused")
        return _error(str(error), error.status)

    async def failed(self, request: Request, error: Exception) -> Response:
        log.error("http.failed", path=request.url.path, error=repr(error))
        self._replica.metrics.responded("failed")
        return _error("internal error; the log of this replica tells more", 500)

    # -- what else

    async def metrics(self, _: Request) -> Response:
        return Response(self._replica.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def openapi(self, _: Request) -> Response:
        return _json(openapi.document(self._bank, self._replica.newest()))

    async def overview(self, _: Request) -> Response:
        return _json(overview.of(self._replica))

    async def permutation(self, request: Request) -> Response:
        """The order of pixels in one task of the demo's scenario."""
        task, seed = (_number(request, name) for name in ("task", "seed"))
        if (seed, task) not in self._orders:
            if len(self._orders) >= _MOST_ORDERS:
                self._orders.clear()
            self._orders[seed, task] = pixel_order(seed, task, _PAD_PIXELS).tolist()
        return _json({"seed": seed, "task": task, "order": self._orders[seed, task]})

    async def no_icon(self, _: Request) -> Response:
        return Response(status_code=204)


def model_metadata(bank: str, snapshot: Snapshot) -> dict[str, Any]:
    """The model as the protocol describes one; -1 stands for any number of rows."""
    spec = snapshot.network.spec
    return {
        "name": bank,
        "versions": [str(snapshot.version)],
        "platform": "supsup",
        "inputs": [
            {"name": "x", "datatype": "UINT8", "shape": [-1, *spec.input_shape]},
            {"name": "task", "datatype": "INT64", "shape": [-1], "parameters": {"optional": True}},
        ],
        "outputs": [
            {"name": name, "datatype": datatype, "shape": [-1, spec.classes] if name == "probabilities" else [-1]}
            for name, (datatype, _, _) in protocol.OUTPUTS.items()
        ],
    }


def _require_version(asked: str, answering: int) -> None:
    if asked != str(answering):
        raise RequestError(f"this version does not answer here, {answering} does: leave the version out", 404)


def _too_large(limits: RequestLimits) -> RequestError:
    return RequestError(f"the body has more than {limits.max_bytes} bytes", 413)


def _number(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise RequestError(f"{name} must be a whole number of at most nine digits")
    return int(text)
