"""What contract tests share."""

from unit.conftest import one_thread

__all__ = ["one_thread"]
