"""Errors of the library, grouped by what a caller does about them.

SupsupError
├── BadBatchError    this batch can never be used: put it aside, go on with the next
├── CodecError       stored bytes are not what they claim to be: stop, nothing was changed
├── SpecError        settings contradict each other or the bank: stop, mend the settings
│   └── WeightsFileError  the file of a bank's trained weights is missing, damaged or another one
├── DataError        a data set is missing or damaged: stop, mend the files
└── NothingLearntError  there is no mask to answer with: ask again later
"""


class SupsupError(Exception):
    """Base of every error this project raises on purpose."""


class BadBatchError(SupsupError):
    """A record or batch that cannot be used, now or later; `reason` is a short stable word for counters."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class CodecError(SupsupError):
    """Stored bytes break their specification (magic, length, checksum, padding, architecture)."""


class SpecError(SupsupError):
    """Settings that contradict each other, or another bank's spec; the message names every field."""


class WeightsFileError(SpecError):
    """The file of trained weights that a bank's masks lie over is not given, unreadable, damaged or another one."""


class DataError(SupsupError):
    """A data set that is missing, unreadable or fails its checksum."""


class NothingLearntError(SupsupError):
    """There is no mask yet to answer with."""

    def __init__(self) -> None:
        super().__init__("the bank holds no mask yet: nothing has been learnt, so nothing can be answered")
