from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

import pytest

from brewos_relay.api.payloads import Refused
from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from brewos_relay.api.sharing import SHARE_S, to_ms
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.vocabulary import now_ms
from support.household import BASE_URL, MACHINE, STRANGE, Answer, Household, open_household

pytestmark = pytest.mark.usefixtures("each_registry")

HOUR_MS = 3_600_000
SHARE = f"/devices/{MACHINE}/share"


async def listed(house: Household) -> list[dict[str, Any]]:
    answer = await house.ask("GET", f"/devices/{MACHINE}/shares")
    assert answer.status == 200
    shares: list[dict[str, Any]] = answer.content["shares"]
    return shares


async def take(house: Household, made: dict[str, Any], *, by: str = "bob") -> Answer:
    body = {"deviceId": MACHINE, "token": made["token"]}
    return await house.ask("POST", "/devices/claim-share", body, by=by)


async def test_share_has_a_link_a_qr_code_and_a_short_code(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("POST", f"/devices/{MACHINE.lower()}/share")
        assert answer.status == 200
        made = answer.content
        link = urlsplit(made["url"])
        assert f"{link.scheme}://{link.netloc}{link.path}" == f"{BASE_URL}/pair"
        assert dict(parse_qsl(link.query)) == {"id": MACHINE, "token": made["token"], "share": "true"}
        assert made["deviceId"] == MACHINE
        assert made["expiresIn"] == SHARE_S == 24 * 3600
        in_a_day = datetime.now(UTC) + timedelta(days=1)
        assert abs(datetime.fromisoformat(made["expiresAt"]) - in_a_day) < timedelta(seconds=30)
        code = made["manualCode"]
        assert (len(code), code[4]) == (9, "-")
        assert ElementTree.fromstring(made["qr"]).tag.endswith("svg")
        assert (await take(house, made)).status == 200


async def test_link_uses_the_address_of_the_request(tmp_path: Path) -> None:
    async with open_household(tmp_path, proxy_trust=ProxyTrust()) as house:
        made = (await house.ask("POST", SHARE)).content
        assert made["url"].startswith("http://localhost/pair?")


async def test_secrets_of_a_share_are_shown_once(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        made = (await house.ask("POST", SHARE, {"role": "viewer", "uses": 3})).content
        (share,) = await listed(house)
        assert share == {
            "shareId": made["shareId"],
            "role": "viewer",
            "until": None,
            "usesLeft": 3,
            "createdBy": "ada",
            "createdAt": share["createdAt"],
            "expiresAt": made["expiresAt"],
        }
        await take(house, made)
        assert (await listed(house))[0]["usesLeft"] == 2


@pytest.mark.parametrize("form", ["ms", "iso"])
async def test_access_by_a_share_may_end(tmp_path: Path, form: str) -> None:
    async with open_household(tmp_path) as house:
        until_ms = now_ms() + HOUR_MS
        iso = datetime.fromtimestamp(until_ms / 1000, UTC).isoformat(timespec="milliseconds")
        wanted = {"until": until_ms if form == "ms" else iso}
        made = (await house.ask("POST", SHARE, wanted)).content
        until = iso.replace("+00:00", "Z")
        assert (await listed(house))[0]["until"] == until
        await take(house, made)
        (device,) = (await house.ask("GET", "/devices", by="bob")).content["devices"]
        assert (device["role"], device["until"]) == ("member", until)


INVALID_SHARES: Final[Sequence[tuple[Any, int]]] = (
    ({"role": "owner"}, 400),
    ({"role": "admin"}, 400),
    ({"until": "tomorrow"}, 400),
    ({"until": "2999-01-01T00:00:00"}, 400),
    ({"until": 1}, 422),
    ({"until": "2001-01-01T00:00:00Z"}, 422),
    ({"until": 10**18}, 400),
    ({"uses": 0}, 400),
    ({"uses": 1.5}, 400),
    ([], 400),
)


async def test_invalid_share_is_refused(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for wanted, status in INVALID_SHARES:
            assert (await house.ask("POST", SHARE, wanted)).status == status, wanted
            assert await listed(house) == [], wanted


async def test_share_without_a_body_uses_defaults(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for data in (None, b"", b"{}"):
            assert (await house.ask("POST", SHARE, data=data)).status == 200
        assert (await house.ask("POST", SHARE, data=b"x")).status == 400


async def test_revoked_share_is_refused(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        made = (await house.ask("POST", SHARE)).content
        path = f"/devices/{MACHINE}/shares/{made['shareId']}"
        assert (await house.ask("DELETE", path)).content == {"success": True}
        assert (await take(house, made)).status == 404
        assert await listed(house) == []
        assert (await house.ask("DELETE", path)).status == 404


async def test_a_share_of_another_device_cannot_be_revoked(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        made = (await house.ask("POST", SHARE)).content
        answer = await house.ask("DELETE", f"/devices/BRW-0000002B/shares/{made['shareId']}")
        assert answer.status == 404
        assert len(await listed(house)) == 1


@pytest.mark.parametrize(("method", "path"), [("POST", "share"), ("GET", "shares"), ("DELETE", "shares/x")])
async def test_only_owners_share(tmp_path: Path, method: str, path: str) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        await house.give("cleo", "viewer")
        asked = {by: await house.ask(method, f"/devices/{MACHINE}/{path}", by=by) for by in ("bob", "cleo")}
        assert {answer.status for answer in asked.values()} == {403}
        assert (await house.ask(method, f"/devices/{MACHINE}/{path}", by="eve")).status == 404
        assert (await house.ask(method, f"/devices/{MACHINE}/{path}", by=None)).status == 401


async def test_a_token_alone_is_not_enough_to_share(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        for by, device_id in (("ops", STRANGE), ("bob", MACHINE)):
            token = house.token(by, devices="*", role="owner")
            answer = await house.ask("POST", f"/devices/{device_id}/share", token=token)
            assert answer.status == 403
            assert "token" in answer.content["error"]


async def test_shares_are_limited_by_user(tmp_path: Path) -> None:
    request_limits = RequestLimits()
    request_limits.shares_by_user = RequestLimit("invitations", burst=2, each_minute=1)
    async with open_household(tmp_path, request_limits=request_limits) as house:
        await house.give("bob", "owner")
        assert [(await house.ask("POST", SHARE)).status for _ in range(3)] == [200, 200, 429]
        assert (await house.ask("POST", SHARE, by="bob")).status == 200


def test_until_accepts_both_time_formats() -> None:
    assert to_ms(None, now_ms=5) is None
    assert to_ms(6, now_ms=5) == 6
    assert to_ms(datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC), now_ms=5) == 1500
    with pytest.raises(Refused):
        to_ms(5, now_ms=5)
    with pytest.raises(Refused):
        to_ms(datetime(1, 1, 1, tzinfo=UTC), now_ms=5)
