"""The example configurations of nginx, HAProxy and Caddy: valid for their programs, and complete."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from brewos_relay.settings.server_limits import ServerLimits
from support.certificates import Files, write_certificate
from support.fronts import (
    DEPLOY,
    Place,
    Start,
    caddy,
    haproxy,
    haproxy_cluster,
    haproxy_passthrough,
    nginx,
    nginx_passthrough,
)
from support.ports import free_port

LIMITS = ServerLimits()
FILES = [
    "nginx.conf",
    "nginx-passthrough.conf",
    "haproxy.cfg",
    "haproxy-passthrough.cfg",
    "cluster/haproxy.cfg",
]


def place(folder: Path) -> Place:
    files: Files = write_certificate(folder, names=["relay.example.org"])
    return Place(folder, free_port(), 3001, files, 120)


def run(arguments: list[str], environment: dict[str, str]) -> str:
    """Run a program that must succeed; return its output."""
    outcome = subprocess.run(
        arguments, capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False
    )
    said = outcome.stdout + outcome.stderr
    assert outcome.returncode == 0, said
    return said


@pytest.mark.parametrize("fit", [nginx, nginx_passthrough], ids=lambda fit: fit.__name__)
def test_nginx(fit: Callable[[Place], Start], tmp_path: Path) -> None:
    said = run([*fit(place(tmp_path)).arguments, "-t"], {})
    assert "[warn]" not in said


def haproxy_of_cluster(place: Place) -> Start:
    return haproxy_cluster(place, [3001, 3002, 3003])


@pytest.mark.parametrize(
    "fit", [haproxy, haproxy_passthrough, haproxy_of_cluster], ids=lambda fit: fit.__name__
)
def test_haproxy(fit: Callable[[Place], Start], tmp_path: Path) -> None:
    program, _, *rest = fit(place(tmp_path)).arguments
    said = run([program, "-c", *rest], {})
    assert "WARNING" not in said


def test_caddy(tmp_path: Path) -> None:
    start = caddy(place(tmp_path))
    program, _, *rest = start.arguments
    run([program, "validate", *rest], start.environment)
    text = (DEPLOY / "Caddyfile").read_text()
    run([program, "fmt", str(DEPLOY / "Caddyfile"), "--diff"], start.environment)
    delay = re.search(r"stream_close_delay (\d+)h", text)
    assert delay is not None


@pytest.mark.parametrize("name", FILES)
def test_relay_times_out_before_the_proxy(name: str) -> None:
    """Check that the proxy's timeout is longer than the relay's, which closes with a close frame."""
    times = [
        int(found)
        for found in re.findall(
            r"(?:proxy_(?:read_|send_)?timeout|timeout (?:client|server|tunnel))\s+(\d+)s",
            (DEPLOY / name).read_text(),
        )
    ]
    assert times
    longest_s = max(LIMITS.device_silence_s, LIMITS.client_silence_s, LIMITS.http_request_s)
    assert all(time_s > longest_s + 10 for time_s in times)


def test_proxy_closes_idle_connections_before_the_relay() -> None:
    """See tests/e2e/test_front_proxies.py for the problem that this avoids."""
    assert re.search(r"^\s*keepalive off$", (DEPLOY / "Caddyfile").read_text(), re.MULTILINE)
    for name in ("haproxy.cfg", "cluster/haproxy.cfg"):
        assert re.search(r"^\s*option http-server-close$", (DEPLOY / name).read_text(), re.MULTILINE)
    nginx_conf = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    assert re.search(r"''\s+close;", nginx_conf)
    assert "upstream" not in nginx_conf


@pytest.mark.parametrize("name", FILES)
def test_reload_cuts_no_connection(name: str) -> None:
    text = re.sub(r"#.*", "", (DEPLOY / name).read_text())
    for word in ("hard-stop-after", "worker_shutdown_timeout", "shutdown-sessions"):
        assert word not in text


@pytest.mark.parametrize("name", ["haproxy.cfg", "cluster/haproxy.cfg", "nginx.conf"])
def test_logs_have_no_query_strings(name: str) -> None:
    text = re.sub(r"#.*", "", (DEPLOY / name).read_text())
    for word in ("httplog", "%r", "%HU", "%HQ", "$request ", "log_format", "capture request"):
        assert word not in text
