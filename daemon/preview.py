"""Bytes that nobody vouches for, made fit for a terminal.

A record may hold escape sequences that rewrite the screen, or characters that turn the text around. So only what
Unicode calls printable gets through, and everything else by its number.
"""

from typing import Final

_HEX_ROW: Final = 16


def printable(data: bytes, limit: int = 4096) -> str:
    r"""Text as one line: what cannot be printed as `\xNN` or `\uNNNN`, and `...` behind `limit` characters."""
    text = data[: 4 * limit].decode("utf-8", errors="backslashreplace")
    shown = "".join(letter if letter.isprintable() else _escaped(letter) for letter in text[:limit])
    return shown if len(text) <= limit and len(data) <= 4 * limit else shown + "..."


def readable(data: bytes, limit: int = 1000) -> str | None:
    """The beginning of a text as one line; None when the bytes are no text."""
    head = data[:limit]
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or len(head) == len(data):  # the cut may have split the last character
            return None
        text = head[: error.start].decode("utf-8")
    odd = sum(not letter.isprintable() and letter not in "\r\n\t" for letter in text)
    return None if not text or odd else printable(text.encode()) + ("..." if len(data) > limit else "")


def hexdump(data: bytes, limit: int = 256) -> str:
    """The beginning of the bytes: offset, sixteen bytes in hexadecimal, and those that are ASCII as such."""
    lines = []
    for start in range(0, min(len(data), limit), _HEX_ROW):
        row = data[start : min(start + _HEX_ROW, limit)]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):<{3 * _HEX_ROW}} {letters}")
    return "\n".join(lines + (["..."] if len(data) > limit else []))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
