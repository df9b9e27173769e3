"""Security settings as client arguments: the one place where TLS files and logins become what the clients take.

Secrets are read here, from the setting or from the file named beside it, and handed to the clients alone.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pydantic import SecretStr

from daemon.errors import ConfigError

if TYPE_CHECKING:  # settings are checked with `problems`
    from daemon.settings import Settings

# Settings that a command takes to talk to either server; for `options.setting_options`.
KAFKA_OPTIONS: Final = (
    "kafka_security",
    "kafka_ca_file",
    "kafka_cert_file",
    "kafka_key_file",
    "kafka_key_password",
    "kafka_key_password_file",
    "kafka_sasl_mechanism",
    "kafka_user",
    "kafka_password",
    "kafka_password_file",
)
REDIS_OPTIONS: Final = (
    "redis_user",
    "redis_password",
    "redis_password_file",
    "redis_ca_file",
    "redis_cert_file",
    "redis_key_file",
)
_KAFKA_TLS: Final = KAFKA_OPTIONS[1:6]
_KAFKA_LOGIN: Final = KAFKA_OPTIONS[7:]
_REDIS_LOGIN: Final = REDIS_OPTIONS[:3]
_REDIS_TLS: Final = REDIS_OPTIONS[3:]


def kafka_client(settings: "Settings") -> dict[str, Any]:
    """What every Kafka client takes beside `bootstrap_servers`; empty for plain connections.

    Raises:
        ConfigError: a file that cannot be used.
    """
    protocol = settings.kafka_security
    if protocol == "PLAINTEXT":
        return {}
    arguments: dict[str, Any] = {"security_protocol": protocol}
    if protocol in {"SSL", "SASL_SSL"}:
        arguments["ssl_context"] = _kafka_tls(settings)
    if protocol in {"SASL_PLAINTEXT", "SASL_SSL"}:
        arguments["sasl_mechanism"] = settings.kafka_sasl_mechanism
        arguments["sasl_plain_username"] = settings.kafka_user
        password = secret(settings.kafka_password, settings.kafka_password_file, "--kafka-password-file")
        arguments["sasl_plain_password"] = password or ""
    return arguments


def redis_client(settings: "Settings") -> dict[str, Any]:
    """What every Redis client takes beside its URL; empty for one that needs no more than that.

    Raises:
        ConfigError: a file that cannot be used.
    """
    arguments: dict[str, Any] = {}
    if settings.redis_user:
        arguments["username"] = settings.redis_user
    if password := secret(settings.redis_password, settings.redis_password_file, "--redis-password-file"):
        arguments["password"] = password
    if settings.redis_ca_file:
        arguments["ssl_ca_certs"] = str(settings.redis_ca_file)
    if certificate := settings.redis_cert_file:
        arguments["ssl_certfile"] = str(certificate)
        arguments["ssl_keyfile"] = str(settings.redis_key_file or certificate)
        arguments["ssl_password"] = ""  # None would have OpenSSL ask the terminal about an encrypted key
    return arguments


def secret(value: SecretStr | None, file: Path | None, flag: str) -> str | None:
    """A secret from its setting or from its file, without the line's end; None when there is neither.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{flag}: cannot read {file}: {reason}") from None
    if not text:
        raise ConfigError(f"{flag}: {file} is empty")
    return text


def tls_context(
    ca: Path | None, certificate: Path | None, key: Path | None, password: str | None, flags: str
) -> ssl.SSLContext:
    """A context that trusts `ca` (None: the system's CAs) and shows our certificate, if there is one.

    Args:
        ca: PEM file.
        certificate: PEM file.
        key: PEM file; None: the key is in the certificate's file.
        password: of the key.
        flags: how the flags of these settings begin, for messages.

    Raises:
        ConfigError: a file that cannot be read or is not what it should be.
    """
    for flag, path in (("ca", ca), ("cert", certificate), ("key", key)):
        _require_readable(path, f"{flags}-{flag}-file")
    try:
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ConfigError(f"{flags}-ca-file: {ca} holds no certificate in PEM form") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password or "")  # None would ask the terminal
        except ssl.SSLError as error:
            raise ConfigError(
                f"{flags}-cert-file, {flags}-key-file: {certificate} and {key or certificate} are no pair of "
                f"certificate and key in PEM form, or the key is encrypted and its password is another one "
                f"({error.reason or 'not PEM'})"
            ) from None
    return context


def problems(settings: "Settings") -> list[str]:
    """What is contradictory, missing or unreadable in the security settings, a line each."""
    found = [*_kafka_problems(settings), *_redis_problems(settings)]
    if not found:
        for check in (kafka_client, redis_client, _redis_tls):
            try:
                check(settings)
            except ConfigError as error:
                found.append(str(error))
    return found


def _kafka_problems(settings: "Settings") -> Iterator[str]:
    protocol = settings.kafka_security
    login = protocol in {"SASL_PLAINTEXT", "SASL_SSL"}
    if protocol in {"PLAINTEXT", "SASL_PLAINTEXT"} and (flags := _given(settings, _KAFKA_TLS)):
        yield f"{flags}: of use only with --kafka-security SSL or SASL_SSL, and it is {protocol}"
    if not login and (flags := _given(settings, _KAFKA_LOGIN)):
        yield f"{flags}: of use only with --kafka-security SASL_SSL or SASL_PLAINTEXT, and it is {protocol}"
    if login and not settings.kafka_user:
        yield f"--kafka-security {protocol} needs --kafka-user (SUPSUP_KAFKA_USER)"
    if login and not (settings.kafka_password or settings.kafka_password_file):
        yield f"--kafka-security {protocol} needs SUPSUP_KAFKA_PASSWORD or --kafka-password-file"
    if settings.embedded and protocol != "PLAINTEXT":
        yield f"--kafka-security {protocol}: the embedded broker has neither TLS nor logins"
    yield from _pairs(settings, "kafka", ("kafka_password", "kafka_key_password"))
    if _given(settings, ("kafka_key_password", "kafka_key_password_file")) and not settings.kafka_cert_file:
        yield "--kafka-key-password-file: a key needs --kafka-cert-file"


def _redis_problems(settings: "Settings") -> Iterator[str]:
    try:
        url = urlsplit(settings.redis)
    except ValueError:
        return  # no URL at all; the client says so
    if url.scheme != "rediss" and (flags := _given(settings, _REDIS_TLS)):
        yield f"{flags}: of use only with a rediss:// URL, and --redis is {url.scheme}://..."
    if "@" in url.netloc and (flags := _given(settings, _REDIS_LOGIN)):
        yield f"{flags}: --redis holds a login as well; leave one of them out"
    if settings.redis_user and not (settings.redis_password or settings.redis_password_file):
        yield "--redis-user needs SUPSUP_REDIS_PASSWORD or --redis-password-file"
    if settings.embedded and (flags := _given(settings, REDIS_OPTIONS)):
        yield f"{flags}: the embedded Redis has neither TLS nor logins"
    yield from _pairs(settings, "redis", ("redis_password",))


def _pairs(settings: "Settings", server: str, secrets: tuple[str, ...]) -> Iterator[str]:
    """Things given twice, and keys without a certificate."""
    for name in secrets:
        if getattr(settings, name) is not None and getattr(settings, f"{name}_file") is not None:
            yield f"SUPSUP_{name.upper()} and {_flag(name)}-file: give one of them"
    if getattr(settings, f"{server}_key_file") and not getattr(settings, f"{server}_cert_file"):
        yield f"--{server}-key-file: a key needs --{server}-cert-file"


def _given(settings: "Settings", names: tuple[str, ...]) -> str:
    return ", ".join(_flag(name) for name in names if getattr(settings, name) not in {None, ""})


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kafka_tls(settings: "Settings") -> ssl.SSLContext:
    password = secret(settings.kafka_key_password, settings.kafka_key_password_file, "--kafka-key-password-file")
    files = (settings.kafka_ca_file, settings.kafka_cert_file, settings.kafka_key_file)
    return tls_context(*files, password, "--kafka")


def _redis_tls(settings: "Settings") -> None:
    """The Redis client makes a context of its own from the files; this one only proves them."""
    files = (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
    if any(files):
        tls_context(*files, None, "--redis")


def _require_readable(path: Path | None, flag: str) -> None:
    if path is None:
        return
    try:
        with path.open("rb"):
            return
    except OSError as error:
        raise ConfigError(f"{flag}: cannot read {path}: {error.strerror}") from None
