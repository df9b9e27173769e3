"""The keys are a promise to other programs: they are spelt out here once more."""

import fnmatch

import pytest

from daemon.redis_keys import BankKeys

KEYS = BankKeys("digits-1")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (KEYS.spec, "supsup:{digits-1}:spec"),
        (KEYS.version, "supsup:{digits-1}:version"),
        (KEYS.index, "supsup:{digits-1}:index"),
        (KEYS.totals, "supsup:{digits-1}:totals"),
        (KEYS.lease, "supsup:{digits-1}:lease"),
        (KEYS.events, "supsup:{digits-1}:events"),
        (KEYS.mask(3), "supsup:{digits-1}:mask:3"),
        (KEYS.stats(3), "supsup:{digits-1}:stats:3"),
        (KEYS.state(3), "supsup:{digits-1}:state:3"),
        (KEYS.progress("a.b", 2), "supsup:{digits-1}:progress:a.b:2"),
    ],
)
def test_every_key_is_as_documented(key: str, expected: str) -> None:
    assert key == expected


def test_the_pattern_finds_this_banks_progress_alone() -> None:
    assert fnmatch.fnmatchcase(KEYS.progress("t", 0), KEYS.progress_pattern)
    assert not fnmatch.fnmatchcase(BankKeys("digits-12").progress("t", 0), KEYS.progress_pattern)
    assert not fnmatch.fnmatchcase(KEYS.totals, KEYS.progress_pattern)


@pytest.mark.parametrize("name", ["a", "A9", "my.bank_2-x", "x" * 100])
def test_ordinary_names_are_taken(name: str) -> None:
    assert BankKeys(name).spec == f"supsup:{{{name}}}:spec"


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a}b", "a{b", "a:b", "a*", "a[b", "ä", "a\n", "x" * 101])
def test_names_that_would_break_a_key_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="use letters, digits"):
        BankKeys(name)
