"""The handshake of our own with Kafka: answers that are none must neither hang it nor be taken for a refusal."""

import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
from kafka.errors import KafkaTimeoutError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from daemon import probe
from daemon.errors import DeniedError, UnavailableError
from daemon.refusals import kafka_refusal, redis_refusal, tls_error_in

LOGIN = {
    "security_protocol": "SASL_PLAINTEXT",
    "sasl_mechanism": "PLAIN",
    "sasl_plain_username": "me",
    "sasl_plain_password": "secret-0",
}


@contextmanager
def server(*answers: bytes) -> Iterator[str]:
    """`host:port` of somebody who gives these answers, one per request, to each who connects, and then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    for answer in answers:
                        asked = connection.recv(4096)
                        if asked[5:6] == b"\x03":  # metadata, which nobody here gets without a login
                            break
                        connection.sendall(answer)

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def handshake(code: int, *mechanisms: str) -> bytes:
    """Kafka's answer to SaslHandshake, version 1."""
    names = b"".join(struct.pack(f">h{len(name)}s", len(name), name.encode()) for name in mechanisms)
    return framed(struct.pack(">hi", code, len(mechanisms)) + names)


def authenticated(code: int, message: str | None) -> bytes:
    """Kafka's answer to SaslAuthenticate, version 0."""
    text = (
        struct.pack(">h", -1) if message is None else struct.pack(f">h{len(message)}s", len(message), message.encode())
    )
    return framed(struct.pack(">h", code) + text + struct.pack(">i", 0))


def framed(body: bytes) -> bytes:
    """With its size and the number of the request in front."""
    return struct.pack(">ii", len(body) + 4, 1) + body


def denial(address: str, client: dict[str, str] | None = None) -> str | None:
    """Why we are not let in."""
    found = probe.kafka_denial([address], client or {}, 0.5)
    return None if found is None else str(found)


def test_who_lets_us_in_is_not_complained_of() -> None:
    with server(handshake(0, "PLAIN"), authenticated(0, None)) as address:
        assert denial(address, LOGIN) is None


def test_a_refused_login_tells_what_the_broker_says_and_not_the_password() -> None:
    with server(handshake(0, "PLAIN"), authenticated(58, "no such user")) as address:
        told = denial(address, LOGIN)
    assert told is not None
    assert "refuses the login of user 'me': no such user" in told
    assert "secret-0" not in told


@pytest.mark.parametrize(
    ("answer", "client", "told"),
    [
        (handshake(33, "SCRAM-SHA-256", "OTHER"), LOGIN, "set --kafka-sasl-mechanism to one of SCRAM-SHA-256, OTHER"),
        (handshake(34), LOGIN, "takes no login at this port"),
        (handshake(0, "PLAIN"), {}, "wants a login (PLAIN)"),
        (handshake(33, "SCRAM-SHA-512"), {}, "wants a login (SCRAM-SHA-512)"),
    ],
)
def test_what_the_broker_wants_is_told(answer: bytes, client: dict[str, str], told: str) -> None:
    with server(answer) as address:
        assert told in str(denial(address, client))


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">i", -1),
        struct.pack(">i", 2**31 - 1),
        struct.pack(">ii", 4, 1),
        framed(struct.pack(">hi", 0, 2**31 - 1)),
        framed(struct.pack(">hih", 0, 1, 30_000)),
        handshake(35),
    ],
)
@pytest.mark.parametrize("client", [{}, LOGIN], ids=["plain", "login"])
def test_an_answer_that_is_none_is_no_refusal_and_costs_no_memory(answer: bytes, client: dict[str, str]) -> None:
    with server(answer) as address:
        assert denial(address, client) is None


def test_one_broker_that_lets_us_in_is_enough() -> None:
    with server(handshake(34)) as refusing, server(handshake(0, "PLAIN"), authenticated(0, None)) as good:
        assert probe.kafka_denial([refusing, good], LOGIN, 0.5) is None
        assert probe.kafka_denial(["127.0.0.1:1", refusing], LOGIN, 0.5) is not None


def test_a_silent_server_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        begun = time.monotonic()
        assert denial(f"127.0.0.1:{listener.getsockname()[1]}", LOGIN) is None
    assert time.monotonic() - begun < 10


def test_a_first_contact_that_fails_plain_is_looked_into() -> None:
    def contact(address: str) -> None:
        with probe.first_contact([address], {}, 0.5):
            raise KafkaTimeoutError("no answer")

    with server(handshake(0, "PLAIN")) as address, pytest.raises(DeniedError, match="wants a login"):
        contact(address)
    with pytest.raises(UnavailableError, match=r"cannot reach Kafka at 127\.0\.0\.1:1: .*no answer"):
        contact("127.0.0.1:1")


def test_what_is_no_refusal_is_left_to_others() -> None:
    assert kafka_refusal(KafkaTimeoutError("x")) is None
    assert redis_refusal(RedisConnectionError("x")) is None
    assert redis_refusal(ResponseError("READONLY You can't write against a read only replica.")) is None
    assert tls_error_in(RedisConnectionError("x")) is None


@pytest.mark.parametrize(
    "message",
    [
        "Error running script: @user_script: 1: The user executing the script can't run this command or subcommand",
        "The user executing the script can't run this command or subcommand script: 10, on @user_script:1.",
        "ACL failure in script: User t has no permissions to run the 'time' command script: on @user_script:1.",
    ],
)
def test_a_script_that_may_not_do_something_is_a_refusal_in_every_version_of_redis(message: str) -> None:
    assert "Redis forbids" in str(redis_refusal(ResponseError(message)))
