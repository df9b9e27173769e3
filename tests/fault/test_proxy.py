"""The proxy does to a connection what it is asked to, and nothing else."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from fault.proxy import Flow, Proxy


@pytest.fixture
def echo() -> Iterator[list[bytes]]:
    """A server that gives back what it gets; yields the port first, then everything that arrived."""
    arrived: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        arrived.append(str(server.getsockname()[1]).encode())

        def serve(connection: socket.socket) -> None:
            with connection:
                try:
                    while data := connection.recv(4096):
                        arrived.append(data)
                        connection.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        acceptor = threading.Thread(target=accept, daemon=True)
        acceptor.start()
        yield arrived
        server.shutdown(socket.SHUT_RDWR)
        acceptor.join(5)


@pytest.fixture
def proxy(echo: list[bytes]) -> Iterator[Proxy]:
    with Proxy(int(echo[0])) as running:
        yield running


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with closing(connect(proxy)) as connection:
        ask(connection, b"hello")
        yield connection


def connect(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port))
    connection.settimeout(5)
    return connection


def ask(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += connection.recv(1 << 16)
    assert got == data


def ends(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_bytes_pass_in_both_directions(client: socket.socket) -> None:
    ask(client, bytes(range(256)) * 1000)


def test_a_delay_is_kept(proxy: Proxy, client: socket.socket) -> None:
    proxy.misbehave(replies=Flow(delay_s=0.2))
    begun = time.monotonic()
    ask(client, b"late")
    assert time.monotonic() - begun >= 0.2


def test_a_stalled_reply_comes_once_the_proxy_is_healed(proxy: Proxy, client: socket.socket) -> None:
    proxy.misbehave(replies=Flow(stalled=True))
    client.sendall(b"wait")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)
    proxy.heal()
    client.settimeout(5)
    assert client.recv(4) == b"wait"


def test_a_lost_reply_is_lost_although_the_request_went_through(
    proxy: Proxy, client: socket.socket, echo: list[bytes]
) -> None:
    proxy.misbehave(replies=Flow(lost_after=3))
    client.sendall(b"request")
    assert client.recv(100) == b"req"
    proxy.heal()
    assert ends(client)
    assert b"request" in echo


def test_a_lost_request_never_arrives(proxy: Proxy, client: socket.socket, echo: list[bytes]) -> None:
    proxy.misbehave(requests=Flow(lost_after=0))
    client.sendall(b"request")
    time.sleep(0.05)
    proxy.heal()
    assert ends(client)
    assert b"request" not in echo


def test_a_cut_ends_every_connection_and_new_ones_work(proxy: Proxy, client: socket.socket) -> None:
    proxy.cut()
    assert ends(client)
    with closing(connect(proxy)) as another:
        ask(another, b"again")


def test_refusal_is_for_new_connections_alone(proxy: Proxy, client: socket.socket) -> None:
    proxy.refuse()
    ask(client, b"still there")
    with closing(connect(proxy)) as another:
        assert ends(another)
    proxy.heal()
    with closing(connect(proxy)) as another:
        ask(another, b"again")


def test_without_a_server_behind_it_a_connection_ends(proxy: Proxy) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        proxy.target = unused.getsockname()[1]
        with closing(connect(proxy)) as connection:
            assert ends(connection)
