"""Servers with TLS, logins and rights: a Redis, an Apache Kafka, and the certificates for both.

The Redis of the wheel is built without TLS, and no wheel has one that is not. So Debian's is taken where it is
installed (package `redis-tools` is enough); elsewhere TLS ends at a proxy here, in front of the wheel's Redis.
"""

import argparse
import datetime as dt
import os
import select
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import ClassVar

import trustme
from cryptography.hazmat.primitives import serialization
from kafka import KafkaAdminClient
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from redis import Redis

from daemon.embedded import EmbeddedRedis, Server

KAFKA = Path(__file__).resolve().parents[2] / "shared" / "kafka" / "kafka"
JAVA = shutil.which(f"{os.environ['JAVA_HOME']}/bin/java" if os.environ.get("JAVA_HOME") else "java")


@dataclass(frozen=True)
class Certificates:
    """PEM files: of the CA, and each of a certificate with its key (PKCS #8, as Java wants it)."""

    ca: Path
    server: Path
    expired: Path
    client: Path
    other_ca: Path
    strange_client: Path

    @classmethod
    def make(cls, directory: Path) -> "Certificates":
        """For 127.0.0.1 and localhost; 127.0.0.2 is the same machine under a name that no certificate holds."""
        ours, other = trustme.CA(), trustme.CA()
        names, past = ("127.0.0.1", "localhost"), dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
        contents = {
            "ca": ours.cert_pem.bytes(),
            "server": _pem(ours.issue_cert(*names)),
            "expired": _pem(ours.issue_cert(*names, not_after=past)),
            "client": _pem(ours.issue_cert("client")),
            "other_ca": other.cert_pem.bytes(),
            "strange_client": _pem(other.issue_cert("client")),
        }
        paths = {name: directory / f"{name}.pem" for name in contents}
        for name, content in contents.items():
            paths[name].write_bytes(content)
        return cls(**paths)


def _pem(issued: trustme.LeafCert) -> bytes:
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pkcs8 = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*pkcs8) + b"".join(blob.bytes() for blob in issued.cert_chain_pems)


# -- Redis -------------------------------------------------------------------------------------------------------------


def redis_with_tls(directory: Path) -> Path | None:
    """A redis-server that speaks TLS; on Debian it is the same program as redis-check-rdb, told apart by its name."""
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if program is None:
        return None
    named = directory / "redis-server"
    if not named.exists():
        named.symlink_to(program)
    linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    return named if "libssl" in linked else None


class TlsRedis(Server):
    """A Redis that speaks TLS and nothing else; its default user may do anything, without a password."""

    name = "Redis with TLS"
    subdirectory = "tls-redis"

    def __init__(self, program: Path, directory: Path, certificate: Path, ca: Path, *, ask_clients: bool) -> None:
        super().__init__(directory)
        self._program = program
        self._certificate = certificate
        self._ca = ca
        self._ask_clients = ask_clients

    def _command(self) -> list[str]:
        pem = str(self._certificate)
        tls = ["--tls-port", str(self.port), "--tls-cert-file", pem, "--tls-key-file", pem]
        asks = ["--tls-ca-cert-file", str(self._ca), "--tls-auth-clients", "yes" if self._ask_clients else "no"]
        return [str(self._program), "--port", "0", "--bind", "127.0.0.1", "127.0.0.2", "--save", "", *tls, *asks]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address.partition(":")[0], self.port), timeout=1):
            return True
        return False


class TlsFront:
    """Ends TLS in front of a server without: what comes in is handed on, both ways."""

    def __init__(self, target: tuple[str, int], certificate: Path, ca: Path, *, ask_clients: bool) -> None:
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        if ask_clients:
            self._context.load_verify_locations(ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("", 0))
        self.port = int(self._listener.getsockname()[1])
        Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                Thread(target=self._pass_on, args=(connection,), daemon=True).start()

    def _pass_on(self, raw: socket.socket) -> None:
        with (
            raw,
            suppress(OSError),
            self._context.wrap_socket(raw, server_side=True) as outer,
            socket.create_connection(self._target) as inner,
        ):
            other = {outer: inner, inner: outer}
            while True:
                ready = [outer] if outer.pending() else select.select([outer, inner], [], [])[0]
                for side in ready:
                    piece = side.recv(65536)
                    if not piece:
                        return
                    other[side].sendall(piece)

    def close(self) -> None:
        """Accept no more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextmanager
def secured_redis(
    directory: Path, certificates: Certificates, certificate: Path | None = None, *, ask_clients: bool = False
) -> Iterator[int]:
    """Port of a Redis with TLS on 127.0.0.1 and 127.0.0.2; without users until the test makes some."""
    directory.mkdir(exist_ok=True)
    pem = certificate or certificates.server
    program = redis_with_tls(directory)
    with ExitStack() as stack:
        if program is not None:
            server = TlsRedis(program, directory, pem, certificates.ca, ask_clients=ask_clients)
            yield stack.enter_context(server).port
            return
        plain = stack.enter_context(EmbeddedRedis(directory))
        front = TlsFront(("127.0.0.1", plain.port), pem, certificates.ca, ask_clients=ask_clients)
        stack.callback(front.close)
        yield front.port


# -- Kafka -------------------------------------------------------------------------------------------------------------


class SecuredKafka(Server):
    """An Apache Kafka with rights and a listener of each kind.

    Attributes:
        ports: by listener. `plain` is for the test itself, whose word is law there; `login` is SASL_SSL, `expired` the
            same with a certificate out of date, `open_login` SASL_PLAINTEXT, `mutual` SSL that asks for certificates.
    """

    name = "Apache Kafka"
    subdirectory = "kafka"
    protocols: ClassVar = {
        "login": "SASL_SSL",
        "expired": "SASL_SSL",
        "open_login": "SASL_PLAINTEXT",
        "mutual": "SSL",
        "plain": "PLAINTEXT",
        "controller": "PLAINTEXT",
    }

    def __init__(self, directory: Path, certificates: Certificates, passwords: dict[str, str]) -> None:
        super().__init__(directory, start_timeout_s=60)
        self._certificates = certificates
        self._passwords = passwords
        self.ports: dict[str, int] = {}

    def at(self, listener: str) -> str:
        """`host:port` of a listener."""
        return f"127.0.0.1:{self.ports[listener]}"

    def _command(self) -> list[str]:
        self.ports = dict(zip(self.protocols, _free_ports(len(self.protocols)), strict=True))
        listeners = [f"{name.upper()}://{self.at(name)}" for name in self.protocols]
        users = " ".join(f'user_{name}="{password}"' for name, password in self._passwords.items())
        plain_login = f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};"
        scram_login = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        settings = {
            "listeners": ",".join(listeners),
            "advertised.listeners": ",".join(listeners[:-1]),
            "listener.security.protocol.map": ",".join(f"{n.upper()}:{p}" for n, p in self.protocols.items()),
            "controller.quorum.voters": f"1@{self.at('controller')}",
            "inter.broker.listener.name": "PLAIN",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._certificates.server,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._certificates.ca,
            "listener.name.expired.ssl.keystore.location": self._certificates.expired,
            "listener.name.mutual.ssl.client.auth": "required",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "group.min.session.timeout.ms": 1000,
        }
        for listener in ("login", "expired", "open_login"):
            settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain_login
            settings[f"listener.name.{listener}.scram-sha-256.sasl.jaas.config"] = scram_login
        environment = [f"{name}={os.environ[name]}" for name in ("JAVA_HOME",) if name in os.environ]
        start = [str(KAFKA), "start", str(self._directory / "data"), str(self.ports["plain"])]
        heap = "KAFKA_HEAP_OPTS=-Xms128m -Xmx256m"
        return ["env", heap, *environment, *start, *(f"{name}={value}" for name, value in settings.items())]

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.ports["plain"]), timeout=1):
            return True
        return False

    def allow(self, lines: Iterable[Sequence[str]]) -> None:
        """Give the rights that these arguments of `kafka-acls` name."""
        rights = [_right(arguments) for arguments in lines]
        admin = KafkaAdminClient(bootstrap_servers=self.at("plain"))
        try:
            assert admin.create_acls(rights)["failed"] == []
        finally:
            admin.close()

    @contextmanager
    def forbidden(self, user: str, topic: str) -> Iterator[None]:
        """For a while this user may not read this topic, whatever was allowed."""
        resource = ResourcePattern(ResourceType.TOPIC, topic)
        denial = ACL(f"User:{user}", "*", ACLOperation.READ, ACLPermissionType.DENY, resource)
        admin = KafkaAdminClient(bootstrap_servers=self.at("plain"))
        try:
            assert admin.create_acls([denial])["failed"] == []
            try:
                yield
            finally:
                admin.delete_acls([denial])
        finally:
            admin.close()

    def let_in_by_scram(self, user: str) -> None:
        """Make the password of a user known for SCRAM-SHA-256 as well."""
        admin = KafkaAdminClient(bootstrap_servers=self.at("plain"))
        try:
            mechanism = ScramMechanism.SCRAM_SHA_256
            password = self._passwords[user].encode()
            admin.alter_user_scram_credentials([UserScramCredentialUpsertion(user, mechanism, password)])
        finally:
            admin.close()


def _right(arguments: Sequence[str]) -> ACL:
    """What one line of Kafka's own tool adds; unknown flags are an error."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--bootstrap-server", required=True)
    parser.add_argument("--command-config", required=True)
    parser.add_argument("--add", action="store_true", required=True)
    parser.add_argument("--allow-principal", required=True)
    parser.add_argument("--operation", required=True)
    parser.add_argument("--resource-pattern-type", default="literal")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--topic")
    what.add_argument("--group")
    given = parser.parse_args(arguments)
    kind = ResourceType.TOPIC if given.topic else ResourceType.GROUP
    pattern = ACLResourcePatternType[given.resource_pattern_type.upper()]
    resource = ResourcePattern(kind, given.topic or given.group, pattern)
    return ACL(given.allow_principal, "*", ACLOperation[given.operation.upper()], ACLPermissionType.ALLOW, resource)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in held]


def administrator(port: int, certificates: Certificates) -> Redis:
    """The default user of a secured Redis."""
    return Redis(port=port, ssl=True, ssl_ca_certs=str(certificates.ca))
