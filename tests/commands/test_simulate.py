"""Tests of commands.simulate: the simulated devices, and their options."""

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.commands import run_simulation
from brewos_relay.simulator.fleet import Fleet

from .conftest import Run, StandIn, assert_refused

KEYS = "id,key,name\n" + "".join(f"brw-0000000{number},{str(number) * 43},Kitchen\n" for number in range(3))


@pytest.fixture
def fleets(monkeypatch: pytest.MonkeyPatch) -> list[Fleet]:
    """Collect the fleets instead of running them."""
    found: list[Fleet] = []

    def run_fleet(make: Callable[[Any], Fleet]) -> None:
        found.append(make(lambda _: None))

    monkeypatch.setattr(run_simulation, "run_fleet", run_fleet)
    return found


def ids(fleet: Fleet) -> list[str]:
    return [simulator.machine.device_id for simulator in fleet.simulators]


def test_default_is_one_device_that_registers_itself(run: Run, fleets: list[Fleet]) -> None:
    assert run("simulate").code == 0
    (simulator,) = fleets[0].simulators
    assert simulator.machine.device_id == "BRW-51000001"
    assert simulator.machine.rich
    assert simulator.pairing_url.startswith("http://127.0.0.1:3001/pair?id=BRW-51000001&token=")


def test_faithful_devices_are_numbered_from_the_first_id(run: Run, fleets: list[Fleet]) -> None:
    args = ("--devices", "3", "--faithful", "--first-id", "brw-000000ff", "--url", "http://127.0.0.1:1")
    assert run("simulate", *args).code == 0
    assert ids(fleets[0]) == ["BRW-000000FF", "BRW-00000100", "BRW-00000101"]
    assert all(simulator.policy.faithful for simulator in fleets[0].simulators)
    assert not any(simulator.machine.rich for simulator in fleets[0].simulators)


def test_rich_is_the_default(run: Run, fleets: list[Fleet]) -> None:
    assert run("simulate", "--rich").code == 0
    assert not fleets[0].simulators[0].policy.faithful


def test_devices_and_keys_come_from_the_file(run: Run, fleets: list[Fleet], tmp_path: Path) -> None:
    (tmp_path / "keys.csv").write_text(KEYS)
    assert run("simulate", "--keys", "keys.csv").code == 0
    assert run("simulate", "--keys", "keys.csv", "--devices", "2").code == 0
    assert ids(fleets[0]) == ["BRW-00000000", "BRW-00000001", "BRW-00000002"]
    assert [simulator.key[:2] for simulator in fleets[0].simulators] == ["00", "11", "22"]
    assert len(fleets[1].simulators) == 2
    assert_refused(
        run("simulate", "--keys", "keys.csv", "--devices", "4"), 2, "keys.csv contains 3 devices, not 4"
    )


@pytest.mark.parametrize(
    ("text", "code", "part"),
    [("", 2, "contains no devices"), ("BRW-00000001\n", 1, "line 1"), ("BRW-00000001,short\n", 1, "line 1")],
)
def test_invalid_key_file_is_refused(run: Run, tmp_path: Path, text: str, code: int, part: str) -> None:
    (tmp_path / "keys.csv").write_text(text)
    assert_refused(run("simulate", "--keys", "keys.csv"), code, part)


def test_url_comes_from_the_environment(
    run: Run, fleets: list[Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREWOS_RELAY_URL", "http://127.0.0.1:9")
    run("simulate")
    assert fleets[0].simulators[0].pairing_url.startswith("http://127.0.0.1:9/")


def test_links_begin_with_the_public_url_of_the_server_of_this_folder(
    run: Run, fleets: list[Fleet], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PUBLIC_URL=https://coffee.local\nPORT=8443\n")
    run("simulate")
    run("simulate", "--url", "http://127.0.0.1:9")
    links = [fleet.simulators[0].pairing_url for fleet in fleets]
    assert links[0].startswith("https://coffee.local/pair?")
    assert links[1].startswith("http://127.0.0.1:9/pair?")


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (["--devices", "0"], "--devices"),
        (["--devices", "2", "--first-id", "BRW-FFFFFFFF"], "--first-id"),
        (["--first-id", "x"], "is not a device id"),
        (["--speed", "0"], "--speed"),
        (["--url", "relay.example"], "http://HOST[:PORT]"),
        (["--keys", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_wrong_usage(run: Run, args: list[str], part: str) -> None:
    assert_refused(run("simulate", *args), 2, part)


# demo

DEMO = ("brewos_relay.commands.run_demo", "run_demo")


@pytest.mark.parametrize(("args", "port"), [([], None), (["--port", "0"], 0), (["--port", "8080"], 8080)])
def test_demo_runs_with_the_port(run: Run, stand_in: StandIn, args: list[str], port: int | None) -> None:
    calls = stand_in(*DEMO)
    assert run("demo", *args).code == 0
    assert calls == [((port,), {"is_local": False, "verbose": False})]


def test_demo_passes_its_flags(run: Run, stand_in: StandIn) -> None:
    calls = stand_in(*DEMO)
    assert run("demo", "--local", "-v").code == 0
    assert calls == [((None,), {"is_local": True, "verbose": True})]


def test_demo_that_cannot_start_exits_with_3(run: Run, stand_in: StandIn) -> None:
    stand_in(*DEMO, problem=OSError(errno.EADDRINUSE, "Address already in use"))
    assert_refused(run("demo"), 3, "Address already in use; choose another port with --port")
