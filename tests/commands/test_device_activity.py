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
    """Register a machine."""
    run("device", "add", ID)


# activity


def test_who_did_what(run: Run, machine: None) -> None:
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


def test_who_did_what_for_programs(run: Run, machine: None) -> None:
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
def test_nothing_was_done(run: Run, machine: None, args: tuple[str, ...], out: str) -> None:
    outcome = run("device", "activity", ID, *args)
    assert (outcome.code, outcome.out, outcome.err) == (0, out, f"Nothing was done with {ID} yet.\n")


def test_activity_of_what_is_no_machine(run: Run, machine: None) -> None:
    assert_refused(run("device", "activity", "BRW-0000000B"), 1, "BRW-0000000B is not registered in /")
    assert_refused(run("device", "activity", ID, "--limit", "0"), 2, "--limit")


# rotate-key


# doctor


def note_past(kind: ActivityKind, ago_s: int, **detail: str) -> None:
    at_ms = time.time_ns() // 1_000_000 - ago_s * 1000
    with opened() as db:
        add_activity(db, [Activity(device_id=ID, at_ms=at_ms, kind=kind, detail=detail)])


@pytest.fixture
def kitchen(run: Run) -> None:
    run("device", "add", ID, "--name", "Kitchen")


def test_a_machine_s_timeline(run: Run, kitchen: None) -> None:
    note_past("online", 5000)
    note_past("offline", 4000, by="peer", messages="12", roundTripMs="41.0")
    note_past("online", 3940)
    note_past("offline", 100, by="relay", code="1008", reason="nothing was sent for too long")
    outcome = run("device", "doctor", ID)
    assert (outcome.code, outcome.err) == (0, "")
    assert "BRW-0000000A (Kitchen)" in outcome.out
    assert "It is away, for 1 min" in outcome.out
    assert "2 connections since" in outcome.out
    assert "Away between them for 1 min 0 s in the middle" in outcome.out
    assert "Round trips: 41 ms in the middle, 41 ms at worst." in outcome.out
    assert "     1  the relay closed with 1008: nothing was sent for too long" in outcome.out
    lines = outcome.out.splitlines()
    assert (
        "went, after 16 min 40 s: the machine was gone without a goodbye (round trip 41.0 ms, 12 messages)"
        in lines[-3]
    )
    assert "came, after 1 min 0 s away" in lines[-2]
    assert len(run("device", "doctor", ID, "--limit", "1").out.splitlines()) == len(lines) - 3


def test_a_machine_that_was_throttled(run: Run, kitchen: None) -> None:
    note_past("online", 5000)
    note_past("throttled", 4000)
    note_past("throttle_ended", 3900, throttledS="100.0", merged="5000", dropped="3")
    note_past("throttled", 30)
    note_past("throttle_ended", 20)
    out = run("device", "doctor", ID).out
    assert "It is connected, for 1 h 23 min" in out
    lines = [line.partition("  ")[2] for line in out.splitlines()[-4:]]
    assert lines == [
        "throttled: it sends more than its rate, and is connected",
        "not throttled any more, after 100.0 s: 5000 messages merged, 3 dropped",
        "throttled: it sends more than its rate, and is connected",
        "not throttled any more",
    ]
    turns = json.loads(run("device", "doctor", ID, "--json").out)["timeline"]
    assert [turn["kind"] for turn in turns][:2] == ["online", "throttled"]


def test_for_programs(run: Run, kitchen: None) -> None:
    note_past("online", 10)
    content = json.loads(run("device", "doctor", ID, "--json").out)
    assert content["connections"] == 1
    assert [turn["online"] for turn in content["timeline"]] == [True]


def test_one_that_was_never_there(run: Run, kitchen: None) -> None:
    assert "never been connected" in run("device", "doctor", ID).out


def test_one_that_is_not_registered(run: Run, kitchen: None) -> None:
    assert_refused(run("device", "doctor", "BRW-0000000B"), 1, "BRW-0000000B is not registered")
    assert device_activity.device_doctor.name == "doctor"
