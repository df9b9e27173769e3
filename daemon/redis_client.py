"""How to reach Redis, and its errors turned into ours."""

from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from daemon.errors import ConfigError, UnavailableError
from daemon.probe import redis_denial
from daemon.settings import without_password


def connect(
    url: str, *, timeout_s: float = 10.0, reply_s: float | None = None, security: Mapping[str, Any] | None = None
) -> redis.Redis:
    """A client that has answered once.

    Args:
        url: redis://, rediss:// or unix://.
        timeout_s: how long connecting, and the first answer, may take.
        reply_s: how long later answers may take, without a second try; None: long enough for a commit of many hot
            masks, which is some ten megabytes, and redis-py's own repetitions.
        security: what the client takes beside the URL (`connections.redis_client`).

    Raises:
        DeniedError: refused, by Redis or by us.
        UnavailableError: no answer.
        ConfigError: a URL that is none.
    """
    security = dict(security or {})
    try:
        with redis.Redis.from_url(
            url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s, **security
        ) as probe_client:
            probe_client.ping()
        later: dict[str, Any] = {"socket_connect_timeout": timeout_s, "socket_timeout": max(30.0, timeout_s)}
        if reply_s is not None:
            later = {
                "socket_connect_timeout": reply_s,
                "socket_timeout": reply_s,
                "retry": Retry(NoBackoff(), 0),
            }
        client = redis.Redis.from_url(url, **later, **security)
    except ValueError as error:
        raise ConfigError(f"{without_password(url)} is no Redis URL ({error}); write redis://HOST:PORT/DB") from None
    except RedisError as error:
        if denial := redis_denial(url, security, error, timeout_s):
            raise denial from None
        raise UnavailableError(
            f"cannot reach Redis at {without_password(url)}: {str(error).rstrip('.')}. Is it running, and is --redis "
            "(SUPSUP_REDIS) right? `supsup-daemon start --embedded` brings its own.",
            server="redis",
        ) from None
    return client
