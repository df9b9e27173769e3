"""What nobody vouches for is shown, and cannot do anything to a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.preview import hexdump, printable, readable


@given(st.binary(max_size=300))
def test_whatever_the_bytes_only_printable_characters_come_out(data: bytes) -> None:
    for text in (printable(data), readable(data) or "", hexdump(data).replace("\n", "")):
        assert text.isprintable()


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"plain", "plain"),
        ("grüße".encode(), "grüße"),
        (b"\x1b[2J", "\\x1b[2J"),
        (b"a\nb\t", "a\\nb\\t"),
        (b"\xff\x00", "\\xff\\x00"),
        ("\u202etxt".encode(), "\\u202etxt"),
    ],
)
def test_what_cannot_be_printed_is_shown_by_its_number(data: bytes, shown: str) -> None:
    assert printable(data) == shown


def test_long_text_is_cut() -> None:
    assert printable(b"x" * 11, limit=10) == "x" * 10 + "..."
    assert printable(b"x" * 10, limit=10) == "x" * 10
    assert len(printable(b"\xff" * 10**6)) < 20_000


def test_text_is_readable_and_other_bytes_are_not() -> None:
    assert readable(b'{"x": [[1]]}\n') == '{"x": [[1]]}\\n'
    assert readable(b"\xff\xff\xff\xff\x18\x01") is None
    assert readable(b"a\x00b") is None
    assert readable(b"") is None


def test_a_character_that_the_cut_divides_does_not_make_text_unreadable() -> None:
    assert readable("äöü".encode() * 10, limit=5) == "äö..."
    assert readable("äöü".encode()[:5]) is None, "here it is the text that ends within a character"


def test_bytes_are_dumped_with_their_offset() -> None:
    assert hexdump(b"ARROW\x00") == f"00000000  41 52 52 4f 57 00{' ' * 31} ARROW."
    assert hexdump(b"x" * 300).splitlines()[-1] == "..."
    assert len(hexdump(b"x" * 300).splitlines()) == 17
    assert hexdump(b"") == ""
