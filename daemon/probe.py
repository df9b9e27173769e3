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
_METADATA, _SASL_HANDSHAKE, _SASL_AUTHENTICATE = 3, 17, 36
_OF_NO_TOPIC: Final = struct.pack(">i?", 0, False)  # noqa: FBT003 - a field: create no topic
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
        except (OSError, _NotKafkaError) as error:
            raise _denial_of(name, server, client, error, timeout_s) or error from None
        offers = code in {_NO_ERROR, _UNSUPPORTED_MECHANISM}
        if mechanism is None and offers and not _answers_strangers(server, context, timeout_s):
            wanted = "SASL_SSL" if context else "SASL_PLAINTEXT"
            raise DeniedError(f"{name} wants a login ({offered}): set --kafka-security {wanted} and --kafka-user")
        if mechanism is None:
            return
        if code == _NO_LOGIN_HERE:
            wanted = "SSL" if context else "PLAINTEXT"
            raise DeniedError(f"{name} takes no login at this port: set --kafka-security {wanted}, or another port")
        if code == _UNSUPPORTED_MECHANISM:
            raise DeniedError(f"{name} takes no login by {mechanism}: set --kafka-sasl-mechanism to one of {offered}")
        if code == _NO_ERROR:
            _log_in(connection, name, client)


def _denial_of(
    name: str, server: str, client: Mapping[str, Any], error: Exception, timeout_s: float
) -> DeniedError | None:
    """What a connection that broke before Kafka gave an answer tells; None if nothing: the broker may be starting."""
    context, (host, port) = client.get("ssl_context"), _address(server)
    if context is None:
        if not _speaks_tls(host, port, timeout_s):
            return None
        wanted = "SASL_SSL" if "sasl_mechanism" in client else "SSL or SASL_SSL"
        return DeniedError(f"{name} speaks TLS, and we do not: set --kafka-security {wanted}")
    found = error if isinstance(error, ssl.SSLError) else None
    if not _tells(found):
        found = _alert(host, port, context, timeout_s) or found
    if found and (_tells(found) or _speaks_plain_kafka(server, timeout_s)):
        return tls_refusal(name, found, "--kafka")
    return None


def _tells(error: ssl.SSLError | None) -> bool:
    """Whether this error is more than an end that came too early, as of a server that is being restarted."""
    return error is not None and not isinstance(error, ssl.SSLEOFError)


def _alert(host: str, port: int, context: ssl.SSLContext, timeout_s: float) -> ssl.SSLError | None:
    """What a server says to our certificate when nothing is sent to it.

    In TLS 1.3 it judges the certificate after we take the handshake for done. If we have written something by then, the
    connection may break before its alert is read.
    """
    try:
        with _connected(f"{host}:{port}", context, timeout_s) as connection:
            connection.recv(1)
    except ssl.SSLError as error:
        return error if _tells(error) else None
    except OSError:
        pass
    return None


def _speaks_plain_kafka(server: str, timeout_s: float) -> bool:
    try:
        with _connected(server, None, timeout_s) as connection:
            _offer_login(connection, "PLAIN")
    except (OSError, _NotKafkaError):
        return False
    return True


def _answers_strangers(server: str, context: ssl.SSLContext | None, timeout_s: float) -> bool:
    """Whether a broker that offers a login answers without one too; one that insists hangs up instead.

    Raises:
        OSError: it does neither in time.
    """
    with _connected(server, context, timeout_s) as connection:
        try:
            _ask(connection, _METADATA, 4, _OF_NO_TOPIC)
        except (ConnectionError, ssl.SSLEOFError):
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
        if not _tells(found):
            found = _alert(host, port, _redis_context(client), min(timeout_s, _PATIENCE_S))
        if found:
            return tls_refusal(name, found, "--redis")
        if _speaks_plain_redis(host, port, min(timeout_s, _PATIENCE_S)):
            return DeniedError(f"{name} does not speak TLS, and we do: write redis:// in --redis, or take another port")
    elif parts.scheme == "redis" and _speaks_tls(host, port, min(timeout_s, _PATIENCE_S)):
        return DeniedError(f"{name} speaks TLS, and we do not: write rediss:// in --redis")
    return None


def _redis_context(client: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=client.get("ssl_ca_certs"))
    if certificate := client.get("ssl_certfile"):
        context.load_cert_chain(certificate, client["ssl_keyfile"], client["ssl_password"])
    return context


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
