"""After a restart of Redis its append-only file is written anew, or half of a commit may come back at the next one.

A file that ends in the middle of a command inside MULTI ... EXEC (a commit is one) is cut by Redis behind the command
before it, and the MULTI stays there without its EXEC. It does nothing for now. But the next commit is written behind
it, and at the next start *its* EXEC makes both take effect: half of a commit, without the position that belongs to it.
Redis 6.2 does so, and later ones may. A file written anew from memory has none of that.
"""

import time
from typing import Any, Final

import structlog
from redis.exceptions import ResponseError

log = structlog.get_logger()

_REWRITE_S: Final = 60.0  # a rewrite that takes longer goes on without us
_LOOK_S: Final = 0.02


def settle(client: Any, known: str) -> str:
    """Have the append-only file written anew if Redis is not the process that was `known`; returns which it is now.

    Waits until the file is written. A user without the rights to ask and to have it written is told in the log.

    Raises:
        RedisError: Redis is away.
    """
    try:
        process = str(client.info("server")["run_id"])
        if process != known and client.info("persistence")["aof_enabled"]:
            _write_anew(client)
    except ResponseError as error:
        log.warning("redis.file_not_written_anew", error=str(error))
        return known
    return process


def _write_anew(client: Any) -> None:
    begun = time.monotonic()
    try:
        client.bgrewriteaof()
    except ResponseError as error:
        if "in progress" not in str(error):  # else one is under way, or will be
            raise
    while _under_way(client) and time.monotonic() - begun < _REWRITE_S:
        time.sleep(_LOOK_S)
    log.info("redis.file_written_anew", seconds=round(time.monotonic() - begun, 3))


def _under_way(client: Any) -> bool:
    state = client.info("persistence")
    return bool(state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"])
