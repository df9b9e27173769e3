"""A page under watch."""

import re
from dataclasses import dataclass, field

from playwright.sync_api import Page


@dataclass
class Watched:
    """A page, and whatever went wrong on it.

    Attributes:
        expected: patterns of console errors that the test brings about.
    """

    page: Page
    expected: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def complaints(self) -> list[str]:
        """The errors that nobody expected."""
        return [error for error in self.errors if not any(re.search(pattern, error) for pattern in self.expected)]
