import pytest

from brewos_relay.registry.records import NewDevice


def test_a_device_may_have_no_name_and_no_user() -> None:
    new = NewDevice(id="BRW-00000001", key_hash=bytes(32))
    assert new.name is None
    assert new.user_ids == ()


def test_each_user_is_listed_once() -> None:
    new = NewDevice(id="BRW-00000001", key_hash=bytes(32), user_id="ada", more_user_ids=("bob", "ada", "bob"))
    assert new.user_ids == ("ada", "bob")


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "a\x1b[2Jb", "\ud800", "\u202eab", "\u200d"])
def test_invalid_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name must have 1 to 100 printable characters"):
        NewDevice(id="BRW-00000001", key_hash=bytes(32), name=name)


@pytest.mark.parametrize("user_id", ["", "x" * 257, "a\x00"])
def test_invalid_user_id_is_refused(user_id: str) -> None:
    with pytest.raises(ValueError, match="a user id must have 1 to 256"):
        NewDevice(id="BRW-00000001", key_hash=bytes(32), user_id=user_id)
    with pytest.raises(ValueError, match="a user id must have 1 to 256"):
        NewDevice(id="BRW-00000001", key_hash=bytes(32), more_user_ids=("ada", user_id))
