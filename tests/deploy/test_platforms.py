"""Configurations of hosting platforms: known keys, time to drain, one relay, a volume for the registry."""

import ipaddress
import json
import re
import tomllib
from typing import Any

import pytest
import yaml

from brewos_relay.settings import Settings, load_settings, variable_names
from support.fronts import DEPLOY

from .test_images import LONGEST_DRAIN_S, ROOT, seconds

PARTS: dict[str, dict[str, Any]] = {
    "fly": {
        "": {
            "app",
            "primary_region",
            "kill_signal",
            "kill_timeout",
            "build",
            "env",
            "mounts",
            "services",
            "deploy",
            "vm",
        },
        "build": {"dockerfile"},
        "mounts": {"source", "destination", "initial_size"},
        "services": {
            *("protocol", "internal_port", "auto_stop_machines", "auto_start_machines"),
            *("min_machines_running", "ports", "concurrency", "tcp_checks"),
        },
        "services.ports": {"port", "handlers", "force_https", "tls_options", "proxy_proto_options"},
        "services.ports.tls_options": {"alpn", "versions"},
        "services.ports.proxy_proto_options": {"version"},
        "services.concurrency": {"type", "soft_limit", "hard_limit"},
        "services.tcp_checks": {"grace_period", "interval", "timeout"},
        "deploy": {"strategy"},
        "vm": {"size", "memory"},
    },
    "railway": {
        "": {"$schema", "build", "deploy"},
        "build": {"builder", "dockerfilePath", "watchPatterns"},
        "deploy": {
            *("numReplicas", "healthcheckPath", "healthcheckTimeout", "restartPolicyType"),
            *("requiredMountPath", "overlapSeconds", "drainingSeconds"),
        },
    },
    "render": {
        "": {"services"},
        "services": {
            *("type", "name", "runtime", "dockerfilePath", "dockerContext", "plan", "numInstances", "disk"),
            *("healthCheckPath", "maxShutdownDelaySeconds", "autoDeploy", "envVars"),
        },
        "services.disk": {"name", "mountPath", "sizeGB"},
        "services.envVars": {"key", "value", "generateValue", "sync"},
    },
}
"""The documented tables and keys of the platforms that are used here."""


def content_of(platform: str) -> Any:
    match platform:
        case "fly":
            return tomllib.loads((DEPLOY / "fly.toml").read_text())
        case "railway":
            return json.loads((DEPLOY / "railway.json").read_text())
        case _:
            return yaml.safe_load((DEPLOY / "render.yaml").read_text())


def unknown(content: Any, known: dict[str, set[str]], place: str = "") -> list[str]:
    """List unknown keys with their paths."""
    if isinstance(content, list):
        return [each for part in content for each in unknown(part, known, place)]
    if not isinstance(content, dict) or place == "env":
        return []
    found = [f"{place}.{key}" for key in content if key not in known.get(place, set())]
    for key, value in content.items():
        found += unknown(value, known, f"{place}.{key}".lstrip("."))
    return found


@pytest.mark.parametrize("platform", PARTS)
def test_each_key_is_documented(platform: str) -> None:
    assert unknown(content_of(platform), PARTS[platform]) == []


def test_unknown_key_is_found() -> None:
    content = content_of("render")
    content["services"][0]["disk"]["mountpath"] = "/data"
    assert unknown(content, PARTS["render"]) == ["services.disk.mountpath"]


def check_settings(variables: dict[str, str]) -> Settings:
    """Check that variables are settings, and are valid together."""
    names = {variable for name in all_names() for variable in variable_names(name)}
    assert set(variables) <= names
    return load_settings(environ=variables, dotenv_path=DEPLOY / "no.env")


def all_names() -> list[str]:
    return [*Settings.__dataclass_fields__, *Settings().limits.__dataclass_fields__]


def test_fly() -> None:
    content = content_of("fly")
    assert seconds(content["kill_timeout"]) > LONGEST_DRAIN_S
    assert content["kill_signal"] == "SIGTERM"
    assert (DEPLOY / content["build"]["dockerfile"]).exists()
    settings = check_settings(content["env"])
    [service] = content["services"]
    assert service["internal_port"] == settings.port
    assert service["auto_stop_machines"] == "off"
    assert service["min_machines_running"] == 1
    ports = {port["port"]: port for port in service["ports"]}
    assert ports[443]["handlers"] == ["tls", "proxy_proto"]
    assert settings.proxy_protocol is True
    assert ports[80]["force_https"] is True
    assert settings.public_url == f"https://{content['app']}.fly.dev"
    [mount] = content["mounts"]
    assert mount["destination"] == str(settings.data_dir)
    assert service["concurrency"]["type"] == "connections"


def test_railway() -> None:
    content = content_of("railway")
    assert (ROOT / content["build"]["dockerfilePath"]).exists()
    deploy = content["deploy"]
    assert deploy["drainingSeconds"] > LONGEST_DRAIN_S
    assert deploy["overlapSeconds"] == 0  # two relays would split the devices between them
    assert deploy["numReplicas"] == 1
    assert deploy["requiredMountPath"] == "/data"
    assert deploy["healthcheckPath"] == "/readyz"  # requested only at the start


def test_render() -> None:
    [service] = content_of("render")["services"]
    assert (ROOT / service["dockerfilePath"]).exists()
    assert service["numInstances"] == 1
    assert service["maxShutdownDelaySeconds"] > LONGEST_DRAIN_S
    assert service["healthCheckPath"] == "/livez"  # a server that fails it is restarted
    variables = {each["key"]: each for each in service["envVars"]}
    assert variables["JWT_SECRET"] == {"key": "JWT_SECRET", "generateValue": True}
    given = {key: str(each["value"]) for key, each in variables.items() if "value" in each}
    settings = check_settings(given)
    assert str(settings.data_dir) == service["disk"]["mountPath"]


@pytest.mark.parametrize("platform", ["fly", "render"])
def test_only_private_networks_are_trusted(platform: str) -> None:
    text = json.dumps(content_of(platform))
    networks = re.findall(r"\d+\.\d+\.\d+\.\d+/\d+", text)
    assert networks
    assert all(ipaddress.ip_network(network).is_private for network in networks)
