"""A bank out of Redis and into it, whole: a snapshot while a trainer writes, and all of it back or nothing.

A snapshot is what Redis held between two commits. Reading everything in one transaction would make the server hold a
copy of the bank in its output buffer while it answers nobody else; so the masks, which are most of it and rarely
change, are read a few at a time, each with the version of its last change, and one transaction reads the rest: version,
index, statistics, hot states, positions. What the index of that moment says has changed since it was read is read
again, in another such transaction, together with the masks in training: these change with every commit. Each try adds
to what is read at once, so tries come to an end.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import redis
from redis.exceptions import ResponseError, WatchError

from daemon.bank_check import BankCheck, BankSummary
from daemon.errors import BankMismatchError, ConfigError, FencedError, UnavailableError
from daemon.lease import Term, new_owner
from daemon.redis_keys import BankKeys
from daemon.redis_replies import answering
from daemon.redis_store import EVENTS_KEPT, BankReader
from supsup_online.bank_file import BankFile, decode_fields, encode_fields, mask_ids
from supsup_online.errors import CodecError, SpecError
from supsup_online.spec import BankSpec

_READ_AT_ONCE: Final = 256
_TRIES: Final = 20
_AHEAD: Final = 16  # masks that may be allocated between two reads


def _nobody(_: int) -> None:
    pass


@dataclass(slots=True)
class Snapshots:
    """Takes snapshots of a bank.

    Args:
        reader: of the bank.
        read: told the bytes of each mask that was read.
    """

    reader: BankReader
    read: Callable[[int], object] = _nobody
    _masks: dict[int, tuple[int, bytes]] = field(default_factory=dict)  # id -> version of its last change, bytes
    _newest: int = 0

    def expected_bytes(self) -> int:
        """About how many bytes of masks there are to be read."""
        with answering():
            ids = self.reader.mask_ids()
            return sum(int(self.reader.client.strlen(self.reader.keys.mask(i))) for i in ids[:1]) * len(ids)

    def take(self) -> dict[str, bytes]:
        """Every entry of a bank file, all of one moment. The masks are held once, in what is returned.

        Raises:
            BankMismatchError: there is no such bank, or something is missing from it.
            UnavailableError: Redis does not answer, or new masks come faster than they can be read.
        """
        with answering(), _no_other_type(self.reader.keys):
            self.reader.spec()
            self._read_masks(self.reader.mask_ids())
            live: set[int] = set()  # masks in training, and those that come next: read with everything else
            for _ in range(_TRIES):
                moment = _Moment.read(self.reader, sorted(self._masks.keys() | live), sorted(live))
                if moment.version < self._newest:  # Redis has lost commits: the same versions may hold other masks
                    self._masks.clear()
                self._newest = moment.version
                stale = self._stale(moment)
                if not stale and moment.partitions == _progress_keys(self.reader):
                    return self._entries(moment)
                self._read_masks(sorted(stale - self._masks.keys()))
                next_id = int(moment.totals.get(b"next_id", 0))
                live |= {*stale, *moment.states, *range(next_id, next_id + _AHEAD)}
        raise UnavailableError(
            f"bank {self.reader.keys.bank!r} changed faster than it could be read, {_TRIES} times; try again when its "
            "stream is quieter, or stop its trainer meanwhile",
            server="redis",
        )

    def _read_masks(self, ids: Sequence[int]) -> None:
        keys = self.reader.keys
        for start in range(0, len(ids), _READ_AT_ONCE):
            some = ids[start : start + _READ_AT_ONCE]
            with self.reader.client.pipeline(transaction=True) as pipe:
                for mask_id in some:
                    pipe.zscore(keys.index, mask_id)
                    pipe.get(keys.mask(mask_id))
                replies = pipe.execute()
            for mask_id, version, blob in zip(some, replies[::2], replies[1::2], strict=True):
                if version is not None:  # else evicted since the ids were read
                    self._masks[mask_id] = (int(version), _there(blob, keys.mask(mask_id)))
                    self.read(len(blob))

    def _stale(self, moment: "_Moment") -> set[int]:
        """Ids whose mask, or statistics, of this moment are not there; those that are, and their masks, are kept."""
        stale = set()
        for mask_id, version in moment.index.items():
            if mask_id in moment.masks:
                self._masks[mask_id] = (version, _there(moment.masks[mask_id], self.reader.keys.mask(mask_id)))
            elif self._masks.get(mask_id, (-1,))[0] != version:
                stale.add(mask_id)
            if mask_id not in moment.stats:
                stale.add(mask_id)
        return stale

    def _entries(self, moment: "_Moment") -> dict[str, bytes]:
        keys = self.reader.keys
        about = {"name": keys.bank, "version": str(moment.version), "epoch": str(moment.epoch)}
        found = {
            "bank": encode_fields({name.encode(): value.encode() for name, value in about.items()}),
            "spec": encode_fields(moment.spec),
            "totals": encode_fields(moment.totals),
        }
        prefix = len(keys.progress("", 0)) - len("progress::0")
        for key, fields in zip(moment.partitions, moment.progress, strict=True):
            found[key.decode()[prefix:]] = encode_fields(fields)
        for mask_id in moment.index:
            found[f"mask:{mask_id}"] = self._masks[mask_id][1]
            found[f"stats:{mask_id}"] = encode_fields(_there(moment.stats[mask_id], keys.stats(mask_id)))
            if mask_id in moment.states:
                found[f"state:{mask_id}"] = moment.states[mask_id]
        return found


@dataclass(frozen=True, slots=True)
class _Moment:
    """What one transaction saw."""

    version: int
    epoch: int
    index: dict[int, int]
    spec: dict[bytes, bytes]
    totals: dict[bytes, bytes]
    partitions: list[bytes]
    progress: list[dict[bytes, bytes]]
    stats: dict[int, dict[bytes, bytes]]
    states: dict[int, bytes]
    masks: dict[int, bytes | None]

    @classmethod
    def read(cls, reader: BankReader, ids: Sequence[int], masks: Sequence[int]) -> "_Moment":
        """Version, index, totals and positions; statistics and hot states of `ids`; the bytes of `masks`."""
        keys, partitions = reader.keys, _progress_keys(reader)
        with reader.client.pipeline(transaction=True) as pipe:
            pipe.get(keys.version)
            pipe.hget(keys.lease, "epoch")
            pipe.zrange(keys.index, 0, -1, withscores=True)
            for key in (keys.spec, keys.totals, *partitions, *map(keys.stats, ids)):
                pipe.hgetall(key)
            for key in (*map(keys.state, ids), *map(keys.mask, masks)):
                pipe.get(key)
            version, epoch, index, spec, totals, *rest = pipe.execute()
        taken = iter(rest)
        return cls(
            version=int(version or 0),
            epoch=int(epoch or 0),
            index=dict(sorted((int(member), int(score)) for member, score in index)),
            spec=spec,
            totals=totals,
            partitions=partitions,
            progress=[next(taken) for _ in partitions],
            stats=dict(zip(ids, taken, strict=False)),
            states={i: blob for i, blob in zip(ids, taken, strict=False) if blob is not None},
            masks=dict(zip(masks, taken, strict=True)),
        )


def _progress_keys(reader: BankReader) -> list[bytes]:
    return sorted(set(reader.client.scan_iter(match=reader.keys.progress_pattern, count=1000)))


@contextmanager
def _no_other_type(keys: BankKeys) -> Iterator[None]:
    try:
        yield
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        raise BankMismatchError(f"bank {keys.bank!r}: a key holds another type than it should: {error}") from error


def _there(value: Any, key: str) -> Any:
    if not value:
        raise BankMismatchError(f"{key} is missing although the bank's index names it. Was it evicted or deleted?")
    return value


# -- checking


def check(
    file: BankFile,
    entry: Callable[[str, bytes], object] = lambda _name, _payload: None,
    weights_file: Path | None = None,
) -> BankSummary:
    """Read a whole bank file and check everything; one entry is held at a time.

    Args:
        file: what to read.
        entry: told each entry when it was checked; to be believed once this function has returned.
        weights_file: the bank's trained weights, where it has any.

    Raises:
        ConfigError: the bank's weights are trained, and their file is not given, or is another one.
        BankMismatchError: the file is damaged, or does not make sense.
    """
    try:
        return _checked(file.entries, file.payloads(), entry, weights_file)
    except CodecError as error:
        raise BankMismatchError(str(error)) from error


def check_entries(entries: Mapping[str, bytes], weights_file: Path | None = None) -> BankSummary:
    """Check a snapshot like a file.

    Raises:
        ConfigError: as `check`.
        BankMismatchError: something is damaged, or does not make sense.
    """
    try:
        sizes = {name: len(payload) for name, payload in entries.items()}
        return _checked(sizes, entries.items(), lambda *_: None, weights_file)
    except CodecError as error:
        raise BankMismatchError(str(error)) from error


def _checked(
    sizes: Mapping[str, int],
    payloads: Iterable[tuple[str, bytes]],
    entry: Callable[[str, bytes], object],
    weights_file: Path | None,
) -> BankSummary:
    checking = BankCheck(sizes, weights_file)
    for name, payload in payloads:
        checking.take(name, payload)
        entry(name, payload)
    return checking.summary()


# -- into Redis


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made: the bank's new version and epoch, and how many keys it replaced."""

    version: int
    epoch: int
    replaced: int


def put(
    client: redis.Redis, keys: BankKeys, entries: Mapping[str, bytes], summary: BankSummary, *, replace: bool
) -> Imported:
    """Write a checked bank, in one transaction; old trainers are fenced off, followers see every mask as changed.

    Args:
        client: of the Redis it goes to.
        keys: of the bank it becomes.
        entries: its entries, as bytes of a bank file.
        summary: what `check` said about them.
        replace: whether a bank that is there may be replaced.

    Raises:
        ConfigError: the bank exists and `replace` was not given.
        BankMismatchError: the bank that is there has another spec.
        FencedError: a trainer holds the lease, or took it at this moment. Nothing was written.
        UnavailableError: Redis does not answer, is read-only or out of memory. Nothing was written, or all of it.
    """
    pipe: Any
    with answering(), client.pipeline(transaction=True) as pipe:
        pipe.watch(keys.lease, keys.spec, keys.version)
        lease, since = _lease_at_rest(pipe, keys)
        kept = {keys.lease.encode(), keys.events.encode()}
        old = sorted(set(client.scan_iter(match=keys.pattern, count=1000)) - kept)
        if old and not replace:
            raise ConfigError(
                f"bank {keys.bank!r} is in this Redis already: --replace it, or import under another --bank"
            )
        _refuse_another_spec(pipe, keys, summary)
        term = Term(max(summary.epoch, int(lease.get(b"epoch", 0))) + 1, new_owner())
        version = max(summary.version, int(pipe.get(keys.version) or 0)) + 1
        pipe.multi()
        if old:
            pipe.unlink(*old)
        _queue(pipe, keys, entries, version)
        # Without an expiry in the future the lease is free, and no commit of an older epoch is taken.
        held = {"epoch": term.epoch, "owner": term.owner, "since": since, "expires_ms": 0, "commit": term.commit_id()}
        pipe.hset(keys.lease, mapping=held | {"version": version})
        event = {"version": version, "type": "import", "bank": summary.bank, "from": summary.version}
        pipe.xadd(keys.events, {**event, "masks": summary.masks}, maxlen=EVENTS_KEPT, approximate=True)
        _execute(client, pipe, keys, term)
    return Imported(version, term.epoch, len(old))


def _lease_at_rest(pipe: Any, keys: BankKeys) -> tuple[dict[bytes, bytes], int]:
    """The lease, which nobody holds, and the time on Redis' clock, Unix seconds."""
    lease: dict[bytes, bytes] = pipe.hgetall(keys.lease)
    seconds, micros = pipe.time()
    left_ms = int(lease.get(b"expires_ms", 0)) - (1000 * seconds + micros // 1000)
    if left_ms > 0:
        owner = lease.get(b"owner", b"").decode(errors="replace")
        raise FencedError(
            f"trainer {owner} holds bank {keys.bank!r} (for {left_ms} ms unless it renews): stop it first, and whoever "
            "stands by; nothing was imported"
        )
    return lease, int(seconds)


def _refuse_another_spec(pipe: Any, keys: BankKeys, summary: BankSummary) -> None:
    """Whoever follows the bank has the network of the spec it had, and would read the new masks over these weights."""
    stored = {name.decode(): value.decode(errors="replace") for name, value in pipe.hgetall(keys.spec).items()}
    try:
        differences = BankSpec.from_text(summary.spec).differences(BankSpec.from_text(stored))
    except SpecError:
        return  # nobody can read what is there
    if differences:
        raise BankMismatchError(
            f"bank {keys.bank!r} in this Redis has another spec (the file's, the bank's): {'; '.join(differences)}. "
            "Import under another --bank, or delete the bank that is there first."
        )


def _queue(pipe: Any, keys: BankKeys, entries: Mapping[str, bytes], version: int) -> None:
    for name, payload in entries.items():
        kind, _, rest = name.partition(":")
        match kind:
            case "bank":
                continue
            case "mask" | "state":
                pipe.set(getattr(keys, kind)(int(rest)), payload)
                continue
            case "stats":
                key = keys.stats(int(rest))
            case "progress":
                topic, _, partition = rest.rpartition(":")
                key = keys.progress(topic, int(partition))
            case _:
                key = getattr(keys, kind)
        if fields := decode_fields(payload):
            pipe.hset(key, mapping=fields)
    if ids := mask_ids(entries):
        pipe.zadd(keys.index, dict.fromkeys(ids, version))
    pipe.set(keys.version, version)


def _execute(client: redis.Redis, pipe: Any, keys: BankKeys, term: Term) -> None:
    try:
        pipe.execute()
    except (WatchError, redis.ConnectionError, redis.TimeoutError) as error:
        commit: Any = client.hget(keys.lease, "commit")
        if commit == term.commit_id().encode():
            return  # only the reply was lost
        if isinstance(error, WatchError):
            raise FencedError(
                f"somebody wrote to bank {keys.bank!r} at the same moment; nothing was imported, try again"
            ) from error
        raise
