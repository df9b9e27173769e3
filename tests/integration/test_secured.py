"""TLS, logins and rights, with the daemon as a real process: an Apache Kafka and a Redis that let in whom they know.

The servers are this module's own, so a broker named by SUPSUP_TEST_KAFKA has no part in it. The rights are read out of
docs/reference/security.md: what stands there is what is tested.
"""

import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from daemon.probe import kafka_denial
from daemon_process import SMALL, Ended, Trainer, here, trainer
from secured_servers import JAVA, KAFKA, Certificates, SecuredKafka, administrator, secured_redis
from servers import create_topic
from streams import labelled, publish

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        "SUPSUP_TEST_KAFKA" in os.environ, reason="brings its own servers, and runs with the embedded ones already"
    ),
]
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "security.md"
# The words of the page that stand for the reader's own.
TOPIC, BANK, SECRET = "digits", "default", "SECRET"
PASSWORDS = {"trainer": "kafka-trainer-0", "publisher": "kafka-publisher-0", "nobody": "kafka-nobody-0"}
REDIS_SECRET, WRONG = "redis-secret-0", "wrong-secret-0"
QUICK = ("--connect-timeout-s=5", "--session-timeout-s=6", "--burst", *SMALL[:-1])


def documented(program: str) -> list[list[str]]:
    """Arguments of the lines of the page that begin with this program."""
    lines = re.findall(rf"^\$ {program} (.*)$", PAGE.read_text(), flags=re.MULTILINE)
    return [shlex.split(line) for line in lines]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


# -- Redis -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SecuredRedis:
    """A Redis with TLS and the users of the page."""

    port: int
    certificates: Certificates

    def flags(self, user: str, **changed: object) -> list[str]:
        """How a command connects as this user; `ca=None` leaves a flag out."""
        flags: dict[str, object] = {"redis": f"rediss://127.0.0.1:{self.port}/0", "redis-ca-file": self.certificates.ca}
        flags |= {"redis-user": f"supsup-{user}" if user else None}
        flags |= {f"redis-{name.replace('_', '-')}": value for name, value in changed.items()}
        flags["redis"] = flags.pop("redis-url", flags["redis"])
        return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredRedis]:
    """A Redis with TLS and exactly the users of the page."""
    with secured_redis(tmp_path_factory.mktemp("redis"), certificates) as port:
        with administrator(port, certificates) as admin:
            for arguments in documented("redis-cli"):
                admin.execute_command(*(word.replace(SECRET, REDIS_SECRET) for word in arguments))
        yield SecuredRedis(port, certificates)


@pytest.fixture
def bank(store: SecuredRedis, kafka: str) -> str:
    """The bank of the page, of one record that a trainer has trained as the user of the page."""
    with administrator(store.port, store.certificates) as admin:
        admin.flushall()
    topic = f"secured-{time.monotonic_ns()}"
    create_topic(kafka, topic)
    publish(kafka, topic, [labelled(0, 0)])
    flags = [f"--kafka={kafka}", f"--topic={topic}", f"--group={topic}", *QUICK[:-1], "--session-timeout-s=2"]
    ended = here("start", *store.flags("trainer"), *flags, SUPSUP_REDIS_PASSWORD=REDIS_SECRET)
    assert ended.code == 0, ended.stderr
    return BANK


def test_the_replica_of_the_page_reads_a_bank_that_its_trainer_wrote(store: SecuredRedis, bank: str) -> None:
    for command in (("masks", "list"), ("masks", "show", "0"), ("stats",), ("watch", "--seconds=2")):
        ended = here(*command, *store.flags("replica"), "--json", SUPSUP_REDIS_PASSWORD=REDIS_SECRET)
        assert ended.code == 0, ended.stderr
        assert ended.stdout


def test_the_replica_of_the_page_can_neither_write_nor_run_scripts(store: SecuredRedis, bank: str) -> None:
    ca = str(store.certificates.ca)
    login = {"username": "supsup-replica", "password": REDIS_SECRET}
    with Redis(port=store.port, ssl=True, ssl_ca_certs=ca, **login) as client:
        key = f"supsup:{{{bank}}}:version"
        assert client.get(key) == b"1"
        for forbidden in (
            ("SET", key, "9"),
            ("DEL", key),
            ("EVAL", "return 1", 0),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
        ):
            with pytest.raises(NoPermissionError):
                client.execute_command(*forbidden)
        with pytest.raises(NoPermissionError):
            client.get("somebody:elses")


def test_a_replicas_user_cannot_train(store: SecuredRedis, bank: str, kafka: str) -> None:
    ended = here("start", *store.flags("replica"), f"--kafka={kafka}", *QUICK, SUPSUP_REDIS_PASSWORD=REDIS_SECRET)
    assert ended.code == 77
    assert "Redis forbids" in ended.stderr
    assert "evalsha" in ended.stderr
    assert "docs/reference/security.md" in ended.stderr


@pytest.mark.parametrize("command", ["HDEL", "XADD", "ZREM", "DEL"])
def test_a_trainer_without_a_command_that_commits_need_is_refused_before_it_writes(
    store: SecuredRedis, kafka: str, command: str
) -> None:
    [arguments] = [words for words in documented("redis-cli") if "supsup-trainer" in words]
    words = ["supsup-less" if word == "supsup-trainer" else word.replace(SECRET, REDIS_SECRET) for word in arguments]
    with administrator(store.port, store.certificates) as admin:
        admin.flushall()
        admin.execute_command(*(word for word in words if word != f"+{command.lower()}"))
        ended = here("start", *store.flags("less"), f"--kafka={kafka}", *QUICK, SUPSUP_REDIS_PASSWORD=REDIS_SECRET)
        assert ended.code == 77
        assert f"Redis forbids this user {command}, and a trainer needs that" in ended.stderr
        assert admin.dbsize() == 0


def redis_refusal(store: SecuredRedis, *flags: str, password: str = REDIS_SECRET, command: str = "stats") -> str:
    """What a command says on its way to exit code 77, in good time and without the secret."""
    begun = time.monotonic()
    ended = here(command, *flags, SUPSUP_REDIS_PASSWORD=password)
    assert ended.code == 77, ended.stderr
    assert time.monotonic() - begun < 20
    assert password not in ended.stderr
    return ended.stderr


def test_a_wrong_redis_password_is_told(store: SecuredRedis) -> None:
    told = redis_refusal(store, *store.flags("replica"), password=WRONG)
    assert "Redis refuses the login of user 'supsup-replica'" in told
    assert "--redis-password-file" in told


def test_a_redis_certificate_by_an_unknown_ca_is_told(store: SecuredRedis, certificates: Certificates) -> None:
    told = redis_refusal(store, *store.flags("replica", ca_file=certificates.other_ca))
    assert "was signed by nobody that is trusted here: look at --redis-ca-file" in told


def test_a_redis_certificate_for_another_name_is_told(store: SecuredRedis) -> None:
    told = redis_refusal(store, *store.flags("replica", url=f"rediss://127.0.0.2:{store.port}"))
    assert f"the certificate of Redis at 127.0.0.2:{store.port} is not accepted" in told
    assert "not valid for '127.0.0.2'" in told


def test_a_redis_that_speaks_tls_is_told_from_one_that_is_away(store: SecuredRedis) -> None:
    url = f"redis://127.0.0.1:{store.port}/0"
    told = redis_refusal(store, *store.flags("replica", url=url, ca_file=None))
    assert "speaks TLS, and we do not: write rediss://" in told


def test_a_redis_that_does_not_speak_tls_is_told_from_one_that_is_away(store: SecuredRedis, redis_url: str) -> None:
    flags = store.flags("trainer", url=redis_url.replace("redis://", "rediss://"))
    told = redis_refusal(store, *flags, "--connect-timeout-s=1", command="start")
    assert "does not speak TLS, and we do: write redis://" in told


def test_an_expired_certificate_of_redis_is_told(tmp_path: Path, certificates: Certificates) -> None:
    with secured_redis(tmp_path, certificates, certificates.expired) as port:
        store = SecuredRedis(port, certificates)
        told = redis_refusal(store, *store.flags("replica"))
    assert f"the certificate of Redis at 127.0.0.1:{port} is not accepted: it has expired" in told


def test_a_redis_that_asks_for_certificates_lets_in_who_has_one(tmp_path: Path, certificates: Certificates) -> None:
    with secured_redis(tmp_path, certificates, ask_clients=True) as port:
        store = SecuredRedis(port, certificates)
        ended = here("stats", *store.flags("", cert_file=certificates.client))
        assert (ended.code, "there is no bank 'default' in this Redis" in ended.stderr) == (65, True), ended.stderr
        for strange in (None, certificates.strange_client):
            ended = here("stats", *store.flags("", cert_file=strange))
            assert ended.code == 77, ended.stderr
            assert "does not accept our certificate, or wants one and got none" in ended.stderr
            assert "--redis-cert-file" in ended.stderr


# -- Kafka -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredKafka]:
    """An Apache Kafka with exactly the rights of the page."""
    if not (KAFKA.exists() and JAVA):
        pytest.skip(f"there is no {KAFKA}, or no java to run it")
    with SecuredKafka(tmp_path_factory.mktemp("kafka"), certificates, PASSWORDS) as server:
        for topic in ("", ".dlq", ".overflow", ".predictions", "-elsewhere"):
            create_topic(server.at("plain"), TOPIC + topic)
        server.allow(documented("kafka-acls"))
        server.let_in_by_scram("trainer")
        yield server


def kafka_flags(broker: SecuredKafka, user: str, listener: str = "login", **changed: object) -> list[str]:
    """How a command connects as this user; None leaves a flag out."""
    flags = {"kafka": broker.at(listener), "topic": TOPIC, "kafka-security": broker.protocols[listener]}
    if listener != "plain":
        flags |= {"kafka-user": user} if "SASL" in broker.protocols[listener] else {}
        flags |= {"kafka-ca-file": broker._certificates.ca} if "SSL" in broker.protocols[listener][-3:] else {}
    flags |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [f"--{name}={value}" for name, value in flags.items() if value is not None]


@pytest.fixture
def secrets(tmp_path: Path) -> dict[str, Path]:
    """Files with the passwords, as a secret is mounted."""
    contents = {"kafka": PASSWORDS["trainer"], "redis": REDIS_SECRET, "wrong": WRONG}
    for name, content in contents.items():
        (tmp_path / name).write_text(f"{content}\n")
    return {name: tmp_path / name for name in contents}


def test_a_trainer_works_with_kafka_and_redis_both_secured(
    broker: SecuredKafka, store: SecuredRedis, secrets: dict[str, Path], tmp_path: Path
) -> None:
    with administrator(store.port, store.certificates) as admin:
        admin.flushall()
    publish(broker.at("plain"), TOPIC, [labelled(0, i) for i in range(3)])
    flags = [
        *kafka_flags(broker, "trainer", kafka_password_file=secrets["kafka"]),
        *store.flags("trainer", password_file=secrets["redis"]),
        "--no-create-topics",
        *SMALL,
    ]
    with trainer(*flags, directory=tmp_path / "logs") as process:
        process.wait_for("batch.trained", count=3)
        seen = process.wait_for("trainer.ready")
        process.stop()
        stderr = process.stderr
    assert seen["bank"] == BANK
    for secret in (PASSWORDS["trainer"], REDIS_SECRET):
        assert secret not in stderr
    ended = here("stats", *store.flags("replica"), "--json", SUPSUP_REDIS_PASSWORD=REDIS_SECRET)
    assert ended.json["totals"]["batches"] >= 3


def test_a_publisher_with_the_rights_of_the_page_publishes_and_nobody_else(broker: SecuredKafka) -> None:
    line = '{"x": [[0.5]], "y": [1]}\n'
    for user, code in (("publisher", 0), ("nobody", 77)):
        flags = [*kafka_flags(broker, user), "--no-create-topics", "--json", "-"]
        ended = here("publish", *flags, stdin=line, SUPSUP_KAFKA_PASSWORD=PASSWORDS[user])
        assert ended.code == code, ended.stderr
    assert f"Kafka forbids us topic {TOPIC}" in ended.stderr


def kafka_refusal(broker: SecuredKafka, *flags: str, password: str | None = PASSWORDS["trainer"]) -> str:
    """What `publish` says on its way to exit code 77, in good time and without the secret."""
    begun = time.monotonic()
    variables = {"SUPSUP_KAFKA_PASSWORD": password} if password else {}
    ended = here("publish", *flags, "--connect-timeout-s=2", "-", stdin="", **variables)
    assert ended.code == 77, ended.stderr
    assert time.monotonic() - begun < 20
    assert not password or password not in ended.stderr
    return ended.stderr


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_a_wrong_kafka_password_is_told(broker: SecuredKafka, mechanism: str) -> None:
    flags = kafka_flags(broker, "trainer", kafka_sasl_mechanism=mechanism)
    told = kafka_refusal(broker, *flags, password=WRONG)
    assert f"Kafka at {broker.at('login')} refuses the login of user 'trainer'" in told
    assert "--kafka-password-file" in told


def test_a_mechanism_that_kafka_does_not_know_is_told_with_those_it_does(broker: SecuredKafka) -> None:
    told = kafka_refusal(broker, *kafka_flags(broker, "trainer", kafka_sasl_mechanism="SCRAM-SHA-512"))
    assert "takes no login by SCRAM-SHA-512: set --kafka-sasl-mechanism to one of PLAIN, SCRAM-SHA-256" in told


def test_an_expired_certificate_of_kafka_is_told(broker: SecuredKafka) -> None:
    told = kafka_refusal(broker, *kafka_flags(broker, "trainer", "expired"))
    assert f"the certificate of Kafka at {broker.at('expired')} is not accepted: it has expired" in told


def test_a_kafka_certificate_by_an_unknown_ca_is_told(broker: SecuredKafka, certificates: Certificates) -> None:
    told = kafka_refusal(broker, *kafka_flags(broker, "trainer", kafka_ca_file=certificates.other_ca))
    assert "was signed by nobody that is trusted here: look at --kafka-ca-file" in told


@pytest.mark.parametrize(
    ("listener", "protocol", "told"),
    [
        ("login", "PLAINTEXT", "speaks TLS, and we do not: set --kafka-security SSL or SASL_SSL"),
        ("login", "SASL_PLAINTEXT", "speaks TLS, and we do not: set --kafka-security SASL_SSL"),
        ("login", "SSL", "wants a login (PLAIN, SCRAM-SHA-256): set --kafka-security SASL_SSL and --kafka-user"),
        ("open_login", "PLAINTEXT", "wants a login (PLAIN, SCRAM-SHA-256): set --kafka-security SASL_PLAINTEXT"),
        ("open_login", "SASL_SSL", "does not speak TLS"),
        ("plain", "SSL", "does not speak TLS"),
        ("plain", "SASL_PLAINTEXT", "takes no login at this port: set --kafka-security PLAINTEXT"),
        ("mutual", "SSL", "does not accept our certificate, or wants one and got none"),
    ],
)
def test_a_listener_of_another_kind_is_told(broker: SecuredKafka, listener: str, protocol: str, told: str) -> None:
    login, tls = "SASL" in protocol, protocol.endswith("SSL")
    flags = kafka_flags(
        broker,
        "trainer",
        listener,
        kafka_security=protocol,
        kafka_user="trainer" if login else None,
        kafka_ca_file=broker._certificates.ca if tls else None,
    )
    assert told in kafka_refusal(broker, *flags, password=PASSWORDS["trainer"] if login else None)


def test_a_certificate_of_ours_opens_a_listener_that_asks_for_one(
    broker: SecuredKafka, certificates: Certificates
) -> None:
    flags = kafka_flags(broker, "", "mutual", kafka_cert_file=certificates.strange_client)
    assert "does not accept our certificate" in kafka_refusal(broker, *flags, password=None)
    # Who it is, the broker knows; that it may do nothing comes later.
    flags = kafka_flags(broker, "", "mutual", kafka_cert_file=certificates.client)
    assert "Kafka forbids us" in kafka_refusal(broker, *flags, password=None)


def test_a_login_without_tls_works_too(broker: SecuredKafka) -> None:
    flags = [*kafka_flags(broker, "publisher", "open_login"), "--no-create-topics", "-"]
    ended = here("publish", *flags, stdin='{"x": [[0.5]]}\n', SUPSUP_KAFKA_PASSWORD=PASSWORDS["publisher"])
    assert ended.code == 0, ended.stderr


def test_a_broker_that_offers_a_login_and_answers_without_one_is_not_complained_of(kafka: str) -> None:
    assert kafka_denial([kafka], {}, 2.0) is None, "the embedded broker is one"


def start(broker: SecuredKafka, redis_url: str, user: str, *flags: str) -> Ended:
    """A trainer that stops when everything is read."""
    password = {"SUPSUP_KAFKA_PASSWORD": PASSWORDS[user]}
    return here("start", *kafka_flags(broker, user), f"--redis={redis_url}", *QUICK, *flags, **password)


@pytest.mark.parametrize("topics", [f"{TOPIC}-elsewhere", f"{TOPIC},{TOPIC}-elsewhere"])
def test_a_forbidden_topic_ends_the_trainer_at_once_even_beside_others(
    broker: SecuredKafka, redis_url: str, bank_name: str, topics: str
) -> None:
    flags = [f"--redis={redis_url}", f"--bank={bank_name}", f"--group=supsup-{BANK}", "--no-create-topics", *QUICK]
    ended = here(
        "start",
        *kafka_flags(broker, "trainer", topic=topics),
        *flags,
        SUPSUP_KAFKA_PASSWORD=PASSWORDS["trainer"],
    )
    assert ended.code == 77, ended.stderr
    assert f"Kafka forbids us to read {TOPIC}-elsewhere" in ended.stderr
    assert f"write {TOPIC}-elsewhere.dlq" in ended.stderr
    assert "docs/reference/security.md" in ended.stderr


def test_a_forbidden_group_ends_the_trainer_at_once(broker: SecuredKafka, redis_url: str, bank_name: str) -> None:
    ended = start(broker, redis_url, "trainer", "--no-create-topics", f"--bank={bank_name}", "--group=of-others")
    assert ended.code == 77, ended.stderr
    assert "Kafka forbids us consumer group" in ended.stderr


def test_topics_that_may_not_be_created_are_told(broker: SecuredKafka, redis_url: str, bank_name: str) -> None:
    ended = start(broker, redis_url, "nobody", f"--bank={bank_name}", f"--topic={TOPIC}-new")
    assert ended.code == 77, ended.stderr
    assert "Kafka forbids us topic" in ended.stderr
    assert "--no-create-topics" in ended.stderr


# -- what is taken away while a trainer runs ---------------------------------------------------------------------------


@contextmanager
def running(broker: SecuredKafka, store: SecuredRedis, directory: Path) -> Iterator[Trainer]:
    """A trainer between both, as the users of the page, that has trained something."""
    with administrator(store.port, store.certificates) as admin:
        admin.flushall()
    publish(broker.at("plain"), TOPIC, [labelled(0, 0)])
    flags = [*kafka_flags(broker, "trainer"), *store.flags("trainer"), "--no-create-topics", "--commit-every=1", *SMALL]
    secrets = {"SUPSUP_KAFKA_PASSWORD": PASSWORDS["trainer"], "SUPSUP_REDIS_PASSWORD": REDIS_SECRET}
    with trainer(*flags, directory=directory, environment=secrets) as process:
        process.wait_for("batch.trained")
        yield process


def test_a_topic_that_is_forbidden_later_ends_the_trainer(
    broker: SecuredKafka, store: SecuredRedis, tmp_path: Path
) -> None:
    with running(broker, store, tmp_path) as process, broker.forbidden("trainer", TOPIC):
        stderr = process.wait(77)
    assert f"Kafka forbids us topic {TOPIC}" in stderr


@pytest.mark.parametrize(
    ("change", "told"), [("-evalsha +evalsha", "Redis forbids"), ("off on", "Redis refuses the login")]
)
def test_what_redis_takes_away_later_ends_the_trainer(
    broker: SecuredKafka, store: SecuredRedis, tmp_path: Path, change: str, told: str
) -> None:
    taken, given = change.split()
    with running(broker, store, tmp_path) as process, administrator(store.port, store.certificates) as admin:
        admin.execute_command("ACL", "SETUSER", "supsup-trainer", taken)
        try:
            admin.client_kill_filter(_type="normal", skipme=True)  # who is logged in stays so
            publish(broker.at("plain"), TOPIC, [labelled(0, 1)])
            stderr = process.wait(77)
        finally:
            admin.execute_command("ACL", "SETUSER", "supsup-trainer", given)
    assert told in stderr
