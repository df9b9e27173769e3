"""Errors of the process, grouped by what happens next, and the exit codes people and supervisors see.

SupsupError (supsup_online.errors)
├── BadBatchError           -> dead-letter topic, the stream goes on
└── StopError            1  the daemon stops with `exit_code`; nothing is lost, the stream is replayed
    ├── UnreadableError  1  a record that the Kafka client itself cannot read
    ├── ConfigError      2  settings: unknown, missing or contradictory
    ├── BankMismatchError 65 the bank in Redis was made with another spec, or its bytes are damaged
    │   └── AnotherBankError 65 another bank has taken the name of the one that a replica follows
    ├── LostGroundError  66 a log or a Redis that no longer holds what was read or committed
    │   └── RewoundError 66 a Redis without its newest commits; the trainer reads them again if the bank is still there
    ├── UnavailableError 69 Kafka or Redis cannot be reached
    │   └── EmbeddedError 69 the embedded servers cannot run here
    ├── FencedError      75 another trainer has taken over the bank
    ├── PoisonedError    76 too many records in a row were of no use
    └── DeniedError      77 Kafka or Redis does not let us in, or not do something; or we do not trust it
"""

from enum import IntEnum
from typing import ClassVar, Literal

from supsup_online.errors import SupsupError

Server = Literal["kafka", "redis"]


class ExitCode(IntEnum):
    """Exit codes of `supsup-daemon`; the numbers above 63 follow sysexits.h."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    WARNINGS = 3
    PROBLEMS = 4
    DATA = 65
    LOST_GROUND = 66
    UNAVAILABLE = 69
    FENCED = 75
    POISONED = 76
    DENIED = 77
    INTERRUPTED = 130


class StopError(SupsupError):
    """A reason to stop the process; the message says what a person can do."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE


class ConfigError(StopError):
    """Settings that cannot be used."""

    exit_code = ExitCode.USAGE


class UnreadableError(StopError):
    """A record that the Kafka client itself cannot read: nobody but a person may skip it."""


class UnavailableError(StopError):
    """A server that cannot be reached, or stopped answering for too long.

    Attributes:
        server: `kafka` or `redis`.
    """

    exit_code = ExitCode.UNAVAILABLE

    def __init__(self, message: str, server: Server = "kafka") -> None:
        super().__init__(message)
        self.server = server


class EmbeddedError(UnavailableError):
    """The embedded servers cannot be run here: not installed, or the port or directory is taken."""


class BankMismatchError(StopError):
    """The stored bank does not fit these settings, or its bytes are damaged."""

    exit_code = ExitCode.DATA


class AnotherBankError(BankMismatchError):
    """Under the name of the bank that is followed there is another one by now."""


class FencedError(StopError):
    """Another trainer has taken over this bank."""

    exit_code = ExitCode.FENCED


class LostGroundError(StopError):
    """The stored position lies outside what the log holds, or Redis has lost commits."""

    exit_code = ExitCode.LOST_GROUND


class RewoundError(LostGroundError):
    """Redis does not hold the commit before this one: it was emptied, or came back without its last seconds."""


class PoisonedError(StopError):
    """As many records in a row were dead-lettered as the settings allow."""

    exit_code = ExitCode.POISONED


class DeniedError(StopError):
    """A login, a certificate or a right that is missing or wrong; waiting does not mend it."""

    exit_code = ExitCode.DENIED
