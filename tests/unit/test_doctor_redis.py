"""What the doctor says about Redis and the bank in it, fact by fact."""

from dataclasses import replace
from typing import Any

import pytest

from daemon.doctor_redis import BankFacts, RedisFacts, check_bank, check_redis, check_room
from daemon.findings import Finding, Miss, Severity, worst
from daemon.mask_sizes import MaskSizes
from daemon.settings import Settings
from supsup_online import codec
from supsup_online.network import Network
from supsup_online.optimisers import OPTIMISERS
from supsup_online.spec import BankSpec
from supsup_online.trainer import EdgePopupTrainer
from unit import tiny

SETTINGS = Settings(redis="redis://me:secret@store:6379/0", bank="b", budget=100, hot_masks=4)
SPEC = SETTINGS.bank_spec()
SIZES = MaskSizes.of(SPEC, 2)
INFO = {
    "redis_version": "7.2.11",
    "role": "master",
    "maxmemory": 2**30,
    "maxmemory_policy": "noeviction",
    "used_memory": 2**20,
    "total_system_memory": 2**33,
    "aof_enabled": 1,
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
    "loading": 0,
    "cluster_enabled": 0,
}
CONFIG = {
    "appendfsync": "everysec",
    "client-output-buffer-limit": "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60",
    "min-replicas-to-write": "0",
    "proto-max-bulk-len": "536870912",
    "save": "",
    "stop-writes-on-bgsave-error": "yes",
}
HEALTHY = RedisFacts(seconds=0.001, info=INFO, config=CONFIG, skew_s=0.01, may_script=True)
EMPTY = BankFacts()


def server(config: dict[str, str] | None = None, **info: Any) -> RedisFacts:
    """A healthy server with some facts changed."""
    return replace(HEALTHY, info=INFO | info, config=CONFIG | (config or {}))


def judged(facts: RedisFacts, bank: BankFacts = EMPTY) -> list[Finding]:
    """All findings of the server and its room that are not ok."""
    findings = [*check_redis(SETTINGS, facts), *check_room(SETTINGS, facts, bank, SIZES)]
    return [finding for finding in findings if finding.severity > Severity.OK]


def test_of_a_healthy_server_nothing_is_said_but_ok() -> None:
    findings = [*check_redis(SETTINGS, HEALTHY), *check_room(SETTINGS, HEALTHY, EMPTY, SIZES)]
    assert worst(findings) is Severity.OK
    assert {f.check for f in findings} == {"redis.reach", "redis.eviction", "redis.persistence", "redis.memory"}
    assert "Redis 7.2.11 at redis://store:6379/0" in findings[0].found


def test_no_password_is_shown() -> None:
    assert not [f for f in check_redis(SETTINGS, HEALTHY) if "secret" in f.found + f.advice]


@pytest.mark.parametrize(
    ("facts", "severity", "check", "told", "advice"),
    [
        (RedisFacts(failure="nobody there"), "problem", "redis.reach", "nobody there", "SUPSUP_REDIS"),
        (replace(HEALTHY, misses=(Miss("INFO", "NOPERM"),)), "note", "redis.told", "INFO (NOPERM)", "allow it"),
        (replace(HEALTHY, may_script=False), "problem", "redis.rights", "may not run scripts", "+@scripting"),
        (replace(HEALTHY, skew_s=5.0), "note", "redis.clock", "5 s ahead of this machine's", "NTP"),
        (replace(HEALTHY, skew_s=-90.0), "note", "redis.clock", "1.5 min behind this machine's", "NTP"),
        (server(redis_version="5.0.7"), "problem", "redis.version", "5.0.7 is older than 6.2", "update"),
        (server(redis_version="6.2.14"), "note", "redis.version", "CVE-2025-49844", "6.2.20"),
        (server(cluster_enabled=1), "warning", "redis.cluster", "redirections are not followed", "slot"),
        (
            server(role="slave", master_host="first", master_port=6379),
            "problem",
            "redis.role",
            "read-only replica",
            "redis://first:6379",
        ),
        (server({"min-replicas-to-write": "1"}), "problem", "redis.role", "1 replica in touch", "CONFIG SET"),
        (server(loading=1), "warning", "redis.role", "still loading", "wait"),
        (server(maxmemory_policy="allkeys-lru"), "problem", "redis.eviction", "masks are evicted", "noeviction"),
        (server(maxmemory_policy="volatile-ttl"), "problem", "redis.eviction", "keys that expire", "noeviction"),
        (server({"save": ""}, aof_enabled=0), "problem", "redis.persistence", "a restart loses the whole bank", "yes"),
        (server({"save": "3600 1"}, aof_enabled=0), "warning", "redis.persistence", "snapshots (3600 1)", "appendonly"),
        (server({"appendfsync": "no"}), "warning", "redis.persistence", "a power cut", "everysec"),
        (server(aof_last_write_status="err"), "problem", "redis.persistence", "aof_last_write_status", "full disk"),
        (server(rdb_last_bgsave_status="err"), "problem", "redis.persistence", "refuses commits", "full disk"),
        (
            server({"stop-writes-on-bgsave-error": "no"}, rdb_last_bgsave_status="err"),
            "warning",
            "redis.persistence",
            "rdb_last_bgsave_status",
            "log",
        ),
        (server(aof_last_bgrewrite_status="err"), "warning", "redis.persistence", "bgrewrite", "fork"),
        (
            server(maxmemory=2**24),
            "problem",
            "redis.memory",
            "maxmemory is 16 MiB: it does not fit",
            "CONFIG SET maxmemory",
        ),
        (server(maxmemory=56 * 2**20), "warning", "redis.memory", "it hardly fits", "--hot-masks"),
        (
            server(maxmemory=0),
            "note",
            "redis.memory",
            "maxmemory is not set, its machine has 8.0 GiB",
            "CONFIG SET maxmemory",
        ),
        (server(maxmemory=0, total_system_memory=2**24), "problem", "redis.memory", "does not fit", "more memory"),
        (
            server(total_system_memory=2**24),
            "problem",
            "redis.memory",
            "maxmemory is 1.0 GiB, its machine has 16 MiB",
            "",
        ),
        (server(maxmemory=0, total_system_memory=0), "note", "redis.memory", "it does not tell", "yourself"),
        (
            server({"client-output-buffer-limit": "normal 1000000 0 0 slave 0 0 0 pubsub 0 0 0"}),
            "problem",
            "redis.buffers",
            "a hot state is 3.607 MiB",
            "normal 0 0 0",
        ),
        (
            server({"proto-max-bulk-len": "1048576"}),
            "problem",
            "redis.buffers",
            "proto-max-bulk-len is 1 MiB",
            "CONFIG SET",
        ),
    ],
)
def test_each_fact_has_its_finding(facts: RedisFacts, severity: str, check: str, told: str, advice: str) -> None:
    findings = judged(facts)
    matching = [f for f in findings if f.check == check and f.severity.word == severity and told in f.found]
    assert matching, findings
    assert advice in matching[0].advice
    assert worst(findings).word == severity, "nothing worse comes with it"


def test_an_eviction_policy_without_a_limit_does_no_harm_yet() -> None:
    severities = {f.check: f.severity for f in judged(server(maxmemory_policy="allkeys-lru", maxmemory=0))}
    assert severities["redis.eviction"] is Severity.WARNING


def test_what_the_bank_holds_already_needs_no_more_room() -> None:
    facts = server(maxmemory=56 * 2**20)
    assert judged(facts, BankFacts(masks=100, hot=4)) == []


def test_a_server_that_tells_nothing_of_itself_gets_no_judgement() -> None:
    assert judged(replace(HEALTHY, info={}, config={}, skew_s=None, may_script=None)) == []


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("spec", [BankSpec(), tiny.SPEC])
def test_sizes_are_those_of_the_code_that_stores_masks(spec: BankSpec, optimiser: str) -> None:
    network, rule = Network.build(spec), OPTIMISERS[optimiser]()
    trainer = EdgePopupTrainer(network, rule)
    hot = trainer.start(0)
    sizes = MaskSizes.of(spec, rule.moment_count)
    assert sizes.weights == network.weights.numel() * 4
    assert sizes.packed == trainer.pack(hot).nbytes
    assert sizes.hot == 4 * sum(vector.numel() for vector in (hot.scores, *hot.optimiser.moments))
    assert sizes.blob == len(codec.encode_mask(network, trainer.pack(hot)))
    assert sizes.stored > sizes.blob
    assert sizes.stored_hot == len(codec.encode_hot(network, rule, hot))


# -- the bank

KEY = "supsup:{b}:mask:0"
BANK = BankFacts(
    spec=SPEC.to_text() | {"fingerprint": "f" * 64},
    masks=3,
    lengths={KEY: SIZES.blob},
    hot=1,
    lease={"owner": "host:1", "epoch": "2", "since": "0", "commit": "2:500"},
)


def of_bank(bank: BankFacts, fingerprint: str = "f" * 64, **settings: object) -> list[Finding]:
    return list(check_bank(SETTINGS.model_copy(update=settings), SPEC, bank, SIZES, fingerprint))


def test_a_bank_that_does_not_exist_yet_is_only_noted() -> None:
    (finding,) = of_bank(BankFacts())
    assert (finding.severity, finding.check) == (Severity.NOTE, "bank.spec")


def test_of_a_sound_bank_the_lease_is_told_and_nothing_else() -> None:
    findings = of_bank(BANK)
    (lease,) = [f for f in findings if f.severity > Severity.OK]
    assert (lease.severity, lease.check) == (Severity.NOTE, "bank.lease")
    assert "epoch 2, owner host:1, since 1970-01-01 00:00:00 UTC" in lease.found
    assert {f.check for f in findings} == {"bank.spec", "bank.fingerprint", "bank.budget", "bank.lease"}


def test_every_field_in_which_a_bank_differs_is_named() -> None:
    other = replace(BANK, spec=replace(SPEC, classes=7, weight_seed=3).to_text())
    problems = [f for f in of_bank(other) if f.severity is Severity.PROBLEM]
    assert [f.check for f in problems] == ["bank.spec"]
    assert "weight_seed: 0, 3" in problems[0].found
    assert "classes: 10, 7" in problems[0].found


@pytest.mark.parametrize(
    ("bank", "severity", "check", "told"),
    [
        (replace(BANK, spec={"classes": "ten"}), "problem", "bank.spec", "the stored spec is damaged"),
        (replace(BANK, spec=BANK.spec | {"fingerprint": "0" * 64}), "problem", "bank.fingerprint", "ffffffffffff"),  # type: ignore[operator]
        (
            replace(BANK, lengths={KEY: 0}),
            "problem",
            "bank.masks",
            f"1 mask of 1 looked at missing or of the wrong size: {KEY}",
        ),
        (replace(BANK, masks=95), "note", "bank.budget", "95 of 100 masks, 1 hot: nearly full"),
        (replace(BANK, masks=100), "warning", "bank.budget", "full; batches of a new task go to the overflow topic"),
    ],
)
def test_what_is_wrong_with_a_bank_is_told(bank: BankFacts, severity: str, check: str, told: str) -> None:
    matching = [f for f in of_bank(bank) if f.check == check and f.severity.word == severity]
    assert matching
    assert told in matching[0].found
    assert worst(of_bank(bank)).word == severity


def test_a_full_bank_that_evicts_says_so() -> None:
    assert "the next task evicts one" in " ".join(
        f.found for f in of_bank(replace(BANK, masks=100), over_budget="evict")
    )


def test_without_regenerated_weights_no_fingerprint_is_judged() -> None:
    assert "bank.fingerprint" not in {f.check for f in of_bank(BANK, "")}
