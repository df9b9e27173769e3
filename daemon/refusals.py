"""Why a server does not let us in, or not do something: errors of clients turned into `DeniedError`.

Each message says what was refused, by whom, and which setting to look at.
"""

import ssl
from typing import Final

from kafka.errors import (
    AuthorizationError,
    GroupAuthorizationFailedError,
    KafkaError,
    SaslAuthenticationFailedError,
    TopicAuthorizationFailedError,
)
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError, ResponseError
from redis.exceptions import AuthorizationError as RedisAuthorizationError

from daemon.errors import DeniedError

RIGHTS_PAGE: Final = "docs/reference/security.md"

# OpenSSL's numbers for what is wrong with a certificate (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED, _OTHER_NAMES = 9, 10, frozenset({62, 64})
_NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNEXPECTED_EOF", "HTTP_REQUEST", "PACKET_LENGTH")
# What Redis says when a script runs a command that its user may not run (6.2; 7 and newer), and after a MULTI
# that it may not run.
_DENIED: Final = (
    "NOPERM",
    "can't run this command",
    "can't access at least one of the keys",
    "ACL failure",
    "EXEC without MULTI",
)


def tls_refusal(server: str, error: ssl.SSLError, prefix: str) -> DeniedError:
    """What went wrong in a TLS handshake.

    Args:
        server: whom with, for people: `Kafka at HOST:PORT`.
        error: what OpenSSL says.
        prefix: how the flags of this server's settings begin: `--kafka`.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return DeniedError(f"the certificate of {server} is not accepted: {_unaccepted(error, prefix)}")
    reason = error.reason or str(error)
    if any(part in reason for part in _NO_TLS):
        plain = "--kafka-security" if prefix == "--kafka" else "--redis: rediss:// is with TLS, redis:// without"
        return DeniedError(f"{server} does not speak TLS ({reason}): look at {plain}, and at the port")
    if "ALERT" in reason:
        return DeniedError(
            f"{server} does not accept our certificate, or wants one and got none ({reason}): look at "
            f"{prefix}-cert-file and {prefix}-key-file"
        )
    return DeniedError(f"no TLS connection with {server}: {reason}")


def _unaccepted(error: ssl.SSLCertVerificationError, prefix: str) -> str:
    if error.verify_code == _EXPIRED:
        return f"it has expired. Renew it there; if it is new, look at the clock of this machine ({prefix}-ca-file too)"
    if error.verify_code == _NOT_YET_VALID:
        return "it is not valid yet. Look at the clocks of both machines"
    if error.verify_code in _OTHER_NAMES:
        server = "--kafka" if prefix == "--kafka" else "--redis"
        return f"{error.verify_message} Use a name that it holds in {server}"
    return (
        f"{error.verify_message}. It was signed by nobody that is trusted here: look at {prefix}-ca-file, which "
        "replaces the system's CAs"
    )


def kafka_refusal(error: KafkaError) -> DeniedError | None:
    """The refusal that an error of the Kafka client tells of, if it is one."""
    if isinstance(error, SaslAuthenticationFailedError):
        return DeniedError(f"Kafka refuses the login: {error}. Look at --kafka-user and --kafka-password-file")
    if isinstance(error, TopicAuthorizationFailedError):
        what = f"topic {', '.join(_names(error))}".strip()
    elif isinstance(error, GroupAuthorizationFailedError):
        what = f"consumer group {', '.join(_names(error))}".strip()
    elif isinstance(error, AuthorizationError):
        what = "this request"
    else:
        return None
    return DeniedError(
        f"Kafka forbids us {what}: {error}. {RIGHTS_PAGE} has the rights that each user needs; where topics exist "
        "already, --no-create-topics needs fewer"
    )


def _names(error: KafkaError) -> list[str]:
    found: list[str] = []
    for argument in error.args:
        names = argument if isinstance(argument, (set, frozenset, list, tuple)) else [argument]
        found += [str(name) for name in names]
    return found


def redis_refusal(error: RedisError, user: str = "") -> DeniedError | None:
    """The refusal that an error of the Redis client tells of, if it is one.

    Args:
        error: what the client raised.
        user: as whom we are logged in, where that is known.
    """
    who = f"user {user!r}" if user else "this user"
    reason = str(error).rstrip(".")
    if isinstance(error, AuthenticationError):
        return DeniedError(
            f"Redis refuses the login of {who}: {reason}. Look at --redis-user and --redis-password-file, or at the "
            "login in --redis"
        )
    forbidden = isinstance(error, ResponseError) and any(part in reason for part in _DENIED)
    if forbidden or isinstance(error, NoPermissionError | RedisAuthorizationError):
        return DeniedError(f"Redis forbids it to {who}: {reason}. {RIGHTS_PAGE} has the ACL line that each user needs")
    return None


def tls_error_in(error: BaseException) -> ssl.SSLError | None:
    """The TLS error that a client's error was made of, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
