"""HTTP in a thread of its own: any application (`HttpServer`), and the trainer's, three addresses to read.

    GET /livez     200 or 503, {"alive": ..., "age_s": ..., "limit_s": ...}
    GET /readyz    200 or 503, {"ready": ..., "role": ..., "reasons": {name: sentence}}
    GET /metrics   200, Prometheus' text format

Everything else is 404 or 405. Where a token is set, every request needs it (`Authorization: Bearer TOKEN`).
"""

import asyncio
import hmac
import ipaddress
import re
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from threading import Thread
from typing import Any, Final, Self

import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from daemon.errors import ConfigError, StopError
from daemon.settings import Settings, flag, variable
from daemon.telemetry import Telemetry

log = structlog.get_logger()

_CONNECTION_S: Final = 10.0
_START_S: Final = 10.0
_HEADER_BYTES: Final = 16_384
_TOKEN: Final = re.compile(r"[!-~]{1,4096}")


@dataclass(frozen=True, slots=True)
class Connections:
    """How clients may connect.

    Attributes:
        most: connections at a time.
        short_lived: a connection ends after ten seconds, whatever it sends or fails to send.
        idle_s: how long it may be unused.
        end_s: how long requests in hand have when the server stops.
    """

    most: int = 32
    short_lived: bool = True
    idle_s: int = 5
    end_s: int = 1


class HttpServer:
    """Serves an application between `__enter__` and `__exit__`.

    Args:
        app: what answers.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        connections: how clients may connect.
        settings: names of the settings of host and port, for messages.

    Attributes:
        port: the port in use, once entered.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        host: str,
        port: int,
        connections: Connections = Connections(),
        settings: tuple[str, str] = ("http_host", "http_port"),
    ) -> None:
        self._host = host
        self._settings = settings
        self._backlog = connections.most
        self.port = port
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=_ShortLived if connections.short_lived else "httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # what clients do wrong is theirs; what we do wrong is logged as `http.failed`
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=connections.most,
            backlog=connections.most,
            timeout_keep_alive=connections.idle_s,
            timeout_graceful_shutdown=connections.end_s,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        self._server = uvicorn.Server(config)
        self._thread: Thread | None = None
        self._end_s = connections.end_s

    def __enter__(self) -> Self:
        """Listen, and return once requests are answered.

        Raises:
            ConfigError: the address cannot be had.
            StopError: nobody answers there in time.
        """
        listener = self._bind()
        self.port = listener.getsockname()[1]
        self._thread = Thread(target=self._server.run, args=([listener],), name="http", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        if not self._server.started:
            listener.close()
            raise StopError(f"HTTP on {self._host} port {self.port} did not start within {_START_S:g} s; start again")
        log.info("http.started", host=self._host, port=self.port)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop answering; requests in hand have a while."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_START_S + self._end_s)

    def _bind(self) -> socket.socket:
        try:
            family = socket.getaddrinfo(self._host, self.port, type=socket.SOCK_STREAM)[0][0]
            listener = socket.create_server((self._host, self.port), family=family, backlog=self._backlog)
        except OSError as error:
            host, port = self._settings
            raise ConfigError(
                f"cannot listen on {self._host} port {self.port} ({error.strerror}): choose another {flag(port)} "
                f"({variable(port)}) or {flag(host)} ({variable(host)})"
            ) from error
        # Connections inherit it. asyncio would set it on sockets that say they are TCP, which these do not, and a
        # response in two packets would wait 40 ms for a delayed acknowledgement.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener


def trainer_server(telemetry: Telemetry, *, host: str, port: int, token: str = "") -> HttpServer:
    """A server of a trainer's health and metrics.

    Raises:
        ConfigError: other machines could reach it, and there is no token.
    """
    require_token(host, token)
    return HttpServer(application(telemetry, token), host=host, port=port)


def token_of(settings: Settings) -> str:
    """The token that requests have to bring, from its setting or its file; empty where there is none.

    Raises:
        ConfigError: both are given, or the file holds none that a header can carry, or cannot be read.
    """
    if settings.http_token is not None and settings.http_token_file is not None:
        raise ConfigError("--http-token and --http-token-file are both given: keep the file alone")
    token = "" if settings.http_token is None else settings.http_token.get_secret_value()
    if settings.http_token_file is not None:
        try:
            token = settings.http_token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--http-token-file {settings.http_token_file} cannot be read: {error}") from error
    given = settings.http_token is not None or settings.http_token_file is not None
    if given and not _TOKEN.fullmatch(token):
        raise ConfigError("the HTTP token must be one word of letters, digits and signs, 1 to 4096 characters")
    return token


def require_token(host: str, token: str, setting: str = "http_host") -> None:
    """Refuse to be read by other machines without a token.

    Raises:
        ConfigError: the address is not one of this machine alone, and there is no token.
    """
    if not token and not _is_loopback(host):
        raise ConfigError(
            f"{flag(setting)} {host} can be reached from other machines, so HTTP needs a token: set --http-token-file "
            "(SUPSUP_HTTP_TOKEN_FILE) or SUPSUP_HTTP_TOKEN, or listen on 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def application(telemetry: Telemetry, token: str = "") -> ASGIApp:
    """The trainer's three addresses as an ASGI application."""

    async def livez(_: Request) -> Response:
        health = telemetry.health
        age_s = health.age_s
        alive = age_s <= health.limit_s
        body = {"alive": alive, "age_s": round(age_s, 3), "limit_s": health.limit_s}
        return JSONResponse(body, status_code=200 if alive else 503)

    async def readyz(_: Request) -> Response:
        role, reasons = telemetry.health.role, telemetry.health.reasons
        body = {"ready": not reasons, "role": role, "reasons": reasons}
        return JSONResponse(body, status_code=503 if reasons else 200)

    async def metrics(_: Request) -> Response:
        return Response(telemetry.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    routes = [
        Route(path, uncached(endpoint), methods=["GET"])
        for path, endpoint in (("/livez", livez), ("/readyz", readyz), ("/metrics", metrics))
    ]
    app = Starlette(routes=routes, exception_handlers={Exception: _failed})
    app.router.redirect_slashes = False
    return guarded(app, token)


def guarded(app: ASGIApp, token: str, open_paths: frozenset[str] = frozenset()) -> ASGIApp:
    """The application for those alone who bring the token, where there is one; some paths are for everybody."""
    return _Guarded(app, token, open_paths) if token else app


def uncached(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint, with responses that nobody keeps."""

    async def answer(request: Request) -> Response:
        response = await endpoint(request)
        response.headers["cache-control"] = "no-store"
        return response

    return answer


async def _failed(request: Request, error: Exception) -> Response:
    log.error("http.failed", path=request.url.path, error=repr(error))
    return PlainTextResponse("Internal Server Error", status_code=500)


class _Guarded:
    """Lets requests through that bring the token."""

    def __init__(self, app: ASGIApp, token: str, open_paths: frozenset[str]) -> None:
        self._app = app
        self._expected = b"Bearer " + token.encode()
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        brought = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope.get("path") in self._open or hmac.compare_digest(brought, self._expected):
            await self._app(scope, receive, send)
        else:
            refusal = PlainTextResponse("Unauthorized", status_code=401, headers={"www-authenticate": "Bearer"})
            await refusal(scope, receive, send)


class _ShortLived(H11Protocol):
    """A connection that is closed after a while: clients that dawdle would otherwise use up all there are."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._end = self.loop.call_later(_CONNECTION_S, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)
