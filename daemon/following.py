"""A bank that somebody else writes, followed: every version becomes a snapshot, swapped in by one assignment.

    wait       XREAD on the event stream, which every commit writes to; where that may not be done, a short sleep
    catch_up   one transaction: version, ids changed since, newest event; a second one: the masks that changed

Both transactions have to see the same version, or it is tried again, so a snapshot holds the masks of one commit and no
others. The first load of many masks is read in pieces beforehand, so that Redis is not held up; what changes meanwhile
comes with the transaction.

The newest event seen is the proof that the versions counted from are this Redis's own. Where it is gone (Redis came
back without its last seconds, or so many events have passed that the stream has dropped it) everything is read again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from redis.exceptions import RedisError, ResponseError

from daemon.errors import AnotherBankError, BankMismatchError, LostGroundError
from daemon.redis_replies import answering, reading
from daemon.redis_store import BankReader, as_text
from supsup_online import codec
from supsup_online.bitpack import Words
from supsup_online.errors import SpecError
from supsup_online.network import Network
from supsup_online.snapshot import Shelf, Snapshot
from supsup_online.spec import BankSpec

log = structlog.get_logger()

_AT_ONCE: Final = 64  # masks read at a time beforehand: 2.5 MB of LeNet's
_EVENTS_AT_ONCE: Final = 1000
_DECISIONS_KEPT: Final = 20
_TRIES: Final = 100

Stats = dict[str, str]


@dataclass(frozen=True, slots=True)
class _Moment:
    """The bank as one transaction saw it: ids changed since some version, all ids where they were asked for."""

    version: int
    spec: dict[str, str]
    changed: frozenset[int]
    count: int
    everyone: frozenset[int] | None
    newest: str
    continues: bool


@dataclass(slots=True)
class _Masks:
    """Masks and their statistics as they were at `version` or later."""

    version: int
    words: dict[int, Words] = field(default_factory=dict)
    stats: dict[int, Stats] = field(default_factory=dict)


@dataclass(slots=True)
class Follower:
    """Keeps `snapshot` at the bank's newest version; one thread calls its methods, any may read its attributes.

    Attributes:
        reader: of the bank.
        network: the bank's, proved by its fingerprint.
        clock: seconds, for ages alone.
        snapshot: the newest version known, whole.
        stats: statistics as text of each mask in it, by id; replaced, never changed.
        decisions: the trainer's newest decisions, newest first: the fields of their events, and `id`.
        budget: most masks the bank may hold.
    """

    reader: BankReader
    network: Network
    clock: Callable[[], float] = time.monotonic
    snapshot: Snapshot = field(init=False)
    stats: dict[int, Stats] = field(default_factory=dict)
    decisions: tuple[Stats, ...] = ()
    budget: int = 0
    _shelf: Shelf = field(init=False)
    _spec: dict[str, str] = field(default_factory=dict)
    _newest: str = ""
    _told: str = ""
    _known: float | None = None
    _may_wait: bool = True

    def __post_init__(self) -> None:
        self._shelf = Shelf(self.network)
        self.snapshot = self._shelf.empty()

    @property
    def staleness_s(self) -> float:
        """Seconds since `snapshot` was last known to be the newest version; infinite before the first time."""
        return float("inf") if self._known is None else max(0.0, self.clock() - self._known)

    # -- the way of a version

    def catch_up(self) -> bool:
        """Take over the newest version; returns whether it is another one than before.

        Raises:
            AnotherBankError: this is another bank by now.
            BankMismatchError: bytes of it are damaged. The snapshot stays.
            LostGroundError: there is no bank under this name any more. The snapshot stays.
            UnavailableError: Redis does not answer, or commits come faster than masks can be read.
        """
        with answering():
            begun = self.clock()
            moved = self._follow(_Masks(self.snapshot.version)) if self._known is not None else None
            if moved is None:
                if self._known is not None:
                    log.warning("bank.read_again", bank=self.reader.keys.bank, version=self.snapshot.version)
                self._told, self.decisions = "", ()  # they may be those of commits that were lost
                self._newest = ""
                moved = self._follow(self._beforehand(), whole=True)
            if moved is None:
                raise RedisError("it lost commits while they were read")
            self._known = begun
            return moved

    def _follow(self, masks: _Masks, *, whole: bool = False) -> bool | None:
        """From what is known to the newest version; None when this is not the Redis that was counted from."""
        for _ in range(_TRIES):
            moment = self._moment(masks.version)
            if not moment.continues or moment.version < masks.version:
                return None
            if not whole and moment.version == masks.version:
                return False
            if self._take_over(moment, masks, whole=whole):
                return True
        raise RedisError(f"{_TRIES} commits came while masks were read")

    def _take_over(self, moment: _Moment, masks: _Masks, *, whole: bool) -> bool:
        """Read what changed and swap; False when a commit came between."""
        before = frozenset(self.snapshot.mask_ids.tolist())
        known = frozenset(masks.words) if whole else before
        present = known | moment.changed
        if moment.count != len(present):
            moment = self._moment(masks.version, everyone=True)
            if not moment.continues:
                return False
            present = moment.everyone or frozenset()
        fresh = self._masks(sorted(moment.changed | (present - known)), moment.version)
        if fresh is None:
            return False
        words = {i: w for i, w in (masks.words | fresh.words).items() if i in present}
        stats = {i: s for i, s in (({} if whole else self.stats) | masks.stats | fresh.stats).items() if i in present}
        usual = {i: self._usual(i, stats[i]) for i in words}
        snapshot = self._shelf.next(self.snapshot, moment.version, words, usual, set(before - present))
        self.stats, self._newest = stats, moment.newest
        self.snapshot = snapshot  # the one assignment that whoever answers looks at
        return True

    def _usual(self, mask_id: int, stats: Stats) -> float:
        with reading(self.reader.keys.stats(mask_id)):
            return float(stats["entropy"])

    # -- reading

    def _moment(self, since: int, *, everyone: bool = False) -> _Moment:
        keys = self.reader.keys
        pipe = self.reader.client.pipeline(transaction=True)
        pipe.get(keys.version)
        pipe.hgetall(keys.spec)
        pipe.zrangebyscore(keys.index, f"({since}", "+inf")
        pipe.zcard(keys.index)
        pipe.xrevrange(keys.events, count=1)
        pipe.xrange(keys.events, self._newest or "-", self._newest or "-", count=1)
        if everyone:
            pipe.zrange(keys.index, 0, -1)
        version, spec, changed, count, newest, ours, *rest = pipe.execute()
        self._check_spec(as_text(spec))
        return _Moment(
            version=int(version or 0),
            spec=as_text(spec),
            changed=frozenset(map(int, changed)),
            count=count,
            everyone=frozenset(map(int, rest[0])) if rest else None,
            newest=newest[0][0].decode() if newest else "",
            continues=not self._newest or bool(ours),
        )

    def _check_spec(self, text: dict[str, str]) -> None:
        """Refuse another bank under the same name; its budget may change."""
        bank = self.reader.keys.bank
        if not text:
            raise LostGroundError(f"there is no bank {bank!r} in this Redis any more")
        if text == self._spec:
            return
        try:
            spec = BankSpec.from_text(text)
        except SpecError as error:
            raise BankMismatchError(f"bank {bank!r}: {error}") from error
        differences = self.network.spec.differences(spec)
        if text.get("fingerprint") != self.network.fingerprint:
            differences.append(f"fingerprint: {self.network.fingerprint[:12]}, {text.get('fingerprint', '')[:12]}")
        if differences:
            raise AnotherBankError(
                f"bank {bank!r} is another one by now ({'; '.join(differences)}): start this replica again"
            )
        self._spec, self.budget = text, spec.budget

    def _masks(self, mask_ids: list[int], version: int) -> _Masks | None:
        """Masks and statistics in one transaction; None when the bank has another version by now."""
        pipe = self.reader.client.pipeline(transaction=True)
        pipe.get(self.reader.keys.version)
        self._ask_for(pipe, mask_ids)
        found, *replies = pipe.execute()
        return self._decoded(mask_ids, replies, version) if int(found or 0) == version else None

    def _beforehand(self) -> _Masks:
        """Nearly all masks, in pieces; of each what is stored at some moment after `version` was read."""
        found = _Masks(self.reader.version())
        mask_ids = self.reader.mask_ids()
        for start in range(0, len(mask_ids), _AT_ONCE):
            piece = mask_ids[start : start + _AT_ONCE]
            pipe = self.reader.client.pipeline(transaction=False)
            self._ask_for(pipe, piece)
            replies = pipe.execute()
            there = [i for i, blob in zip(piece, replies[0], strict=True) if blob is not None]
            stats = [text for text, blob in zip(replies[1:], replies[0], strict=True) if blob is not None]
            blobs = [blob for blob in replies[0] if blob is not None]
            part = self._decoded(there, [blobs, *stats], found.version)
            found.words |= part.words
            found.stats |= part.stats
        return found

    def _ask_for(self, pipe: Any, mask_ids: list[int]) -> None:
        if mask_ids:
            pipe.mget([self.reader.keys.mask(mask_id) for mask_id in mask_ids])
        for mask_id in mask_ids:
            pipe.hgetall(self.reader.keys.stats(mask_id))

    def _decoded(self, mask_ids: list[int], replies: list[Any], version: int) -> _Masks:
        found = _Masks(version)
        blobs: Iterable[bytes | None] = replies[0] if replies else ()
        for mask_id, blob, stats in zip(mask_ids, blobs, replies[1:], strict=True):
            with reading(self.reader.keys.mask(mask_id)):
                found.words[mask_id] = codec.decode_mask(self.network, blob or b"")
            found.stats[mask_id] = as_text(stats)
        return found

    # -- waiting

    def wait(self, seconds: float) -> bool:
        """Return when something was committed, or after some seconds; returns whether anything was.

        Raises:
            UnavailableError: Redis does not answer.
        """
        if not self._told:
            self._told = self._newest or "0-0"
            self._remember(self._up_to(self._told))
        if not self._may_wait:
            time.sleep(seconds)
            return self._hear(self._behind(self._told))
        with answering():
            try:
                reply = self.reader.client.xread(
                    {self.reader.keys.events: self._told}, count=_EVENTS_AT_ONCE, block=max(1, round(seconds * 1000))
                )
            except ResponseError as error:
                log.warning("bank.polled", error=str(error), interval_s=seconds)
                self._may_wait = False
                return False
        return self._hear(_entries(reply))

    def _up_to(self, entry_id: str) -> list[Stats]:
        """The newest events up to one of them; what came after it is heard of by waiting."""
        with answering():
            found = self.reader.client.xrevrange(self.reader.keys.events, max=entry_id, count=_EVENTS_AT_ONCE)
        return [{"id": entry.decode(), **as_text(fields)} for entry, fields in reversed(found)]

    def _behind(self, entry_id: str) -> list[Stats]:
        with answering():
            found = self.reader.events(entry_id, _EVENTS_AT_ONCE)
        return [{"id": entry, **fields} for entry, fields in found]

    def _hear(self, events: list[Stats]) -> bool:
        if events:
            self._told = events[-1]["id"]
            self._remember(events)
        return bool(events)

    def _remember(self, events: list[Stats]) -> None:
        decided = (event for event in events if event.get("type") != "commit")
        newest = deque(reversed(self.decisions), maxlen=_DECISIONS_KEPT)
        newest.extend(decided)
        self.decisions = tuple(reversed(newest))


def _entries(reply: Any) -> list[Stats]:
    """The entries of an XREAD on one stream, in either form that redis-py gives them."""
    pairs = reply.items() if isinstance(reply, dict) else reply or ()
    entries: list[Stats] = []
    for _, found in pairs:
        piece = found[0] if found and isinstance(found[0], list) else found
        entries += [{"id": entry.decode(), **as_text(fields)} for entry, fields in piece]
    return entries
