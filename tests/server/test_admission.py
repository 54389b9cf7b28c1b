from typing import Any, Literal

import pytest
import trio

from brewos_relay.auth.keys import hash_key
from brewos_relay.auth.tokens import TokenSigner
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError
from brewos_relay.registry.records import Device
from brewos_relay.registry.store import Store
from brewos_relay.server.admission import Admission, ClientEntry, DeviceEntry, TokenRefused
from brewos_relay.wire.handshake import HEAD_END, Refusal, Request, parse_head
from support.wire_client import upgrade_head

DEVICE_ID = "BRW-12AB34CD"
KEY = "k" * 43
TOKENS = TokenSigner("s" * 32)


class FakeRelay(Relay):
    def __init__(self, *, closing: bool = False) -> None:
        self.closing = closing
        self.limits = Limits()


class FakeStore(Store):
    """One device, which ada has; a store that fails, or answers when it is too late."""

    def __init__(self, *, trouble: Literal["", "failing", "slow"] = "") -> None:
        self.trouble = trouble
        self.asked: list[str] = []

    async def find_device(self, device_id: str) -> Device | None:
        await self._answer(device_id)
        if device_id != DEVICE_ID:
            return None
        return Device(id=device_id, key_hash=hash_key(KEY), name=None, created_at_ms=1, last_seen_ms=7)

    async def user_has_device(self, user_id: str, device_id: str) -> bool:
        await self._answer(user_id)
        return (user_id, device_id) == ("ada", DEVICE_ID)

    async def _answer(self, question: str) -> None:
        self.asked.append(question)
        if self.trouble == "failing":
            raise RegistryError("the registry could not read devices: the disk is gone")
        if self.trouble == "slow":
            await trio.sleep(60)


def request(target: str) -> Request:
    return parse_head(upgrade_head(target).removesuffix(HEAD_END))


def device_request(device_id: str = DEVICE_ID, key: str = KEY) -> Request:
    return request(f"/ws/device?id={device_id}&key={key}")


def client_request(*, user_id: str = "ada", **issue: Any) -> Request:
    token = TOKENS.issue(user_id=user_id, email="a@example.org", **issue)
    return request(f"/ws/client?token={token}&device={DEVICE_ID}")


def admission(*, store: Store | None = None, closing: bool = False) -> Admission:
    return Admission(relay=FakeRelay(closing=closing), store=store or FakeStore(), tokens=TOKENS)


async def test_a_device_with_its_key_is_let_in() -> None:
    assert await admission().check(device_request(DEVICE_ID.lower())) == DeviceEntry(DEVICE_ID)


@pytest.mark.parametrize(("device_id", "key"), [(DEVICE_ID, "x" * 43), ("BRW-00000000", KEY)])
async def test_a_device_without_its_key_is_refused_after_the_same_question(device_id: str, key: str) -> None:
    store = FakeStore()
    with pytest.raises(Refusal, match="unknown device or wrong key") as refusal:
        await admission(store=store).check(device_request(device_id, key))
    assert refusal.value.status == 401
    assert store.asked == [device_id]
    assert key not in str(refusal.value)


async def test_malformed_devices_cost_no_question() -> None:
    store = FakeStore()
    for target in ("/ws/device", f"/ws/device?id={DEVICE_ID}", f"/ws/device?id=x&key={KEY}"):
        with pytest.raises(Refusal) as refusal:
            await admission(store=store).check(request(target))
        assert refusal.value.status == 400
    assert store.asked == []


async def test_a_client_gets_in_by_its_token_or_by_the_registry() -> None:
    entry = ClientEntry(DEVICE_ID, 7)
    assert await admission().check(client_request()) == entry
    assert await admission().check(client_request(user_id="eve", devices=[DEVICE_ID])) == entry
    assert await admission().check(client_request(user_id="eve", devices="*")) == entry


async def test_a_client_without_access_is_refused() -> None:
    with pytest.raises(Refusal) as refusal:
        await admission().check(client_request(user_id="eve", devices=["BRW-00000000"]))
    assert refusal.value.status == 403


async def test_a_bad_token_needs_no_registry_to_be_told() -> None:
    store = FakeStore(trouble="failing")
    found = await admission(store=store).check(request(f"/ws?token=secret-token&device={DEVICE_ID}"))
    assert isinstance(found, TokenRefused)
    assert "secret-token" not in found.reason
    assert store.asked == []


@pytest.mark.parametrize("trouble", ["failing", "slow"])
@pytest.mark.parametrize("asking", [device_request(), client_request(), client_request(devices="*")])
async def test_a_store_in_trouble_is_503_before_a_machine_gives_up(
    autojump_clock: trio.testing.MockClock, trouble: Literal["failing", "slow"], asking: Request
) -> None:
    began = trio.current_time()
    with pytest.raises(Refusal) as refusal:
        await admission(store=FakeStore(trouble=trouble)).check(asking)
    assert trio.current_time() - began < 5
    assert refusal.value.status == 503
    assert refusal.value.headers["Retry-After"]
    assert b"disk" not in refusal.value.encode()


async def test_a_relay_that_leaves_asks_nobody() -> None:
    store = FakeStore()
    for asking in (device_request(), client_request()):
        with pytest.raises(Refusal) as refusal:
            await admission(store=store, closing=True).check(asking)
        assert refusal.value.status == 503
        assert refusal.value.headers["Retry-After"]
    assert store.asked == []


async def test_other_paths_lead_nowhere() -> None:
    with pytest.raises(Refusal) as refusal:
        await admission().check(request("/ws/other"))
    assert refusal.value.status == 404
