"""The systemd unit: it can be loaded, is hardened, and gives the relay time to drain."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from brewos_relay.settings import load_settings, variable_names
from support.fronts import DEPLOY, need_program

from .test_images import LONGEST_DRAIN_S
from .test_platforms import all_names

UNIT = DEPLOY / "brewos-relay.service"
TLS = DEPLOY / "brewos-relay.service.d" / "tls.conf"
MOST_EXPOSED = {"plain": 1.3, "tls": 1.7}
"""The highest accepted exposure of 10, as systemd 252 computes it."""


@pytest.fixture(params=["plain", "tls"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Return the unit as installed, with an existing program."""
    text = UNIT.read_text()
    assert text.count("/opt/brewos-relay/bin/brewos-relay") == 1
    path = tmp_path / UNIT.name
    path.write_text(text.replace("/opt/brewos-relay/bin/brewos-relay", "/bin/true"))
    if request.param == "tls":
        shutil.copytree(TLS.parent, tmp_path / TLS.parent.name)
    return request.param, path


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_program("systemd-analyze"), "--no-pager", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )


def test_unit_can_be_loaded(unit: tuple[str, Path]) -> None:
    _, path = unit
    outcome = analyze("verify", path)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_exposure_is_low(unit: tuple[str, Path]) -> None:
    kind, path = unit
    outcome = analyze("security", "--offline=true", path)
    found = re.search(r"exposure level for \S+ ([0-9.]+)", outcome.stdout.replace(":", ""))
    assert found, outcome
    assert float(found[1]) <= MOST_EXPOSED[kind], outcome.stdout


def section(path: Path, name: str) -> dict[str, list[str]]:
    """Parse a section, with all values of each key."""
    values: dict[str, list[str]] = {}
    inside = False
    for line in path.read_text().splitlines():
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def test_unit_notifies_and_has_time_to_drain() -> None:
    service = section(UNIT, "Service")
    assert service["Type"] == ["notify"]
    assert float(service["WatchdogSec"][0]) >= 10
    assert float(service["TimeoutStopSec"][0]) > LONGEST_DRAIN_S
    assert int(service["LimitNOFILE"][0]) >= 10_000
    assert service["Restart"] == ["always"]
    # SIGTERM goes to the relay only; its child processes are killed after it.
    assert service["KillMode"] == ["mixed"]


def test_environment_has_no_secret() -> None:
    service = section(UNIT, "Service")
    assert service["LoadCredential"] == ["JWT_SECRET:/etc/brewos-relay/jwt-secret"]
    assert "SECRET" not in " ".join(service["Environment"])


@pytest.mark.parametrize("paths", [[UNIT], [UNIT, TLS]], ids=["plain", "tls"])
def test_environment_files_contain_settings(paths: list[Path]) -> None:
    variables = {
        key: value
        for path in paths
        for line in section(path, "Service")["Environment"]
        for key, _, value in (word.partition("=") for word in line.split())
        if not key.startswith("PYTHON")
    }
    assert set(variables) <= {variable for name in all_names() for variable in variable_names(name)}
    if len(paths) == 2:
        variables["BREWOS_RELAY_TLS_SELF_SIGNED"] = "true"  # `init` writes it, or a certificate, to relay.env
    settings = load_settings(environ=variables, dotenv_path=DEPLOY / "no.env")
    service = section(UNIT, "Service")
    assert str(settings.data_dir) == f"/var/lib/{service['StateDirectory'][0]}"
    assert settings.speaks_tls == (len(paths) == 2)
    assert (settings.host == "") == settings.speaks_tls


def test_needed_system_calls_are_allowed() -> None:
    """Check prlimit64, which is in the default set of system calls."""
    default = analyze("syscall-filter", "@default").stdout
    assert "prlimit64" in default.split()
    for line in section(UNIT, "Service")["SystemCallFilter"]:
        assert "prlimit64" not in line


def test_relay_with_tls_may_list_its_addresses() -> None:
    """Check AF_NETLINK: the self-signed certificate lists all addresses."""
    assert section(TLS, "Service")["RestrictAddressFamilies"] == ["AF_NETLINK"]


def test_relay_can_read_its_certificate() -> None:
    """Check that the parent directory is accessible; the key file has its own permissions."""
    guide = (DEPLOY.parent / "docs" / "how-to" / "deploy-with-systemd.md").read_text()
    assert "\ninstall -d /etc/brewos-relay\n" in guide
    assert "--env-file /etc/brewos-relay/relay.env --secret-file /etc/brewos-relay/jwt-secret" in guide
    assert "\ninstall -d -m 0700 /var/lib/brewos-relay\n" in guide
    group = section(TLS, "Service")["SupplementaryGroups"][0]
    assert f"install -d -g {group} -m 0750 /etc/brewos-relay/tls\n" in guide
    assert f"install -g {group} -m 0640 " in guide


def test_unit_can_be_parsed_by_other_tools() -> None:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
