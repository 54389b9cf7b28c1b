import time
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.vocabulary import (
    DEVICE_ID,
    ROLE_RANKS,
    ROLES,
    check_key,
    generate_device_id,
    generate_key,
    is_key,
    iso_time,
    lower_role,
    now_ms,
    parse_device_id,
    role_includes,
)


def test_roles_are_listed_from_the_lowest_to_the_highest_rank() -> None:
    assert ROLES == ("viewer", "member", "owner")
    assert [ROLE_RANKS[role] for role in ROLES] == [0, 1, 2]


def test_role_includes_itself_and_lower_roles() -> None:
    assert role_includes("owner", "viewer")
    assert role_includes("member", "member")
    assert not role_includes("viewer", "member")
    assert lower_role("owner", "member") == lower_role("member", "owner") == "member"


@pytest.mark.parametrize("text", ["BRW-12AB34CD", "brw-12ab34cd", "Brw-12aB34cD"])
def test_a_device_id_is_kept_in_upper_case(text: str) -> None:
    assert parse_device_id(text) == "BRW-12AB34CD"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BRW-",
        "BRW-1234567",
        "BRW-123456789",
        "BRW-1234567G",
        "BRW12345678",
        " BRW-12345678",
        "BRW-12345678\n",
        "BRW-\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
        "\ud800",
    ],
)
def test_what_is_no_device_id_is_refused_and_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="must be BRW- and 8 hex digits") as caught:
        parse_device_id(text)
    assert repr(text) in str(caught.value)


def test_a_key_in_the_place_of_an_id_is_not_repeated() -> None:
    key = generate_key()
    with pytest.raises(ValueError, match="a text of 43 characters") as caught:
        parse_device_id(key)
    assert key not in str(caught.value)


@given(st.text())
def test_any_text_is_an_id_or_a_value_error(text: str) -> None:
    try:
        device_id = parse_device_id(text)
    except ValueError:
        assert DEVICE_ID.fullmatch(text) is None
    else:
        assert device_id == text.upper() == parse_device_id(device_id)


@given(st.from_regex(DEVICE_ID, fullmatch=True))
def test_every_text_of_the_form_is_an_id(text: str) -> None:
    assert len(parse_device_id(text)) == 12


def test_generated_keys_are_valid_and_differ() -> None:
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 43 and is_key(key) for key in keys)


@pytest.mark.parametrize("key", ["a" * 32, "Z" * 128, "-_09" * 10])
def test_valid_keys(key: str) -> None:
    assert is_key(key)
    check_key(key)


@pytest.mark.parametrize("key", ["", "a" * 31, "a" * 129, "a" * 32 + "\n", "a" * 31 + "+", "ä" * 32])
def test_other_texts_are_no_keys(key: str) -> None:
    assert not is_key(key)
    with pytest.raises(ValueError, match=f"the key has {len(key)} characters"):
        check_key(key)


def test_a_refused_key_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        check_key("my-secret-key")
    assert "my-secret-key" not in str(caught.value)


def test_generated_device_ids_are_valid_and_differ() -> None:
    made = {generate_device_id() for _ in range(20)}
    assert len(made) == 20
    assert all(parse_device_id(device_id) == device_id for device_id in made)


def test_now_is_the_wall_clock_in_ms() -> None:
    before = time.time()
    now = now_ms()
    assert isinstance(now, int)
    assert before - 0.001 <= now / 1000 <= time.time() + 0.001


@pytest.mark.parametrize(
    ("at_ms", "written"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (7, "1970-01-01T00:00:00.007Z"),
        (1_700_000_000_999, "2023-11-14T22:13:20.999Z"),
        (1_704_067_199_999, "2023-12-31T23:59:59.999Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_written_in_utc_to_the_millisecond(at_ms: int | None, written: str | None) -> None:
    assert iso_time(at_ms) == written


def test_what_is_written_is_read_back() -> None:
    now = now_ms()
    written = iso_time(now)
    assert written is not None
    assert round(datetime.fromisoformat(written).timestamp() * 1000) == now


def test_a_time_that_cannot_be_written_is_the_last_that_can() -> None:
    assert iso_time(10**18) == "9999-12-31T23:59:59.000Z"
