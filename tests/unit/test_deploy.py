"""What is deployed: image, compose file and Procfile hold together and speak of settings that exist."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from daemon import http, serving_app, settings
from daemon.cli import cli

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
DAEMONS = {name: service for name, service in SERVICES.items() if "build" in service}
TRAINERS = [name for name, service in DAEMONS.items() if service["command"] == ["start"]]
REPLICAS = [name for name, service in DAEMONS.items() if service["command"] == ["serve"]]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines() if line)
FULL_VERSION = re.compile(r"[\w./-]+:\d+\.\d+\.\d+(-[\w.-]+)?(@sha256:[0-9a-f]{64})?")
ROOM_FOR_HEADERS = 2**20
KNOWN = {settings.variable(name) for name in settings.NAMES} | settings.OTHER_VARIABLES


def instructions():
    """The Dockerfile as (instruction, rest of the line), comments dropped and continued lines joined."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def last(instruction):
    return [rest for name, rest in instructions() if name == instruction][-1]


def settings_of(service):
    """The settings a service's environment gives, checked as the daemon checks them."""
    given = {name: str(value) for name, value in service.get("environment", {}).items()}
    settings.check_environment(given)
    values = {name.removeprefix(settings.PREFIX).lower(): value for name, value in given.items()}
    return settings.parse(values, {})


def accepts(arguments):
    """Whether the command line takes these arguments, up to the point where it would run."""
    return CliRunner().invoke(cli, [*arguments, "--help"]).exit_code == 0


def listeners(name):
    """Listener -> host:port of the compose file's broker."""
    environment = SERVICES["kafka"]["environment"]
    return dict(part.split("://") for part in environment[name].split(","))


def test_the_check_of_commands_would_notice_a_wrong_one():
    assert accepts(["start"])
    assert not accepts(["start", "--kafak", "x"])
    assert not accepts(["begin"])


@pytest.mark.parametrize("path", ["deploy/compose.yaml", "deploy/Dockerfile", "Procfile"])
def test_every_variable_is_a_setting(path):
    named = set(re.findall(r"\bSUPSUP_\w+", (ROOT / path).read_text()))
    assert named <= KNOWN


@pytest.mark.parametrize("process", PROCFILE)
def test_a_procfile_line_is_a_command_that_exists(process):
    program, *arguments = shlex.split(PROCFILE[process])
    assert program in SCRIPTS
    assert accepts(arguments)


def test_every_image_is_pinned_to_a_full_version():
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    images = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert [image for image in bases + images if not FULL_VERSION.fullmatch(image)] == []
    assert len(set(bases)) == 1, "built and run on the same base"


def test_the_image_runs_the_daemon_as_a_user_without_rights_and_hears_sigterm():
    entrypoint, command = json.loads(last("ENTRYPOINT")), json.loads(last("CMD"))
    assert entrypoint[0] in SCRIPTS
    assert accepts([*entrypoint[1:], *command])
    assert int(last("USER").split(":")[0]) >= 1000
    assert last("STOPSIGNAL") == "SIGTERM"


def test_the_image_is_built_from_files_that_exist_and_that_reach_the_builder():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert {source for source in copied if not (ROOT / source).exists()} == set()


def test_the_image_takes_its_versions_from_the_constraints():
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert [rest for rest in installs if "-c constraints.txt" not in rest and "--no-deps" not in rest] == []


def test_a_service_waits_for_services_that_exist_and_can_become_healthy():
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert dependency["condition"] == "service_healthy"
            assert SERVICES[name]["healthcheck"]["test"]


def test_every_named_volume_is_declared_and_used():
    mounted = {mount.split(":")[0] for service in SERVICES.values() for mount in service.get("volumes", ())}
    assert mounted == COMPOSE["volumes"].keys()


def test_servers_without_a_password_are_published_to_this_machine_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_daemon_is_a_trainer_or_a_replica():
    assert sorted(TRAINERS + REPLICAS) == sorted(DAEMONS)
    assert TRAINERS
    assert REPLICAS


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemons_settings_are_valid_and_name_the_redis_it_waits_for(name):
    service = DAEMONS[name]
    given = settings_of(service)
    assert given.bank_spec()
    assert accepts(service["command"])
    assert given.redis.startswith("redis://redis:6379/")
    assert "redis" in service["depends_on"]


@pytest.mark.parametrize("name", TRAINERS)
def test_a_trainer_names_the_broker_it_waits_for(name):
    assert settings_of(DAEMONS[name]).kafka == (listeners("KAFKA_ADVERTISED_LISTENERS")["INSIDE"],)
    assert "kafka" in DAEMONS[name]["depends_on"]


def test_a_replica_follows_the_bank_that_the_trainer_writes():
    assert len({settings_of(service).bank for service in DAEMONS.values()}) == 1


@pytest.mark.parametrize("name", DAEMONS)
def test_a_healthcheck_asks_an_address_that_the_daemon_answers(name):
    test = DAEMONS[name]["healthcheck"]["test"]
    assert test[:3] == ["CMD", "python", "-c"]
    compile(test[3], "healthcheck", "exec")
    given = settings_of(DAEMONS[name])
    if name in TRAINERS:
        assert f"'http://{given.http_host}:{given.http_port}/readyz'" in test[3]
    else:
        path = "/v2/health/live"  # ready would be wrong: a replica without a mask is not
        assert path in serving_app.OPEN, "asked without the token"
        assert f"'http://127.0.0.1:{given.serve_port}{path}'" in test[3]


@pytest.mark.parametrize("name", REPLICAS)
def test_a_replica_is_published_at_its_port_and_starts_without_a_variable_of_the_reader(name):
    given, environment = settings_of(DAEMONS[name]), DAEMONS[name]["environment"]
    assert DAEMONS[name]["ports"] == [f"127.0.0.1:8080:{given.serve_port}"]
    token = re.fullmatch(r"\$\{SUPSUP_HTTP_TOKEN:-(.+)\}", environment["SUPSUP_HTTP_TOKEN"])[1]
    http.require_token(given.serve_host, http.token_of(settings.parse({"http_token": token}, {})), "serve_host")


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_can_gain_no_rights(name):
    assert DAEMONS[name]["cap_drop"] == ["ALL"]
    assert DAEMONS[name]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", DAEMONS)
def test_a_daemon_is_built_from_the_dockerfile_of_this_directory(name):
    build = DAEMONS[name]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert (context / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    arguments = {rest.split("=")[0] for instruction, rest in instructions() if instruction == "ARG"}
    assert build.get("args", {}).keys() <= arguments


@pytest.mark.parametrize("name", TRAINERS)
def test_the_broker_takes_the_largest_record_with_the_headers_of_the_dead_letter_topic(name):
    largest = settings_of(DAEMONS[name]).max_record_bytes
    assert int(SERVICES["kafka"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"]) >= largest + ROOM_FOR_HEADERS


def test_every_listener_of_the_broker_has_a_protocol_and_the_published_one_is_the_default_address():
    protocols = SERVICES["kafka"]["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"]
    names = {pair.split(":")[0] for pair in protocols.split(",")}
    assert listeners("KAFKA_LISTENERS").keys() == names
    assert listeners("KAFKA_ADVERTISED_LISTENERS").keys() == names - {"CONTROLLER"}
    outside = listeners("KAFKA_ADVERTISED_LISTENERS")["OUTSIDE"]
    assert settings.parse({}, {}).kafka == (outside,)
    assert SERVICES["kafka"]["ports"] == [f"127.0.0.1:9092:{outside.split(':')[1]}"]


def test_redis_keeps_every_write_and_evicts_nothing():
    command = SERVICES["redis"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert [mount.split(":")[1] for mount in SERVICES["redis"]["volumes"]] == ["/data"]
    assert settings.parse({}, {}).redis == "redis://127.0.0.1:6379/0"
