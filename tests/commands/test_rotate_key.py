"""Tests of `brewos-relay device rotate-key`."""

from types import SimpleNamespace

import pytest

from brewos_relay.commands import device
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.device_keys import NEXT_KEYS_AT_MOST, add_next_key
from brewos_relay.registry.records import Activity, ActivityKind
from support.change_rows import read_changes

from .conftest import Run, assert_refused, opened

ID = "BRW-0000000A"


def note(kind: ActivityKind) -> None:
    with opened() as db:
        add_activity(db, [Activity(device_id=ID, at_ms=1_700_000_000_123, kind=kind)])


@pytest.fixture
def machine(run: Run) -> None:
    """Register a device."""
    run("device", "add", ID)


class Clock:
    """Replaces the time: sleeping advances it, and the key is sent at its time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, sent_at_s: float | None) -> None:
        self.now_s = 0.0
        self._sent_at_s = sent_at_s
        # Only for this command: the thread that writes its last line uses the real time.
        mine = SimpleNamespace(sleep=self.sleep, monotonic=lambda: self.now_s)
        monkeypatch.setattr("brewos_relay.commands.device.time", mine)

    def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s
        if self._sent_at_s is not None and self.now_s >= self._sent_at_s:
            note("key_sent")
            self._sent_at_s = None


def test_server_is_asked_for_a_new_key(run: Run, machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    note("key_sent")
    clock = Clock(monkeypatch, sent_at_s=3.0)
    outcome = run("device", "rotate-key", ID.lower())
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err.startswith(f"A new key was sent to {ID}. The old one works until ")
    assert clock.now_s == 3.0
    with opened() as db:
        assert [(change.kind, change.device_id) for change in read_changes(db, 0)] == [("rotate_key", ID)]


def test_missing_server_or_device_is_reported(
    run: Run, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    note("key_sent")
    note("online")
    clock = Clock(monkeypatch, sent_at_s=None)
    refused = run("device", "rotate-key", ID)
    assert_refused(refused, 1, f"no new key was sent to {ID} within 10 s", "that the device is connected")
    assert clock.now_s == device._KEY_SENT_WITHIN_S == 10.0


def test_device_that_ignored_earlier_rotations_is_refused_at_once(
    run: Run, machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened() as db:
        for number in range(NEXT_KEYS_AT_MOST):
            add_next_key(db, ID, bytes([number]) * 32, now_ms=number)
    clock = Clock(monkeypatch, sent_at_s=None)
    refused = run("device", "rotate-key", ID)
    assert_refused(refused, 1, f"{ID} ignored the earlier rotations", "pair it again")
    assert clock.now_s == 0
    with opened() as db:
        assert read_changes(db, 0) == []  # no request to a server


def test_unknown_device_is_refused(run: Run, machine: None) -> None:
    assert_refused(run("device", "rotate-key", "BRW-0000000B"), 1, "BRW-0000000B is not registered in /")
