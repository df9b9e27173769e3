"""`doctor` before real servers: sound ones, badly set ones, silent ones; and that it leaves no trace on any."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    NewTopic,
    ResourcePattern,
    ResourceType,
)
from redis import Redis

from apache_kafka import apache_kafka
from daemon.embedded import EmbeddedRedis
from daemon.errors import ExitCode
from daemon_process import SMALL, Ended, here, trainer
from servers import wait_until
from stage import Stage
from streams import labelled, publish

pytestmark = pytest.mark.integration

NETWORK = SMALL[:-1]  # without --threads: to a trainer in this process that would outlive the test
QUICK = (*SMALL, "--connect-timeout-s=5", "--no-measure", "--json")


def findings(ended: Ended, check: str = "") -> list[dict[str, Any]]:
    """What was found, all of it or by one check."""
    return [f for f in ended.json["findings"] if not check or f["check"] == check]


def told(ended: Ended, check: str, severity: str) -> str:
    """What was found by one check at this severity, advice included."""
    matching = [f for f in findings(ended, check) if f["severity"] == severity]
    assert matching, ended.stdout
    return " ".join(f"{f['found']} {f['advice']}" for f in matching)


# -- the embedded servers


def test_sound_servers_get_no_warning_and_exit_code_0(stage: Stage) -> None:
    arguments = stage.arguments(stage.new_bank(), stage.new_topic())
    ended = here("doctor", *arguments, *SMALL, "--json", "--rows=16", "--budget=20")
    assert ended.code == ExitCode.OK, ended.stdout
    assert ended.json["worst"] == "note"
    assert sum(ended.json["counts"].values()) == len(findings(ended))
    for check in (
        "kafka.reach",
        "redis.reach",
        "redis.persistence",
        "machine.step",
        "machine.decision",
        "topic.partitions",
    ):
        assert findings(ended, check)
    assert "a batch of 16 rows" in told(ended, "machine.step", "ok")
    assert "there is none yet" in told(ended, "bank.spec", "note")


def test_people_get_a_table_with_the_worst_first(stage: Stage) -> None:
    ended = here("doctor", *stage.arguments(stage.new_bank(), "missing"), *QUICK[:-1], "--no-create-topics")
    assert ended.code == ExitCode.PROBLEMS
    assert ended.stdout.index("problem") < ended.stdout.index("note") < ended.stdout.index("ok")
    assert ended.stderr == ""


def test_it_leaves_no_trace_on_the_servers(stage: Stage) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, [labelled(0, i) for i in range(3)])
    assert here("start", *stage.arguments(bank, topic), *NETWORK, "--burst").code == 0
    other = f"{topic}-never"
    before = traces(stage, bank)
    assert here("doctor", *stage.arguments(bank, topic, other), *QUICK).code == ExitCode.OK
    assert traces(stage, bank) == before


def traces(stage: Stage, bank: str) -> object:
    """Topics, groups and keys: what a client could have left behind."""
    admin = KafkaAdminClient(bootstrap_servers=stage.kafka)
    try:
        groups = sorted(group["group_id"] for group in admin.list_groups())
        topics = sorted(admin.list_topics())
    finally:
        admin.close()
    keys = {key: stage.redis.dump(key) for key in stage.redis.scan_iter(match=stage.key(bank, "*"))}
    return topics, groups, keys


def test_a_bank_is_recognised_and_its_position_held_against_the_log(stage: Stage) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, [labelled(0, i) for i in range(3)])
    arguments = stage.arguments(bank, topic)
    assert here("start", *arguments, *NETWORK, "--burst").code == 0
    publish(stage.kafka, topic, [labelled(0, i) for i in range(3, 7)])

    ended = here("doctor", *arguments, *SMALL, "--json", "--budget=10")
    assert "made with these settings" in told(ended, "bank.spec", "ok")
    assert "are those of the bank" in told(ended, "bank.fingerprint", "ok")
    assert "1 of 10 masks, 1 hot" in told(ended, "bank.budget", "ok")
    assert f"{topic}:0: 4 records behind" in told(ended, "topic.lag", "ok")
    assert "owner" in told(ended, "bank.lease", "note")


def test_another_spec_is_a_problem_and_each_field_is_named(stage: Stage) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    assert here("start", *stage.arguments(bank, topic), *NETWORK, "--burst").code == 0
    ended = here("doctor", *stage.arguments(bank, topic), *QUICK, "--seed=7", "--keep-fraction=0.3")
    assert ended.code == ExitCode.PROBLEMS
    assert "weight_seed: 7, 0; keep_fraction: 0.3, 0.5" in told(ended, "bank.spec", "problem")


def test_a_position_outside_the_log_and_a_lost_mask_are_problems(stage: Stage) -> None:
    topic, bank = stage.new_topic(), stage.new_bank()
    publish(stage.kafka, topic, [labelled(0, i) for i in range(3)])
    assert here("start", *stage.arguments(bank, topic), *NETWORK, "--burst").code == 0
    stage.redis.hset(stage.key(bank, f"progress:{topic}:0"), "offset", 99)
    stage.redis.delete(stage.key(bank, "mask:0"))
    ended = here("doctor", *stage.arguments(bank, topic), *QUICK)
    assert ended.code == ExitCode.PROBLEMS
    assert "the log ends at 3" in told(ended, "topic.position", "problem")
    assert stage.key(bank, "mask:0") in told(ended, "bank.masks", "problem")

    stage.redis.hset(stage.key(bank, f"progress:{topic}:0"), "log", "another")
    ended = here("doctor", *stage.arguments(bank, topic), *QUICK)
    assert "not the log this bank has read" in told(ended, "topic.position", "problem")


# -- servers that are away


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where somebody listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def closed() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.parametrize("where", ["closed", "silent"])
def test_it_works_and_ends_in_time_where_nothing_answers(where: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(where)
    begun = time.monotonic()
    servers = (f"--kafka=127.0.0.1:{port}", f"--redis=redis://me:secret@127.0.0.1:{port}/0", "--connect-timeout-s=1")
    ended = here("doctor", *servers, *NETWORK, "--no-measure", "--json")
    assert time.monotonic() - begun < 15
    assert ended.code == ExitCode.PROBLEMS
    assert f"127.0.0.1:{port}" in told(ended, "kafka.reach", "problem")
    assert f"127.0.0.1:{port}" in told(ended, "redis.reach", "problem")
    assert "machine.memory" in {f["check"] for f in findings(ended)}, "this machine is looked at all the same"
    assert "secret" not in ended.stdout + ended.stderr


def test_settings_that_cannot_be_used_end_as_they_do_for_a_trainer() -> None:
    for wrong in (("--arch=resnet",), ("--outputs=3", "--classes=4"), ("--device=", "--budget=none")):
        ended = here("doctor", *wrong, "--no-measure")
        assert ended.code == ExitCode.USAGE
        assert ended.stderr.startswith("error: ")


def test_a_device_that_is_not_there_is_a_problem(stage: Stage) -> None:
    ended = here("doctor", *stage.arguments(stage.new_bank(), "t"), *QUICK, "--device=cuda:9")
    assert "not usable here" in told(ended, "machine.device", "problem")


def test_for_embedded_servers_it_asks_whether_they_can_run(tmp_path: Path) -> None:
    ended = here("doctor", "--embedded", f"--state-dir={tmp_path}", *QUICK)
    assert ended.code == ExitCode.OK
    assert "brings its own broker and Redis" in told(ended, "embedded", "note")
    assert not findings(ended, "kafka.reach")
    assert list(tmp_path.iterdir()) == []


# -- a badly set Redis


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Redis]:
    """A server that a test may spoil."""
    with EmbeddedRedis(tmp_path) as server, Redis.from_url(server.url) as client:
        yield client


def examined(stage: Stage, client: Redis, *arguments: str, user: str = "") -> Ended:
    """The doctor before this Redis."""
    port = client.connection_pool.connection_kwargs["port"]
    return here(
        "doctor", f"--kafka={stage.kafka}", f"--redis=redis://{user}127.0.0.1:{port}/0", "--topic=t", *QUICK, *arguments
    )


def test_an_eviction_policy_and_too_little_memory_are_problems(stage: Stage, own_redis: Redis) -> None:
    own_redis.config_set("maxmemory-policy", "allkeys-lru")
    own_redis.config_set("maxmemory", "3mb")
    ended = examined(stage, own_redis)
    assert ended.code == ExitCode.PROBLEMS
    assert "allkeys-lru: when memory is short, masks are evicted without a word" in told(
        ended, "redis.eviction", "problem"
    )
    assert "maxmemory is 3 MiB: it does not fit" in told(ended, "redis.memory", "problem")

    advised = told(ended, "redis.memory", "problem").partition("CONFIG SET maxmemory ")[2].partition(" ")[0]
    own_redis.config_set("maxmemory", advised)
    own_redis.config_set("maxmemory-policy", "noeviction")
    assert examined(stage, own_redis).code == ExitCode.OK, "the advice helps"


def test_a_redis_that_writes_nothing_to_disk_is_a_problem(stage: Stage, own_redis: Redis) -> None:
    own_redis.config_set("appendonly", "no")
    assert "loses the whole bank" in told(examined(stage, own_redis), "redis.persistence", "problem")
    own_redis.config_set("save", "3600 1")
    ended = examined(stage, own_redis)
    assert ended.code == ExitCode.WARNINGS
    assert "a crash loses minutes" in told(ended, "redis.persistence", "warning")
    assert examined(stage, own_redis, "--fail-on=problem").code == ExitCode.OK


def test_a_replica_is_a_problem_that_names_its_master(stage: Stage, own_redis: Redis) -> None:
    host, port = stage.redis_url.removeprefix("redis://").partition("/")[0].split(":")
    own_redis.replicaof(host, port)
    assert f"use its master, redis://{host}:{port}" in told(examined(stage, own_redis), "redis.role", "problem")
    own_redis.replicaof("no", "one")


def test_what_a_user_may_not_ask_is_noted_and_the_rest_looked_at(stage: Stage, own_redis: Redis) -> None:
    own_redis.acl_setuser(
        "few", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-info", "-config", "-time"]
    )
    ended = examined(stage, own_redis, user="few:pw@")
    assert ended.code == ExitCode.OK
    assert "its settings (CONFIG GET)" in told(ended, "redis.told", "note")
    assert "INFO" in told(ended, "redis.told", "note")
    assert "there is none yet" in told(ended, "bank.spec", "note")


def test_a_user_who_may_not_run_scripts_cannot_commit(stage: Stage, own_redis: Redis) -> None:
    own_redis.acl_setuser("few", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-@scripting"])
    assert "nothing can be committed" in told(examined(stage, own_redis, user="few:pw@"), "redis.rights", "problem")


def test_wrong_credentials_are_called_so(stage: Stage, own_redis: Redis) -> None:
    ended = examined(stage, own_redis, user="nobody:wrong@")
    assert "refuses the login of user 'nobody'" in told(ended, "redis.reach", "problem")
    assert "wrong" not in ended.stdout.replace("WRONGPASS", "")


# -- Apache Kafka


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A node that creates topics with three partitions for whoever asks."""
    with apache_kafka(tmp_path_factory.mktemp("apache"), num__partitions="3") as address:
        yield address


@pytest.fixture
def admin(apache: str) -> Iterator[KafkaAdminClient]:
    """An admin client of it."""
    client = KafkaAdminClient(bootstrap_servers=apache)
    yield client
    client.close()


def before_apache(stage: Stage, apache: str, topic: str, *arguments: str) -> Ended:
    """The doctor before this Kafka, and the bank of the topic's name."""
    return here(
        "doctor",
        f"--kafka={apache}",
        f"--redis={stage.redis_url}",
        f"--topic={topic}",
        f"--bank={topic}",
        *QUICK,
        *arguments,
    )


def test_topic_settings_that_lose_records_are_told(stage: Stage, apache: str, admin: KafkaAdminClient) -> None:
    small = {"retention.ms": "60000", "max.message.bytes": "2000", "cleanup.policy": "compact,delete"}
    admin.create_topics([NewTopic("bad", 2, 1, topic_configs=small)])
    ended = before_apache(stage, apache, "bad")
    assert ended.code == ExitCode.PROBLEMS
    assert "kept for 1 min" in told(ended, "topic.retention", "problem")
    assert "takes records up to 1.953 KiB" in told(ended, "topic.message-size", "warning")
    assert "cleanup.policy is compact,delete" in told(ended, "topic.compaction", "problem")
    assert "2 partitions" in told(ended, "topic.partitions", "note")

    good = {"retention.ms": "604800000", "max.message.bytes": "16777216", "cleanup.policy": "delete"}
    admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "bad", good)])
    wait_until(lambda: before_apache(stage, apache, "bad").code == ExitCode.OK, "the advice never helped")


def test_a_topic_that_a_producer_would_create_is_a_warning(stage: Stage, apache: str) -> None:
    assert "with 3 partitions" in told(before_apache(stage, apache, "absent"), "topic.partitions", "warning")


def test_a_session_timeout_that_the_broker_refuses_is_a_problem(stage: Stage, apache: str) -> None:
    ended = before_apache(stage, apache, "absent", "--session-timeout-s=3")
    assert "the broker takes 6 s to 30 min" in told(ended, "group.session", "problem")


def test_nothing_is_left_on_an_apache_kafka(stage: Stage, tmp_path: Path) -> None:
    with apache_kafka(tmp_path) as address:
        assert before_apache(stage, address, "never").code == ExitCode.OK
        client = KafkaAdminClient(bootstrap_servers=address)
        assert (client.list_topics(), client.list_groups()) == ([], []), "not even the topic for groups"
        client.close()


def test_rights_that_are_missing_on_topics_are_problems(stage: Stage, tmp_path: Path) -> None:
    authorizer = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
    with apache_kafka(
        tmp_path, authorizer__class__name=authorizer, allow__everyone__if__no__acl__found="true"
    ) as address:
        client = KafkaAdminClient(bootstrap_servers=address)
        client.create_topics([NewTopic("t", 1, 1)])
        cluster = ResourcePattern(ResourceType.CLUSTER, "kafka-cluster")
        client.create_acls(
            [
                *(
                    ACL(
                        "User:*",
                        "*",
                        ACLOperation.DESCRIBE,
                        ACLPermissionType.ALLOW,
                        ResourcePattern(ResourceType.TOPIC, name),
                    )
                    for name in ("t", "t.dlq")
                ),
                ACL("User:*", "*", ACLOperation.CREATE, ACLPermissionType.DENY, cluster),
            ]
        )
        client.close()
        wait_until(lambda: "READ" in str(before_apache(stage, address, "t").json), "the rights never counted")
        ended = before_apache(stage, address, "t")
    assert ended.code == ExitCode.PROBLEMS
    assert "t: this user lacks READ" in told(ended, "topic.rights", "problem")
    assert "this user may not create: t.dlq" in told(ended, "topic.exists", "problem")
    assert "DESCRIBE_CONFIGS may be denied" in told(ended, "kafka.told", "note")


def test_lost_ground_and_a_late_position_are_told(stage: Stage, apache: str, admin: KafkaAdminClient) -> None:
    topic = stage.new_bank()
    admin.create_topics([NewTopic(topic, 1, 1, topic_configs={"retention.ms": "172800000"})])
    old_ms = int((time.time() - 30 * 3600) * 1000)
    producer = KafkaProducer(bootstrap_servers=apache)
    for _ in range(6):
        producer.send(topic, b"{}", timestamp_ms=old_ms, partition=0).get(10)
    producer.close()
    key = stage.key(topic, f"progress:{topic}:0")
    for offset, check, severity, text in (
        (6, "topic.lag", "ok", "0 records behind"),
        (2, "topic.lag", "warning", "4 records behind, the oldest for more than half of the 2 days"),
    ):
        stage.redis.hset(key, "offset", offset)
        assert text in told(before_apache(stage, apache, topic), check, severity)
    admin.delete_records({TopicPartition(topic, 0): 5})
    ended = before_apache(stage, apache, topic)
    assert "the log now starts at 5: retention has removed 3 records" in told(ended, "topic.position", "problem")


def test_a_stranger_in_the_group_is_a_problem(stage: Stage, apache: str, admin: KafkaAdminClient) -> None:
    admin.create_topics([NewTopic("mine", 1, 1), NewTopic("other", 1, 1)])
    consumer = KafkaConsumer("other", bootstrap_servers=apache, group_id="supsup-mine", client_id="stranger")
    try:
        wait_until(lambda: bool(consumer.poll(100) or consumer.assignment()), "it never joined", timeout_s=30)
        ended = before_apache(stage, apache, "mine")
        assert "stranger at 127.0.0.1 reads other" in told(ended, "group.members", "problem")
    finally:
        consumer.close()


def test_a_running_trainer_is_seen_in_its_group(stage: Stage, apache: str, tmp_path: Path) -> None:
    bank = stage.new_bank()
    arguments = (f"--kafka={apache}", f"--redis={stage.redis_url}", f"--topic={bank}", f"--bank={bank}", *SMALL)
    with trainer(*arguments, directory=tmp_path) as process:
        process.wait_for("partition.assigned")
        ended = before_apache(stage, apache, bank)
        assert ended.code == ExitCode.OK, ended.stdout
        assert "1 member (Stable)" in told(ended, "group.members", "note")
        assert str(process.pid) in told(ended, "bank.lease", "note")


def test_brokers_that_advertise_an_address_nobody_has_are_a_problem(stage: Stage, tmp_path: Path, closed: int) -> None:
    with apache_kafka(tmp_path, advertised__listeners=f"PLAINTEXT://127.0.0.1:{closed}") as address:
        ended = before_apache(stage, address, "t")
    assert "advertised.listeners" in told(ended, "kafka.reach", "problem")
