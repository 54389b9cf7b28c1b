from pathlib import Path

import msgspec

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.device_keys import NEXT_KEYS_AT_MOST
from brewos_relay.vocabulary import is_key
from support.household import KEY, MACHINE, open_household

ROTATE = f"/devices/{MACHINE}/rotate-key"


async def test_new_key_is_sent_to_the_machine_only(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        answer = await house.ask("POST", f"/devices/{MACHINE.lower()}/rotate-key")
        assert (answer.status, answer.content["status"]) == (202, "sent")
        assert answer.content["message"]
        ((device_id, message),) = house.relay.sent
        sent = msgspec.json.decode(message.payload)
        assert device_id == MACHINE
        assert sent.keys() == {"type", "key"}
        assert sent["type"] == "key_rotate"
        assert is_key(sent["key"])
        assert sent["key"].encode() not in answer.body
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert device.key_hash == hash_secret(KEY)
        assert device.next_key_hashes == (hash_secret(sent["key"]),)


async def test_key_that_could_not_be_sent_is_dropped(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        # The machine disconnects while the key is stored.
        house.relay.outcome = "device_offline"
        for _ in range(NEXT_KEYS_AT_MOST + 1):
            answer = await house.ask("POST", ROTATE)
            assert answer.status == 409
            assert "offline" in answer.content["error"]
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert device.next_key_hashes == ()


async def test_key_that_may_have_arrived_stays_valid(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        house.relay.outcome = "unknown"
        assert (await house.ask("POST", ROTATE)).status == 202
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert len(device.next_key_hashes) == 1


async def test_offline_machine_gets_no_key(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("POST", ROTATE)
        assert answer.status == 409
        assert "offline" in answer.content["error"]
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert device.next_key_hashes == ()


async def test_machine_that_ignores_new_keys_gets_no_more(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        statuses = [(await house.ask("POST", ROTATE)).status for _ in range(NEXT_KEYS_AT_MOST + 1)]
        assert statuses == [202] * NEXT_KEYS_AT_MOST + [409]
        assert len(house.relay.sent) == NEXT_KEYS_AT_MOST
        for online in ({MACHINE}, set[str]()):  # offline too, but switching it on would not help
            house.relay.online = online
            refused = await house.ask("POST", ROTATE)
            assert refused.status == 409
            assert "ignored the last" in refused.content["error"]
            assert "pair it again" in refused.content["error"]


async def test_only_owners_rotate_a_key(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        await house.give("bob", "member")
        for by, status in [("bob", 403), ("eve", 404), (None, 401)]:
            assert (await house.ask("POST", ROTATE, by=by)).status == status
        token = house.token("ops", devices=[MACHINE], role="viewer")
        assert (await house.ask("POST", ROTATE, token=token)).status == 403
        assert house.relay.sent == []
