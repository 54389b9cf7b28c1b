"""The Helm chart: valid for Helm and Kubernetes, and in agreement with the image, the settings and Redis."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from brewos_relay.settings import Settings, load_settings, variable_names
from brewos_relay.settings.server_limits import ServerLimits
from support.chart import CHART, Rendered, render
from support.deployed_redis import check_broker, documented_rights, need_redis, running
from support.fronts import replaced

from .test_images import DOCKERFILE, LONGEST_DRAIN_S, ROOT
from .test_platforms import all_names, check_settings

LEAST = {"publicUrl": "https://relay.example.org"}
MOST = {
    **LEAST,
    "settings": {
        "BREWOS_RELAY_SIGN_UP": "invited",
        "BREWOS_RELAY_DRAIN_S": 15,
        "BREWOS_RELAY_LOG_LEVEL": "debug",
    },
    "trustedProxies": ["10.0.0.0/8", "fd00::/8"],
    "image": {"repository": "registry.example.org/relay", "tag": "7"},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 5,
    "maxSurge": 1,
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "coffee", "operator": "Exists"}],
    "podAnnotations": {"example.org/note": "x"},
    "service": {"type": "LoadBalancer", "annotations": {"example.org/note": "x"}},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecretName": "certificate"},
    "networkPolicy": {"from": [{"namespaceSelector": {"matchLabels": {"name": "ingress"}}}]},
}
NONE = {
    **LEAST,
    "metrics": {"enabled": False},
    "podDisruptionBudget": {"enabled": False},
    "migrate": {"enabled": False},
    "redis": {"bundled": False},
}
SECRET = {
    "JWT_SECRET": "5" * 64,
    "BREWOS_RELAY_DATABASE_URL": "postgresql://relay:hunter2@db/relay",
    "BREWOS_RELAY_BUS": "redis://relay:hunter2@cafe-redis:6379/0",
    "REDIS_PASSWORD": "hunter2",
}
"""As the values describe it."""


WRONG: dict[str, dict[str, Any]] = {
    "publicUrl must be set": {},
    "'relay.example.org' does not match pattern": {"publicUrl": "relay.example.org"},
    "'replica' not allowed": {**LEAST, "replica": 3},
    "minimum: got 30, want 51": {**LEAST, "terminationGracePeriodSeconds": 30},
    "invalid propertyName 'BREWOS_RELAY_BUS'": {**LEAST, "settings": {"BREWOS_RELAY_BUS": "redis://redis"}},
    "invalid propertyName 'JWT_SECRET'": {**LEAST, "settings": {"JWT_SECRET": "x"}},
    "trustedProxies must be set": {**LEAST, "ingress": {"enabled": True}},
    "'redis' does not match pattern": {**LEAST, "redis": {"image": "redis"}},
}
"""Values that the chart refuses, by a part of the message."""


@pytest.fixture(scope="module")
def charts() -> dict[str, Rendered]:
    return dict(zip(("least", "most", "none"), render(LEAST, MOST, NONE), strict=True))


def container_of(document: dict[str, Any]) -> dict[str, Any]:
    [container] = document["spec"]["template"]["spec"]["containers"]
    assert isinstance(container, dict)
    return container


def environment_of(document: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container_of(document)["env"]}


@pytest.mark.parametrize("name", ["least", "most", "none"])
def test_helm_and_the_schemas_of_kubernetes_find_nothing(charts: dict[str, Rendered], name: str) -> None:
    assert (charts[name].problem, charts[name].findings) == ("", [])


def test_documents_depend_on_the_values(charts: dict[str, Rendered]) -> None:
    always = {("Deployment", "cafe"), ("Service", "cafe")}
    usual = always | {
        ("PodDisruptionBudget", "cafe"),
        ("Job", "cafe-migrate"),
        *((kind, "cafe-redis") for kind in ("ConfigMap", "Deployment", "Service", "NetworkPolicy")),
    }
    assert set(charts["none"].documents) == always
    assert set(charts["least"].documents) == usual
    assert set(charts["most"].documents) == usual | {("Ingress", "cafe"), ("NetworkPolicy", "cafe")}


def test_wrong_values_are_refused() -> None:
    for rendered, (problem, values) in zip(render(*WRONG.values()), WRONG.items(), strict=True):
        assert problem in rendered.problem, values


def test_rolling_update_starts_replacements_first(charts: dict[str, Rendered]) -> None:
    spec = charts["least"].documents["Deployment", "cafe"]["spec"]
    assert spec["replicas"] == 3
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": "100%", "maxUnavailable": 0}
    # All old instances end before the first machine comes back, 30 s after it was closed.
    assert 0 < spec["minReadySeconds"] < 30
    budget = charts["least"].documents["PodDisruptionBudget", "cafe"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == spec["selector"]
    # During an update there are twice as many instances; PostgreSQL allows 97 connections.
    assert 2 * spec["replicas"] * Settings(jwt_secret="x" * 32).database_pool < 97


def test_instance_has_time_to_drain(charts: dict[str, Rendered]) -> None:
    pod = charts["least"].documents["Deployment", "cafe"]["spec"]["template"]["spec"]
    [_, before_s] = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(before_s) + LONGEST_DRAIN_S
    # The endpoints have changed by then. A probe needs at most this long to notice a drain by itself.
    probe = pod["containers"][0]["readinessProbe"]
    assert probe["httpGet"]["path"] == "/readyz"
    assert probe["periodSeconds"] * probe["failureThreshold"] <= int(before_s)
    assert pod["containers"][0]["livenessProbe"]["httpGet"]["path"] == "/livez"
    longest_s = ServerLimits().longest_drain_s - ServerLimits().drain_s
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values["terminationGracePeriodSeconds"] == 60 > longest_s
    text = (CHART / "values.yaml").read_text()
    [more] = re.findall(r"increase this to the drain plus (\d+) s", text)
    assert int(more) > longest_s + int(before_s)


@pytest.mark.parametrize("name", ["least", "most", "none"])
@pytest.mark.parametrize("document", [("Deployment", "cafe"), ("Job", "cafe-migrate")])
def test_environment_and_secret_are_valid_settings(
    charts: dict[str, Rendered], name: str, document: tuple[str, str], tmp_path: Path
) -> None:
    if document not in charts[name].documents:
        return
    environment = environment_of(charts[name].documents[document])
    volumes = charts[name].documents[document]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "credentials", "secret": {"secretName": "brewos-relay", "defaultMode": 0o440}} in volumes
    for key, value in SECRET.items():
        (tmp_path / key).write_text(value + "\n")
    assert environment.pop("CREDENTIALS_DIRECTORY") == "/run/credentials"
    check_settings(environment | {"JWT_SECRET": SECRET["JWT_SECRET"]})
    settings = load_settings(
        environ={**environment, "CREDENTIALS_DIRECTORY": str(tmp_path)}, dotenv_path=tmp_path / "no.env"
    )
    assert settings.bus == SECRET["BREWOS_RELAY_BUS"]
    assert settings.database_url == SECRET["BREWOS_RELAY_DATABASE_URL"]
    assert settings.jwt_secret == SECRET["JWT_SECRET"]
    assert settings.metrics_port == (None if name == "none" else 9100)
    assert len(settings.trusted_proxies) == (2 if name == "most" else 0)
    if document[0] == "Deployment":
        ports = {
            each["name"]: each["containerPort"]
            for each in container_of(charts[name].documents[document])["ports"]
        }
        assert ports.get("metrics") == settings.metrics_port
        assert ports["http"] == settings.port


def test_schema_accepts_every_setting_that_the_chart_does_not_make() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["settings"]["propertyNames"]
    made = schema["not"]["enum"]
    known = {name: variable_names(name) for name in all_names()}
    assert set(made) <= {variable for names in known.values() for variable in names}
    for name, variables in known.items():
        accepted = [
            variable
            for variable in variables
            if re.fullmatch(schema["pattern"], variable) and variable not in made
        ]
        assert accepted or set(variables) & set(made), name


def test_no_manifest_contains_a_secret(charts: dict[str, Rendered]) -> None:
    for rendered in charts.values():
        assert not [kind for kind, _ in rendered.documents if kind == "Secret"]
        assert "PASSWORD@" not in str(rendered.documents)
    described = re.findall(r"^#   ([A-Z_]+) {2,}", (CHART / "values.yaml").read_text(), re.M)
    assert described == [*SECRET]


def test_containers_have_few_privileges(charts: dict[str, Rendered]) -> None:
    for document in charts["most"].documents.values():
        if document["kind"] not in ("Deployment", "Job"):
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        security = container_of(document)["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_image_fits(charts: dict[str, Rendered]) -> None:
    relay = charts["least"].documents["Deployment", "cafe"]
    assert container_of(relay)["image"] == "brewos-relay:0.1.0"
    project = (ROOT / "pyproject.toml").read_text()
    assert re.findall(r'^version = "(.+)"$', project, re.M) == ["0.1.0"]
    user = relay["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in DOCKERFILE
    assert (
        container_of(charts["most"].documents["Deployment", "cafe"])["image"]
        == "registry.example.org/relay:7"
    )
    mounts = {each["mountPath"] for each in container_of(relay)["volumeMounts"]}
    assert mounts == {"/run/credentials", "/data", "/tmp"}
    assert "DATA_DIR=/data" in DOCKERFILE


def test_migration_runs_before_new_instances(charts: dict[str, Rendered]) -> None:
    job = charts["least"].documents["Job", "cafe-migrate"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert container_of(job)["args"] == ["db", "upgrade"]
    relay = charts["least"].documents["Deployment", "cafe"]
    assert container_of(job)["image"] == container_of(relay)["image"]


def test_selectors_choose_their_own_pods(charts: dict[str, Rendered]) -> None:
    documents = charts["most"].documents
    pods = {
        name: documents["Deployment", name]["spec"]["template"]["metadata"]["labels"]
        for name in ("cafe", "cafe-redis")
    }
    job = documents["Job", "cafe-migrate"]["spec"]["template"]["metadata"]["labels"]
    for kind in ("Service", "NetworkPolicy", "Deployment"):
        for name in ("cafe", "cafe-redis"):
            spec = documents[kind, name]["spec"]
            selector = spec.get("podSelector", spec.get("selector"))
            chosen = selector.get("matchLabels", selector)
            matching = [each for each, labels in pods.items() if chosen.items() <= labels.items()]
            assert matching == [name]
            assert not chosen.items() <= job.items()
    [rule] = documents["NetworkPolicy", "cafe-redis"]["spec"]["ingress"]
    [peer] = rule["from"]
    assert peer["podSelector"]["matchLabels"].items() <= pods["cafe"].items()
    backend = documents["Ingress", "cafe"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "cafe", "port": {"name": "http"}}


def test_ingress_times_out_after_the_relay(charts: dict[str, Rendered]) -> None:
    annotations = charts["most"].documents["Ingress", "cafe"]["metadata"]["annotations"]
    limits = ServerLimits()
    longest_s = max(limits.device_silence_s, limits.client_silence_s, limits.http_request_s)
    for name in ("proxy-read-timeout", "proxy-send-timeout"):
        assert int(annotations[f"nginx.ingress.kubernetes.io/{name}"]) > longest_s + 10
    # A query string contains keys and tokens.
    assert annotations["nginx.ingress.kubernetes.io/enable-access-log"] == "false"


def test_notes_name_the_url_of_the_bundled_redis(charts: dict[str, Rendered]) -> None:
    assert "redis://relay:REDIS_PASSWORD@cafe-redis:6379/0" in charts["least"].notes
    assert "redis://" not in charts["none"].notes


async def test_bundled_redis_starts_and_has_the_needed_rights(
    charts: dict[str, Rendered], tmp_path: Path
) -> None:
    documents = charts["least"].documents
    data = documents["ConfigMap", "cafe-redis"]["data"]
    assert data["rights"] == documented_rights()
    container = container_of(documents["Deployment", "cafe-redis"])
    for name, content in (*data.items(), ("REDIS_PASSWORD", "hunter2")):
        (tmp_path / name).write_text(content)
    program = need_redis()
    [script] = container["args"]
    script = replaced(
        script,
        {
            "/etc/redis/": f"{tmp_path}/",
            "/run/credentials/": f"{tmp_path}/",
            "/tmp/redis.conf": f"{tmp_path}/made.conf",  # /tmp of the container
            "exec redis-server": f"exec {program}",
        },
    )
    # The test adds the arguments of its own, which follow a name for the shell.
    command = [*container["command"], script.rstrip() + ' "$@"', "sh"]
    with running(command, tmp_path) as port:
        await check_broker(f"redis://relay:hunter2@127.0.0.1:{port}")
    assert (tmp_path / "made.conf").stat().st_mode & 0o077 == 0
