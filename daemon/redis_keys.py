"""Every Redis key in one place; the schema. `{bank}` is a cluster hash tag, so one bank lives on one node.

supsup:{bank}:spec                          hash    the spec as text, and the weights' fingerprint (sha256)
supsup:{bank}:version                       string  whole number, rises by one with every commit
supsup:{bank}:index                         zset    mask id -> bank version of its last change
supsup:{bank}:mask:<id>                     string  the mask (`supsup_online.codec`, "SSMK")
supsup:{bank}:stats:<id>                    hash    numbers of a mask as plain text
supsup:{bank}:state:<id>                    string  scores and optimiser state ("SSHS"), while the mask is hot
supsup:{bank}:progress:<topic>:<partition>  hash    next offset, log id, a field `stream:<name>` (JSON) per stream
supsup:{bank}:totals                        hash    counters of the whole bank: steps, next_id, samples, ...
supsup:{bank}:lease                         hash    fencing epoch, owner, id of the newest commit
supsup:{bank}:events                        stream  commit, allocate, reuse, over-budget, import; capped
supsup:{bank}:rights                        none    never there outside of `lua/rights.lua`
"""

import re
from dataclasses import dataclass
from typing import Final

BANK_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class BankKeys:
    """The keys of one bank."""

    bank: str

    def __post_init__(self) -> None:
        if not BANK_NAME.fullmatch(self.bank):
            raise ValueError(f"bank {self.bank!r}: use letters, digits, '.', '_', '-', at most 100, no leading sign")

    def _key(self, *parts: object) -> str:
        return ":".join(("supsup", f"{{{self.bank}}}", *map(str, parts)))

    @property
    def spec(self) -> str:
        """Hash: the spec."""
        return self._key("spec")

    @property
    def version(self) -> str:
        """String: the version."""
        return self._key("version")

    @property
    def index(self) -> str:
        """Sorted set: mask id by version of its last change."""
        return self._key("index")

    @property
    def totals(self) -> str:
        """Hash: counters of the bank."""
        return self._key("totals")

    @property
    def lease(self) -> str:
        """Hash: who may write."""
        return self._key("lease")

    @property
    def events(self) -> str:
        """Stream: what happened."""
        return self._key("events")

    @property
    def rights(self) -> str:
        """Nothing: what a user may do is tried out on it, within one script."""
        return self._key("rights")

    def mask(self, mask_id: int) -> str:
        """String: the packed mask."""
        return self._key("mask", mask_id)

    def stats(self, mask_id: int) -> str:
        """Hash: numbers of a mask."""
        return self._key("stats", mask_id)

    def state(self, mask_id: int) -> str:
        """String: the hot state of a mask."""
        return self._key("state", mask_id)

    def progress(self, topic: str, partition: int) -> str:
        """Hash: where the trainer stands in a partition."""
        return self._key("progress", topic, partition)

    @property
    def pattern(self) -> str:
        """Glob over all keys of the bank."""
        escaped = re.sub(r"([*?\[\]\\])", r"\\\1", self.bank)
        return f"supsup:{{{escaped}}}:*"

    @property
    def progress_pattern(self) -> str:
        """Glob over all progress keys of the bank."""
        return f"{self.pattern[:-1]}progress:*"
