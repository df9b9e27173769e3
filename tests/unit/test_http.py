"""Health and metrics over real connections."""

import http.client
import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon import http as ours
from daemon import settings as table
from daemon.errors import ConfigError
from daemon.http import token_of, trainer_server
from daemon.telemetry import Telemetry
from unit.test_docs import REFERENCE, named, section


def ask(port: int, path: str, *, method: str = "GET", host: str = "127.0.0.1", **headers: str) -> tuple[int, str]:
    """Status and body of one request."""
    status, _, body = answer(port, path, method=method, host=host, **headers)
    return status, body


def answer(
    port: int, path: str, *, method: str = "GET", host: str = "127.0.0.1", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of one request."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read().decode()
    finally:
        connection.close()


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


@pytest.fixture
def port(telemetry: Telemetry) -> Iterator[int]:
    with trainer_server(telemetry, host="127.0.0.1", port=0) as server:
        yield server.port


@pytest.fixture(scope="module")
def idle_port() -> Iterator[int]:
    """A server that several tests share: nothing happens to what it tells."""
    with trainer_server(Telemetry(), host="127.0.0.1", port=0) as server:
        yield server.port


def test_livez_tells_the_age_of_the_heartbeat_and_fails_when_it_is_too_old(telemetry: Telemetry, port: int) -> None:
    telemetry.beat()
    status, body = ask(port, "/livez")
    assert status == 200
    told = json.loads(body)
    assert (told["alive"], told["limit_s"]) == (True, 30.0)
    assert 0 <= told["age_s"] < 30
    telemetry.health.limit_s = 0.0
    status, body = ask(port, "/livez")
    assert (status, json.loads(body)["alive"]) == (503, False)


def test_readyz_tells_the_role_and_every_reason(telemetry: Telemetry, port: int) -> None:
    status, body = ask(port, "/readyz")
    assert status == 503
    assert json.loads(body) == {
        "ready": False,
        "role": "starting",
        "reasons": {"starting": "servers and bank are not all there yet"},
    }
    telemetry.started("leader")
    status, body = ask(port, "/readyz")
    assert (status, json.loads(body)) == (200, {"ready": True, "role": "leader", "reasons": {}})
    telemetry.health.hold("redis", "out of memory")
    status, body = ask(port, "/readyz")
    assert (status, json.loads(body)["reasons"]) == (503, {"redis": "out of memory"})


def test_a_standby_is_alive_and_not_ready(telemetry: Telemetry, port: int) -> None:
    telemetry.started("standby")
    telemetry.beat()
    assert ask(port, "/livez")[0] == 200
    status, body = ask(port, "/readyz")
    assert (status, list(json.loads(body)["reasons"])) == (503, ["standby"])


def test_metrics_come_in_the_text_format(telemetry: Telemetry, port: int) -> None:
    status, headers, body = answer(port, "/metrics")
    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["cache-control"] == "no-store"
    assert 'supsup_leader{bank="default"} 0.0' in body
    telemetry.started("leader")
    assert 'supsup_leader{bank="default"} 1.0' in ask(port, "/metrics")[1]


@pytest.mark.parametrize(
    "path", ["/", "/live", "/livez/", "/metrics/x", "/docs", "/openapi.json", "//livez", "/%2e%2e/livez"]
)
def test_another_address_is_not_found(idle_port: int, path: str) -> None:
    assert ask(idle_port, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_another_method_is_not_allowed(idle_port: int, method: str) -> None:
    assert ask(idle_port, "/livez", method=method)[0] == 405


def test_the_health_page_names_the_addresses_that_are_answered(port: int) -> None:
    documented = [name for name in named(section(REFERENCE / "health.md", "## Over HTTP")) if name.startswith("/")]
    assert [ask(port, path)[0] for path in documented] == [200, 503, 200]


# -- the token ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[int]:
    with trainer_server(Telemetry(), host="0.0.0.0", port=0, token="correct-horse") as server:  # noqa: S104, S106
        yield server.port


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/nowhere"])
@pytest.mark.parametrize(
    "given",
    [None, "Bearer wrong", "correct-horse", "Bearer correct-horse x", "Bearer ", "Basic correct-horse"],
    ids=["none", "wrong", "bare", "longer", "empty", "another scheme"],
)
def test_without_the_token_nothing_is_told(guarded: int, path: str, given: str | None) -> None:
    brought = {} if given is None else {"authorization": given}
    status, headers, body = answer(guarded, path, **brought)
    assert (status, headers["www-authenticate"], body) == (401, "Bearer", "Unauthorized")


def test_with_the_token_everything_is_told(guarded: int) -> None:
    statuses = [
        ask(guarded, path, authorization="Bearer correct-horse")[0] for path in ("/livez", "/readyz", "/metrics")
    ]
    assert statuses == [200, 503, 200]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.1", "trainer.example", "127.0.0.1.example"])  # noqa: S104
def test_an_address_that_others_can_reach_needs_a_token(telemetry: Telemetry, host: str) -> None:
    with pytest.raises(ConfigError, match=rf"--http-host {re.escape(host)} can be reached.*--http-token-file"):
        trainer_server(telemetry, host=host, port=0)


def test_an_ipv6_address_will_do(telemetry: Telemetry) -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with trainer_server(telemetry, host="::1", port=0) as server:
        assert ask(server.port, "/livez", host="::1")[0] == 200


def test_a_host_that_is_none_is_said_with_what_to_do(telemetry: Telemetry) -> None:
    with (
        pytest.raises(ConfigError, match=r"cannot listen on no such host .*or --http-host"),
        trainer_server(telemetry, host="no such host", port=0, token="t"),  # noqa: S106
    ):
        pass


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost"])
def test_an_address_of_this_machine_alone_needs_none(telemetry: Telemetry, host: str) -> None:
    with trainer_server(telemetry, host=host, port=0) as server:
        assert ask(server.port, "/livez", host=host)[0] == 200


def test_the_token_comes_from_its_setting_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-the-file\n")
    assert token_of(table.parse({}, {})) == ""
    assert token_of(table.parse({"http_token": "given"}, {})) == "given"
    assert token_of(table.parse({"http_token_file": path}, {})) == "from-the-file"
    with pytest.raises(ConfigError, match="keep the file alone"):
        token_of(table.parse({"http_token": "given", "http_token_file": path}, {}))


@pytest.mark.parametrize("text", ["", "\n", "two words", "line\nline", "ümlaut", "x" * 5000])
def test_a_token_that_no_header_carries_is_refused_without_being_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        token_of(table.parse({"http_token_file": path}, {}))
    assert not text.strip() or text.strip() not in str(caught.value)


def test_a_token_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--http-token-file .*missing cannot be read"):
        token_of(table.parse({"http_token_file": tmp_path / "missing"}, {}))


def test_the_token_is_shown_nowhere() -> None:
    settings = table.parse({"http_token": "sesame"}, {})
    assert "sesame" not in repr(settings) + str(settings) + settings.model_dump_json()
    number = table.parse({"http_token": 12345678}, {})
    assert token_of(number) == "12345678"


# -- odd clients -------------------------------------------------------------------------------------------------------


def test_a_port_that_is_taken_is_said_with_what_to_do(telemetry: Telemetry, port: int) -> None:
    with (
        pytest.raises(ConfigError, match=rf"cannot listen on 127.0.0.1 port {port} .*choose another --http-port"),
        trainer_server(Telemetry(), host="127.0.0.1", port=port),
    ):
        pass


def test_a_client_that_says_nothing_is_sent_away(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_CONNECTION_S", 0.1)
    with (
        trainer_server(telemetry, host="127.0.0.1", port=0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as client,
        suppress(ConnectionResetError),  # as good as an end in good order
    ):
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "request_bytes",
    [b"garbage\r\n\r\n", b"GET /livez HTTP/1.1\r\nhost: x\r\nh: " + b"x" * 100_000, b"\x16\x03\x01\x02\x00\x01\x00"],
    ids=["garbage", "endless header", "TLS"],
)
def test_nonsense_is_refused_without_a_word_in_the_log(
    telemetry: Telemetry, port: int, request_bytes: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request_bytes)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert ask(port, "/livez")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_too_many_connections_are_refused_and_leave_room_for_others_when_they_end(port: int) -> None:
    idle = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(40)]
    try:
        assert ask(port, "/livez")[0] == 503
    finally:
        for connection in idle:
            connection.close()
    for _ in range(100):
        if ask(port, "/livez")[0] == 200:
            break
    else:
        pytest.fail("no room for anybody")


def test_a_fault_of_ours_is_logged_and_told_without_its_text(telemetry: Telemetry, port: int) -> None:
    def broken() -> float:
        raise RuntimeError("a secret")

    telemetry.metrics.watch(age_s=broken, ready=lambda: True)
    with capture_logs() as lines:
        status, body = ask(port, "/metrics")
    assert (status, body) == (500, "Internal Server Error")
    assert [(line["event"], line["path"]) for line in lines] == [("http.failed", "/metrics")]
    assert ask(port, "/livez")[0] == 200


def test_at_the_end_nobody_listens_any_more(telemetry: Telemetry) -> None:
    with trainer_server(telemetry, host="127.0.0.1", port=0) as server:
        assert ask(server.port, "/livez")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        ask(server.port, "/livez")
