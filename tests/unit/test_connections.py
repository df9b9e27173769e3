"""Security settings: what they become, what contradicts itself, and that secrets are shown nowhere."""

import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from daemon import connections
from daemon import settings as table
from daemon.errors import ConfigError
from daemon.kafka_client import kafka_settings
from daemon.settings import Settings
from daemon_process import here
from secured_servers import Certificates

SECRET = "hush-hush-0"  # noqa: S105 - the tests' own
LOGIN = {"kafka_user": "u", "kafka_password": SECRET}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


def problems_of(**values: object) -> list[str]:
    """The lines of the refusal."""
    with pytest.raises(ConfigError) as caught:
        table.parse(values, {})
    assert SECRET not in str(caught.value)
    return str(caught.value).splitlines()


# -- what the clients take


def test_without_security_the_clients_take_nothing_more() -> None:
    assert connections.kafka_client(Settings()) == {}
    assert connections.redis_client(Settings()) == {}


def test_kafka_with_tls_trusts_the_given_ca_and_shows_our_certificate(certificates: Certificates) -> None:
    settings = table.parse(
        {"kafka_security": "SSL", "kafka_ca_file": certificates.ca, "kafka_cert_file": certificates.client}, {}
    )
    arguments = connections.kafka_client(settings)
    context = arguments.pop("ssl_context")
    assert arguments == {"security_protocol": "SSL"}
    assert len(context.get_ca_certs()) == 1
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_without_a_ca_file_the_systems_cas_are_trusted() -> None:
    context = connections.kafka_client(Settings(kafka_security="SSL"))["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_a_kafka_login_becomes_sasl() -> None:
    values = {"kafka_security": "SASL_PLAINTEXT", "kafka_sasl_mechanism": "SCRAM-SHA-512", **LOGIN}
    assert connections.kafka_client(table.parse(values, {})) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "u",
        "sasl_plain_password": SECRET,
    }


def test_redis_takes_login_and_files(certificates: Certificates) -> None:
    values = {
        "redis": "rediss://h",
        "redis_user": "u",
        "redis_password": SECRET,
        "redis_ca_file": str(certificates.ca),
        "redis_cert_file": str(certificates.client),
    }
    assert connections.redis_client(table.parse(values, {})) == {
        "username": "u",
        "password": SECRET,
        "ssl_ca_certs": str(certificates.ca),
        "ssl_certfile": str(certificates.client),
        "ssl_keyfile": str(certificates.client),
        "ssl_password": "",
    }


def test_a_secret_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_bytes(f" {SECRET} \r\n".encode())
    assert connections.redis_client(Settings(redis_password_file=file)) == {"password": f" {SECRET} "}


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_file_that_holds_no_secret_is_named(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    [line] = problems_of(redis_password_file=str(file))
    assert line.startswith("--redis-password-file: ")
    assert str(file) in line


def test_an_encrypted_key_needs_its_password(certificates: Certificates, tmp_path: Path) -> None:
    pem = certificates.client.read_bytes()
    key = serialization.load_pem_private_key(pem, None)
    encryption = serialization.BestAvailableEncryption(SECRET.encode())
    encrypted = tmp_path / "key.pem"
    encrypted.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    values = {"kafka_security": "SSL", "kafka_cert_file": certificates.client, "kafka_key_file": encrypted}
    assert "ssl_context" in connections.kafka_client(table.parse(values | {"kafka_key_password": SECRET}, {}))
    for wrong in ({}, {"kafka_key_password": "other"}):
        [line] = problems_of(**values, **wrong)
        assert line.startswith("--kafka-cert-file, --kafka-key-file: ")
        assert "its password is another one" in line
    redis = {"redis": "rediss://h", "redis_cert_file": certificates.client, "redis_key_file": encrypted}
    assert "--redis-key-file" in problems_of(**redis)[0]


# -- what contradicts itself


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kafka_ca_file": "x"}, "--kafka-ca-file: of use only with --kafka-security SSL or SASL_SSL"),
        ({"kafka_security": "SASL_PLAINTEXT", "kafka_cert_file": "x", **LOGIN}, "--kafka-cert-file: of use only with"),
        (LOGIN, "--kafka-user, --kafka-password: of use only with --kafka-security SASL_SSL or SASL_PLAINTEXT"),
        ({"kafka_security": "SASL_SSL", "kafka_password": SECRET}, "--kafka-security SASL_SSL needs --kafka-user"),
        ({"kafka_security": "SASL_SSL", "kafka_user": "u"}, "needs SUPSUP_KAFKA_PASSWORD or --kafka-password-file"),
        (
            {"kafka_security": "SASL_SSL", **LOGIN, "kafka_password_file": "x"},
            "SUPSUP_KAFKA_PASSWORD and --kafka-password-file: give one of them",
        ),
        ({"kafka_security": "SSL", "kafka_key_file": "x"}, "--kafka-key-file: a key needs --kafka-cert-file"),
        ({"kafka_security": "SSL", "kafka_key_password": SECRET}, "a key needs --kafka-cert-file"),
        ({"kafka_security": "SSL", "embedded": True}, "the embedded broker has neither TLS nor logins"),
        ({"kafka_security": "SSL", "kafka_ca_file": "nowhere.pem"}, "--kafka-ca-file: cannot read nowhere.pem"),
        ({"kafka_security": "TLS"}, "--kafka-security"),
        ({"redis_ca_file": "x"}, "--redis-ca-file: of use only with a rediss:// URL, and --redis is redis://..."),
        ({"redis": "redis://u:p@h", "redis_user": "u", "redis_password": SECRET}, "--redis holds a login as well"),
        ({"redis_user": "u"}, "--redis-user needs SUPSUP_REDIS_PASSWORD or --redis-password-file"),
        ({"redis_password": SECRET, "redis_password_file": "x"}, "SUPSUP_REDIS_PASSWORD and --redis-password-file"),
        ({"redis": "rediss://h", "redis_key_file": "x"}, "--redis-key-file: a key needs --redis-cert-file"),
        ({"redis": "rediss://h", "redis_ca_file": "nowhere.pem"}, "--redis-ca-file: cannot read nowhere.pem"),
        ({"redis_password": SECRET, "embedded": True}, "--redis-password: the embedded Redis has neither TLS nor"),
    ],
)
def test_what_contradicts_itself_is_told(values: dict[str, object], told: str) -> None:
    [line] = problems_of(**values)
    assert told in line


def test_all_contradictions_are_told_at_once() -> None:
    assert len(problems_of(kafka_security="SASL_SSL", redis_ca_file="x", redis_user="u")) == 4


def test_files_that_are_no_pem_are_told(tmp_path: Path, certificates: Certificates) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("no certificate")
    [line] = problems_of(kafka_security="SSL", kafka_ca_file=nonsense)
    assert line == f"--kafka-ca-file: {nonsense} holds no certificate in PEM form"
    [line] = problems_of(redis="rediss://h", redis_cert_file=certificates.client, redis_key_file=certificates.server)
    assert "are no pair of certificate and key in PEM form" in line


def test_what_is_no_url_is_left_to_the_client() -> None:
    assert connections.problems(Settings(redis="redis://[::1")) == []


def test_an_empty_variable_is_no_secret_and_no_file() -> None:
    settings = table.parse({"redis_password": "", "redis_ca_file": "", "kafka_password_file": ""}, {})
    assert (settings.redis_password, settings.redis_ca_file, settings.kafka_password_file) == (None, None, None)


# -- secrets are shown nowhere

VARIABLES = {
    "SUPSUP_KAFKA_SECURITY": "SASL_PLAINTEXT",
    "SUPSUP_KAFKA_USER": "u",
    "SUPSUP_KAFKA_PASSWORD": SECRET,
    "SUPSUP_REDIS_PASSWORD": SECRET,
}


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_config_show_shows_that_there_are_secrets_and_not_which(arguments: tuple[str, ...]) -> None:
    ended = here("config", "show", *arguments, **VARIABLES)
    assert ended.code == 0
    assert SECRET not in ended.stdout + ended.stderr
    assert ended.stdout.count("**********") == 2


def test_nothing_that_can_be_printed_holds_a_secret() -> None:
    settings = table.parse({"kafka_security": "SASL_PLAINTEXT", **LOGIN, "redis_password": SECRET}, {})
    assert SECRET not in f"{settings!r} {settings} {kafka_settings(settings)!r} {settings.model_dump_json()}"
    assert kafka_settings(settings).security["sasl_plain_password"] == SECRET


def test_a_secret_that_cannot_be_one_is_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "supsup.toml"
    file.write_text(f'redis_password = ["{SECRET}"]\n')
    ended = here("config", "show", "--config", file)
    assert (ended.code, SECRET in ended.stderr) == (2, False)
    assert "--redis-password (file): Input should be a valid string; got a secret" in ended.stderr
    file.write_text('kafka_security = "SASL_PLAINTEXT"\nkafka_user = "u"\nkafka_password = 1234567\n')
    ended = here("config", "show", "--config", file)
    assert ended.code == 0, "digits are a password too"
    assert "1234567" not in ended.stdout + ended.stderr


def test_a_secret_on_the_command_line_is_taken_with_a_warning() -> None:
    ended = here("config", "show", f"--redis-password={SECRET}")
    assert ended.code == 0
    assert "secret.on_command_line" in ended.stderr
    assert "SUPSUP_REDIS_PASSWORD" in ended.stderr
    assert SECRET not in ended.stdout + ended.stderr
    assert "secret.on_command_line" not in here("config", "show", **VARIABLES).stderr


def test_the_certificates_of_the_tests_are_what_their_names_say(certificates: Certificates) -> None:
    for name, expected in (("server", 0), ("expired", 2)):
        command = ["openssl", "verify", "-CAfile", str(certificates.ca), str(getattr(certificates, name))]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("there is no openssl here")
        assert ended.returncode == expected, ended.stderr
