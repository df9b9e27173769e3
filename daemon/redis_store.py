"""The mask bank in Redis: open it, load it, commit to it (trainer); read it (everybody else).

The trainer writes through one Lua script only (`lua/commit.lua`): masks, statistics, hot states, stream positions,
version and events become visible together or not at all. redis-py repeats a command whose reply was lost, so a commit
carries an id and the script takes the second copy for what it is.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Final

import redis
from redis.exceptions import ReadOnlyError, RedisError

from daemon import redis_restart
from daemon.errors import BankMismatchError, DeniedError, LostGroundError
from daemon.lease import Term
from daemon.networks import regenerated
from daemon.redis_keys import BankKeys
from daemon.redis_replies import answering, reading
from daemon.refusals import RIGHTS_PAGE
from supsup_online import codec
from supsup_online.bitpack import Words
from supsup_online.errors import SpecError
from supsup_online.network import Network
from supsup_online.optimisers import Optimiser
from supsup_online.spec import BankSpec
from supsup_online.stats import MaskStats
from supsup_online.trainer import HotMask

EVENTS_KEPT: Final = 10_000
_READ_AT_ONCE: Final = 256

Value = str | bytes | int | float


@dataclass(frozen=True, slots=True)
class StoredBank:
    """A bank as loaded: masks, statistics and hot states by id, counters, version."""

    masks: dict[int, Words]
    stats: dict[int, MaskStats]
    hot: dict[int, HotMask]
    totals: dict[str, int]
    version: int


@dataclass(slots=True)
class CommitPlan:
    """What one commit writes; filled by `checkpoint`, run by `RedisStore.commit`."""

    writes: list[tuple[str, str, tuple[Value, ...]]] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    removed: list[int] = field(default_factory=list)
    events: list[dict[str, Value]] = field(default_factory=list)

    def write(self, command: str, key: str, *values: Value) -> None:
        """Add one Redis command on one key."""
        self.writes.append((command, key, values))

    def hset(self, key: str, mapping: Mapping[str, Value]) -> None:
        """Set fields of a hash."""
        if mapping:
            self.write("HSET", key, *(part for pair in mapping.items() for part in pair))


class BankReader:
    """Reads a bank; needs no right to write."""

    def __init__(self, client: redis.Redis, bank: str) -> None:
        self.client: Any = client  # redis-py's types leave open whether a reply is bytes or str
        self.keys = BankKeys(bank)

    def spec_text(self) -> dict[str, str]:
        """The stored spec, fingerprint included; empty when there is no such bank."""
        return as_text(self.client.hgetall(self.keys.spec))

    def spec(self) -> BankSpec:
        """The stored spec.

        Raises:
            BankMismatchError: there is no such bank, or its spec is damaged.
        """
        text = self.spec_text()
        if not text:
            raise BankMismatchError(
                f"there is no bank {self.keys.bank!r} in this Redis yet: a trainer creates it (supsup-daemon start)"
            )
        try:
            return BankSpec.from_text(text)
        except SpecError as error:
            raise BankMismatchError(f"bank {self.keys.bank!r}: {error}") from error

    def version(self) -> int:
        """The bank's version; 0 before the first commit."""
        return int(self.client.get(self.keys.version) or 0)

    def mask_ids(self) -> list[int]:
        """Ids of all masks, in order."""
        return list(self.changes())

    def changes(self) -> dict[int, int]:
        """Mask id -> bank version of its last change, in the order of the ids."""
        found = self.client.zrange(self.keys.index, 0, -1, withscores=True)
        return dict(sorted((int(member), int(version)) for member, version in found))

    def stats_text(self, mask_ids: Sequence[int]) -> list[dict[str, str]]:
        """The plain-text statistics of some masks, `id` and `version` of the last change included."""
        pipe = self.client.pipeline(transaction=False)
        for mask_id in mask_ids:
            pipe.hgetall(self.keys.stats(mask_id))
            pipe.zscore(self.keys.index, mask_id)
        replies = pipe.execute()
        return [
            {"id": str(mask_id), **as_text(replies[2 * i]), "version": str(int(replies[2 * i + 1] or 0))}
            for i, mask_id in enumerate(mask_ids)
            if replies[2 * i]  # evicted since the ids were read
        ]

    def totals(self) -> dict[str, int]:
        """Counters of the whole bank.

        Raises:
            BankMismatchError: one is no whole number.
        """
        with reading(self.keys.totals):
            return {name: int(value) for name, value in as_text(self.client.hgetall(self.keys.totals)).items()}

    def lease(self) -> dict[str, str]:
        """Who writes: epoch, owner, newest commit."""
        return as_text(self.client.hgetall(self.keys.lease))

    def positions(self) -> dict[str, int]:
        """`topic:partition` -> next offset, over all partitions this bank has read."""
        prefix = len(self.keys.progress("", 0)) - 2
        found = sorted(key.decode() for key in self.client.scan_iter(self.keys.progress_pattern, count=1000))
        return {key[prefix:]: int(self.client.hget(key, "offset") or 0) for key in found}

    def events(self, after: str = "-", count: int = 1000) -> list[tuple[str, dict[str, str]]]:
        """(entry id, fields) of the event stream behind `after`, oldest first."""
        start = after if after == "-" else f"({after}"
        found = self.client.xrange(self.keys.events, start, "+", count)
        return [(entry.decode(), as_text(fields)) for entry, fields in found]

    def masks(self, network: Network, mask_ids: Sequence[int]) -> dict[int, Words]:
        """Packed masks by id.

        Raises:
            BankMismatchError: a mask is missing or damaged.
        """
        found: dict[int, Words] = {}
        for start in range(0, len(mask_ids), _READ_AT_ONCE):
            ids = mask_ids[start : start + _READ_AT_ONCE]
            for mask_id, blob in zip(ids, self.client.mget([self.keys.mask(i) for i in ids]), strict=True):
                with reading(self.keys.mask(mask_id)):
                    found[mask_id] = codec.decode_mask(network, blob or b"")
        return found

    def network(self, spec: BankSpec, weights_file: Path | None = None) -> Network:
        """The network of a spec, proved by the stored fingerprint of its weights.

        Raises:
            ConfigError, BankMismatchError: see `networks.regenerated` and `check_fingerprint`.
        """
        network = regenerated(spec, weights_file)
        self.check_fingerprint(network)
        return network

    def check_fingerprint(self, network: Network) -> None:
        """Compare the weights with the fingerprint in Redis.

        Raises:
            BankMismatchError: they differ.
        """
        stored = self.spec_text().get("fingerprint")
        if stored != network.fingerprint:
            raise BankMismatchError(
                f"bank {self.keys.bank!r}: weights regenerated from seed {network.spec.weight_seed} have fingerprint "
                f"{network.fingerprint[:12]}, the bank's have {str(stored)[:12]}: its masks mean nothing here"
            )


class EventTail:
    """The event stream from its start on, read piece by piece."""

    def __init__(self, reader: BankReader) -> None:
        self._reader = reader
        self._newest = "-"

    def read(self) -> list[dict[str, str]]:
        """Events since the last call, oldest first; each with its entry `id`."""
        found = self._reader.events(self._newest)
        if found:
            self._newest = found[-1][0]
        return [{"id": entry, **fields} for entry, fields in found]


class WarmMasks:
    """The masks of a bank that somebody else writes, kept up to date: a refresh reads only what changed."""

    def __init__(self) -> None:
        self.words: dict[int, Words] = {}
        self.version = 0

    def refresh(self, reader: BankReader, network: Network) -> None:
        """Bring `words` up to what is stored now.

        Raises:
            BankMismatchError: a mask is damaged, or was evicted between two reads.
        """
        version = reader.version()
        if version < self.version:  # a Redis that came back without its newest commits
            self.words.clear()
        changes = reader.changes()
        changed = [i for i, at in changes.items() if at > self.version or i not in self.words]
        fresh = reader.masks(network, changed)
        self.words = {i: fresh[i] if i in fresh else self.words[i] for i in changes}
        self.version = version


class RedisStore(BankReader):
    """Reads and writes a bank as its one trainer; `begin` gives it the right to write."""

    def __init__(self, client: redis.Redis, bank: str) -> None:
        super().__init__(client, bank)
        self.term = Term(0, "")
        self._newest = ""
        self._server = ""
        self._troubled = False
        self._script = client.register_script(_lua("commit"))
        self._rights = client.register_script(_lua("rights"))

    def open(self, network: Network) -> None:
        """Create the bank, or prove that it is the same one.

        Raises:
            DeniedError: this user may not do all that a trainer does.
            BankMismatchError: another spec (each differing field is named), or another fingerprint.
        """
        self._require_rights()
        wanted = {**network.spec.to_text(), "fingerprint": network.fingerprint}
        with answering():
            if not self.client.exists(self.keys.spec):
                self._create(wanted)
            self._check_spec(network)
            self.check_fingerprint(network)

    def begin(self, term: Term, network: Network) -> None:
        """Write under this term from now on; what the settings may change about a bank is changed.

        Raises:
            LostGroundError: the bank was there when it was opened, and is gone.
            BankMismatchError: it is another one now.
        """
        self.term = term
        self._newest = term.commit_id()
        with answering():
            if not self.client.exists(self.keys.spec):
                raise LostGroundError(
                    f"bank {self.keys.bank!r} is gone: Redis was emptied while this trainer waited for its turn. Bring "
                    "the bank back, or start again to learn everything anew from what Kafka still holds."
                )
            self._check_spec(network)  # another one may have been imported meanwhile
            self.check_fingerprint(network)
            self.client.hset(self.keys.spec, "budget", network.spec.budget)
            self._server = redis_restart.settle(self.client, self.lease().get("server", ""))
            self.client.hset(self.keys.lease, "server", self._server)

    def _require_rights(self) -> None:
        """A right that is missing is found out now: Redis takes back nothing of a script that it stops halfway."""
        with answering():
            refused = [name.decode() for name in self._rights(keys=[self.keys.rights])]
        if refused:
            raise DeniedError(
                f"Redis forbids this user {', '.join(refused)}, and a trainer needs that: see {RIGHTS_PAGE} for the ACL"
            )

    def _create(self, wanted: dict[str, str]) -> None:
        with self.client.pipeline() as pipe:
            pipe.watch(self.keys.spec)
            if pipe.exists(self.keys.spec):
                return
            pipe.multi()
            pipe.hset(self.keys.spec, mapping=wanted)
            try:
                pipe.execute()
            except redis.WatchError:
                return  # somebody else created it first; the check that follows compares with theirs

    def _check_spec(self, network: Network) -> None:
        if differences := network.spec.differences(self.spec()):
            raise BankMismatchError(
                f"bank {self.keys.bank!r} was made with other settings (yours, the bank's): {'; '.join(differences)}. "
                "Use the bank's settings, or another --bank."
            )

    def load(self, network: Network, optimiser: Optimiser, warm: WarmMasks | None = None) -> StoredBank:
        """Everything a trainer goes on with; of masks that are `warm` only what changed since is read.

        Raises:
            BankMismatchError: something is missing, damaged or of another architecture.
        """
        with answering():
            self._require_whole_commit()
            warm = warm or WarmMasks()
            warm.refresh(self, network)
            masks, ids = warm.words, list(warm.words)
            texts = {int(text["id"]): text for text in self.stats_text(ids)}
            stats = {}
            for mask_id in ids:
                with reading(self.keys.stats(mask_id)):
                    stats[mask_id] = MaskStats.from_text(texts.get(mask_id, {}))
            return StoredBank(masks, stats, self._hot_states(network, optimiser, ids), self.totals(), self.version())

    def _require_whole_commit(self) -> None:
        """A commit ends with its version in the lease; see `redis_restart` for how one could come back in part.

        Raises:
            BankMismatchError: the newest commit is not whole.
        """
        whole, found = self.lease().get("version"), self.version()
        if whole is not None and whole != str(found):
            raise BankMismatchError(
                f"bank {self.keys.bank!r} is at version {found}, but its newest whole commit is {whole}: a restart has "
                "brought back part of a commit. Bring the bank back from a file (supsup-daemon bank import --replace)."
            )

    def _hot_states(self, network: Network, optimiser: Optimiser, ids: Sequence[int]) -> dict[int, HotMask]:
        hot: dict[int, HotMask] = {}
        for mask_id in ids:  # one at a time: a state is 88 times a mask
            blob = self.client.get(self.keys.state(mask_id))
            if blob is not None:
                with reading(self.keys.state(mask_id)):
                    state = codec.decode_hot(network, optimiser, blob)
                if state is not None:
                    hot[mask_id] = state
        return hot

    def progress(self, topic: str, partition: int) -> dict[str, str]:
        """The stored progress of one partition; empty when it was never read."""
        with answering():
            return as_text(self.client.hgetall(self.keys.progress(topic, partition)))

    def commit(self, plan: CommitPlan, commit_id: str) -> int:
        """Write everything in the plan at once; returns the bank's new version.

        The newest `commit_id` (of `Term.commit_id`) is remembered: the same again is a repetition and changes nothing.

        Raises:
            FencedError: another trainer has taken over.
            RewoundError: Redis does not hold the commit before this one.
            UnavailableError: Redis is away, read-only or out of memory; nothing was written, or all of it was.
        """
        keys = [self.keys.lease, self.keys.version, self.keys.index, self.keys.events]
        arguments: list[Value] = [self.term.epoch, commit_id, self._newest, ""]
        writes: list[list[str | int]] = []
        for command, key, values in plan.writes:
            keys.append(key)
            writes.append([command, len(keys), *range(len(arguments) + 1, len(arguments) + 1 + len(values))])
            arguments.extend(values)
        arguments[3] = json.dumps(
            {
                "writes": writes,
                "changed": plan.changed,
                "removed": plan.removed,
                "events": [[str(part) for pair in event.items() for part in pair] for event in plan.events],
                "events_kept": EVENTS_KEPT,
            }
        )
        with answering():
            version = self._run(keys, arguments)
        self._newest = commit_id
        return version

    def _run(self, keys: list[str], arguments: list[Value]) -> int:
        """The commit script; after trouble, Redis may be another process than before, or another server."""
        try:
            if self._troubled:
                self._server = redis_restart.settle(self.client, self._server)
            version = int(self._script(keys=keys, args=arguments))
        except RedisError as error:
            self._troubled = True
            if isinstance(error, ReadOnlyError):
                self.client.connection_pool.disconnect()  # a name may lead to another server by now
            raise
        self._troubled = False
        return version


def _lua(name: str) -> str:
    return resources.files("daemon").joinpath(f"lua/{name}.lua").read_text(encoding="utf-8")


def as_text(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash, or the fields of an event, as text; bytes that are none are replaced."""
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()}
