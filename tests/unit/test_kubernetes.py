"""The manifests for Kubernetes are valid, hold together, and speak of settings, addresses and metrics that exist."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import jsonschema
import kubernetes_validate
import promql_parser
import pytest
import yaml
from click.testing import CliRunner

from daemon import http, metrics, serve, serving_app, settings
from daemon.cli import cli
from daemon.health import Health
from daemon.metrics import TrainerMetrics
from daemon.systemd import Notifier
from daemon.telemetry import Telemetry
from supsup_online import __version__

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
FOLDER = DEPLOY / "kubernetes"
MONITORING = FOLDER / "monitoring"  # read by other programs, hence no manifests
SECRETS = "/etc/supsup/"
# The oldest release whose rules these manifests are held against, and the newest that the package knew.
RELEASES = ("1.30", "1.37")

KUSTOMIZATION = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
COMPONENT = yaml.safe_load((FOLDER / "keda" / "kustomization.yaml").read_text())
MANIFESTS = [
    manifest for name in KUSTOMIZATION["resources"] for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
SCALED = yaml.safe_load((FOLDER / "keda" / "scaledobject.yaml").read_text())
SCALED_SCHEMA = json.loads(Path(__file__).with_name("scaledobject.schema.json").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def of_kind(kind):
    return {manifest["metadata"]["name"]: manifest for manifest in MANIFESTS if manifest["kind"] == kind}


def called(manifest):
    return f"{manifest['kind']}-{manifest['metadata']['name']}"


DEPLOYMENTS = of_kind("Deployment")
every_deployment = pytest.mark.parametrize("name", DEPLOYMENTS)
every_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=called)


def pod(name):
    return DEPLOYMENTS[name]["spec"]["template"]["spec"]


def container(name):
    (only,) = pod(name)["containers"]
    return only


def labels(name):
    return DEPLOYMENTS[name]["spec"]["template"]["metadata"]["labels"]


def environment(name):
    """What a container's environment is, its maps first, as the kubelet puts it together."""
    given = {}
    for source in container(name)["envFrom"]:
        given |= of_kind("ConfigMap")[source["configMapRef"]["name"]]["data"]
    return given | {variable["name"]: variable["value"] for variable in container(name)["env"]}


def settings_of(name):
    """What the daemon makes of its environment; secrets, which it reads, lie in a folder of this machine."""
    given = environment(name)
    settings.check_environment(given)
    own = {key: value for key, value in given.items() if key.startswith(settings.PREFIX)}
    values = {key.removeprefix(settings.PREFIX).lower(): value for key, value in own.items()}
    with TemporaryDirectory() as folder:
        for key, value in values.items():
            if value.startswith(SECRETS):
                Path(folder, Path(value).name).write_text("word\n")
                values[key] = value.replace(SECRETS, f"{folder}/")
        return settings.parse(values, {})


def trainer():
    return next(name for name in DEPLOYMENTS if container(name)["args"] == ["start"])


def replica():
    return next(name for name in DEPLOYMENTS if container(name)["args"] == ["serve"])


def ports(name):
    return {port["name"]: port["containerPort"] for port in container(name)["ports"]}


def deployments_with(selector):
    return [name for name in DEPLOYMENTS if selector and selector.items() <= labels(name).items()]


def probes(name):
    return {key: value for key, value in container(name).items() if key.endswith("Probe")}


def run_probe(command, **variables):
    """The exit code of an exec probe, run here."""
    return subprocess.run([sys.executable, *command[1:]], env=os.environ | variables, check=False).returncode


# -- schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", RELEASES)
@every_manifest
def test_a_manifest_fits_the_schema_of_its_kind_and_has_no_other_field(manifest, release):
    assert kubernetes_validate.validate(manifest, release, strict=True) == release


def test_the_scaled_object_fits_its_schema():
    jsonschema.Draft202012Validator.check_schema(SCALED_SCHEMA)
    jsonschema.validate(SCALED, SCALED_SCHEMA, jsonschema.Draft202012Validator)


# -- kustomize ---------------------------------------------------------------------------------------------------------


def test_the_kustomizations_name_every_file_and_no_other():
    for folder, kustomization in ((FOLDER, KUSTOMIZATION), (FOLDER / "keda", COMPONENT)):
        there = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert sorted(kustomization["resources"]) == sorted(there)
    folders = {path.name for path in FOLDER.iterdir() if path.is_dir()}
    assert folders == {"keda", MONITORING.name}


def test_keda_is_offered_and_not_asked_for():
    text = (FOLDER / "kustomization.yaml").read_text()
    assert "components" not in KUSTOMIZATION
    assert yaml.safe_load(text.replace("#components:\n#  - keda", "components:\n  - keda"))["components"] == ["keda"]


def test_every_name_is_given_once_per_kind():
    names = [called(manifest) for manifest in MANIFESTS]
    assert sorted(names) == sorted(set(names))


def test_everything_is_in_the_namespace_that_is_made():
    assert list(of_kind("Namespace")) == [KUSTOMIZATION["namespace"]]
    assert [called(manifest) for manifest in MANIFESTS if "namespace" in manifest["metadata"]] == []


def test_the_namespace_enforces_what_the_pods_keep_to():
    (namespace,) = of_kind("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def test_the_image_is_the_one_that_is_built_at_the_version_of_the_package():
    built = {service["image"] for service in COMPOSE["services"].values() if "build" in service}
    (image,) = KUSTOMIZATION["images"]
    assert {container(name)["image"] for name in DEPLOYMENTS} == {image["name"]} == built
    assert image["newTag"] == __version__


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, which builds without a cluster")
@pytest.mark.parametrize("with_keda", [False, True])
def test_kubectl_builds_it_and_the_number_of_trainers_is_kedas_where_there_is_keda(tmp_path, with_keda):
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    if with_keda:
        with (tmp_path / "kubernetes" / "kustomization.yaml").open("a") as file:
            file.write("components: [keda]\n")
    command = ["kubectl", "kustomize", tmp_path / "kubernetes"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    built = {called(manifest): manifest for manifest in yaml.safe_load_all(text)}
    assert len(built) == len(MANIFESTS) + with_keda
    assert ("replicas" in built[f"Deployment-{trainer()}"]["spec"]) == (not with_keda)


# -- settings and secrets ----------------------------------------------------------------------------------------------


@every_deployment
def test_the_settings_are_valid_and_the_command_exists(name):
    given = settings_of(name)
    assert given.bank_spec()
    assert CliRunner().invoke(cli, [*container(name)["args"], "--help"]).exit_code == 0


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.*")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_variable_in_a_file_its_comments_too_is_a_setting(path):
    named = set(re.findall(r"\bSUPSUP_\w*[A-Z]\b", path.read_text()))
    service_links = {"SUPSUP_REPLICA_SERVICE_HOST"}  # what the comment warns of
    assert named - service_links <= {settings.variable(name) for name in settings.NAMES} | settings.OTHER_VARIABLES


@every_deployment
def test_the_variables_of_services_which_the_daemon_refuses_are_not_set(name):
    assert pod(name)["enableServiceLinks"] is False
    for service in of_kind("Service"):
        link = f"{service.upper().replace('-', '_')}_SERVICE_HOST"
        assert settings.unknown_variables({link: "10.0.0.1"})


def test_trainer_and_replicas_are_of_one_bank_and_one_redis_with_a_user_each():
    first, second = settings_of(trainer()), settings_of(replica())
    assert (first.bank, first.redis) == (second.bank, second.redis)
    users = {first.redis_user, second.redis_user}
    documented = re.findall(r"ACL SETUSER (supsup-\S+) ", (ROOT / "docs/reference/security.md").read_text())
    assert users == set(documented)


def test_no_secret_is_written_down():
    secret = {settings.variable(name) for name in settings.NAMES if settings.is_secret(name)}
    assert of_kind("Secret") == {}
    assert [name for name in DEPLOYMENTS if secret & environment(name).keys()] == []
    assert [name for name in DEPLOYMENTS if "@" in environment(name)["SUPSUP_REDIS"]] == []


@every_deployment
def test_the_files_of_secrets_lie_in_a_secret_that_the_readme_makes(name):
    readme = (FOLDER / "README.md").read_text()
    mounts = {mount["mountPath"]: mount["name"] for mount in container(name)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    files = [Path(value) for key, value in environment(name).items() if key.endswith("_FILE") and "/etc/" in value]
    assert files
    for file in files:
        secret = volumes[mounts[str(file.parent)]]["secret"]["secretName"]
        (command,) = re.findall(rf"create secret generic {secret} .*", readme)
        assert f"--from-file={file.name}=" in command


@every_deployment
def test_an_address_that_others_reach_has_a_token(name):
    given = settings_of(name)
    host = given.serve_host if name == replica() else given.http_host
    with pytest.raises(Exception, match="needs a token"):
        http.require_token(host, "")
    assert given.http_token_file is not None


# -- rights ------------------------------------------------------------------------------------------------------------


@every_deployment
def test_a_pod_keeps_to_the_restricted_profile_as_the_images_user(name):
    rights, own = pod(name)["securityContext"], container(name)["securityContext"]
    (user,) = re.findall(r"^USER (\d+):(\d+)$", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert (rights["runAsUser"], rights["runAsGroup"]) == tuple(map(int, user))
    assert rights["runAsNonRoot"] is True
    assert rights["runAsUser"] > 0
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "serviceAccountName"} & pod(name).keys()
    assert not any("hostPort" in port for port in container(name)["ports"])
    assert {next(key for key in volume if key != "name") for volume in pod(name)["volumes"]} == {"emptyDir", "secret"}


@every_deployment
def test_a_pod_gets_no_token_of_the_api_server(name):
    assert pod(name)["automountServiceAccountToken"] is False


@every_deployment
def test_secrets_can_be_read_by_the_pods_group_and_by_nobody_else(name):
    (secret,) = [volume["secret"] for volume in pod(name)["volumes"] if "secret" in volume]
    assert secret["defaultMode"] == 0o440
    assert pod(name)["securityContext"]["fsGroup"] == pod(name)["securityContext"]["runAsGroup"]


@every_deployment
def test_what_is_written_lies_in_the_one_place_that_can_be_written(name):
    volumes = {volume["name"]: volume for volume in pod(name)["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container(name)["volumeMounts"]}
    (writable,) = [path for path, volume in mounts.items() if "emptyDir" in volume]
    assert len(volumes) == len(mounts)
    variables = {"NUMBA_CACHE_DIR", "SUPSUP_ALIVE_FILE"} & environment(name).keys()
    assert "NUMBA_CACHE_DIR" in variables
    assert [variable for variable in variables if not environment(name)[variable].startswith(f"{writable}/")] == []


@every_deployment
def test_memory_is_limited_to_what_is_asked_for_and_the_cpu_is_asked_for(name):
    resources = container(name)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert resources["requests"].keys() == {"cpu", "memory"}


# -- who finds whom ----------------------------------------------------------------------------------------------------


@every_deployment
def test_a_selector_matches_the_labels_of_its_own_pods_and_of_no_others(name):
    selector = DEPLOYMENTS[name]["spec"]["selector"]["matchLabels"]
    assert deployments_with(selector) == [name]
    spread = [constraint["labelSelector"]["matchLabels"] for constraint in pod(name)["topologySpreadConstraints"]]
    assert spread
    assert [deployments_with(found) for found in spread if deployments_with(found) != [name]] == []


def test_the_service_leads_to_the_replicas_at_a_port_they_have():
    for service in of_kind("Service").values():
        assert deployments_with(service["spec"]["selector"]) == [replica()]
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
        assert [port["port"] for port in service["spec"]["ports"]] == [ports(replica())["http"]]


@pytest.mark.parametrize("kind", ["PodDisruptionBudget", "NetworkPolicy"])
def test_each_deployment_has_one_of_a_kind_by_its_own_name(kind):
    key = {"PodDisruptionBudget": "selector", "NetworkPolicy": "podSelector"}[kind]
    found = {name: deployments_with(policy["spec"][key]["matchLabels"]) for name, policy in of_kind(kind).items()}
    assert found == {name: [name] for name in DEPLOYMENTS}


def test_a_disruption_leaves_somebody_and_holds_nobody_up():
    for budget in of_kind("PodDisruptionBudget").values():
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@every_deployment
def test_the_network_lets_in_at_the_ports_there_are_and_out_to_the_servers_in_use(name):
    policy = of_kind("NetworkPolicy")[name]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} == ports(name).keys()
    out = {(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]}
    given = settings_of(name)
    needed = {("UDP", 53), ("TCP", 53), ("TCP", int(re.search(r":(\d+)/", given.redis)[1]))}
    if name == trainer():
        needed |= {("TCP", int(server.rpartition(":")[2])) for server in given.kafka}
    assert out == needed


def test_the_ports_are_those_the_daemon_listens_on():
    assert ports(trainer()) == {"metrics": settings_of(trainer()).http_port}
    assert ports(replica()) == {"http": settings_of(replica()).serve_port}


# -- life --------------------------------------------------------------------------------------------------------------


@every_deployment
def test_each_probe_is_there(name):
    assert probes(name).keys() == {"startupProbe", "livenessProbe", "readinessProbe"}


def test_the_probes_of_a_replica_ask_addresses_that_are_open_to_all():
    asked = {key: probe["httpGet"]["path"] for key, probe in probes(replica()).items()}
    assert set(asked.values()) <= serving_app.OPEN
    assert asked["readinessProbe"] == "/v2/health/ready"
    assert asked["livenessProbe"] == asked["startupProbe"] == "/v2/health/live", "no bank, and no reason to restart"
    assert {probe["httpGet"]["port"] for probe in probes(replica()).values()} <= ports(replica()).keys()


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_a_trainer_is_alive_and_ready_while_its_file_is_young(probe, tmp_path):
    command = probes(trainer())[probe]["exec"]["command"]
    file = environment(trainer())["SUPSUP_ALIVE_FILE"]
    assert file in command[-1]
    alive = tmp_path / "alive"
    here = [*command[:-1], command[-1].replace(file, str(alive))]
    assert run_probe(here) == 1
    alive.touch()
    assert run_probe(here) == 0
    os.utime(alive, (0, 0))
    assert run_probe(here) == 1


def test_starting_is_over_when_a_trainer_has_its_role(tmp_path):
    command = probes(trainer())["startupProbe"]["exec"]["command"]
    (tmp_path / "token").write_text("word\n")
    telemetry = Telemetry(Health(30.0), TrainerMetrics(), Notifier.from_environment())
    with http.trainer_server(telemetry, host="127.0.0.1", port=0, token="word") as server:  # noqa: S106
        given = {"SUPSUP_HTTP_PORT": str(server.port), "SUPSUP_HTTP_TOKEN_FILE": str(tmp_path / "token")}
        assert run_probe(command, **given) == 1, "starting"
        for role in ("standby", "leader"):
            telemetry.started(role)
            assert run_probe(command, **given) == 0
        (tmp_path / "token").write_text("another")
        assert run_probe(command, **given) == 1
    assert {"SUPSUP_HTTP_PORT", "SUPSUP_HTTP_TOKEN_FILE"} <= environment(trainer()).keys()


@every_deployment
def test_a_pod_may_end_as_slowly_as_its_settings_allow(name):
    given = settings_of(name)
    if name == trainer():
        longest = given.stop_deadline_s
    else:
        assert given.drain_s > 0
        longest = given.drain_s + serve._CONNECTIONS.end_s + given.request_timeout_s
    assert pod(name)["terminationGracePeriodSeconds"] > longest


def test_there_are_a_leader_and_a_standby_and_a_rollout_takes_neither_away():
    spec = DEPLOYMENTS[trainer()]["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


# -- scaling -----------------------------------------------------------------------------------------------------------


def test_the_autoscaler_scales_the_replicas_by_metrics_that_exist():
    (scaler,) = of_kind("HorizontalPodAutoscaler").values()
    target = scaler["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", replica())
    assert "replicas" not in DEPLOYMENTS[replica()]["spec"], "each apply would undo what the autoscaler did"
    asked = [metric for metric in scaler["spec"]["metrics"] if metric["type"] == "Pods"]
    kinds = {metric.name: metric.kind for metric in metrics.SERVING}
    assert [kinds[metric["pods"]["metric"]["name"]] for metric in asked] == ["gauge"]
    given = settings_of(replica())
    assert given.batch_rows < int(asked[0]["pods"]["target"]["averageValue"]) < given.queue_rows
    (share,) = [metric["resource"] for metric in scaler["spec"]["metrics"] if metric["type"] == "Resource"]
    assert share["name"] in container(replica())["resources"]["requests"], "a share of nothing"


def test_the_adapter_makes_the_metric_that_the_autoscaler_asks_for():
    (scaler,) = of_kind("HorizontalPodAutoscaler").values()
    wanted = {metric["pods"]["metric"]["name"] for metric in scaler["spec"]["metrics"] if "pods" in metric}
    rules = yaml.safe_load((MONITORING / "adapter.yaml").read_text())["rules"]["custom"]
    series = [promql_parser.parse(rule["seriesQuery"]) for rule in rules]
    assert {selector.name for selector in series} == wanted
    for rule, selector in zip(rules, series, strict=True):
        assert {"namespace", "pod"} == rule["resources"]["overrides"].keys()
        query = rule["metricsQuery"].replace("<<.Series>>", selector.name)
        promql_parser.parse(query.replace("<<.LabelMatchers>>", 'pod="x"').replace("<<.GroupBy>>", "pod"))


def test_prometheus_reads_the_ports_there_are_and_sets_the_labels_that_the_adapter_wants():
    (job,) = yaml.safe_load((MONITORING / "scrape.yaml").read_text())
    relabelled = job["relabel_configs"]
    kept = {rule["source_labels"][0]: rule["regex"] for rule in relabelled if rule.get("action") == "keep"}
    assert set(kept["__meta_kubernetes_pod_container_port_name"].split("|")) == {
        port for name in DEPLOYMENTS for port in ports(name)
    }
    assert {labels(name)["app.kubernetes.io/name"] for name in DEPLOYMENTS} == {
        kept["__meta_kubernetes_pod_label_app_kubernetes_io_name"]
    }
    assert {rule["target_label"] for rule in relabelled if "target_label" in rule} == {"namespace", "pod"}
    assert job["kubernetes_sd_configs"][0]["namespaces"]["names"] == [KUSTOMIZATION["namespace"]]


def test_keda_starts_one_trainer_by_the_lag_of_its_own_group():
    spec = SCALED["spec"]
    target = spec["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"], target["name"]) == ("apps/v1", "Deployment", trainer())
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (0, 1), "one writes; more do not train faster"
    given = settings_of(trainer())
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["bootstrapServers"].split(",") == list(given.kafka)
    assert (trigger["metadata"]["topic"],) == given.topic
    assert trigger["metadata"]["consumerGroup"] == (given.group or f"supsup-{given.bank}")


def test_kedas_patch_takes_the_number_of_trainers_away():
    (patch,) = COMPONENT["patches"]
    assert patch["target"] == {"kind": "Deployment", "name": trainer()}
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]
    assert "replicas" in DEPLOYMENTS[trainer()]["spec"]


def test_the_alerts_that_comments_and_readme_name_exist():
    rules = yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    named = {name for path in FOLDER.rglob("*.*") for name in re.findall(r"\bSupsup[A-Z]\w+", path.read_text())}
    assert named
    assert named <= alerts


# -- the readme --------------------------------------------------------------------------------------------------------


def test_the_readme_names_every_file_and_leads_nowhere_else():
    text = (FOLDER / "README.md").read_text()
    rows = set(re.findall(r"^\| `([\w./]+)` \|", text, flags=re.MULTILINE))
    assert rows == {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*.yaml")}
    links = re.findall(r"\]\((?!\w+:)([^)#]+)", text)
    assert [link for link in links if not (FOLDER / link).exists()] == []


def test_the_readme_says_which_releases_the_manifests_were_held_against():
    assert [release for release in RELEASES if release not in (FOLDER / "README.md").read_text()] == []
