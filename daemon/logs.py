"""structlog set up once: events with key-values on stderr, JSON unless a person is watching."""

import logging
import sys
from typing import Literal

import stamina.instrumentation
import structlog


def configure(log_format: Literal["auto", "json", "text"] = "auto", level: str = "info") -> None:
    """Send logs to stderr; `auto` means text on a terminal and JSON otherwise."""
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer() if as_text else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    stamina.instrumentation.set_on_retry_hooks([])  # `server.away` says what is tried again, and why
    # kafka-python reports each reconnect attempt; our own events say what a person needs.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
