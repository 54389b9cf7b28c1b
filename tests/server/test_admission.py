import time
from typing import Any, Literal

import pytest
import trio

from brewos_relay.auth.keys import hash_key
from brewos_relay.auth.tokens import TokenSigner
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError, TokenRejected
from brewos_relay.registry.records import Device
from brewos_relay.registry.store import Store
from brewos_relay.server.admission import Admission, ClientEntry, DeviceEntry, TokenRefused
from brewos_relay.wire.handshake import HEAD_END, Refusal, Request, parse_head
from support.wire_client import upgrade_head

DEVICE_ID = "BRW-12AB34CD"
KEY = "k" * 43
TOKENS = TokenSigner("s" * 32)


class FakeRelay(Relay):
    def __init__(self, *, closing: bool = False, full: bool = False, contested: bool = False) -> None:
        self.closing = closing
        self.limits = Limits()
        self.full = full
        self.contested = contested

    def admits(self) -> bool:
        return not self.full

    def is_contested(self, device_id: str) -> bool:
        assert device_id == DEVICE_ID
        return self.contested


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


def client_request(**issue: Any) -> Request:
    token = TOKENS.issue(**{"user_id": "ada", "email": "a@example.org", **issue})
    return request(f"/ws/client?token={token}&device={DEVICE_ID}")


def admission(*, store: Store | None = None, **relay: bool) -> Admission:
    return Admission(relay=FakeRelay(**relay), store=store or FakeStore(), tokens=TOKENS)


async def let_in(asking: Request) -> ClientEntry:
    """See a client let in."""
    entry = await admission().check(asking)
    assert isinstance(entry, ClientEntry)
    return entry


async def see_refusal(admission: Admission, asking: Request, status: int) -> Refusal:
    """See a request refused before the upgrade."""
    with pytest.raises(Refusal) as refusal:
        await admission.check(asking)
    assert refusal.value.status == status
    return refusal.value


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
        await see_refusal(admission(store=store), request(target), 400)
    assert store.asked == []


async def test_a_client_gets_in_by_its_token_or_by_the_registry() -> None:
    askings = (
        client_request(),
        client_request(user_id="eve", devices=[DEVICE_ID]),
        client_request(user_id="eve", devices="*"),
    )
    for asking in askings:
        entry = await let_in(asking)
        assert (entry.device_id, entry.last_seen_ms) == (DEVICE_ID, 7)


async def test_a_client_is_let_in_until_its_token_ends() -> None:
    now_s = int(time.time())
    entry = await let_in(client_request(now_s=now_s, ttl_s=600))
    assert entry.expires_at_s == now_s + 600
    fresh = TOKENS.issue(user_id="ada", email="b@example.org", now_s=now_s, ttl_s=1200)
    assert entry.renew(fresh) == now_s + 1200


RENEWALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another user's": ({}, {"user_id": "eve"}, "another user"),
    "another user's, for everything": ({}, {"user_id": "eve", "devices": "*"}, "another user"),
    "not for this device any more": ({"devices": [DEVICE_ID]}, {"devices": ["BRW-00000000"]}, "device"),
    "not for every device any more": ({"devices": "*"}, {}, "device"),
    "expired": ({}, {"now_s": 1000, "ttl_s": 60}, "expired"),
}


@pytest.mark.parametrize(("first", "second", "problem"), RENEWALS.values(), ids=RENEWALS)
async def test_a_token_is_renewed_by_one_that_reaches_as_far(
    first: dict[str, Any], second: dict[str, Any], problem: str
) -> None:
    entry = await let_in(client_request(**first))
    token = TOKENS.issue(**{"user_id": "ada", "email": "a@example.org", **second})
    with pytest.raises(TokenRejected, match=problem) as rejected:
        entry.renew(token)
    assert token not in str(rejected.value)


async def test_too_many_at_once_are_503_and_ask_nobody() -> None:
    store = FakeStore()
    for asking in (device_request(), client_request(), request("/ws/other")):
        refusal = await see_refusal(admission(store=store, full=True), asking, 503)
        assert refusal.headers["Retry-After"]
    assert store.asked == []


async def test_a_contested_id_is_409_for_whoever_has_the_key() -> None:
    await see_refusal(admission(contested=True), device_request(), 409)
    await see_refusal(admission(contested=True), device_request(key="x" * 43), 401)
    await admission(contested=True).check(client_request())


async def test_a_client_without_access_is_refused() -> None:
    await see_refusal(admission(), client_request(user_id="eve", devices=["BRW-00000000"]), 403)


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
    refusal = await see_refusal(admission(store=FakeStore(trouble=trouble)), asking, 503)
    assert trio.current_time() - began < 5
    assert refusal.headers["Retry-After"]
    assert b"disk" not in refusal.encode()


async def test_a_relay_that_leaves_asks_nobody() -> None:
    store = FakeStore()
    for asking in (device_request(), client_request()):
        refusal = await see_refusal(admission(store=store, closing=True), asking, 503)
        assert refusal.headers["Retry-After"]
    assert store.asked == []


async def test_other_paths_lead_nowhere() -> None:
    await see_refusal(admission(), request("/ws/other"), 404)
