import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal, TypeVar

import pytest
import trio

from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.grant import Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.errors import RegistryError, TokenRejected
from brewos_relay.messages import Message
from brewos_relay.registry.device_keys import use_next_key
from brewos_relay.registry.pairing_proof import confirm_key, connected_with_other_key, is_recorded
from brewos_relay.registry.records import Access, Device, LoginSession, StoredState
from brewos_relay.registry.store import Store
from brewos_relay.server.admission import Admission, ClientEntry, DeviceEntry, TokenRefused
from brewos_relay.server.connection_rates import DEVICE_BURST
from brewos_relay.server.incoming import Denied
from brewos_relay.settings.parsing import parse_networks
from brewos_relay.wire.handshake import HEAD_END, Refusal, Request, parse_head
from support.late_answers import LateAnswer
from support.wire_client import upgrade_head

DEVICE_ID = "BRW-12AB34CD"
KEY = "k" * 43
NEXT_KEY = "n" * 43
NEWEST_KEY = "m" * 43
TOKENS = KeyRing(["s" * 32])
OTHERS_TOKENS = KeyRing(["t" * 32])
APP_ORIGIN = "https://app.example"
UNTIL_MS = 4_000_000_000_000

T = TypeVar("T")


class FakeRelay(Relay):
    def __init__(
        self,
        *,
        closing: bool = False,
        full: bool = False,
        contested: bool = False,
        limit: str | None = None,
        knows: bool = False,
    ) -> None:
        self.closing = closing
        self.limits = Limits()
        self.full = full
        self.contested = contested
        self.limit = limit
        self.knows = knows
        self.asked_for: list[Grant] = []

    def admits(self, *, reserve: float = 0.0) -> bool:
        return not self.full

    def knows_state(self, device_id: str, *, for_s: float) -> bool:
        return self.knows

    def is_contested(self, device_id: str) -> bool:
        assert device_id == DEVICE_ID
        return self.contested

    def reached_client_limit(self, device_id: str, grant: Grant) -> str | None:
        self.asked_for.append(grant)
        return self.limit


class FakeOthers:
    """The other instances of a cluster."""

    def __init__(self, *, contested: bool = False) -> None:
        self.contested = contested
        self.asked: list[str] = []

    async def is_contested(self, device_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"contested {device_id}")
        return self.contested

    async def find(self, device_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(f"find {device_id}")


class FakeStore(Store):
    """One device of ada and other users, in a store that can fail or answer too late."""

    def __init__(
        self, *, trouble: Literal["", "failing", "slow"] = "", next_keys: Iterable[str] = ()
    ) -> None:
        self.trouble = trouble
        self.state: StoredState | None = None
        self.states_asked = 0
        self.asked: list[str] = []
        self.device = Device(
            id=DEVICE_ID,
            key_hash=hash_secret(KEY),
            name=None,
            created_at_ms=1,
            last_seen_ms=7,
            next_key_hashes=tuple(hash_secret(key) for key in next_keys),
        )
        self.accesses = {
            "ada": Access(user_id="ada", device_id=DEVICE_ID, role="owner"),
            "mel": Access(user_id="mel", device_id=DEVICE_ID, role="member", until_ms=UNTIL_MS),
            "vic": Access(user_id="vic", device_id=DEVICE_ID, role="viewer"),
        }
        self.sessions = {"session of ada": "ada"}
        self.revoked: set[str] = set()
        self.used: list[bytes] = []
        self.takes_keys = True
        self.recorded = self.goes_back = False
        self.confirmed: list[Any] = []
        self.held: list[Any] = []
        self.writes: Literal["", "failing", "slow"] = ""
        self.challengers: list[Any] = []
        self.answers_soon: Callable[[], None] = lambda: None
        """Called before each answer."""

    async def find_device(self, device_id: str) -> Device | None:
        await self._answer(device_id)
        return self.device if device_id == DEVICE_ID else None

    async def find_state(self, device_id: str) -> StoredState | None:
        self.states_asked += 1
        return self.state

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        await self._answer(user_id)
        return self.accesses.get(user_id) if device_id == DEVICE_ID else None

    async def find_session(self, session_id: str) -> LoginSession | None:
        await self._answer(session_id)
        user_id = self.sessions.get(session_id)
        if user_id is None:
            return None
        return LoginSession(
            id=session_id,
            user_id=user_id,
            created_at_ms=1,
            used_at_ms=1,
            expires_at_ms=UNTIL_MS,
            user_agent=None,
            address=None,
            email="a@example.org",
            name=None,
            picture_url=None,
            is_admin=False,
        )

    def ask_device(self, device_id: str) -> Any:
        return LateAnswer(self.find_device, device_id)

    def ask_state(self, device_id: str) -> Any:
        return LateAnswer(self.find_state, device_id)

    def ask_access(self, user_id: str, device_id: str) -> Any:
        return LateAnswer(self.access_of, user_id, device_id)

    def ask_session(self, session_id: str) -> Any:
        return LateAnswer(self.find_session, session_id)

    def ask_revoked(self, token_id: str) -> Any:
        return LateAnswer(self.find_revoked, token_id)

    async def read(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        assert function is is_recorded
        assert args[0] is self.device
        await self._answer("is it recorded")
        return self.recorded

    async def find_revoked(self, token_id: str) -> str | None:
        await self._answer(token_id)
        return token_id if token_id in self.revoked else None

    def has_heard_of_revocation(self, token_id: str) -> bool:
        return token_id in self.revoked

    def hold_use(self, device_id: str, key_hash: bytes, use: Any) -> None:
        self.held.append((device_id, key_hash, use))

    async def write(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        if self.writes == "failing":
            raise RegistryError("the registry could not be changed: the disk is full")
        if self.writes == "slow":
            await trio.sleep(60)
        if function is confirm_key:
            await self._answer("confirm this key")
            self.confirmed.append(args)
            return None
        if function is connected_with_other_key:
            await self._answer("note this key")
            self.challengers.append(args)
            return self.goes_back
        assert function is use_next_key
        device_id, key_hash = args
        assert device_id == DEVICE_ID
        assert abs(kwargs["now_ms"] - time.time() * 1000) < 60_000
        await self._answer("use this key")
        self.used.append(key_hash)
        return self.takes_keys

    async def _answer(self, question: str) -> None:
        self.asked.append(question)
        if self.trouble == "failing":
            raise RegistryError("the registry could not read devices: the disk is gone")
        if self.trouble == "slow":
            await trio.sleep(60)
        self.answers_soon()


def request(target: str, **headers: Any) -> Request:
    asking = parse_head(upgrade_head(target, **headers).removesuffix(HEAD_END))
    asking.peer_address = "192.0.2.7"
    return asking


def device_request(device_id: str = DEVICE_ID, key: str = KEY, **headers: str) -> Request:
    return request(f"/ws/device?id={device_id}&key={key}", **headers)


def issue(**told: Any) -> str:
    return TOKENS.issue(**{"user_id": "ada", "email": "a@example.org", **told})


def client_request(path: str = "/ws/client", **told: Any) -> Request:
    return request(f"{path}?token={issue(**told)}&device={DEVICE_ID}")


def admission(
    *,
    store: Store | None = None,
    proxy_trust: ProxyTrust | None = None,
    revision: Callable[[], int] = lambda: 0,
    others: FakeOthers | None = None,
    **relay: Any,
) -> Admission:
    return Admission(
        relay=FakeRelay(**relay),
        store=store or FakeStore(),
        keys=TOKENS,
        proxy_trust=proxy_trust or ProxyTrust(),
        allowed_origins=[APP_ORIGIN],
        revision=revision,
        others=others,
    )


async def let_in(asking: Request, store: Store | None = None) -> ClientEntry:
    """Check that a client is admitted."""
    entry = await admission(store=store).check(asking)
    assert isinstance(entry, ClientEntry)
    return entry


async def see_refusal(admission: Admission, asking: Request, status: int) -> Refusal:
    """Check that a request is refused before the upgrade."""
    with pytest.raises(Refusal) as refusal:
        await admission.check(asking)
    assert refusal.value.status == status
    return refusal.value


# Devices


async def test_a_device_with_its_key_is_admitted() -> None:
    store = FakeStore(next_keys=[NEXT_KEY])
    entry = await admission(store=store).check(device_request(DEVICE_ID.lower()))
    assert entry == DeviceEntry(DEVICE_ID, hash_secret(KEY), "192.0.2.7")
    assert store.used == []  # the next one stays a next one


async def test_a_device_that_the_relay_does_not_know_brings_its_last_state() -> None:
    store = FakeStore()
    store.state = StoredState(device_id=DEVICE_ID, payload=b"{}", is_text=True, at_ms=5)
    entry = await admission(store=store).check(device_request())
    assert isinstance(entry, DeviceEntry)
    assert entry.known_state == KnownState(Message(b"{}"), 5)
    entry = await admission(store=store, knows=True).check(device_request())
    assert isinstance(entry, DeviceEntry)
    assert entry.known_state is None
    store.device = replace(store.device, anonymous=True)
    entry = await admission(store=store).check(device_request())
    assert isinstance(entry, DeviceEntry)
    assert (entry.known_state, store.states_asked) == (None, 1)


async def test_state_that_comes_too_late_is_left_out(autojump_clock: trio.testing.MockClock) -> None:
    class LateStore(FakeStore):
        async def find_device(self, device_id: str) -> Device | None:
            await trio.sleep(Limits().admission_s - 0.1)
            return self.device

        async def find_state(self, device_id: str) -> StoredState | None:
            await trio.sleep(60)
            return None

    began_at = trio.current_time()
    entry = await admission(store=LateStore()).check(device_request())
    assert entry == DeviceEntry(DEVICE_ID, hash_secret(KEY), "192.0.2.7")
    assert trio.current_time() - began_at == pytest.approx(Limits().admission_s)


@pytest.mark.parametrize(("device_id", "key"), [(DEVICE_ID, "x" * 43), ("BRW-00000000", KEY)])
async def test_a_device_without_its_key_is_refused_after_the_same_lookup(device_id: str, key: str) -> None:
    store = FakeStore(next_keys=[NEXT_KEY])
    with pytest.raises(Refusal, match="unknown device or wrong key") as refusal:
        await admission(store=store).check(device_request(device_id, key))
    assert refusal.value.status == 401
    assert store.asked == [device_id]
    assert key not in str(refusal.value)


@pytest.mark.parametrize("key", [NEXT_KEY, NEWEST_KEY])
async def test_a_sent_key_becomes_current_before_the_device_is_admitted(key: str) -> None:
    store = FakeStore(next_keys=[NEXT_KEY, NEWEST_KEY])
    entry = await admission(store=store).check(device_request(key=key))
    assert entry == DeviceEntry(DEVICE_ID, hash_secret(key), "192.0.2.7")
    assert store.used == [hash_secret(key)]
    assert key not in repr(entry)


async def test_a_sent_key_that_was_withdrawn_is_refused() -> None:
    store = FakeStore(next_keys=[NEXT_KEY])
    store.takes_keys = False
    refusal = await see_refusal(admission(store=store), device_request(key=NEXT_KEY), 401)
    assert refusal.message == "unknown device or wrong key"


async def test_first_connection_with_a_key_that_registered_itself_is_written_down() -> None:
    store = FakeStore()
    store.device = replace(store.device, unproven_since_ms=1)
    entry = await admission(store=store).check(device_request())
    assert entry == DeviceEntry(DEVICE_ID, hash_secret(KEY), "192.0.2.7")
    assert store.confirmed == [(DEVICE_ID, hash_secret(KEY))]


@pytest.mark.parametrize("writes", ["failing", "slow"])
@pytest.mark.parametrize(("key", "use"), [(NEXT_KEY, "next"), (KEY, "confirmed")])
async def test_a_machine_with_a_valid_key_is_admitted_without_a_write(
    autojump_clock: trio.testing.MockClock, writes: Any, key: str, use: str
) -> None:
    store = FakeStore(next_keys=[NEXT_KEY])
    store.writes = writes
    store.device = replace(store.device, unproven_since_ms=1)
    entry = await admission(store=store).check(device_request(key=key))
    assert isinstance(entry, DeviceEntry)
    assert trio.current_time() < Limits().admission_s
    assert store.held == [(DEVICE_ID, hash_secret(key), use)]
    store.held.clear()
    store.device = replace(store.device, unproven_since_ms=None)
    await see_refusal(admission(store=store), device_request(key="x" * 43), 401)
    assert store.held == []


async def test_other_key_is_recorded_and_refused_while_no_machine_has_connected() -> None:
    store = FakeStore()
    store.device = replace(store.device, unproven_since_ms=1)
    for recorded, asked in ((False, 1), (True, 1)):
        store.recorded = recorded
        await see_refusal(admission(store=store), device_request(key=NEXT_KEY), 401)
        assert store.challengers == [(DEVICE_ID, hash_secret(NEXT_KEY))] * asked


@pytest.mark.parametrize("slow", ["is it recorded", "note this key"])
async def test_a_registry_that_cannot_record_another_key_in_time_is_503(
    autojump_clock: trio.testing.MockClock, slow: str
) -> None:
    class SlowStore(FakeStore):
        async def _answer(self, question: str) -> None:
            if question == slow:
                await trio.sleep(60)

    store = SlowStore()
    store.device = replace(store.device, unproven_since_ms=1)
    began_at = trio.current_time()
    await see_refusal(admission(store=store), device_request(key=NEXT_KEY), 503)
    assert trio.current_time() - began_at == pytest.approx(Limits().admission_s)


async def test_the_key_of_an_earlier_pairing_is_accepted_if_the_device_returns_to_it() -> None:
    store = FakeStore()
    store.device = replace(store.device, former_key_hash=hash_secret(NEXT_KEY))
    store.goes_back = True
    entry = await admission(store=store).check(device_request(key=NEXT_KEY))
    assert entry == DeviceEntry(DEVICE_ID, hash_secret(NEXT_KEY), "192.0.2.7")
    await see_refusal(admission(store=store), device_request(key=NEWEST_KEY), 401)
    assert store.challengers == [(DEVICE_ID, hash_secret(NEXT_KEY))]


async def test_malformed_device_requests_cause_no_lookup() -> None:
    store = FakeStore()
    for target in ("/ws/device", f"/ws/device?id={DEVICE_ID}", f"/ws/device?id=x&key={KEY}"):
        await see_refusal(admission(store=store), request(target), 400)
    assert store.asked == []


async def test_an_id_that_two_machines_use_on_different_instances_is_409() -> None:
    store, others = FakeStore(next_keys=[NEXT_KEY]), FakeOthers(contested=True)
    for key in (KEY, NEXT_KEY):
        await see_refusal(admission(store=store, others=others), device_request(key=key), 409)
    assert store.used == []
    assert others.asked == [f"contested {DEVICE_ID}"] * 2
    await see_refusal(admission(others=others), device_request(key="x" * 43), 401)
    assert len(others.asked) == 2, "a stranger learns nothing"
    entry = await admission(others=FakeOthers()).check(device_request())
    assert isinstance(entry, DeviceEntry)


async def test_device_of_a_client_is_looked_for_on_other_instances() -> None:
    others = FakeOthers()
    entry = await admission(others=others).check(client_request())
    assert isinstance(entry, ClientEntry)
    assert others.asked == [f"find {DEVICE_ID}"]
    await see_refusal(admission(others=others), client_request(user_id="stranger"), 403)
    assert len(others.asked) == 1, "only for clients with access"


async def test_a_contested_id_is_409_even_with_the_right_key() -> None:
    store = FakeStore(next_keys=[NEXT_KEY])
    for key in (KEY, NEXT_KEY):
        await see_refusal(admission(store=store, contested=True), device_request(key=key), 409)
    assert store.used == []  # it has not come
    await see_refusal(admission(contested=True), device_request(key="x" * 43), 401)
    await admission(contested=True).check(client_request())


# Clients


async def test_a_client_gets_in_by_its_token_or_by_the_registry() -> None:
    askings = (
        client_request(),
        client_request("/ws"),
        client_request(user_id="eve", devices=[DEVICE_ID]),
        client_request(user_id="eve", devices="*"),
    )
    for asking in askings:
        entry = await let_in(asking)
        assert (entry.device_id, entry.last_seen_ms) == (DEVICE_ID, 7)


async def test_a_token_lets_reach_a_device_that_is_not_registered() -> None:
    asking = request(f"/ws/client?token={issue(devices='*')}&device=BRW-00000000")
    assert (await let_in(asking)).last_seen_ms is None


@pytest.mark.parametrize(
    ("told", "may_command", "may_manage", "by_token"),
    [
        ({"user_id": "ada"}, True, True, False),
        ({"user_id": "mel"}, True, False, False),
        ({"user_id": "vic"}, False, False, False),
        ({"user_id": "eve", "devices": [DEVICE_ID]}, True, True, True),
        ({"user_id": "eve", "devices": "*", "role": "member"}, True, False, True),
        ({"user_id": "eve", "devices": [DEVICE_ID], "role": "viewer"}, False, False, True),
        # A token gives its role only for the devices that it names.
        ({"user_id": "vic", "devices": ["BRW-00000000"], "role": "owner"}, False, False, False),
        # For those, the role in the registry does not count.
        ({"user_id": "ada", "devices": [DEVICE_ID], "role": "viewer"}, False, False, True),
    ],
)
async def test_the_grant_of_a_client(
    told: dict[str, Any], may_command: bool, may_manage: bool, by_token: bool
) -> None:
    grant = (await let_in(client_request(**told))).grant
    assert (grant.may_command, grant.may_manage, grant.by_token) == (may_command, may_manage, by_token)
    assert (grant.user_id, grant.session_id) == (told["user_id"], None)


async def test_an_access_with_an_end_is_granted_until_then() -> None:
    assert (await let_in(client_request(user_id="mel"))).grant.until_s == UNTIL_MS / 1000
    assert (await let_in(client_request(user_id="ada"))).grant.until_s == float("inf")


async def test_a_client_without_access_is_refused() -> None:
    await see_refusal(admission(), client_request(user_id="eve", devices=["BRW-00000000"]), 403)
    store = FakeStore()
    del store.accesses["ada"]
    await see_refusal(admission(store=store), client_request(), 403)


@pytest.mark.parametrize("device_id", [DEVICE_ID, "BRW-00000000"])
async def test_a_page_without_access_is_upgraded_and_closed_with_4002(device_id: str) -> None:
    asking = request(f"/ws/client?token={issue(user_id='eve')}&device={device_id}", Origin=APP_ORIGIN)
    found = await admission().check(asking)
    assert found == TokenRefused("no access to this device", cause="no_access")


@pytest.mark.parametrize("parameters", ["token={token}&device=x", "token=&device=BRW-12AB34CD"])
async def test_a_page_with_malformed_parameters_is_refused(parameters: str) -> None:
    target = "/ws/client?" + parameters.format(token=issue())
    await see_refusal(admission(), request(target, Origin=APP_ORIGIN), 400)


async def test_pages_without_access_count_as_failed_attempts_of_their_network() -> None:
    deciding = admission()
    told: list[object] = []

    async def insist() -> None:
        for number in range(200):
            asking = client_request(user_id=f"eve{number}")
            asking.headers["origin"] = APP_ORIGIN
            told.append(await deciding.check(asking))

    with pytest.raises(Denied) as denied:
        await insist()
    assert denied.value.reason == "too_many_failures"
    assert len(told) > 100
    assert all(isinstance(entry, TokenRefused) for entry in told)


async def test_a_client_entry_has_the_id_of_its_login_session() -> None:
    for devices in ([], [DEVICE_ID]):
        entry = await let_in(client_request(session_id="session of ada", devices=devices))
        assert (entry.grant.user_id, entry.grant.session_id) == ("ada", "session of ada")


@pytest.mark.parametrize("devices", [[], [DEVICE_ID], "*"])
@pytest.mark.parametrize(
    "told", [{"session_id": "ended"}, {"session_id": "session of ada", "user_id": "eve"}]
)
async def test_an_ended_session_or_one_of_another_user_is_rejected(
    told: dict[str, Any], devices: Any
) -> None:
    found = await admission().check(client_request(**told, devices=devices))
    assert found == TokenRefused("the session has ended")


BAD_TOKENS = {
    "no token at all": "secret-token",
    "signed with another secret": OTHERS_TOKENS.issue(user_id="ada", email="a@example.org"),
    "expired": issue(now_s=1000, ttl_s=60),
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
async def test_an_invalid_token_is_rejected_without_the_registry(token: str) -> None:
    store = FakeStore(trouble="failing")
    found = await admission(store=store).check(request(f"/ws?token={token}&device={DEVICE_ID}"))
    assert isinstance(found, TokenRefused)
    assert token not in found.reason
    assert store.asked == []


async def test_malformed_client_requests_cause_no_lookup() -> None:
    store = FakeStore()
    for target in (
        f"/ws/client?device={DEVICE_ID}",
        f"/ws/client?token=&device={DEVICE_ID}",
        f"/ws/client?token={issue()}",
        f"/ws/client?token={issue()}&device=x",
    ):
        await see_refusal(admission(store=store), request(target), 400)
    assert store.asked == []


# Renewing a token


async def test_a_client_is_admitted_until_its_token_expires() -> None:
    now_s = int(time.time())
    entry = await let_in(client_request(now_s=now_s, ttl_s=600))
    assert entry.expires_at_s == now_s + 600
    fresh = TOKENS.issue(user_id="ada", email="b@example.org", now_s=now_s, ttl_s=1200)
    assert entry.renew(fresh) == now_s + 1200


async def test_a_session_s_token_is_renewed_by_one_of_the_same_session() -> None:
    entry = await let_in(client_request(session_id="session of ada"))
    entry.renew(issue(session_id="session of ada"))


ADAS = {"session_id": "session of ada"}
RENEWALS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another user's": ({}, {"user_id": "eve"}, "another user"),
    "another user's, for everything": ({}, {"user_id": "eve", "devices": "*"}, "another user"),
    "another session's": (ADAS, {"session_id": "another"}, "another session"),
    "of no session": (ADAS, {}, "another session"),
    "of a session after none": ({}, ADAS, "another session"),
    "not for this device any more": ({"devices": [DEVICE_ID]}, {"devices": ["BRW-00000000"]}, "device"),
    "not for every device any more": ({"devices": "*"}, {}, "device"),
    "for a viewer": ({"devices": "*"}, {"devices": "*", "role": "viewer"}, "lower role"),
    "for a member": ({"devices": "*"}, {"devices": [DEVICE_ID], "role": "member"}, "lower role"),
    "expired": ({}, {"now_s": 1000, "ttl_s": 60}, "expired"),
}


@pytest.mark.parametrize(("first", "second", "problem"), RENEWALS.values(), ids=RENEWALS)
async def test_a_token_with_less_access_is_refused_for_renewal(
    first: dict[str, Any], second: dict[str, Any], problem: str
) -> None:
    entry = await let_in(client_request(**first))
    token = issue(**second)
    with pytest.raises(TokenRejected, match=problem) as rejected:
        entry.renew(token)
    assert token not in str(rejected.value)


@pytest.mark.parametrize("role", ["viewer", "member", "owner"])
async def test_a_token_is_renewed_by_one_of_the_same_or_a_higher_role(role: Any) -> None:
    entry = await let_in(client_request(devices=[DEVICE_ID], role="viewer"))
    entry.renew(issue(devices="*", role=role))


async def test_a_token_of_a_lower_role_does_not_extend_access_from_the_registry() -> None:
    by_registry = await let_in(client_request())
    with pytest.raises(TokenRejected, match="lower role than the earlier one"):
        by_registry.renew(issue(devices=[DEVICE_ID], role="member"))
    by_registry.renew(issue(devices=[DEVICE_ID]))


# Tokens with an id


async def test_a_revoked_token_is_refused_and_an_unknown_id_is_not() -> None:
    store = FakeStore()
    store.revoked.add("known")
    found = await admission(store=store).check(client_request(token_id="known"))
    assert found == TokenRefused("the token has been revoked")
    found = await admission(store=store).check(client_request(token_id="of-another-service"))
    assert isinstance(found, ClientEntry)


async def test_a_revoked_token_is_refused_for_renewal() -> None:
    store = FakeStore()
    found = await admission(store=store).check(client_request())
    assert isinstance(found, ClientEntry)
    store.revoked.add("known")
    with pytest.raises(TokenRejected, match="revoked"):
        found.renew(issue(token_id="known"))


async def test_a_client_is_known_by_the_id_of_the_token_that_it_uses_now() -> None:
    entry = await let_in(client_request(token_id="first"))
    credential = entry.grant.credential
    assert credential is not None
    assert credential.token_id == "first"
    entry.renew(issue(token_id="second"))
    assert credential.token_id == "second"


async def test_the_role_of_a_token_limits_the_role_from_the_registry() -> None:
    entry = await let_in(client_request(role="viewer"))
    assert (entry.grant.may_command, entry.grant.may_manage) == (False, False)
    assert entry.grant.highest_role == "viewer"


# Pages of other origins


@pytest.mark.parametrize(
    "origin",
    [None, "http://relay.example:3001", "https://relay.example:3001", APP_ORIGIN, "HTTPS://app.example"],
)
async def test_own_pages_and_programs_may_connect(origin: str | None) -> None:
    asking = client_request()
    if origin is not None:
        asking.headers["origin"] = origin
    await let_in(asking)


@pytest.mark.parametrize("path", ["/ws/client", "/ws"])
@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://relay.example",
        "http://app.example",
        "https://app.example.evil.example",
        "file://",
        "null",
        "",
    ],
)
async def test_foreign_pages_may_not_connect(path: str, origin: str) -> None:
    store = FakeStore()
    asking = client_request(path)
    asking.headers["origin"] = origin
    await see_refusal(admission(store=store), asking, 403)
    assert store.asked == []


async def test_an_unencrypted_page_is_foreign_over_tls() -> None:
    asking = client_request()
    asking.headers["origin"] = "http://relay.example:3001"
    asking.secure = True
    await see_refusal(admission(), asking, 403)


async def test_the_address_of_a_page_comes_from_a_trusted_proxy_only() -> None:
    asking = client_request()
    asking.headers |= {"origin": "https://public.example", "x-forwarded-host": "public.example"}
    await see_refusal(admission(), asking, 403)
    await admission(proxy_trust=ProxyTrust(parse_networks("192.0.2.0/24"))).check(asking)
    del asking.headers["x-forwarded-host"]
    await admission(proxy_trust=ProxyTrust(public_url="https://public.example")).check(asking)


async def test_a_machine_may_send_any_origin() -> None:
    for origin in ("file://", "https://evil.example", "null"):
        await admission().check(device_request(Origin=origin))


# Devices and clients


class Changes:
    """A revision that grows during the first lookups."""

    def __init__(self, *happening: Callable[[], None]) -> None:
        self.happening = list(happening)
        self.revision = 0

    def happen(self) -> None:
        if self.happening:
            self.happening.pop(0)()
            self.revision += 1


async def test_a_decision_is_repeated_after_a_change_of_access() -> None:
    store = FakeStore()
    changes = Changes(lambda: None, lambda: None)
    store.answers_soon = changes.happen
    deciding = admission(store=store, revision=lambda: changes.revision)
    await deciding.check(client_request())
    assert store.asked == ["ada", DEVICE_ID] * 2  # both changes happened during the first lookup
    store.asked.clear()
    changes.happening = [lambda: None, lambda: None]
    await deciding.check(device_request())
    assert store.asked == [DEVICE_ID] * 3


@pytest.mark.parametrize(
    ("asking", "status"),
    [
        (client_request(), 403),
        (device_request(), 401),
        (client_request(session_id="session of ada", devices=[DEVICE_ID]), None),
    ],
    ids=["access", "key", "session"],
)
async def test_access_removed_during_the_lookup_admits_no_client(asking: Request, status: int | None) -> None:
    """The change happens after the lookup, before the peer is admitted."""

    def take_away() -> None:
        store.accesses.clear()
        store.sessions.clear()
        store.device = Device(
            id=DEVICE_ID, key_hash=hash_secret("x" * 43), name=None, created_at_ms=1, last_seen_ms=7
        )

    class Overtaken(FakeStore):
        """Answers from outdated data, the first time."""

        async def find_device(self, device_id: str) -> Device | None:
            return await self._first(super().find_device, device_id)

        async def access_of(self, user_id: str, device_id: str) -> Access | None:
            return await self._first(super().access_of, user_id, device_id)

        async def find_session(self, session_id: str) -> LoginSession | None:
            return await self._first(super().find_session, session_id)

        async def _first(self, ask: Callable[..., Awaitable[T]], *about: str) -> T:
            found = await ask(*about)
            changes.happen()
            return found

    store = Overtaken()
    changes = Changes(take_away)
    deciding = admission(store=store, revision=lambda: changes.revision)
    if status is not None:
        await see_refusal(deciding, asking, status)
    else:
        assert await deciding.check(asking) == TokenRefused("the session has ended")
    assert changes.revision == 1


async def test_endless_changes_are_answered_with_503_in_time(autojump_clock: trio.testing.MockClock) -> None:
    class Busy(FakeStore):
        async def find_device(self, device_id: str) -> Device | None:
            await trio.sleep(0.5)
            return await super().find_device(device_id)

    store = Busy()
    refusal = await see_refusal(
        admission(store=store, revision=lambda: len(store.asked)), device_request(), 503
    )
    assert refusal.headers["Retry-After"]
    assert 1 < len(store.asked) <= 8


async def test_too_many_at_once_are_503_without_a_lookup() -> None:
    store = FakeStore()
    for asking in (device_request(), client_request(), request("/ws/other")):
        refusal = await see_refusal(admission(store=store, full=True), asking, 503)
        assert refusal.headers["Retry-After"]
    assert store.asked == []


async def test_a_client_beyond_the_limit_of_its_user_is_answered_with_429() -> None:
    gate = admission(limit="this user")
    refusal = await see_refusal(gate, client_request(), 429)
    assert refusal.message == "too many clients of this user are connected"
    assert refusal.headers["Retry-After"]
    assert not gate._rates._failing, "they have proved who they are"
    assert isinstance(gate._relay, FakeRelay)
    assert [grant.user_id for grant in gate._relay.asked_for] == ["ada"]
    assert isinstance(await gate.check(device_request()), DeviceEntry)


async def test_a_free_place_is_checked_after_the_lookup() -> None:
    """Two simultaneous requests must not get the same free place."""
    store, gate = FakeStore(), admission()
    gate._store, relay = store, gate._relay
    assert isinstance(relay, FakeRelay)
    store.answers_soon = lambda: setattr(relay, "limit", "this machine" if relay.asked_for == [] else None)
    await see_refusal(gate, client_request(), 429)
    assert store.asked == ["ada", DEVICE_ID]


async def test_failed_attempts_use_only_a_share_of_the_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    gate = admission(store=store)
    wrong, at_once = device_request(key="w" * 43), int(Limits().admit_rate / 4)
    for attempt in (wrong, request(f"/ws/client?token=no&device={DEVICE_ID}")):
        attempt.peer_address = "203.0.113.66"
        for _ in range(at_once // 2 + 1):
            with suppress(Refusal):
                await gate.check(attempt)
    asked = len(store.asked)
    refusal = await see_refusal(gate, wrong, 503)
    assert refusal.headers["Retry-After"]
    assert len(store.asked) == asked
    # Other peers are admitted, and slower attempts are looked up again.
    assert isinstance(await gate.check(device_request()), DeviceEntry)
    await trio.sleep(1)
    await see_refusal(gate, wrong, 401)


async def test_admitted_peers_are_not_counted_as_failed_attempts() -> None:
    gate = admission()
    for _ in range(10):
        assert isinstance(await gate.check(device_request()), DeviceEntry)
    assert not gate._rates._failing


async def test_a_device_that_reconnects_too_often_is_503_without_a_lookup(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    gate = admission(store=store)
    let_in = int(DEVICE_BURST + Limits().admit_rate / 10)
    for _ in range(let_in):
        await gate.check(device_request())
    refusal = await see_refusal(gate, device_request(), 503)
    assert (refusal.message, refusal.headers["Retry-After"]) == ("this peer connects too often", "30")
    assert len(store.asked) == let_in
    assert not gate._rates._failing, "it has proved itself"
    # The id in small letters is the same device. Strangers do not use up the budget of a device.
    await see_refusal(gate, device_request(DEVICE_ID.lower()), 503)
    for _ in range(100):
        await see_refusal(gate, device_request("BRW-00000000"), 401)
    await trio.sleep(60)
    assert isinstance(await gate.check(device_request()), DeviceEntry)


async def test_a_user_s_clients_that_reconnect_too_often_are_503(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    gate = admission(store=store)
    let_in = int(Limits().clients_per_user + Limits().admit_rate / 10)
    for _ in range(let_in):
        await gate.check(client_request())
    refusal = await see_refusal(gate, client_request(), 503)
    assert refusal.message == "this peer connects too often"
    assert len(store.asked) == 2 * let_in
    assert isinstance(await gate.check(client_request(user_id="mel")), ClientEntry)


async def test_a_48_has_no_more_failed_attempts_than_three_64(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = FakeStore()
    gate = admission(store=store)
    for number in range(1000):
        attempt = device_request(key="w" * 43)
        attempt.peer_address = f"2001:db8:0:{number:x}::1"
        with suppress(Refusal):
            await gate.check(attempt)
    # Each of the four /56 networks has the budget of two /64.
    assert len(store.asked) == pytest.approx(3 * Limits().admit_rate / 4, abs=3)


async def test_a_network_leaves_the_same_rate_to_others(autojump_clock: trio.testing.MockClock) -> None:
    gate = admission()
    reserves: list[float] = []

    def admits(*, reserve: float = 0.0) -> bool:
        reserves.append(reserve)
        return True

    gate._relay.admits = admits  # type: ignore[method-assign]
    for number in range(40):
        await gate.check(client_request(user_id=("ada", "mel", "vic")[number % 3]))
    asking = client_request()
    asking.peer_address = "198.51.100.1"
    await gate.check(asking)
    assert reserves[0] == reserves[-1] == 0
    assert reserves[:-1] == sorted(reserves[:-1])
    assert reserves[-2] > 0


async def test_a_device_without_users_is_admitted_as_anonymous() -> None:
    store = FakeStore()
    store.device = replace(store.device, anonymous=True)
    entry = await admission(store=store).check(device_request())
    assert isinstance(entry, DeviceEntry)
    assert entry.anonymous


async def test_no_rate_means_no_share() -> None:
    gate = admission()
    gate._relay.limits = Limits(admit_rate=0.0)
    for _ in range(500):
        await see_refusal(gate, device_request(key="w" * 43), 401)


async def test_the_number_of_remembered_addresses_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.server.connection_rates._FAILING_KEPT", 4)
    gate = admission()
    for number in range(9):
        asking = device_request(key="w" * 43)
        asking.peer_address = f"203.0.113.{number}"
        await see_refusal(gate, asking, 401)
    known = [number for number in range(9) if gate._rates._failing.find(f"203.0.113.{number}")]
    assert known == [6, 7, 8]


@pytest.mark.parametrize("trouble", ["failing", "slow"])
@pytest.mark.parametrize(
    "asking",
    [
        device_request(),
        client_request(),
        client_request(devices="*"),
        client_request(session_id="session of ada"),
    ],
)
async def test_a_store_in_trouble_is_503_before_a_machine_gives_up(
    autojump_clock: trio.testing.MockClock, trouble: Literal["failing", "slow"], asking: Request
) -> None:
    began = trio.current_time()
    refusal = await see_refusal(admission(store=FakeStore(trouble=trouble)), asking, 503)
    assert trio.current_time() - began < 5
    assert refusal.headers["Retry-After"]
    assert b"disk" not in refusal.encode()


async def test_a_draining_relay_refuses_without_a_lookup() -> None:
    store = FakeStore()
    for asking in (device_request(), client_request()):
        refusal = await see_refusal(admission(store=store, closing=True), asking, 503)
        assert refusal.headers["Retry-After"]
    assert store.asked == []


async def test_other_paths_are_refused() -> None:
    await see_refusal(admission(), request("/ws/other"), 404)
