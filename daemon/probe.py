"""A handshake of our own with a server, to learn why it does not let us in.

The Kafka client tries a refused connection again and again and then reports that there was no answer in time. So with
TLS or a login the handshake is made here first, once, up to where Kafka would take requests; and where plain
connections fail, the same steps tell whether the server wants more than that.

A request and its answer, all integers big-endian; `size` does not count itself:

    size int32 | api int16 | version int16 | number int32 | client id int16 + text | body
    size int32 | number int32 | body
"""

import contextlib
import socket
import ssl
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from kafka.errors import KafkaError
from kafka.net.sasl import get_sasl_mechanism
from redis.exceptions import RedisError

from daemon.errors import DeniedError, UnavailableError
from daemon.refusals import redis_refusal, tls_error_in, tls_refusal

_PATIENCE_S: Final = 3.0
_SASL_HANDSHAKE, _SASL_AUTHENTICATE = 17, 36
_NO_ERROR, _UNSUPPORTED_MECHANISM, _NO_LOGIN_HERE = 0, 33, 34
_LARGEST: Final = 2**16
_REDIS_PORT: Final = 6379
_PING: Final = b"PING\r\n"


class _NotKafkaError(Exception):
    """An answer that is none of Kafka's."""


@contextlib.contextmanager
def first_contact(servers: Sequence[str], client: Mapping[str, Any], timeout_s: float) -> Iterator[None]:
    """Turn the errors of a Kafka client that is being made into ours.

    Args:
        servers: HOST:PORT.
        client: as `connections.kafka_client` gives it; with TLS or a login the handshake is made here first.
        timeout_s: how long a server may take to answer.

    Raises:
        DeniedError: refused, by the broker or by us.
        UnavailableError: no answer.
    """
    if client and (denial := kafka_denial(servers, client, timeout_s)):
        raise denial
    try:
        yield
    except (KafkaError, OSError) as error:
        if denial := kafka_denial(servers, client, timeout_s):
            raise denial from error
        raise UnavailableError(
            f"cannot reach Kafka at {','.join(servers)}: {error!r}. Is it running, and is --kafka (SUPSUP_KAFKA) "
            "right? `supsup-daemon start --embedded` brings its own."
        ) from error


def kafka_denial(servers: Sequence[str], client: Mapping[str, Any], timeout_s: float) -> DeniedError | None:
    """Why these servers do not let us in; None if one does, or if none says.

    Args:
        servers: HOST:PORT.
        client: as `connections.kafka_client` gives it.
        timeout_s: how long a server may take to answer.
    """
    found: DeniedError | None = None
    for server in servers:
        try:
            _enter_kafka(server, client, min(timeout_s, _PATIENCE_S))
        except DeniedError as error:
            found = found or error
        except (OSError, _NotKafkaError):
            continue
        else:
            return None
    return found


def _enter_kafka(server: str, client: Mapping[str, Any], timeout_s: float) -> None:
    """Connect, shake hands and log in.

    Raises:
        DeniedError: refused, by the server or by us.
        OSError: no connection, or no answer.
    """
    name = f"Kafka at {server}"
    context = client.get("ssl_context")
    mechanism = client.get("sasl_mechanism")
    with contextlib.ExitStack() as stack:
        try:
            connection = stack.enter_context(_connected(server, context, timeout_s))
            code, offered = _offer_login(connection, mechanism or "PLAIN")
        except ssl.SSLError as error:
            if isinstance(error, ssl.SSLEOFError) and not _speaks_plain_kafka(server, timeout_s):
                raise  # it has gone away in the middle, as a broker does that is being restarted
            raise tls_refusal(name, error, "--kafka") from error
        except (OSError, _NotKafkaError):
            if context is None and _speaks_tls(*_address(server), timeout_s):
                wanted = "SASL_SSL" if mechanism else "SSL or SASL_SSL"
                raise DeniedError(f"{name} speaks TLS, and we do not: set --kafka-security {wanted}") from None
            raise
        if mechanism is None and code in {_NO_ERROR, _UNSUPPORTED_MECHANISM}:
            wanted = "SASL_SSL" if context else "SASL_PLAINTEXT"
            raise DeniedError(f"{name} wants a login ({offered}): set --kafka-security {wanted} and --kafka-user")
        if mechanism is None:
            return
        if code == _NO_LOGIN_HERE:
            wanted = "SSL" if context else "PLAINTEXT"
            raise DeniedError(f"{name} takes no login at this port: set --kafka-security {wanted}, or another port")
        if code != _NO_ERROR:
            raise DeniedError(f"{name} takes no login by {mechanism}: set --kafka-sasl-mechanism to one of {offered}")
        _log_in(connection, name, client)


def _speaks_plain_kafka(server: str, timeout_s: float) -> bool:
    try:
        with _connected(server, None, timeout_s) as connection:
            _offer_login(connection, "PLAIN")
    except (OSError, _NotKafkaError):
        return False
    return True


def _log_in(connection: socket.socket, name: str, client: Mapping[str, Any]) -> None:
    login = get_sasl_mechanism(client["sasl_mechanism"])(host="", **client)
    while not login.is_done():
        token = login.auth_bytes()
        answer = _Reader(_ask(connection, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(token)) + token))
        error, message, token = answer.int16(), answer.text(), answer.data()
        if error == _NO_ERROR:
            try:
                login.receive(token)
            except Exception as strange:  # noqa: BLE001 - whatever a mechanism makes of bytes that are none of its own
                error, message = -1, f"the server's answer proves nothing ({strange!r})"
        if error != _NO_ERROR:
            raise DeniedError(
                f"{name} refuses the login of user {client['sasl_plain_username']!r}: {message or 'no reason given'}. "
                "Look at --kafka-user, --kafka-password-file and --kafka-sasl-mechanism"
            )


def _offer_login(connection: socket.socket, mechanism: str) -> tuple[int, str]:
    """Ask for a login by this mechanism; returns Kafka's error code and the mechanisms it knows."""
    body = struct.pack(f">h{len(mechanism)}s", len(mechanism), mechanism.encode())
    answer = _Reader(_ask(connection, _SASL_HANDSHAKE, 1, body))
    return answer.int16(), ", ".join(answer.text() for _ in range(max(0, answer.int32())))


def _ask(connection: socket.socket, api: int, version: int, body: bytes) -> bytes:
    """One request; returns the body of the answer."""
    head = struct.pack(">hhih", api, version, 1, 0)
    connection.sendall(struct.pack(">i", len(head) + len(body)) + head + body)
    (size,) = struct.unpack(">i", _exactly(connection, 4))
    if not 4 <= size <= _LARGEST:
        raise _NotKafkaError
    return _exactly(connection, size)[4:]


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = connection.recv(count - len(found))
        if not piece:
            raise ConnectionResetError("the server has closed the connection")
        found += piece
    return found


class _Reader:
    """Reads fields off an answer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data):
            raise _NotKafkaError
        found, self._data = self._data[:count], self._data[count:]
        return found

    def int16(self) -> int:
        return int.from_bytes(self._take(2), "big", signed=True)

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big", signed=True)

    def text(self) -> str:
        return self._take(max(0, self.int16())).decode(errors="replace")

    def data(self) -> bytes:
        return self._take(max(0, self.int32()))


@contextlib.contextmanager
def _connected(server: str, context: ssl.SSLContext | None, timeout_s: float) -> Iterator[socket.socket]:
    host, port = _address(server)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((host, port), timeout=timeout_s))
        if context is not None:
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=host))
        yield connection


def _address(server: str) -> tuple[str, int]:
    host, _, port = server.rpartition(":")
    return host.strip("[]"), int(port)


def redis_denial(url: str, client: Mapping[str, Any], error: RedisError, timeout_s: float) -> DeniedError | None:
    """Why this Redis does not let us in; None if it does not say.

    Args:
        url: as the client took it.
        client: as `connections.redis_client` gives it.
        error: what the client made of it.
        timeout_s: how long the server may take to answer.
    """
    parts = urlsplit(url)
    user = str(client.get("username") or unquote(parts.username or ""))
    if denial := redis_refusal(error, user):
        return denial
    host, port = parts.hostname or "127.0.0.1", parts.port or _REDIS_PORT
    name = f"Redis at {host}:{port}"
    if parts.scheme == "rediss":
        found = tls_error_in(error)
        if found and not isinstance(found, ssl.SSLEOFError):
            return tls_refusal(name, found, "--redis")
        if _speaks_plain_redis(host, port, min(timeout_s, _PATIENCE_S)):
            return DeniedError(f"{name} does not speak TLS, and we do: write redis:// in --redis, or take another port")
    elif parts.scheme == "redis" and _speaks_tls(host, port, min(timeout_s, _PATIENCE_S)):
        return DeniedError(f"{name} speaks TLS, and we do not: write rediss:// in --redis")
    return None


def _speaks_tls(host: str, port: int, timeout_s: float) -> bool:
    """Whether somebody there shakes hands in TLS; who it is does not matter."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=timeout_s) as connection:
        try:
            with context.wrap_socket(connection, server_hostname=host):
                return True
        except ssl.SSLError as error:
            return "ALERT" in (error.reason or "")  # it refuses us, in TLS
    return False


def _speaks_plain_redis(host: str, port: int, timeout_s: float) -> bool:
    """Whether a Redis there takes commands without TLS."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=timeout_s) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(_PING)
        return connection.recv(1) in {b"+", b"-"}
    return False
