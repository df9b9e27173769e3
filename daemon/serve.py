"""The composition root of a replica: settings in, a replica that follows a bank and answers until told to stop."""

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

import structlog
import torch
from prometheus_client import disable_created_metrics

from daemon import connections, redis_client
from daemon.bootstrap import stopped_by_signals
from daemon.errors import AnotherBankError, ConfigError
from daemon.http import Connections, HttpServer, require_token, token_of
from daemon.redis_store import BankReader
from daemon.replica import Replica
from daemon.serving_app import serving_application
from daemon.serving_metrics import ServingMetrics
from daemon.settings import Settings
from supsup_online import __version__

log = structlog.get_logger()

_CONNECTIONS = Connections(most=1024, short_lived=False, idle_s=60, end_s=10)


def run_replica(settings: Settings, announce: Callable[[str], None]) -> None:
    """Run a replica until it is told to stop; `announce` tells a person where it answers.

    The order of the end: not ready, `drain_s` in which requests are still answered, no new connections, requests in
    hand, the line of waiting ones.

    Raises:
        StopError: see `daemon.errors`.
    """
    if settings.poll_interval_s > settings.staleness_limit_s:
        raise ConfigError(
            f"--poll-interval-s {settings.poll_interval_s:g} is longer than --staleness-limit-s "
            f"{settings.staleness_limit_s:g}: this replica would seem stale between two looks at its bank"
        )
    token = token_of(settings)
    require_token(settings.serve_host, token, "serve_host")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with ExitStack() as stack:
        stop = stack.enter_context(stopped_by_signals())
        replica = start(stack, settings)
        replica.asked_to_stop = stop.requested
        server = stack.enter_context(
            HttpServer(
                serving_application(replica, token),
                host=settings.serve_host,
                port=settings.serve_port,
                connections=_CONNECTIONS,
                settings=("serve_host", "serve_port"),
            )
        )
        log.info("replica.started", version=__version__, bank=settings.bank, host=settings.serve_host, port=server.port)
        announce(f"page and inference at http://{_shown(settings.serve_host)}:{server.port}/")
        renamed: AnotherBankError | None = None
        try:
            replica.follow(stop.requested)
        except AnotherBankError as error:  # clients still know this one
            renamed = error
        replica.stopping = True
        log.info("replica.draining", seconds=settings.drain_s)
        _drain(replica, settings.drain_s)
        if renamed is not None:
            raise renamed
    log.info("replica.stopped", answered=replica.metrics.counted("answered"))


def start(stack: ExitStack, settings: Settings) -> Replica:
    """A replica whose answering thread runs; `stack` ends it and closes its client.

    Raises:
        UnavailableError: Redis does not answer.
    """
    disable_created_metrics()  # type: ignore[no-untyped-call]  # as in `bootstrap`
    client = redis_client.connect(
        settings.redis,
        timeout_s=settings.connect_timeout_s,
        reply_s=settings.connect_timeout_s + settings.poll_interval_s,
        security=connections.redis_client(settings),
    )
    stack.callback(client.close)
    replica = Replica(settings, BankReader(client, settings.bank), ServingMetrics(settings.bank))
    stack.enter_context(replica.answerer)
    return replica


def _drain(replica: Replica, seconds: float) -> None:
    """Go on for a while: load balancers take a moment to hear that this replica is not ready."""
    until = time.monotonic() + seconds
    if seconds:
        with suppress(AnotherBankError):  # this version goes on answering
            replica.follow(lambda: time.monotonic() >= until)
        time.sleep(max(0.0, until - time.monotonic()))


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
