"""Attempts to take over a machine of another user. All of them are refused."""

import base64
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import update

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.registry.schema import claims, refresh_tokens, shares
from brewos_relay.settings.parsing import parse_networks
from brewos_relay.vocabulary import now_ms
from support.home import (
    CLAIM,
    CLAIM_SHARE,
    MACHINE,
    Home,
    Person,
    command,
    commands_before,
    open_home,
    see_it_work,
)
from support.http_client import Told, ask
from support.process import KEY, WRONG_KEY, machine_id
from support.wire_client import WireClient, text

SECOND = machine_id(2)
EVES_KEY = "Eve-made_this_key" + "2" * 26


async def see_nothing_change(
    home: Home, attempt: Callable[..., Awaitable[Told]], *about: Any, number: int = 1, status: int = 404
) -> Told:
    """Check that an attempt is refused and changes nothing."""
    before = home.standing(number)
    told = await attempt(*about)
    assert told.status == status, told
    assert set(told.content) == {"error"}
    assert home.standing(number) == before
    return told


# Pairing by the screen


async def test_scanning_an_owned_machine_does_not_make_an_owner(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        owned = home.standing()
        told = await eve.claim(await home.show())
        assert told.content["role"] == "member"  # anyone near the machine may become a member
        await ada.must("DELETE", f"/api/devices/{MACHINE}/users/{eve.user_id}")
        assert home.standing() == owned


async def test_a_pairing_token_works_once_for_one_user(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        token = await home.show()
        assert (await ada.claim(token)).status == 200
        await see_nothing_change(home, eve.claim, token)
        await see_nothing_change(home, eve.claim_share, token)
        await home.register(token)  # as machines do, until it is 10 minutes old
        await see_nothing_change(home, eve.claim, token)
        again = await (await home.person("ada")).claim(token)
        assert (again.status, again.content["role"]) == (200, "owner")
        # A removed user cannot use it again.
        bob = await home.person("bob")
        shown = await home.show()
        assert (await bob.claim(shown)).status == 200
        await ada.must("DELETE", f"/api/devices/{MACHINE}/users/{bob.user_id}")
        await see_nothing_change(home, bob.claim, shown)
        await ada.must("DELETE", f"/api/devices/{MACHINE}")
        await see_nothing_change(home, bob.claim, shown)
        await see_nothing_change(home, ada.claim, token)


async def test_an_expired_pairing_token_is_rejected(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        eve = await home.person("eve")
        token = await home.show()
        with home.registry() as db:
            db.execute(update(claims).values(expires_at_ms=now_ms() - 1))
        expired = await see_nothing_change(home, eve.claim, token)
        unknown = await see_nothing_change(home, eve.claim, "x" * 32)
        elsewhere = await see_nothing_change(home, eve.claim, "x" * 32, 9)
        assert expired.content == unknown.content == elsewhere.content


async def test_a_pairing_token_works_only_for_its_machine(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        token = await home.show(2)
        await see_nothing_change(home, eve.claim, token)
        assert (await eve.claim(token, 2)).status == 200


async def test_pairing_requires_signing_in(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        token = await home.show()
        for path in (CLAIM, CLAIM_SHARE):
            body = {"deviceId": MACHINE, "token": token}
            await see_nothing_change(home, ask, home.server, "POST", path, body, status=401)


# Keys that a stranger registers


async def test_another_key_for_an_owned_machine_waits_and_opens_nothing(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        device = await home.server.device(MACHINE)
        adas, mels = await ada.app(), await mel.app()
        before = home.standing()
        token = await home.show(key=EVES_KEY)
        warning = await adas.read_until("log")
        assert (warning["level"], warning["source"]) == ("warn", "relay")
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["keyPending"] is True
        for stranger in (eve, mel):
            await see_nothing_change(home, stranger.claim, token)
            await see_nothing_change(home, stranger.claim_share, token)
        assert await home.status_of_key(EVES_KEY) == 401
        assert home.standing() == before
        await see_it_work(device, adas)
        await see_it_work(device, mels)
        assert await home.status_of_key(KEY) == 101
        with pytest.raises(trio.TooSlowError), trio.fail_after(0.3):  # only owners are notified
            await mels.read_until("log")


async def test_pairing_by_the_owner_activates_a_waiting_key(tmp_path: Path) -> None:
    async with open_home(tmp_path, device_min_age_s=1.5) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        began = trio.current_time()
        device, app = await home.server.device(MACHINE), await ada.app()
        token = await home.show(key=EVES_KEY)  # a machine after a reset, this time
        assert (await ada.claim(token)).content["role"] == "owner"
        assert await home.status_of_key(KEY) == 401
        # Messages of the old connection are dropped. It is closed once it is old enough.
        await app.read_until("device_offline")
        await device.send(text({"type": "status", "from": "the old one"}))
        assert (await device.read_close())[0] == 4003
        assert trio.current_time() - began >= 1.5
        new = await home.server.device(MACHINE, key=EVES_KEY)
        await see_it_work(new, app)
        assert (await ada.must("GET", f"/api/devices/{MACHINE}"))["device"]["keyPending"] is False


async def test_a_waiting_key_is_not_accepted_because_of_the_machine_s_token(tmp_path: Path) -> None:
    """A stranger reads the screen and registers the machine with another key before it is scanned."""
    async with open_home(tmp_path) as home:
        ada, bob = await home.person("ada"), await home.person("bob")
        await home.pair(ada)
        token = await home.show()
        before = home.standing()
        await home.register(token, key=EVES_KEY)
        for person in (ada, bob):
            await person.claim(token)
            assert await home.status_of_key(EVES_KEY) == 401
            assert await home.status_of_key(KEY) == 101
        assert home.standing()[0] == before[0]  # type: ignore[index]


async def test_repeated_registrations_do_not_keep_machines_out(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        before = home.standing()
        statuses = []
        for number in range(20):
            body = {"deviceId": MACHINE, "token": f"{number:032}", "deviceKey": f"{number:043}"}
            statuses.append((await ask(home.server, "POST", "/api/devices/register-claim", body)).status)
        assert statuses[-1] == 429
        token = await home.show()  # the machine itself can still register
        assert (await ada.claim(token)).status == 200
        assert home.standing() == before


# Shares


async def test_an_ended_share_gives_no_access(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        revoked = await ada.share()
        await ada.must("DELETE", f"/api/devices/{MACHINE}/shares/{revoked['shareId']}")
        used_up = await ada.share(uses=1)
        assert (await (await home.person("bob")).claim_share(used_up["token"])).status == 200
        expired = await ada.share()
        with home.registry() as db:
            ending = update(shares).where(shares.c.id == expired["shareId"])
            db.execute(ending.values(expires_at_ms=now_ms() - 1))
        for share in (revoked, used_up, expired):
            await see_nothing_change(home, eve.claim_share, share["token"])
            await see_nothing_change(home, eve.type_code, share["manualCode"])


async def test_a_share_gives_its_role_for_its_machine_only(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        await home.pair(ada, 2)
        share = await ada.share(2, role="viewer")
        await see_nothing_change(home, eve.claim_share, share["token"])
        await see_nothing_change(home, eve.claim, share["token"], 2, number=2)
        told = await eve.claim_share(share["token"], 2)
        assert (told.content["deviceId"], told.content["role"]) == (SECOND, "viewer")
        # Accepting it again does not change the role.
        for again in (await eve.claim_share(share["token"], 2), await eve.type_code(share["manualCode"])):
            assert again.content["role"] == "viewer"


async def test_a_share_ends_when_its_creator_is_no_longer_an_owner(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, bob, eve = [await home.person(name) for name in ("ada", "bob", "eve")]
        await home.pair(ada)
        assert (await bob.claim(await home.show())).status == 200
        await ada.must("PATCH", f"/api/devices/{MACHINE}/users/{bob.user_id}", {"role": "owner"})
        share = await bob.share()
        await ada.must("PATCH", f"/api/devices/{MACHINE}/users/{bob.user_id}", {"role": "member"})
        await see_nothing_change(home, eve.claim_share, share["token"])


async def test_removed_users_cannot_return_by_an_old_link(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, bob = await home.person("ada"), await home.person("bob")
        await home.pair(ada)
        share = await ada.share()
        assert (await bob.claim_share(share["token"])).status == 200
        await ada.must("DELETE", f"/api/devices/{MACHINE}/users/{bob.user_id}")
        await see_nothing_change(home, bob.claim_share, share["token"])
        await see_nothing_change(home, bob.type_code, share["manualCode"])


async def test_codes_cannot_be_guessed_by_one_person(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        share = await ada.share()
        before = home.standing()
        statuses = []
        for number in range(12):
            session = eve if number % 2 else await home.person("eve")  # the same account, in a new session
            statuses.append((await session.type_code(f"{number:04}-ABCD")).status)
        assert statuses == [404] * 10 + [429] * 2
        refused = await eve.type_code(share["manualCode"])  # even with the right code
        assert refused.status == 429
        assert int(refused.response.header("retry-after")[0]) > 0
        assert home.standing() == before
        assert (await (await home.person("bob")).type_code(share["manualCode"])).status == 200


async def test_codes_cannot_be_guessed_by_many_of_one_address(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        people = [await home.person(f"eve-{number}") for number in range(8)]
        began_at = trio.current_time()
        statuses = [(await person.type_code("0000-ABCD")).status for person in people for _ in range(8)]
        # Codes are hashed slowly: the budget regains one attempt in 3 s meanwhile.
        regained = int((trio.current_time() - began_at) / 3) + 1
        assert set(statuses) == {404, 429}
        assert statuses[:40] == [404] * 40
        assert statuses.count(404) <= 40 + regained


async def test_forged_forwarded_headers_do_not_evade_limits(tmp_path: Path) -> None:
    async def attempts(home: Home) -> list[int]:
        statuses = []
        for number in range(35):
            body = json.dumps({"token": "x" * 43}).encode()
            head = (
                "POST /api/auth/invite HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n"
                f"X-Forwarded-For: 198.51.100.{number}\r\nX-Real-IP: 198.51.100.{number}\r\n"
                f"Forwarded: for=198.51.100.{number}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            connection = await home.server.connect()
            statuses.append((await connection.ask(head.encode() + body)).status)
        return statuses

    for folder in ("untrusted", "trusted"):
        (tmp_path / folder).mkdir()
    async with open_home(tmp_path / "untrusted") as home:
        assert await attempts(home) == [401] * 30 + [429] * 5
    trusting = {"trusted_proxies": parse_networks("127.0.0.1")}
    async with open_home(tmp_path / "trusted", settings=trusting) as home:
        assert await attempts(home) == [401] * 35


# Tokens


def unsigned(content: dict[str, Any], **header: Any) -> str:
    def part(data: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT', **header})}.{part(content)}."


def foreign_tokens(ada: Person) -> dict[str, str]:
    """Make tokens with the claims of Ada's that this server has not issued."""
    head, content, signature = ada.token.split(".")
    says = json.loads(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)))
    key_id = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"]
    other = KeyRing(["another-secret-" + "z" * 32])
    told: dict[str, Any] = {"user_id": ada.user_id, "email": "ada@example.org"}
    of_other = other.issue(**told, devices="*")
    named = base64.urlsafe_b64encode(json.dumps({**says, "devices": "*"}).encode()).rstrip(b"=").decode()
    return {
        "of another secret": of_other,
        "of another secret, under our key's name": ".".join((head, *of_other.split(".")[1:])),
        "of another server's session": other.issue(**told, session_id=says["sid"]),
        "unsigned": unsigned({**says, "devices": "*"}),
        "unsigned, under our key's name": unsigned({**says, "devices": "*"}, kid=key_id),
        "with more in it": f"{head}.{named}.{signature}",
        "expired": ada.home.server.signer.issue(
            **told, devices="*", now_s=int(time.time()) - 7200, ttl_s=3600
        ),
        "of an issuer that people sign in with": (
            "eyJhbGciOiJSUzI1NiIsImtpZCI6ImsxIn0"
            + unsigned({"iss": "https://accounts.google.com", "sub": ada.user_id, **says}).removesuffix(".")[
                len(unsigned({}).split(".")[0]) :
            ]
            + ".c2lnbmF0dXJl"
        ),
        "the refresh token": ada.session["refreshToken"],
    }


async def test_foreign_tokens_are_rejected_everywhere(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        device, app = await home.server.device(MACHINE), await ada.app()
        before = home.standing()
        for what, token in foreign_tokens(ada).items():
            for method, path in (("GET", "/api/devices"), ("DELETE", f"/api/devices/{MACHINE}")):
                assert (await ask(home.server, method, path, token=token)).status == 401, what
            client = await home.server.upgrade(f"/ws/client?token={token}&device={MACHINE}")
            await client.send(command(by="eve"))
            assert (await client.read_close())[0] == 4002, what
            await app.send(text({"type": "refresh_auth", "token": token}))
            assert (await app.read_until("auth_refreshed"))["success"] is False, what
        assert await commands_before(device, app) == []
        assert home.standing() == before


async def see_token_refused(home: Home, person: Person, *, bystander: WireClient) -> None:
    """Check that a person's token is rejected by the API, for a WebSocket, and as a bystander's renewal."""
    told = await person.ask("GET", "/api/devices")
    assert told.status == 401, told
    client = await home.server.upgrade(f"/ws/client?token={person.token}&device={MACHINE}")
    assert (await client.read_close())[0] == 4002
    await bystander.send(text({"type": "refresh_auth", "token": person.token}))
    assert (await bystander.read_until("auth_refreshed"))["success"] is False
    refresh = {"refreshToken": person.session["refreshToken"]}
    assert (await ask(home.server, "POST", "/api/auth/refresh", refresh)).status == 401


async def test_the_token_of_an_ended_session_is_rejected(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, elsewhere = await home.person("ada"), await home.person("ada")
        await home.pair(ada)
        app = await ada.app()
        await elsewhere.must("POST", "/api/auth/logout")
        await see_token_refused(home, elsewhere, bystander=app)
        await see_it_work(await home.server.device(MACHINE), app)


async def test_a_reused_refresh_token_ends_its_session(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, other = await home.person("ada"), await home.person("ada")
        await home.pair(ada)
        app, bystander = await ada.app(), await other.app()
        stolen = {"refreshToken": ada.session["refreshToken"]}
        told = await ask(home.server, "POST", "/api/auth/refresh", stolen)
        successor = {"refreshToken": told.content["refreshToken"]}
        assert (await ask(home.server, "POST", "/api/auth/refresh", successor)).status == 200
        with home.registry() as db:  # more than a minute passes
            old = update(refresh_tokens).where(refresh_tokens.c.replaced_at_ms.is_not(None))
            db.execute(old.values(replaced_at_ms=now_ms() - 61_000))
        assert (await ask(home.server, "POST", "/api/auth/refresh", stolen)).status == 401
        with trio.fail_after(1):
            assert (await app.read_close())[0] == 4002
        await see_token_refused(home, ada, bystander=bystander)


async def test_a_token_is_renewed_only_by_one_of_the_same_login(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        app = await mel.app()
        issue = home.server.signer.issue
        for token in (
            ada.token,
            (await home.person("mel")).token,
            issue(user_id=mel.user_id, email="mel@example.org", devices="*"),
        ):
            await app.send(text({"type": "refresh_auth", "token": token}))
            assert (await app.read_until("auth_refreshed"))["success"] is False
        await app.send(text({"type": "refresh_auth", "token": mel.token}))
        assert (await app.read_until("auth_refreshed"))["success"] is True
        # A longer token of a lower role does not extend a higher role.
        told: dict[str, Any] = {"user_id": "guest", "email": "g@example.org", "devices": [MACHINE]}
        owner = await home.server.client(MACHINE, token=issue(**told, ttl_s=60))
        await owner.send(text({"type": "refresh_auth", "token": issue(**told, role="viewer")}))
        assert (await owner.read_until("auth_refreshed"))["success"] is False


# Messages


async def test_an_id_in_a_message_leads_to_no_other_machine(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        await home.pair(eve, 2)
        adas_device, adas_app = await home.server.device(MACHINE), await ada.app()
        eves_device, eves_app = await home.server.device(SECOND), await eve.app(2)
        for message_type in ("command", "request_state", "request_full_status", "setLogLevel"):
            for name in ("deviceId", "device", "id", "target"):
                await eves_app.send(text({"type": message_type, "cmd": "tare", name: MACHINE, "by": "eve"}))
        await eves_device.send(text({"type": "status", "deviceId": MACHINE, "by": "eve"}))
        await eves_device.send(text({"type": "device_info", "deviceId": MACHINE, "by": "eve"}))
        await eves_app.read_until("device_info")
        got = await commands_before(eves_device, eves_app)
        assert [message["by"] for message in got] == ["eve"] * 4  # on her own machine
        # None of them has reached Ada's machine or app.
        await adas_app.send(command(by="ada"))
        assert (await adas_device.read_json())["by"] == "ada"
        await adas_device.send(text({"type": "status", "by": "ada"}))
        assert (await adas_app.read_until("status"))["by"] == "ada"
        known = await ada.must("GET", f"/api/devices/{MACHINE}/state")
        assert "eve" not in json.dumps(known)


async def test_naming_two_machines_reaches_the_one_that_was_checked(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        await home.pair(eve, 2)
        base = f"/ws/client?token={eve.token}"
        assert (await home.knock(f"{base}&device={MACHINE}")).status == 403
        assert (await home.knock(f"{base}&device={SECOND}&device={MACHINE}")).status == 403
        mixed = await home.server.upgrade(f"{base}&device={MACHINE}&device={SECOND}")
        assert (await mixed.read_until("connected"))["deviceId"] == SECOND


async def test_a_user_reaches_no_other_machine_through_their_own(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada, eve = await home.person("ada"), await home.person("eve")
        await home.pair(ada)
        await home.pair(eve, 2)
        share = await ada.share()
        theirs, hers = f"/api/devices/{MACHINE}", f"/api/devices/{SECOND}"
        for method, path, body in (
            ("GET", theirs, None),
            ("GET", f"{theirs}/state", None),
            ("GET", f"{theirs}/users", None),
            ("GET", f"{theirs}/shares", None),
            ("GET", f"{theirs}/activity", None),
            ("PATCH", theirs, {"name": "Eve's"}),
            ("DELETE", theirs, None),
            ("DELETE", f"{theirs}?everyone=true", None),
            ("POST", f"{theirs}/share", {}),
            ("POST", f"{theirs}/rotate-key", None),
            ("DELETE", f"{theirs}/shares/{share['shareId']}", None),
            ("DELETE", f"{hers}/shares/{share['shareId']}", None),
            ("PATCH", f"{theirs}/users/{eve.user_id}", {"role": "owner"}),
            ("DELETE", f"{theirs}/users/{ada.user_id}", None),
            ("DELETE", f"{hers}/users/{ada.user_id}", None),
        ):
            await see_nothing_change(home, eve.ask, method, path, body)
        sessions = (await ada.must("GET", "/api/auth/sessions"))["sessions"]
        assert (await eve.ask("DELETE", f"/api/auth/sessions/{sessions[0]['id']}")).status == 404
        await ada.must("GET", "/api/auth/me")


OWNERS = (
    "ota_start",
    "restart",
    "factory_reset",
    "wifi_forget",
    "set_cloud_config",
    "mqtt_config",
    "mqtt_test",
)


async def test_a_member_sends_all_commands_except_those_for_owners(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        mel = await home.lend(ada, "mel")
        device, adas, mels = await home.server.device(MACHINE), await ada.app(), await mel.app()
        for cmd in OWNERS:
            for spelling in (cmd, cmd.upper(), f" {cmd}", f"{cmd}\0x"):
                await mels.send(text({"type": "command", "cmd": spelling}))
                error = "invalid_message" if "\0" in spelling else "forbidden"
                assert (await mels.read_until("error"))["error"] == error
        # Parsers disagree about which of two equal names counts.
        await mels.send(text('{"type":"command","cmd":"restart","cmd":["restart"]}'))
        await mels.send(text('{"type":"command","cmd":{"cmd":"restart"}}'))
        assert await commands_before(device, adas) == []
        await see_it_work(device, mels)
        path = f"/api/devices/{MACHINE}"
        for method, rest, body in (
            ("PATCH", "", {"name": "Mel's"}),
            ("DELETE", "?everyone=true", None),
            ("POST", "/share", {}),
            ("GET", "/shares", None),
            ("POST", "/rotate-key", None),
            ("GET", "/activity", None),
            ("PATCH", f"/users/{mel.user_id}", {"role": "owner"}),
            ("DELETE", f"/users/{ada.user_id}", None),
        ):
            await see_nothing_change(home, mel.ask, method, path + rest, body, status=403)


async def test_a_viewer_can_send_no_commands(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        vic = await home.lend(ada, "vic", "viewer")
        device, adas, vics = await home.server.device(MACHINE), await ada.app(), await vic.app()
        for content in (
            {"type": "command", "cmd": "tare"},
            {"type": "command", "cmd": "brew_start"},
            {"type": "command", "cmd": "restart"},
            {"type": "command"},
            {"type": "setLogLevel", "level": "debug"},
            {"type": "Command", "cmd": "tare"},
            {"type": "key_rotate", "key": EVES_KEY},
            {"type": "connected"},
            {"type": "anything"},
        ):
            await vics.send(text({**content, "by": "vic"}))
            assert (await vics.read_until("error"))["error"] == "forbidden"
        for message_type in ("request_state", "request_full_status", "ping", "get_metrics"):
            await vics.send(text({"type": message_type, "by": "vic"}))
        await vics.read_until("metrics")
        mark = text({"type": "command", "cmd": "tare", "by": "ada"})
        await adas.send(mark)
        heard = []
        while (message := await device.read_json()).get("by") != "ada":
            heard.append(message)
        assert {message["type"] for message in heard} <= {"request_state"}  # the relay's own question
        assert not any("by" in message for message in heard)
        await device.send(text({"type": "status", "seq": 1}))
        assert (await vics.read_until("status"))["seq"] == 1
        assert (await vic.ask("PATCH", f"/api/devices/{MACHINE}", {"name": "Vic's"})).status == 403
        assert (await vic.ask("POST", f"/api/devices/{MACHINE}/share", {})).status == 403


# Pages


async def test_foreign_pages_are_refused_but_machines_may_send_a_file_origin(tmp_path: Path) -> None:
    async with open_home(tmp_path) as home:
        ada = await home.person("ada")
        await home.pair(ada)
        target = f"/ws/client?token={ada.token}&device={MACHINE}"
        for origin in ("https://evil.example", "null", "file://", "http://relay.example.evil.example:3001"):
            for path in (target, target.replace("/ws/client", "/ws")):
                assert (await home.knock(path, Origin=origin)).status == 403, origin
        assert (await home.knock(target, Origin="http://relay.example:3001")).status == 101
        assert (await home.knock(target)).status == 101
        machine = f"/ws/device?id={MACHINE}&key="
        assert (await home.knock(machine + KEY, Origin="file://")).status == 101
        assert (await home.knock(machine + WRONG_KEY, Origin="file://")).status == 401
