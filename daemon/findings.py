"""What a check of the surroundings says: findings, their severity, and numbers as people read them."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How much a finding matters; the larger the worse."""

    OK = 0
    NOTE = 1
    WARNING = 2
    PROBLEM = 3

    @property
    def word(self) -> str:
        """Its name as it is shown."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check says.

    Attributes:
        severity: ok, or: a note tells what is so and needs nothing; a warning may go wrong one day; a problem keeps a
            trainer from running or loses what it should keep.
        check: the name of the check, for instance `topic.retention`.
        found: what is so, with the thing it is about in front.
        advice: what a person can do; empty when there is nothing to do.
    """

    severity: Severity
    check: str
    found: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Miss:
    """A question that a server did not answer.

    Attributes:
        what: what was asked for.
        why: the error.
    """

    what: str
    why: str


def ok(check: str, found: str) -> Finding:
    """All is well."""
    return Finding(Severity.OK, check, found)


def note(check: str, found: str, advice: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Severity.NOTE, check, found, advice)


def warning(check: str, found: str, advice: str) -> Finding:
    """It may go wrong."""
    return Finding(Severity.WARNING, check, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """It is wrong."""
    return Finding(Severity.PROBLEM, check, found, advice)


def worst(findings: Iterable[Finding]) -> Severity:
    """The highest severity; OK where there is no finding."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def size(count: float) -> str:
    """Bytes as people read them: `1536` -> `1.5 KiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as people read them: `5400` -> `1.5 h`."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length * (2 if unit == "days" else 1):
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1000:.3g} ms"


def several(count: int, noun: str) -> str:
    """`1 mask`, `2 masks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
