"""What `doctor` says about Redis and the bank in it: pure judgement over facts that `doctor_probes` gathered."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from daemon.findings import Finding, Miss, duration, note, ok, problem, several, size, warning
from daemon.kafka_facts import StoredPosition
from daemon.mask_sizes import MaskSizes
from daemon.redis_store import EVENTS_KEPT
from daemon.settings import Settings, without_password
from supsup_online.errors import SpecError
from supsup_online.spec import BankSpec

OLDEST: Final = (6, 2)  # what the tests run on
_SKEW_S: Final = 2.0
_EVENT: Final = 512  # bytes in Redis, rounded up from some 360
# First releases in which a script can no longer run code in the server (CVE-2025-49844), by release line.
_MENDED: Final[dict[tuple[int, ...], tuple[int, ...]]] = {
    (6, 2): (6, 2, 20),
    (7, 2): (7, 2, 11),
    (7, 4): (7, 4, 6),
    (8, 0): (8, 0, 4),
    (8, 2): (8, 2, 2),
}


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """What was seen of Redis.

    Attributes:
        failure: why it could not be reached; empty when it was.
        seconds: how long an answer takes.
        info: the answer to INFO; empty where that is forbidden.
        config: the answer to CONFIG GET; empty where that is forbidden.
        skew_s: how far its clock is ahead of this machine's; None where it does not tell.
        may_script: whether this user may run scripts; None where that could not be found out.
        misses: what could not be found out.
    """

    failure: str = ""
    seconds: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    skew_s: float | None = None
    may_script: bool | None = None
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True, slots=True)
class BankFacts:
    """What was seen of the bank; of one that does not exist, `spec` is empty.

    Attributes:
        spec: as stored, the fingerprint included.
        masks: ids in the index.
        lengths: bytes of some stored masks by key, 0 for one that is not there.
        hot: masks whose scores are stored.
        events: entries of the event stream.
        lease: who writes, field by field.
        positions: by topic and partition.
    """

    spec: Mapping[str, str] = field(default_factory=dict)
    masks: int = 0
    lengths: Mapping[str, int] = field(default_factory=dict)
    hot: int = 0
    events: int = 0
    lease: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[tuple[str, int], StoredPosition] = field(default_factory=dict)


def check_redis(settings: Settings, facts: RedisFacts) -> Iterator[Finding]:
    """The server: role, eviction, persistence, clock. Its room is `check_room`."""
    where = without_password(settings.redis)
    if facts.failure:
        yield problem(
            "redis.reach",
            facts.failure,
            "mend --redis (SUPSUP_REDIS) or the server, and ask again",
        )
        return
    version = facts.info.get("redis_version")
    yield ok(
        "redis.reach",
        f"Redis {version or 'of unknown version'} at {where}, an answer takes {duration(facts.seconds)}",
    )
    for miss in facts.misses:
        yield note(
            "redis.told", f"Redis does not tell {miss.what} ({miss.why})", "allow it to this user, or look there"
        )
    if facts.may_script is False:
        yield problem(
            "redis.rights", "this user may not run scripts, so nothing can be committed", "ACL SETUSER ... +@scripting"
        )
    if facts.info:
        yield from _version(facts.info)
        yield from _role(facts.info, facts.config)
        yield from _eviction(facts.info)
        yield from _persistence(facts.info, facts.config)
        yield from _last_writes(facts.info, facts.config)
    if facts.skew_s is not None and abs(facts.skew_s) > _SKEW_S:
        yield note(
            "redis.clock",
            f"its clock is {duration(abs(facts.skew_s))} {'ahead of' if facts.skew_s > 0 else 'behind'} this machine's",
            "nothing here depends on it, but times in the bank and in logs differ: run NTP on both",
        )


def _version(info: Mapping[str, Any]) -> Iterator[Finding]:
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:3] if part.isdigit())
    if not version or version == (0,):
        return
    name = ".".join(map(str, version))
    if version < OLDEST:
        yield problem("redis.version", f"Redis {name} is older than 6.2, which is the oldest tried", "update it")
    elif version < _MENDED.get(version[:2], ()) and "server_name" not in info:
        mended = ".".join(map(str, _MENDED[version[:2]]))
        yield note(
            "redis.version",
            f"in Redis {name} a user who may run scripts can take over the server (CVE-2025-49844)",
            f"update to {mended}, or keep it where only the trainer can reach it",
        )
    if info.get("cluster_enabled"):
        yield warning(
            "redis.cluster",
            "it is a cluster; a bank lives on one node (its keys share a hash tag), and redirections are not followed",
            "name the node that holds the bank's slot, and keep that slot there",
        )


def _role(info: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[Finding]:
    if info.get("role") not in (None, "master"):
        master = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
        yield problem(
            "redis.role", "it is a read-only replica: no commit can be written", f"use its master, redis://{master}"
        )
    needed, good = int(config.get("min-replicas-to-write", 0)), int(info.get("min_slaves_good_slaves", 0))
    if needed > good:
        yield problem(
            "redis.role",
            f"it wants {several(needed, 'replica')} in touch before it takes a commit, and has {good}",
            "bring them back, or CONFIG SET min-replicas-to-write 0",
        )
    if info.get("loading"):
        yield warning("redis.role", "it is still loading its data", "wait, and ask again")


def _eviction(info: Mapping[str, Any]) -> Iterator[Finding]:
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    if not policy:
        return
    advice = "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf"
    if policy == "noeviction":
        yield ok("redis.eviction", "maxmemory-policy is noeviction: masks are never evicted")
    elif not limit:
        yield warning("redis.eviction", f"maxmemory-policy is {policy}; with a maxmemory it would evict", advice)
    else:
        what = "masks are evicted without a word" if policy.startswith("allkeys") else "keys that expire are evicted"
        yield problem("redis.eviction", f"maxmemory-policy is {policy}: when memory is short, {what}", advice)


def _persistence(info: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[Finding]:
    if "aof_enabled" not in info:
        return
    append = "CONFIG SET appendonly yes, appendfsync everysec, and the same in redis.conf"
    if not info["aof_enabled"]:
        saves = config.get("save")
        if saves == "":
            yield problem("redis.persistence", "nothing is written to disk: a restart loses the whole bank", append)
        else:
            when = f"snapshots ({saves})" if saves else "snapshots at most"
            yield warning(
                "redis.persistence",
                f"{when} and no append-only file: a crash loses minutes, which Kafka must still hold",
                append,
            )
        return
    sync = config.get("appendfsync", "")
    if sync == "no":
        yield warning(
            "redis.persistence",
            "append-only file, but appendfsync is no: a power cut loses what the system had not written",
            "CONFIG SET appendfsync everysec, and the same in redis.conf",
        )
    else:
        yield ok("redis.persistence", f"append-only file{f', appendfsync {sync}' if sync else ''}")


def _last_writes(info: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[Finding]:
    failed = [
        name
        for name in ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
        if str(info.get(name, "ok")) != "ok"
    ]
    if not failed:
        return
    found = f"its last attempt to write failed: {', '.join(failed)}"
    advice = "look into its log: a full disk, or no memory to fork"
    stops = config.get("stop-writes-on-bgsave-error", "yes") == "yes"
    harmless = failed == ["aof_last_bgrewrite_status"] or (failed == ["rdb_last_bgsave_status"] and not stops)
    if harmless:
        yield warning("redis.persistence", found, advice)
    else:
        yield problem("redis.persistence", f"{found}: it refuses commits until one succeeds", advice)


# -- room


def check_room(settings: Settings, facts: RedisFacts, bank: BankFacts, sizes: MaskSizes) -> Iterator[Finding]:
    """Whether the bank, grown to its budget, fits into Redis; and whether a reply or a value may be that long."""
    if facts.info:
        yield _memory(settings, facts.info, bank, sizes)
    yield from _buffers(facts.config, sizes)


def _memory(settings: Settings, info: Mapping[str, Any], bank: BankFacts, sizes: MaskSizes) -> Finding:
    hot = min(settings.hot_masks, settings.budget)
    growth = _growth(settings.budget, hot, bank, sizes)
    limit, used, total = (int(info.get(name, 0)) for name in ("maxmemory", "used_memory", "total_system_memory"))
    room = min((most for most in (limit, total) if most), default=0) - used
    found = (
        f"{settings.budget} masks of {size(sizes.stored)}, {hot} hot ones of {size(sizes.stored_hot)} more, and a "
        f"commit need {size(growth)} beyond the {size(used)} in use; maxmemory is {size(limit) if limit else 'not set'}"
    )
    if not limit or 0 < total < limit:
        found += f", its machine has {size(total)}" if total else ", and what its machine has it does not tell"
    enough = f"CONFIG SET maxmemory {(used + growth) * 5 // 4 // 2**20 + 1}mb or more"
    advice = f"{enough if limit == room + used else 'more memory'}, or a smaller --budget or --hot-masks"
    if not (limit or total):
        return note("redis.memory", found, "see to it yourself")
    if growth > room:
        return problem("redis.memory", f"{found}: it does not fit", advice)
    if growth > 0.8 * room:
        return warning("redis.memory", f"{found}: it hardly fits", advice)
    if not limit:
        return note("redis.memory", found, f"{enough}: then it refuses a commit before the system ends it")
    return ok("redis.memory", found)


def _growth(budget: int, hot: int, bank: BankFacts, sizes: MaskSizes) -> int:
    """Bytes from the bank as it is to a full one, and what a commit takes on its way, as it comes and in the script."""
    full = budget * sizes.stored + hot * sizes.stored_hot + EVENTS_KEPT * _EVENT
    now = bank.masks * sizes.stored + bank.hot * sizes.stored_hot + bank.events * _EVENT
    return max(0, full - now) + 2 * hot * sizes.stored_hot


def _buffers(config: Mapping[str, str], sizes: MaskSizes) -> Iterator[Finding]:
    words = config.get("client-output-buffer-limit", "").split()
    hard = int(words[words.index("normal") + 1]) if "normal" in words else 0
    longest = int(config.get("proto-max-bulk-len", 0))
    if 0 < hard < 2 * sizes.stored_hot:
        yield problem(
            "redis.buffers",
            f"client-output-buffer-limit cuts clients off at {size(hard)}; a hot state is {size(sizes.stored_hot)}",
            "CONFIG SET client-output-buffer-limit 'normal 0 0 0'",
        )
    if 0 < longest < sizes.stored_hot:
        yield problem(
            "redis.buffers",
            f"proto-max-bulk-len is {size(longest)}; a hot state is {size(sizes.stored_hot)}",
            f"CONFIG SET proto-max-bulk-len {2 * sizes.stored_hot}",
        )


# -- the bank


def check_bank(
    settings: Settings, spec: BankSpec, bank: BankFacts, sizes: MaskSizes, fingerprint: str = ""
) -> Iterator[Finding]:
    """The stored bank against the settings, and the fingerprint of weights that were regenerated here, if they were."""
    name = f"bank {settings.bank}"
    if not bank.spec:
        yield note("bank.spec", f"{name}: there is none yet; the first start creates it with these settings")
        return
    if differences := list(_spec(name, spec, bank)):
        yield from differences
        return
    yield ok("bank.spec", f"{name}: made with these settings")
    yield from _masks(name, bank, sizes, fingerprint)
    filled = f"{name}: {bank.masks} of {several(settings.budget, 'mask')}, {bank.hot} hot"
    if bank.masks >= settings.budget:
        then = {"overflow": "batches of a new task go to the overflow topic", "evict": "the next task evicts one"}
        yield warning("bank.budget", f"{filled}: full; {then[settings.over_budget]}", "raise --budget")
    elif bank.masks >= 0.9 * settings.budget:
        yield note("bank.budget", f"{filled}: nearly full", "raise --budget in time")
    else:
        yield ok("bank.budget", filled)
    if bank.lease:
        yield note("bank.lease", f"{name}: who writes: {_lease(bank.lease)}", "fine if this is the trainer you mean")


def _spec(name: str, spec: BankSpec, bank: BankFacts) -> Iterator[Finding]:
    try:
        stored = BankSpec.from_text(dict(bank.spec))
    except SpecError as error:
        yield problem("bank.spec", f"{name}: {error}", "bring Redis' file back from a backup, or use another --bank")
        return
    if differences := spec.differences(stored):
        yield problem(
            "bank.spec",
            f"{name} was made with other settings (yours, the bank's): {'; '.join(differences)}",
            "use the bank's settings, or another --bank",
        )


def _masks(name: str, bank: BankFacts, sizes: MaskSizes, fingerprint: str) -> Iterator[Finding]:
    known = bank.spec.get("fingerprint", "")
    if fingerprint and fingerprint != known:
        yield problem(
            "bank.fingerprint",
            f"{name}: weights regenerated here have fingerprint {fingerprint[:12]}, the bank's {known[:12]}",
            "its masks mean nothing here: use the release that made it",
        )
    elif fingerprint:
        yield ok("bank.fingerprint", f"{name}: weights regenerated here are those of the bank ({known[:12]})")
    damaged = [key for key, length in bank.lengths.items() if length != sizes.blob]
    if damaged:
        yield problem(
            "bank.masks",
            f"{name}: {several(len(damaged), 'mask')} of {len(bank.lengths)} looked at missing or of the wrong size: "
            f"{', '.join(damaged[:5])}",
            "evicted or overwritten: bring Redis' file back from a backup",
        )


def _lease(lease: Mapping[str, str]) -> str:
    shown = {name: value for name, value in sorted(lease.items()) if name != "commit"}
    if (since := shown.get("since", "")).isdigit():
        shown["since"] = f"{datetime.fromtimestamp(int(since), UTC):%Y-%m-%d %H:%M:%S} UTC"
    return ", ".join(f"{name} {value}" for name, value in shown.items())
