import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.api import pairing
from brewos_relay.api.pairing import PAIRING_TOKEN_MS
from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import RegistryError
from brewos_relay.registry.device_keys import add_next_key
from brewos_relay.registry.pairing import register_pairing
from support.household import KEY, MACHINE, OTHER_KEY, STRANGE, Answer, Household, open_household

pytestmark = pytest.mark.usefixtures("each_registry")

NEW = "BRW-0000004D"
TOKEN = "t0ken-On_the-screen-of-a-machine"


async def register(
    house: Household, device_id: str = NEW, *, token: str = TOKEN, key: str = KEY, **more: Any
) -> Answer:
    body = {"deviceId": device_id, "token": token, "deviceKey": key, **more}
    return await house.ask("POST", "/devices/register-claim", body, by=None)


async def claim(
    house: Household, device_id: str = NEW, *, token: str = TOKEN, by: str = "bob", **more: Any
) -> Answer:
    body = {"deviceId": device_id, "token": token, **more}
    return await house.ask("POST", "/devices/claim", body, by=by)


async def share(house: Household, **wanted: Any) -> dict[str, Any]:
    answer = await house.ask("POST", f"/devices/{MACHINE}/share", wanted or None)
    assert answer.status == 200
    content: dict[str, Any] = answer.content
    return content


async def roles(house: Household, by: str) -> dict[str, str]:
    answer = await house.ask("GET", "/devices", by=by)
    return {device["id"]: device["role"] for device in answer.content["devices"]}


class Overlap:
    """Measures how many writes of an API run at the same time. The first one waits a moment for another."""

    def __init__(self, house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = self.running = self.most_running = 0
        self._overlapped = trio.Event()
        for name in ("write_anonymous", "write_as"):
            monkeypatch.setattr(house.store, name, self._measured(getattr(house.store, name)))

    def _measured(self, write: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def measured(*args: Any, **kwargs: Any) -> Any:
            self.writes += 1
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            if self.running > 1:
                self._overlapped.set()
            try:
                if self.writes == 1:
                    with trio.move_on_after(0.3):
                        await self._overlapped.wait()
                return await write(*args, **kwargs)
            finally:
                self.running -= 1

        return measured


# Registration


async def test_registrations_are_written_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_household(tmp_path) as house:
        overlap = Overlap(house, monkeypatch)
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(register, house, f"BRW-000000{number:02X}")
        assert (overlap.writes, overlap.most_running) == (3, 1)


async def test_user_with_the_shown_token_becomes_owner(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        answer = await register(house, NEW.lower(), more=[1])
        assert (answer.status, answer.body) == (200, b'{"success":true}')
        claimed = await claim(house, NEW.lower(), name=" Office ")
        assert claimed.status == 200
        assert claimed.content == {"success": True, "deviceId": NEW, "name": "Office", "role": "owner"}
        assert await roles(house, "bob") == {NEW: "owner"}


async def test_every_registration_gets_the_same_answer(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        answers = [
            await register(house),
            await register(house),
            await register(house, key=OTHER_KEY),
            await register(house, MACHINE),
            await register(house, MACHINE, key=OTHER_KEY),
            await register(house, STRANGE, key=OTHER_KEY),
        ]
        assert {(answer.status, answer.body) for answer in answers} == {(200, b'{"success":true}')}
        for answer in answers:
            assert all("200 " not in f"{name}: {value} " for name, value in answer.headers.items())


@pytest.mark.parametrize(
    "changed",
    [
        {"deviceId": "BRW-12"},
        {"deviceId": NEW + "\n"},
        {"deviceId": 5},
        {"token": "short"},
        {"token": "t" * 129},
        {"token": "t" * 31 + " "},
        {"deviceKey": "k" * 31},
        {"deviceKey": "k" * 129},
        {"deviceKey": "k" * 31 + "/"},
        {"deviceKey": KEY + "\n"},
        {"token": TOKEN + "\n"},
        {"deviceKey": None},
    ],
)
async def test_malformed_registration_is_refused_without_quoting_it(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    async with open_household(tmp_path) as house:
        body = {"deviceId": NEW, "token": TOKEN, "deviceKey": KEY} | changed
        answer = await house.ask("POST", "/devices/register-claim", body, by=None)
        assert answer.status == 400
        assert "200 " not in answer.content["error"]
        assert KEY not in answer.content["error"]
        assert TOKEN not in answer.content["error"]
        assert await house.store.find_device(NEW) is None


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"deviceId":"\xff"}', b"[" * 3000, b"null"])
async def test_body_that_is_not_json_is_refused(tmp_path: Path, data: bytes) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("POST", "/devices/register-claim", by=None, data=data)
        assert answer.status == 400


async def test_a_machine_is_slowed_down_by_its_id_first(tmp_path: Path) -> None:
    request_limits = RequestLimits()
    request_limits.register_by_device = RequestLimit("registrations", burst=2, each_minute=1)
    request_limits.register_by_address = RequestLimit("registrations", burst=5, each_minute=1)
    async with open_household(tmp_path, request_limits=request_limits) as house:
        statuses = [(await register(house, key=f"{n}" * 43)).status for n in range(3)]
        assert statuses == [200, 200, 429]
        refused = await register(house, key=KEY)
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) > 0
        # The other requests used up nothing of the budget of the address.
        assert [(await register(house, f"BRW-0000010{n}")).status for n in range(4)] == [200, 200, 200, 429]


async def test_other_networks_cannot_lock_out_a_machine_with_a_new_key(tmp_path: Path) -> None:
    request_limits = RequestLimits()
    request_limits.register_by_device = RequestLimit("registrations", burst=2, each_minute=1)
    async with open_household(tmp_path, request_limits=request_limits) as house:

        async def register_from(address: str, key: str) -> int:
            body = {"deviceId": NEW, "token": TOKEN, "deviceKey": key}
            response = await house.app.test_client().post(
                "/api/devices/register-claim", json=body, scope_base={"client": (address, 5000)}
            )
            return response.status_code

        assert [await register_from("192.0.2.66", f"{n}" * 43) for n in range(3)] == [200, 200, 429]
        assert await register_from("198.51.100.7", OTHER_KEY) == 200


async def test_machine_with_a_working_key_cannot_be_locked_out(tmp_path: Path) -> None:
    request_limits = RequestLimits()
    request_limits.register_by_device = RequestLimit("registrations", burst=1, each_minute=1)
    async with open_household(tmp_path, request_limits=request_limits) as house:
        await house.store.write(add_next_key, MACHINE, hash_secret("n" * 43), now_ms=1)
        assert (await register(house, MACHINE, key=OTHER_KEY)).status == 200
        assert (await register(house, MACHINE, key=OTHER_KEY)).status == 429
        assert (await register(house, MACHINE, key=KEY)).status == 200
        assert (await register(house, MACHINE, key="n" * 43)).status == 200


# Pairing


async def test_pairing_can_be_repeated_by_the_same_user_only(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await register(house)
        first = await claim(house)
        assert (first.status, (await claim(house)).body) == (200, first.body)
        assert (await claim(house, by="eve")).status == 404
        assert await roles(house, "eve") == {}


async def test_pairing_with_an_owned_machine_makes_a_member(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await register(house, MACHINE, key=KEY)
        answer = await claim(house, MACHINE, name="Taken over")
        assert (answer.status, answer.content["role"], answer.content["name"]) == (200, "member", "Kitchen")
        assert await roles(house, "bob") == {MACHINE: "member"}


async def test_a_stranger_with_a_key_of_their_own_gets_nothing(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await register(house, MACHINE, key=OTHER_KEY)
        assert (await claim(house, MACHINE, by="eve")).status == 404
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert device.key_hash == hash_secret(KEY)
        assert (await claim(house, MACHINE, by="ada")).status == 200
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert device.key_hash == hash_secret(OTHER_KEY)


async def test_wrong_unknown_expired_and_used_tokens_get_the_same_answer(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await register(house)
        await claim(house)
        expired = "e" * 32
        await house.store.write(
            register_pairing,
            device_id=STRANGE,
            key_hash=hash_secret(KEY),
            token_hash=hash_secret(expired),
            now_ms=1,
            expires_at_ms=2,
        )
        used_up = await share(house, uses=1)
        code = {"device_id": used_up["manualCode"], "token": ""}
        assert (await claim(house, by="cleo", **code)).status == 200
        answers = [
            await claim(house, by="eve"),
            await claim(house, by="eve", token="w" * 32),
            await claim(house, STRANGE, by="eve", token=expired),
            await claim(house, "BRW-0000009F", by="eve"),
            await claim(house, "nonsense", by="eve"),
            await claim(house, "nonsense", by="eve", token=""),
            await claim(house, "", by="eve", token=""),
            await claim(house, "AAAA-AAAA", by="eve", token=""),
            await claim(house, by="eve", **code),
            await claim(house, MACHINE, by="eve", token=used_up["token"]),
        ]
        assert len({(answer.status, answer.body) for answer in answers}) == 1
        assert answers[0].status == 404


async def test_token_is_valid_as_long_as_the_machine_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_household(tmp_path) as house:
        at_ms = [1_000_000]
        monkeypatch.setattr("brewos_relay.api.pairing.now_ms", lambda: at_ms[0])
        await register(house)
        at_ms[0] += PAIRING_TOKEN_MS
        assert (await claim(house)).status == 404
        await register(house, token="u" * 32)
        at_ms[0] += PAIRING_TOKEN_MS - 1
        assert (await claim(house, token="u" * 32)).status == 200


async def test_pairings_are_written_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_household(tmp_path) as house:
        ids = [f"BRW-000000{number:02X}" for number in range(3)]
        for device_id in ids:
            await register(house, device_id)
        link = (await share(house))["token"]
        assert await roles(house, "bob") == {}
        overlap = Overlap(house, monkeypatch)

        async def accept() -> None:
            body = {"deviceId": MACHINE, "token": link}
            assert (await house.ask("POST", "/devices/claim-share", body, by="bob")).status == 200

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            for device_id in ids:
                nursery.start_soon(claim, house, device_id)
        assert (overlap.writes, overlap.most_running) == (4, 1)
        assert set(await roles(house, "bob")) == {*ids, MACHINE}


async def test_pairing_needs_a_session(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for path in ("claim", "claim-share"):
            body = {"deviceId": NEW, "token": TOKEN}
            assert (await house.ask("POST", f"/devices/{path}", body, by=None)).status == 401


@pytest.mark.parametrize("path", ["claim", "claim-share"])
async def test_malformed_pairing_request_is_refused(tmp_path: Path, path: str) -> None:
    bodies: list[Any] = [{}, {"deviceId": NEW}, {"deviceId": 1, "token": ""}, {"deviceId": "x" * 321}]
    async with open_household(tmp_path) as house:
        for body in bodies:
            assert (await house.ask("POST", f"/devices/{path}", body)).status == 400, body


@pytest.mark.parametrize("name", ["x" * 101, "a\x07"])
async def test_invalid_name_is_refused_and_the_token_stays_valid(tmp_path: Path, name: str) -> None:
    async with open_household(tmp_path) as house:
        await register(house)
        assert (await claim(house, name=name)).status == 400
        for nothing in ("", None, "  "):
            assert (await claim(house, name=nothing)).status == 200


@pytest.mark.parametrize("typed", [True, False])
async def test_guessing_is_slowed_down(tmp_path: Path, typed: bool) -> None:
    request_limits = RequestLimits()
    request_limits.pairings_by_user = RequestLimit("attempts to pair", burst=3, each_minute=1)
    request_limits.pairings_by_address = RequestLimit("attempts to pair", burst=5, each_minute=1)
    async with open_household(tmp_path, request_limits=request_limits) as house:

        async def guess(by: str) -> int:
            token = "" if typed else secrets.token_urlsafe(32)
            return (await claim(house, "AAAA-AAAA" if typed else MACHINE, token=token, by=by)).status

        await register(house, NEW)
        assert (await claim(house, by="eve")).status == 200  # successful attempts do not count
        assert [await guess("eve") for _ in range(4)] == [404, 404, 404, 429]
        assert [await guess("mallory") for _ in range(3)] == [404, 404, 429]


# Shares


@pytest.mark.parametrize("path", ["claim", "claim-share"])
@pytest.mark.parametrize("change", [str, str.lower, lambda code: f" {code.replace('-', ' ')} "])
async def test_a_short_code_can_be_typed_without_a_token(tmp_path: Path, path: str, change: Any) -> None:
    async with open_household(tmp_path) as house:
        made = await share(house, role="viewer")
        body = {"deviceId": change(made["manualCode"]), "token": ""}
        answer = await house.ask("POST", f"/devices/{path}", body, by="bob")
        assert answer.content == {"success": True, "deviceId": MACHINE, "name": "Kitchen", "role": "viewer"}
        assert await roles(house, "bob") == {MACHINE: "viewer"}


async def test_link_can_be_accepted_by_any_number_of_users(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        made = await share(house)
        body = {"deviceId": MACHINE.lower(), "token": made["token"], "name": "ignored"}
        for by in ("bob", "cleo"):
            answer = await house.ask("POST", "/devices/claim-share", body, by=by)
            assert (answer.status, answer.content["role"]) == (200, "member")
        assert await roles(house, "bob") == await roles(house, "cleo") == {MACHINE: "member"}


async def test_share_tokens_and_pairing_tokens_are_not_interchangeable(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        made = await share(house)
        await register(house)
        assert (await claim(house, MACHINE, token=made["token"], by="eve")).status == 404
        body = {"deviceId": NEW, "token": TOKEN}
        assert (await house.ask("POST", "/devices/claim-share", body, by="eve")).status == 404
        other = {"deviceId": STRANGE, "token": made["token"]}
        assert (await house.ask("POST", "/devices/claim-share", other, by="eve")).status == 404


async def test_a_flood_of_new_machines_is_503_and_a_machine_with_its_key_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing, "_REGISTERED_AT_ONCE", 5.0)
    monkeypatch.setattr(pairing, "_REGISTERED_PER_S", 0.001)
    async with open_household(tmp_path) as house:
        statuses = [(await register(house, f"BRW-000001{n:02X}")).status for n in range(8)]
        assert (statuses[0], statuses[-1]) == (200, 503)
        refused = await register(house, "BRW-000001FF")
        assert refused.headers["Retry-After"] == "30"
        assert "200 " not in refused.content["error"]
        # It would not connect if it were refused.
        assert (await register(house, MACHINE)).status == 200
        assert (await register(house, MACHINE, key=OTHER_KEY)).status == 503


async def test_pairing_that_ends_in_503_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_household(tmp_path) as house:
        monkeypatch.setattr(
            house.request_limits, "pairings_by_user", RequestLimit("claims", burst=1, each_minute=0.001)
        )

        async def fail(*_: object, **__: object) -> None:
            raise RegistryError("the disk is gone")

        with monkeypatch.context() as patch:
            patch.setattr(house.store, "write_as", fail)
            for _ in range(3):
                answer = await house.ask(
                    "POST", "/devices/claim", {"deviceId": NEW, "token": TOKEN}, by="eve"
                )
                assert answer.status == 503
        answer = await house.ask("POST", "/devices/claim", {"deviceId": NEW, "token": TOKEN}, by="eve")
        assert answer.status == 404
        answer = await house.ask("POST", "/devices/claim", {"deviceId": NEW, "token": TOKEN}, by="eve")
        assert answer.status == 429
