"""Settings as a TOML file, read with care: nobody vouches for what is in it."""

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from daemon.errors import ConfigError

_TEXTS: Final = re.compile(r"\"[^\"]*\"|'[^']*'")
_MOST_DOTS: Final = 32


def read_file(path: Path) -> dict[str, Any]:
    """What a TOML file sets: flat, names with `_` or `-`, known or not.

    Raises:
        ConfigError: unreadable, no TOML, or holds what no setting is: tables, numbers of more than 64 bits.
    """
    try:
        table = tomllib.loads(_without_depth(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no TOML, 4300 digits
        raise ConfigError(f"cannot read the settings file {path}: {error}") from error
    if strange := [name for name, value in table.items() if not _is_plain(value)]:
        raise ConfigError(
            "\n".join(
                f"{path}: {name[:80]!r} is no text, number, true or false, nor a list of these" for name in strange
            )
        )
    return {name.replace("-", "_"): value for name, value in table.items()}


def _without_depth(text: str) -> str:
    """The text, if it is not deep: a dotted name takes the parser memory by the square of its dots.

    Raises:
        ValueError: a line with more dots outside of texts and comments than any setting has.
    """
    for number, line in enumerate(text.splitlines(), 1):
        bare = _TEXTS.sub("", line).partition("#")[0]
        if bare.count(".") > _MOST_DOTS:
            raise ValueError(f"line {number} has more than {_MOST_DOTS} dots outside of texts")
    return text


def _is_plain(value: object) -> bool:
    """Whether a value of a TOML file could be a setting's."""
    parts = value if isinstance(value, list) else [value]
    return all(isinstance(part, str | float | bool) or (isinstance(part, int) and abs(part) < 2**63) for part in parts)
