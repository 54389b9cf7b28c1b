import json
import time

import pytest

from brewos_relay.commands import device_activity
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.records import Activity, ActivityKind

from .conftest import Run, add_account, assert_refused, opened

ID = "BRW-0000000A"
AT_MS = 1_700_000_000_123


def note(kind: ActivityKind, *, user_id: str | None = None, **detail: str) -> None:
    entry = Activity(device_id=ID, at_ms=AT_MS, kind=kind, user_id=user_id, detail=detail)
    with opened() as db:
        add_activity(db, [entry])


@pytest.fixture
def machine(run: Run) -> None:
    """Register a device."""
    run("device", "add", ID)


# activity


def test_activity_as_lines(run: Run, machine: None) -> None:
    add_account("u1", "ada@example.org")
    note("online")
    note("command", user_id="u1", cmd="set_temp", outcome="delivered")
    note("renamed", user_id="bob", name="My Kitchen\n")
    outcome = run("device", "activity", ID)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "2023-11-14T22:13:20.123Z  renamed        bob  name='My Kitchen\\n'",
        "2023-11-14T22:13:20.123Z  command        ada@example.org  cmd=set_temp  outcome=delivered",
        "2023-11-14T22:13:20.123Z  online         -",
    ]
    assert run("device", "activity", ID, "--limit", "1").out.count("\n") == 1


def test_activity_as_json(run: Run, machine: None) -> None:
    add_account("u1", "ada@example.org")
    note("claimed", user_id="u1", role="owner")
    assert json.loads(run("device", "activity", ID, "--json").out) == [
        {
            "id": 1,
            "at": "2023-11-14T22:13:20.123Z",
            "kind": "claimed",
            "userId": "u1",
            "email": "ada@example.org",
            "detail": {"role": "owner"},
        }
    ]


@pytest.mark.parametrize(("args", "out"), [((), ""), (("--json",), "[]\n")])
def test_empty_activity_is_reported(run: Run, machine: None, args: tuple[str, ...], out: str) -> None:
    outcome = run("device", "activity", ID, *args)
    assert (outcome.code, outcome.out, outcome.err) == (0, out, f"There is no activity of {ID} yet.\n")


def test_activity_of_an_unknown_device_is_refused(run: Run, machine: None) -> None:
    assert_refused(run("device", "activity", "BRW-0000000B"), 1, "BRW-0000000B is not registered in /")
    assert_refused(run("device", "activity", ID, "--limit", "0"), 2, "--limit")


# doctor


def note_past(kind: ActivityKind, ago_s: int, **detail: str) -> None:
    at_ms = time.time_ns() // 1_000_000 - ago_s * 1000
    with opened() as db:
        add_activity(db, [Activity(device_id=ID, at_ms=at_ms, kind=kind, detail=detail)])


@pytest.fixture
def kitchen(run: Run) -> None:
    run("device", "add", ID, "--name", "Kitchen")


def test_doctor_shows_connections_and_reasons(run: Run, kitchen: None) -> None:
    note_past("online", 5000)
    note_past("offline", 4000, by="peer", messages="12", roundTripMs="41.0")
    note_past("online", 3940)
    note_past("offline", 100, by="relay", code="1008", reason="nothing was sent for too long")
    outcome = run("device", "doctor", ID)
    assert (outcome.code, outcome.err) == (0, "")
    assert "BRW-0000000A (Kitchen)" in outcome.out
    assert "It has been disconnected for 1 min" in outcome.out
    assert "2 connections since" in outcome.out
    assert "Disconnected in between: 1 min 0 s (median)" in outcome.out
    assert "Round trips: 41 ms (median), 41 ms (longest)." in outcome.out
    assert "     1  the relay closed with 1008: nothing was sent for too long" in outcome.out
    lines = outcome.out.splitlines()
    reason = "the device disconnected without a close frame (round trip 41.0 ms, 12 messages)"
    assert f"disconnected, after 16 min 40 s online: {reason}" in lines[-3]
    assert "connected, after 1 min 0 s offline" in lines[-2]
    assert len(run("device", "doctor", ID, "--limit", "1").out.splitlines()) == len(lines) - 3


def test_doctor_shows_throttling(run: Run, kitchen: None) -> None:
    note_past("online", 5000)
    note_past("throttled", 4000)
    note_past("throttle_ended", 3900, throttledS="100.0", merged="5000", dropped="3")
    note_past("throttled", 30)
    note_past("throttle_ended", 20)
    out = run("device", "doctor", ID).out
    assert "It has been connected for 1 h 23 min" in out
    lines = [line.partition("  ")[2] for line in out.splitlines()[-4:]]
    assert lines == [
        "throttled: it sends more than its rate, and stays connected",
        "no longer throttled, after 100.0 s: 5000 messages merged, 3 dropped",
        "throttled: it sends more than its rate, and stays connected",
        "no longer throttled",
    ]
    events = json.loads(run("device", "doctor", ID, "--json").out)["timeline"]
    assert [event["kind"] for event in events][:2] == ["online", "throttled"]


def test_doctor_as_json(run: Run, kitchen: None) -> None:
    note_past("online", 10)
    content = json.loads(run("device", "doctor", ID, "--json").out)
    assert content["connections"] == 1
    assert [event["online"] for event in content["timeline"]] == [True]


def test_doctor_for_a_device_without_connections(run: Run, kitchen: None) -> None:
    assert "not been connected" in run("device", "doctor", ID).out


def test_doctor_refuses_an_unknown_device(run: Run, kitchen: None) -> None:
    assert_refused(run("device", "doctor", "BRW-0000000B"), 1, "BRW-0000000B is not registered")
    assert device_activity.device_doctor.name == "doctor"
