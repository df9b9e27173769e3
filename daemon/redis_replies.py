"""What Redis says when it does not do as asked, turned into our errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from redis.exceptions import RedisError, ResponseError

from daemon.errors import BankMismatchError, FencedError, RewoundError, UnavailableError
from daemon.refusals import redis_refusal
from supsup_online.errors import CodecError


@contextmanager
def answering() -> Iterator[None]:
    """Turn redis-py's errors, and refusals of our scripts, into ours.

    Raises:
        FencedError: another trainer has taken over.
        RewoundError: this Redis does not hold what was written before.
        DeniedError: this user may not do it.
        UnavailableError: everything else; it may pass.
    """
    try:
        yield
    except ResponseError as error:
        if "FENCED" in str(error):
            raise FencedError(f"another trainer has taken over this bank: {error}") from error
        if "REWOUND" in str(error):
            raise RewoundError(
                f"Redis has lost commits ({error}): it was emptied, or came back without its last seconds. Nothing was "
                "written over it."
            ) from error
        _unavailable(error)
    except RedisError as error:
        _unavailable(error)


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Turn damaged bytes or text into a reason to stop that names the key.

    Raises:
        BankMismatchError: what was read under this key makes no sense.
    """
    try:
        yield
    except (CodecError, LookupError, ValueError) as error:
        raise BankMismatchError(f"{key}: {error}. Was it evicted or overwritten?") from error


def _unavailable(error: RedisError) -> NoReturn:
    raise redis_refusal(error) or UnavailableError(f"Redis does not take it: {error}", server="redis") from error
