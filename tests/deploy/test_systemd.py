"""The unit of systemd: it can be loaded, leaves little to break into, and gives the relay time to leave."""

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
"""Of 10, by systemd 252."""


@pytest.fixture(params=["plain", "tls"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Give the unit as it would be installed, with a program that exists."""
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


def test_the_unit_can_be_loaded(unit: tuple[str, Path]) -> None:
    _, path = unit
    outcome = analyze("verify", path)
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_there_is_little_to_break_into(unit: tuple[str, Path]) -> None:
    kind, path = unit
    outcome = analyze("security", "--offline=true", path)
    found = re.search(r"exposure level for \S+ ([0-9.]+)", outcome.stdout.replace(":", ""))
    assert found, outcome
    assert float(found[1]) <= MOST_EXPOSED[kind], outcome.stdout


def section(path: Path, name: str) -> dict[str, list[str]]:
    """Read a section, with every value of each key."""
    values: dict[str, list[str]] = {}
    inside = False
    for line in path.read_text().splitlines():
        if line.startswith("["):
            inside = line == f"[{name}]"
        elif inside and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            values.setdefault(key, []).append(value)
    return values


def test_it_says_how_it_is_and_has_time_to_leave() -> None:
    service = section(UNIT, "Service")
    assert service["Type"] == ["notify"]
    assert float(service["WatchdogSec"][0]) >= 10
    assert float(service["TimeoutStopSec"][0]) > LONGEST_DRAIN_S
    assert int(service["LimitNOFILE"][0]) >= 10_000
    assert service["Restart"] == ["always"]
    # SIGTERM is for the relay; what it may have started is killed when it has gone.
    assert service["KillMode"] == ["mixed"]


def test_no_secret_stands_in_the_environment() -> None:
    service = section(UNIT, "Service")
    assert service["LoadCredential"] == ["JWT_SECRET:/etc/brewos-relay/jwt-secret"]
    assert "SECRET" not in " ".join(service["Environment"])


@pytest.mark.parametrize("paths", [[UNIT], [UNIT, TLS]], ids=["plain", "tls"])
def test_the_environment_is_made_of_settings(paths: list[Path]) -> None:
    variables = {
        key: value
        for path in paths
        for line in section(path, "Service")["Environment"]
        for key, _, value in (word.partition("=") for word in line.split())
        if not key.startswith("PYTHON")
    }
    assert set(variables) <= {variable for name in all_names() for variable in variable_names(name)}
    settings = load_settings(environ=variables, dotenv_path=DEPLOY / "no.env")
    service = section(UNIT, "Service")
    assert str(settings.data_dir) == f"/var/lib/{service['StateDirectory'][0]}"
    assert settings.speaks_tls == (len(paths) == 2)
    assert (settings.host == "") == settings.speaks_tls


def test_the_calls_that_a_relay_makes_are_allowed() -> None:
    """Opening files' limits goes through a call that belongs to what every program may do."""
    default = analyze("syscall-filter", "@default").stdout
    assert "prlimit64" in default.split()
    for line in section(UNIT, "Service")["SystemCallFilter"]:
        assert "prlimit64" not in line


def test_a_relay_with_tls_may_list_its_addresses() -> None:
    """Its own certificate names them all; no other part of the unit gives what this takes."""
    assert section(TLS, "Service")["RestrictAddressFamilies"] == ["AF_NETLINK"]


def test_the_relay_can_reach_its_certificate() -> None:
    """Its folder is in one that everybody may pass through; the secret in there is guarded by itself."""
    guide = (DEPLOY.parent / "docs" / "how-to" / "deploy-with-systemd.md").read_text()
    assert "\ninstall -d /etc/brewos-relay\n" in guide
    assert "(umask 077 && /opt/brewos-relay/bin/brewos-relay secret > /etc/brewos-relay/jwt-secret)" in guide
    group = section(TLS, "Service")["SupplementaryGroups"][0]
    assert f"install -d -g {group} -m 0750 /etc/brewos-relay/tls\n" in guide
    assert f"install -g {group} -m 0640 " in guide


def test_the_unit_is_one_that_other_tools_can_read() -> None:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    assert parser.sections() == ["Unit", "Service", "Install"]
