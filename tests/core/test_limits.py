import dataclasses

import pytest

from brewos_relay.core.limits import Limits


def test_defaults_are_those_that_are_promised() -> None:
    limits = Limits()
    assert limits.request_head_bytes == 8192
    assert limits.request_head_s == 10
    assert limits.device_message_bytes == 16384
    assert limits.client_message_bytes == 4096
    assert limits.outbox_bytes == 262144
    assert limits.stall_s == 10


def test_defaults_respect_what_machines_bear() -> None:
    limits = Limits()
    assert limits.client_message_bytes <= 15_360, "a larger text makes a machine close"
    assert limits.admission_s < 5, "a machine waits 5 s for its 101"
    assert limits.device_min_age_s >= 8, "a machine that is closed younger gives up its key"
    assert limits.drain_s > limits.device_min_age_s + limits.close_s, (
        "the youngest machine outlasts the drain"
    )


def test_one_message_of_each_side_fits_into_an_outbox() -> None:
    limits = Limits()
    assert limits.outbox_bytes > max(limits.device_message_bytes, limits.client_message_bytes)


@pytest.mark.parametrize("field", dataclasses.fields(Limits), ids=lambda field: field.name)
def test_every_limit_is_bounded_and_says_its_unit(field: "dataclasses.Field[float]") -> None:
    assert field.name.endswith(("_bytes", "_s"))
    assert isinstance(field.default, int | float)
    assert field.default > 0


def test_limits_are_given_by_name_and_stay() -> None:
    with pytest.raises(TypeError):
        Limits(1)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().stall_s = 1.0  # type: ignore[misc]
    assert dataclasses.replace(Limits(), stall_s=1.0).stall_s == 1.0
