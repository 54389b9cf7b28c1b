"""Tests of client.device_ids."""

import pytest

from brewos_relay.client.device_ids import check_device_id, generate_device_id
from brewos_relay.errors import SettingsError


def test_makes_ids_that_are_some() -> None:
    made = {generate_device_id() for _ in range(20)}
    assert len(made) == 20
    assert all(check_device_id(device_id) == device_id for device_id in made)


def test_ids_may_be_in_any_case() -> None:
    assert check_device_id("brw-12ab34cd") == "BRW-12AB34CD"


@pytest.mark.parametrize(
    "text", ["", "BRW-1", "BRW-12AB34CG", "BRW-12AB34CD ", "BRW-12AB34CD0", "BRW-\u0661234567"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no device id"):
        check_device_id(text)
