"""The endpoints of the web app: its requests, and the parts of the answers that it reads.

Tests are named after the rows of the table that they are described in.
"""

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec
import pytest
import trio

from brewos_relay.auth.identity_providers import FacebookVerifier, Verifier
from brewos_relay.auth.secrets import generate_secret_token, hash_secret
from brewos_relay.registry.access import give
from brewos_relay.registry.invites import add_invite
from brewos_relay.vocabulary import Role, now_ms
from support.http_client import Told, ask
from support.issuer import APP_ID, APP_SECRET, CLIENT_ID, Issuer, IssuerKey, open_issuer
from support.process import KEY, HereServer, machine_id, serve_here
from support.wire_client import close, text

MACHINE = machine_id(1)
OTHER = machine_id(2)
CLAIM_TOKEN = "c" * 32
DAY_S = 24 * 3600


async def signed_in(server: HereServer, who: str = "ada") -> dict[str, Any]:
    """Sign a user in with an invitation; return the login session as the app stores it."""
    token = generate_secret_token()
    await server.server.store.write(
        add_invite,
        email=f"{who}@example.org",
        token_hash=hash_secret(token),
        is_admin=False,
        now_ms=now_ms(),
        expires_at_ms=now_ms() + 60_000,
    )
    told = await ask(server, "POST", "/api/auth/invite", {"token": token})
    assert told.status == 200, told
    session: dict[str, Any] = told.content
    return session


async def with_machine(server: HereServer, who: str = "ada", *, role: Role = "owner") -> dict[str, Any]:
    """Sign a user in who has MACHINE."""
    session = await signed_in(server, who)
    await server.server.store.write(give, MACHINE, session["user"]["id"], role=role, now_ms=now_ms())
    return session


async def ask_as(
    server: HereServer, session: dict[str, Any], method: str, path: str, body: Any = None
) -> Told:
    return await ask(server, method, path, body, token=session["accessToken"])


def check_session(session: dict[str, Any]) -> None:
    assert session.keys() == {"accessToken", "refreshToken", "expiresAt", "user"}
    assert isinstance(session["accessToken"], str)
    assert isinstance(session["refreshToken"], str)
    assert len(session["refreshToken"]) <= 64
    # Well over five minutes: an app takes a token for expired five minutes before its end.
    assert isinstance(session["expiresAt"], int)
    assert 3500 < session["expiresAt"] / 1000 - time.time() <= 3600
    assert session["user"].keys() == {"id", "email", "name", "picture"}
    assert isinstance(session["user"]["id"], str)
    assert "@" in session["user"]["email"]


def check_refusal(told: Told, status: int) -> None:
    assert told.status == status
    assert isinstance(told.content["error"], str)
    assert told.content["error"]


def is_iso(text_: str) -> bool:
    return text_.endswith("Z") and datetime.fromisoformat(text_).tzinfo is not None


# Rows 1 and 2: the server


@pytest.mark.parametrize("token", [None, "nonsense"])
async def test_row_1_info(tmp_path: Path, token: str | None) -> None:
    async with serve_here(tmp_path) as server:
        told = await ask(server, "GET", "/api/info", token=token)
        assert told.status == 200
        assert told.content["mode"] == "cloud"
        assert told.content["apiVersion"] >= 1
        assert {"temperature_control", "power_monitoring"} <= set(told.content["features"])
        assert {"firmwareVersion", "webVersion"} <= told.content.keys()


async def test_row_2_mode(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        told = await ask(server, "GET", "/api/mode")
        assert (told.status, told.content["mode"]) == (200, "cloud")


# Rows 3 to 7: sessions


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with open_issuer(IssuerKey("RS256", "one")) as issuer:
        yield issuer


async def test_row_3_google(tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "brewos_relay.server.from_settings.GoogleVerifier",
        lambda client_ids: Verifier(issuer=issuer.url, audiences=client_ids, jwks_url=issuer.keys_url),
    )
    async with serve_here(tmp_path, settings={"google_client_ids": (CLIENT_ID,)}) as server:
        told = await ask(server, "POST", "/api/auth/google", {"credential": issuer.token()})
        assert told.status == 200
        check_session(told.content)
        assert told.content["user"] | {"id": ""} == {
            "id": "",
            "email": "ada@example.org",
            "name": "Ada",
            "picture": "https://pictures.example/ada.png",
        }
        assert (await ask_as(server, told.content, "GET", "/api/devices")).content["devices"] == []
        for credential in ("x", issuer.token(aud="another"), issuer.token(exp=1)):
            refused = await ask(server, "POST", "/api/auth/google", {"credential": credential})
            check_refusal(refused, 401)


async def test_row_4_facebook(tmp_path: Path, issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "brewos_relay.server.from_settings.FacebookVerifier",
        lambda app_id, app_secret: FacebookVerifier(
            app_id=app_id, app_secret=app_secret, graph_url=issuer.url
        ),
    )
    issuer.people = {"good": {"id": "99", "name": "Ada", "email": "ada@example.org"}}
    chosen = {"facebook_app_id": APP_ID, "facebook_app_secret": APP_SECRET}
    async with serve_here(tmp_path, settings=chosen) as server:
        told = await ask(server, "POST", "/api/auth/facebook", {"accessToken": "good"})
        assert told.status == 200
        check_session(told.content)
        check_refusal(await ask(server, "POST", "/api/auth/facebook", {"accessToken": "bad"}), 401)


async def test_rows_3_and_4_without_configuration_are_refused_in_json(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        check_refusal(await ask(server, "POST", "/api/auth/google", {"credential": "x"}), 404)
        check_refusal(await ask(server, "POST", "/api/auth/facebook", {"accessToken": "x"}), 404)


async def test_row_5_refresh(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session = await signed_in(server)
        check_session(session)
        body = {"refreshToken": session["refreshToken"]}
        told = await ask(server, "POST", "/api/auth/refresh", body)
        assert told.status == 200
        check_session(told.content)
        assert told.content["refreshToken"] != session["refreshToken"]
        assert told.content["user"] == session["user"]
        # Another tab sends the same token at the same time.
        again = await ask(server, "POST", "/api/auth/refresh", body)
        assert again.status == 200
        for fresh in (told.content, again.content):
            assert (await ask_as(server, fresh, "GET", "/api/devices")).status == 200


async def test_row_5_the_session_survives_answers_that_are_lost_for_longer_than_the_grace_period(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed_s = 0.0
    monkeypatch.setattr("brewos_relay.api.login_sessions.now_ms", lambda: now_ms() + round(passed_s * 1000))

    async def refresh(server: HereServer, kept: dict[str, Any], *, lost: bool = False) -> dict[str, Any]:
        """Refresh as the app does: one request, and after 1 s and 2 s more if no answer arrives."""
        nonlocal passed_s
        for pause_s in (0, 1, 2) if lost else (0,):
            passed_s += pause_s
            told = await ask(server, "POST", "/api/auth/refresh", {"refreshToken": kept["refreshToken"]})
            assert told.status == 200  # on 401 and 403, the app erases its session
        return kept if lost else kept | told.content

    async with serve_here(tmp_path) as server:
        kept = await with_machine(server)
        for away_s in (90, 3600, 8 * 3600, 5 * DAY_S):
            # The server exchanges the token each time. The app keeps the old one, and its timer tries again.
            await refresh(server, kept, lost=True)
            passed_s += 30
            await refresh(server, kept, lost=True)
            passed_s += away_s
            # Two tabs share what is stored, and start their refreshes together.
            kept, other = await refresh(server, kept), await refresh(server, kept)
            assert other["refreshToken"] == kept["refreshToken"]
            devices = await ask_as(server, kept, "GET", "/api/devices")
            assert [device["id"] for device in devices.content["devices"]] == [MACHINE]
            passed_s += 3300
            kept = await refresh(server, kept)
        # It is the same session all the time, and its user can still end it.
        sessions = await ask_as(server, kept, "GET", "/api/auth/sessions")
        assert [each["current"] for each in sessions.content["sessions"]] == [True]


@pytest.mark.parametrize("token", ["", "nonsense", "x" * 43])
async def test_row_5_only_an_invalid_refresh_token_ends_the_session_of_an_app(
    tmp_path: Path, token: str
) -> None:
    async with serve_here(tmp_path) as server:
        check_refusal(await ask(server, "POST", "/api/auth/refresh", {"refreshToken": token}), 401)
        session = await signed_in(server)
        await ask_as(server, session, "POST", "/api/auth/logout")
        body = {"refreshToken": session["refreshToken"]}
        check_refusal(await ask(server, "POST", "/api/auth/refresh", body), 401)


async def test_row_6_logout(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session, other = await with_machine(server), await signed_in(server)
        client = await server.client(MACHINE, token=session["accessToken"])
        told = await ask_as(server, session, "POST", "/api/auth/logout")
        assert told.status == 200
        # The socket is closed before the answer.
        assert (await client.read_close())[0] == 4002
        check_refusal(await ask_as(server, session, "GET", "/api/devices"), 401)
        assert (await ask_as(server, other, "GET", "/api/devices")).status == 200


async def test_row_7_logout_all(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        sessions = [await signed_in(server) for _ in range(3)]
        stranger = await signed_in(server, "eve")
        assert (await ask_as(server, sessions[0], "POST", "/api/auth/logout-all")).status == 200
        for session in sessions:
            check_refusal(await ask_as(server, session, "GET", "/api/devices"), 401)
        assert (await ask_as(server, stranger, "GET", "/api/devices")).status == 200


# Rows 8 to 15: devices


async def test_row_8_devices(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session = await with_machine(server)
        device = await server.device(MACHINE)
        info = {"type": "device_info", "firmwareVersion": "0.8.62", "machineType": "dual_boiler"}
        await device.send(text(info))
        await device.show_life()
        told = await ask_as(server, session, "GET", "/api/devices")
        assert told.status == 200
        (listed,) = told.content["devices"]
        assert (listed["id"], listed["name"], listed["isOnline"]) == (MACHINE, MACHINE, True)
        assert (listed["firmwareVersion"], listed["machineType"]) == ("0.8.62", "dual_boiler")
        assert listed["lastSeen"] is None or is_iso(listed["lastSeen"])
        assert is_iso(listed["claimedAt"])
        assert listed["userCount"] == 1
        assert (listed["role"], listed["until"], listed["keyPending"]) == ("owner", None, False)
        assert told.response.header("vary") == ["Authorization"]


@pytest.mark.parametrize("token", [None, "", "nonsense", "expired"])
async def test_row_8_a_bad_token_is_a_401(tmp_path: Path, token: str | None) -> None:
    async with serve_here(tmp_path) as server:
        if token == "expired":
            token = server.signer.issue(user_id="ada", email="a@b.c", devices="*", ttl_s=1, now_s=1)
        check_refusal(await ask(server, "GET", "/api/devices", token=token), 401)


async def test_row_8_polling_every_10_s_is_within_the_rate_limit(tmp_path: Path) -> None:
    async with serve_here(tmp_path, within_s=30) as server:
        session = await with_machine(server)
        for _ in range(200):
            assert (await ask_as(server, session, "GET", "/api/devices")).status == 200


async def registered(server: HereServer, device_id: str) -> None:
    body = {"deviceId": device_id, "token": CLAIM_TOKEN, "deviceKey": KEY}
    assert (await ask(server, "POST", "/api/devices/register-claim", body)).status == 200


async def test_row_9_claim(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session = await signed_in(server)
        await registered(server, OTHER)
        body = {"deviceId": OTHER, "token": CLAIM_TOKEN, "name": "Office"}
        assert (await ask_as(server, session, "POST", "/api/devices/claim", body)).status == 200
        (device,) = (await ask_as(server, session, "GET", "/api/devices")).content["devices"]
        assert (device["id"], device["name"], device["role"]) == (OTHER, "Office", "owner")
        wrong = {"deviceId": MACHINE, "token": CLAIM_TOKEN}
        check_refusal(await ask_as(server, session, "POST", "/api/devices/claim", wrong), 404)


async def shared(server: HereServer, owner: dict[str, Any]) -> dict[str, Any]:
    told = await ask_as(server, owner, "POST", f"/api/devices/{MACHINE}/share")
    assert told.status == 200
    content: dict[str, Any] = told.content
    return content


async def test_row_9_typed_code_is_sent_as_the_id_with_an_empty_token(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner, guest = await with_machine(server), await signed_in(server, "bob")
        code = (await shared(server, owner))["manualCode"]
        body = {"deviceId": code, "token": "", "name": "My machine"}
        assert (await ask_as(server, guest, "POST", "/api/devices/claim", body)).status == 200
        (device,) = (await ask_as(server, guest, "GET", "/api/devices")).content["devices"]
        assert (device["id"], device["role"]) == (MACHINE, "member")
        wrong = {"deviceId": "AAAA-AAAA", "token": ""}
        check_refusal(await ask_as(server, guest, "POST", "/api/devices/claim", wrong), 404)


async def test_row_10_claim_share(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner, guest = await with_machine(server), await signed_in(server, "bob")
        link = dict(parse_qsl(urlsplit((await shared(server, owner))["url"]).query))
        assert link["share"] == "true"
        body = {"deviceId": link["id"], "token": link["token"]}
        assert (await ask_as(server, guest, "POST", "/api/devices/claim-share", body)).status == 200
        await server.client(MACHINE, token=guest["accessToken"])
        body["token"] = "x" * 43
        check_refusal(await ask_as(server, guest, "POST", "/api/devices/claim-share", body), 404)


async def test_row_11_rename(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session = await with_machine(server)
        path = f"/api/devices/{MACHINE}"
        assert (await ask_as(server, session, "PATCH", path, {"name": "Bar"})).status == 200
        (device,) = (await ask_as(server, session, "GET", "/api/devices")).content["devices"]
        assert device["name"] == "Bar"
        check_refusal(await ask_as(server, session, "PATCH", path, {"name": ""}), 400)


async def test_row_12_remove_or_leave(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner = await with_machine(server)
        guest = await with_machine(server, "bob", role="member")
        client = await server.client(MACHINE, token=guest["accessToken"])
        path = f"/api/devices/{MACHINE}"
        assert (await ask_as(server, guest, "DELETE", path)).status == 200
        assert (await client.read_close())[0] == 4003
        check_refusal(await ask_as(server, guest, "DELETE", path), 404)
        assert (await ask_as(server, owner, "DELETE", path)).status == 200
        assert (await ask_as(server, owner, "GET", "/api/devices")).content["devices"] == []


async def test_row_13_users(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner = await with_machine(server)
        guest = await with_machine(server, "bob", role="member")
        told = await ask_as(server, owner, "GET", f"/api/devices/{MACHINE}/users")
        assert told.status == 200
        users = {user["userId"]: user for user in told.content["users"]}
        assert users.keys() == {owner["user"]["id"], guest["user"]["id"]}
        bob = users[guest["user"]["id"]]
        assert (bob["email"], bob["role"], bob["until"]) == ("bob@example.org", "member", None)
        assert bob["displayName"]
        assert bob["avatarUrl"] is None
        assert is_iso(bob["claimedAt"])


async def test_row_14_revoke(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner = await with_machine(server)
        guest = await with_machine(server, "bob", role="member")
        device = await server.device(MACHINE)
        client = await server.client(MACHINE, token=guest["accessToken"])
        path = f"/api/devices/{MACHINE}/users/{guest['user']['id']}"
        assert (await ask_as(server, owner, "DELETE", path)).status == 200
        await client.send(text({"type": "command", "cmd": "set_mode", "mode": "on"}), close(1000))
        assert (await client.read_close())[0] == 4003
        with trio.move_on_after(0.1):
            while True:
                assert (await device.read_json())["type"] != "command"
        check_refusal(await ask_as(server, owner, "DELETE", path), 404)
        own = f"/api/devices/{MACHINE}/users/{owner['user']['id']}"
        check_refusal(await ask_as(server, owner, "DELETE", own), 409)


async def test_row_15_share(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        owner = await with_machine(server)
        content = await shared(server, owner)
        # The link has the host of the request.
        assert content["url"].startswith(f"http://relay.example/pair?id={MACHINE}&token=")
        assert content["url"].endswith("&share=true")
        assert len(content["manualCode"]) == 9
        assert content["expiresIn"] == DAY_S
        assert {"deviceId", "token", "expiresAt", "shareId", "qr"} <= content.keys()
        stranger = await signed_in(server, "eve")
        check_refusal(await ask_as(server, stranger, "POST", f"/api/devices/{MACHINE}/share"), 404)


async def test_row_15_links_have_the_public_url(tmp_path: Path) -> None:
    async with serve_here(tmp_path, settings={"public_url": "https://home.example"}) as server:
        content = await shared(server, await with_machine(server))
        assert content["url"].startswith("https://home.example/pair?")


async def test_rows_16_to_19_logs(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        session = await with_machine(server)
        device = await server.device(MACHINE)

        async def command() -> dict[str, Any]:
            return {name: value for name, value in (await device.read_json()).items() if name != "type"}

        for path, field in (("pico", "picoEnabled"), ("debug", "debugEnabled"), ("enable", "enabled")):
            form = b'--x\r\nContent-Disposition: form-data; name="enabled"\r\n\r\ntrue\r\n--x--\r\n'
            kind = "multipart/form-data; boundary=x"
            url = f"/api/logs/{path}?device={MACHINE}"
            told = await ask(server, "POST", url, form, token=session["accessToken"], content_type=kind)
            assert told.status == 200
            assert await command() == {"cmd": "set_log_config", field: True}
            assert await command() == {"cmd": "get_log_config"}
        config = {"type": "log_config", "enabled": True, "picoEnabled": True, "debugEnabled": True, "size": 0}
        await device.send(text(config))
        await device.send(text({"type": "log", "level": "info", "source": "pico", "message": "Pump on"}))
        await device.show_life()
        info = await ask_as(server, session, "GET", f"/api/logs/info?device={MACHINE}")
        size = info.content.pop("size")
        assert info.content == {
            "enabled": True,
            "maxSize": 65536,
            "picoForwarding": True,
            "debugLogs": True,
        }
        assert 50 < size < 100
        log = await ask_as(server, session, "GET", f"/api/logs?device={MACHINE}")
        assert log.response.body.endswith(b" info pico: Pump on\n")
        assert (await ask_as(server, session, "DELETE", f"/api/logs?device={MACHINE}")).status == 200
        assert await command() == {"cmd": "clear_logs"}
        log = await ask_as(server, session, "GET", f"/api/logs?device={MACHINE}")
        assert (log.status, log.response.body) == (200, b"")


async def test_row_25_firmware_releases(tmp_path: Path) -> None:
    releases = tmp_path / "releases"
    releases.mkdir()
    (releases / "all.json").write_bytes(msgspec.json.encode([{"tag_name": "v0.9.0", "prerelease": False}]))
    async with serve_here(tmp_path, settings={"firmware_releases": str(releases)}) as server:
        told = await ask(server, "GET", "/api/firmware/releases")
        assert [each["tag_name"] for each in told.content] == ["v0.9.0"]


# All endpoints


async def test_early_answer_does_not_block_the_connection(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        for delay_s in (0.0, 0.001, 0.01):
            connection = await server.connect()
            await connection.send(b"PUT /api/devices HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n")
            await trio.sleep(delay_s)
            await connection.send(b"{}")
            assert (await connection.read_response()).status == 405
            await connection.send(b"GET /api/mode HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
            with trio.fail_after(2):  # an answer or the end of the connection, but no silence
                await connection.read_to_end()
