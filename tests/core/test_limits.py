import dataclasses

import pytest

from brewos_relay.core.limits import Limits


def test_defaults_match_the_documentation() -> None:
    limits = Limits()
    assert limits.device_message_bytes == 16384
    assert limits.client_message_bytes == 4096
    assert limits.outbox_bytes == 262144
    assert limits.stall_s == 10
    assert (limits.client_rate, limits.client_burst) == (20, 60)
    assert (limits.device_rate, limits.device_burst) == (50, 200)
    assert limits.device_first_frame_s == 10.5
    assert limits.device_silence_s == 45
    assert limits.drain_s == 20
    assert limits.token_warning_s == 300
    assert limits.snapshot_s == 60
    assert (limits.pending_commands, limits.pending_s) == (50, 10)


def test_defaults_fit_the_timeouts_of_machines() -> None:
    limits = Limits()
    assert limits.client_message_bytes <= 15_360, "a larger text makes a machine close"
    assert limits.admission_s < 5, "a machine waits 5 s for its 101"
    assert limits.device_min_age_s >= 8, "a machine that is closed earlier destroys its key"
    assert limits.drain_s > limits.longest_hold_s + limits.close_s, "the youngest machine outlasts the drain"
    assert limits.device_first_frame_s >= 10.5, "an earlier frame may come from a machine with a late 101"
    assert limits.device_silence_s >= 45, "some commands block a machine for that long"


def test_defaults_fit_the_timeouts_of_apps() -> None:
    limits = Limits()
    assert limits.keepalive_s < 10, "an app leaves after 10 s without a message"
    assert limits.client_silence_s <= 40, "a half-open app is seen within 40 s"
    assert limits.client_silence_s >= 2 * limits.client_ping_s, "it gets two pings before it is closed"


def test_largest_message_of_each_side_fits_into_an_outbox() -> None:
    limits = Limits()
    assert limits.outbox_bytes > max(limits.device_message_bytes, limits.client_message_bytes)
    assert limits.lag_bytes > limits.device_message_bytes
    assert limits.outbox_bytes > limits.lag_bytes


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_every_limit_is_bounded_and_says_its_unit(field: "dataclasses.Field[object]") -> None:
    if field.name in {"never_wait", "owner_commands"}:
        assert field.default == ()
        return
    counts = ("_commands", "clients_per_device", "clients_per_user")
    assert field.name.endswith(("_bytes", "_s", "_rate", "_burst", *counts))
    assert isinstance(field.default, int | float)
    assert field.default > 0


def test_limits_are_given_by_name_and_stay() -> None:
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().stall_s = 1.0  # type: ignore[misc]
    assert dataclasses.replace(Limits(), stall_s=1.0).stall_s == 1.0


@pytest.mark.parametrize(
    ("spoke_at", "safe_at"),
    [
        (None, 110.5),  # a connection without a frame for 10 s belongs to no machine
        (100.0, 108.0),
        (102.5, 108.0),
        (104.5, 110.0),  # its 101 was late, so it is younger than it seems
        (110.4, 115.9),
    ],
)
def test_a_device_is_safe_to_end_once_its_101_and_its_first_frame_are_old_enough(
    spoke_at: float | None, safe_at: float
) -> None:
    limits = Limits()
    assert limits.safe_to_end_at(opened_at=100.0, spoke_at=spoke_at) == pytest.approx(safe_at)
    assert safe_at <= 100 + limits.longest_hold_s


def test_another_minimum_age_scales_every_hold() -> None:
    strict, none = Limits(device_min_age_s=16.0), Limits(device_min_age_s=0.0)
    assert strict.safe_to_end_at(opened_at=0.0, spoke_at=None) == 21
    assert strict.safe_to_end_at(opened_at=0.0, spoke_at=8.0) == 19
    assert none.safe_to_end_at(opened_at=0.0, spoke_at=8.0) == 8
    assert none.longest_hold_s == 0


def test_longest_drain_is_window_hold_and_close() -> None:
    assert Limits().longest_drain_s == 20 + 16 + 1 + 1
