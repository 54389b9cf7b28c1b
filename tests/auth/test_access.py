from brewos_relay.auth.access import claims_name_device
from brewos_relay.auth.tokens import Claims, NamedDevices


def claims(devices: NamedDevices) -> Claims:
    return Claims(user_id="ada", email="a@b.c", issued_at_s=0, expires_at_s=1, devices=devices)


def test_a_token_reaches_the_devices_it_names() -> None:
    assert claims_name_device(claims(frozenset({"BRW-00000001", "BRW-00000002"})), "BRW-00000002")


def test_a_token_reaches_no_other_device() -> None:
    assert not claims_name_device(claims(frozenset({"BRW-00000001"})), "BRW-00000002")
    assert not claims_name_device(claims(frozenset()), "BRW-00000002")


def test_a_token_for_all_devices_reaches_each() -> None:
    assert claims_name_device(claims("*"), "BRW-00000002")
