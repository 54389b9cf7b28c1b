import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from sqlalchemy import select

from brewos_relay.auth.secrets import derive_token, hash_secret
from brewos_relay.errors import RegistryError
from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import refresh_tokens
from brewos_relay.vocabulary import now_ms
from support.household import MACHINE, Household
from support.sign_ins import EMAIL, add_account, admitted, ask, sign_in

pytestmark = pytest.mark.usefixtures("each_registry")


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the clock of sessions to some seconds after the start of the test."""
    began_ms = now_ms()

    def pass_s(seconds: float) -> None:
        monkeypatch.setattr(
            "brewos_relay.api.login_sessions.now_ms", lambda: began_ms + round(seconds * 1000)
        )

    return pass_s


async def status_of(house: Household, session: dict[str, Any], path: str = "/auth/me") -> int:
    """Send a request with the access token of a session."""
    return (await ask(house, path, method="GET", token=session["accessToken"])).status


async def refresh(house: Household, session: dict[str, Any]) -> Any:
    return await ask(house, "/auth/refresh", {"refreshToken": session["refreshToken"]})


async def test_refresh_returns_all_fields_of_a_session(house: Household) -> None:
    first = await sign_in(house)
    answer = await refresh(house, first)
    assert answer.status == 200
    second = answer.content
    assert set(second) == {"accessToken", "refreshToken", "expiresAt", "user"}
    assert second["refreshToken"] != first["refreshToken"]
    assert second["user"] == first["user"]
    assert isinstance(second["expiresAt"], int)
    assert second["expiresAt"] == pytest.approx((time.time() + 3600) * 1000, abs=5_000)
    assert await status_of(house, second) == 200
    # It is the same session: the old access token stays valid until it expires.
    assert await status_of(house, first) == 200


async def test_two_tabs_that_refresh_with_the_same_token_get_the_same_successor(house: Household) -> None:
    session = await sign_in(house)
    for _ in range(3):
        tabs = [(await refresh(house, session)).content for _ in range(2)]
        assert tabs[0]["refreshToken"] == tabs[1]["refreshToken"] != session["refreshToken"]
        assert [await status_of(house, tab) for tab in tabs] == [200, 200]
        session = tabs[0]


async def test_requests_of_two_tabs_at_the_same_time_get_the_same_successor(house: Household) -> None:
    session = await sign_in(house)
    tokens: list[str] = []

    async def tab() -> None:
        tokens.append((await refresh(house, session)).content["refreshToken"])

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(tab)
    assert len(tokens) == 8
    assert len(set(tokens)) == 1


async def test_refresh_token_whose_answer_was_lost_works_after_a_night(
    house: Household, later: Callable[[float], None]
) -> None:
    session = await sign_in(house)
    lost = (await refresh(house, session)).content
    later(8 * 3600)
    again = await refresh(house, session)
    assert (again.status, again.content["refreshToken"]) == (200, lost["refreshToken"])
    assert await status_of(house, again.content) == 200
    assert (await refresh(house, again.content)).status == 200


async def test_a_token_used_after_its_successor_ends_the_session(
    house: Household, later: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    stolen = await sign_in(house)
    user_id = stolen["user"]["id"]
    await house.give(user_id)
    owner = (await refresh(house, stolen)).content
    owner = (await refresh(house, owner)).content
    later(59)
    tab = await refresh(house, stolen)
    assert tab.status == 200
    later(120)
    assert await status_of(house, owner) == 200
    assert (await refresh(house, stolen)).status == 401
    assert await status_of(house, owner) == 401
    for session in (owner, tab.content, stolen):
        assert (await refresh(house, session)).status == 401
    # The activity of the machine shows it, and so does the log.
    fresh = await sign_in(house)
    told = await ask(house, f"/devices/{MACHINE}/activity", method="GET", token=fresh["accessToken"])
    entry = told.content["activity"][0]
    assert (entry["kind"], entry["userId"], entry["email"]) == ("token_copied", user_id, EMAIL)
    [line] = [record.getMessage() for record in caplog.records if "copied" in record.getMessage()]
    assert user_id in line
    assert stolen["refreshToken"] not in caplog.text


async def test_a_thief_who_refreshes_first_is_signed_out_when_the_owner_comes_back(
    house: Household, later: Callable[[float], None]
) -> None:
    session = await sign_in(house)
    thief = (await refresh(house, session)).content
    later(3300)
    thief = (await refresh(house, thief)).content
    later(3600)
    assert (await refresh(house, session)).status == 401
    assert await status_of(house, thief) == 401
    assert (await refresh(house, thief)).status == 401


async def test_no_refresh_token_is_stored(house: Household) -> None:
    session = await sign_in(house)
    for _ in range(3):
        following = (await refresh(house, session)).content
        rows = await house.store.read(lambda db: db.execute(select(refresh_tokens)).all())
        stored = [value for row in rows for value in row]
        for token in (session["refreshToken"], following["refreshToken"]):
            assert token not in stored
            assert token.encode() not in stored
        # Stored values do not reveal the successor.
        salts = [row.successor_salt for row in rows if row.successor_salt is not None]
        hashes = [row.token_hash for row in rows]
        assert salts
        for salt in salts:
            for hash_ in hashes:
                assert hash_secret(derive_token(hash_.hex(), salt)) not in hashes
        session = following


@pytest.mark.parametrize("token", ["", "never-was", "x" * 5000, "é\0", "eyJhbGciOiJub25lIn0.e30."])
async def test_invalid_refresh_token_is_a_401(house: Household, token: str) -> None:
    answer = await ask(house, "/auth/refresh", {"refreshToken": token})
    assert answer.status == 401


@pytest.mark.parametrize("body", [b"", b"{}", b"null", b'{"refreshToken":1}', b"\xff"])
async def test_a_body_of_another_shape_is_a_400(house: Household, body: bytes) -> None:
    assert (await house.ask("POST", "/auth/refresh", by=None, data=body)).status == 400


async def test_a_registry_that_fails_is_a_503_and_never_a_401(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await sign_in(house)

    async def fail(*_args: object, **_more: object) -> None:
        raise RegistryError("the disk is full of secrets")

    for name in ("write", "find_session"):
        monkeypatch.setattr(house.store, name, fail)
    refreshed = await refresh(house, session)
    me = await ask(house, "/auth/me", method="GET", token=session["accessToken"])
    for answer in (refreshed, me):
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "5"
        assert b"secrets" not in answer.body


async def test_signing_out_ends_this_session_and_no_other(house: Household) -> None:
    kitchen, phone = await sign_in(house), await sign_in(house)
    answer = await ask(house, "/auth/logout", token=kitchen["accessToken"])
    assert (answer.status, answer.content) == (200, {"ended": 1})
    assert await status_of(house, kitchen) == 401
    assert (await refresh(house, kitchen)).status == 401
    assert await status_of(house, phone) == 200
    # The session has ended already, which is no error.
    again = await ask(house, "/auth/logout", token=kitchen["accessToken"])
    assert (again.status, again.content) == (200, {"ended": 0})


async def test_sign_out_without_a_session_ends_nothing(house: Household) -> None:
    answer = await house.ask("POST", "/auth/logout", token=house.token("ada"))
    assert (answer.status, answer.content) == (200, {"ended": 0})
    assert (await house.ask("GET", "/auth/me", token=house.token("ada"))).status == 200


async def test_signing_out_needs_a_token(house: Household) -> None:
    assert (await ask(house, "/auth/logout")).status == 401
    assert (await ask(house, "/auth/logout", token="forged")).status == 401


async def test_signing_out_everywhere_ends_all_sessions_of_one_user(house: Household) -> None:
    mine = [await sign_in(house) for _ in range(3)]
    other = await sign_in(house, "bob@example.org")
    answer = await ask(house, "/auth/logout-all", token=mine[0]["accessToken"])
    assert (answer.status, answer.content) == (200, {"ended": 3})
    assert [await status_of(house, session) for session in [*mine, other]] == [401, 401, 401, 200]


async def test_sessions_are_listed_and_ended(house: Household) -> None:
    kitchen, phone = await sign_in(house), await sign_in(house)
    other = await sign_in(house, "bob@example.org")
    listed = (await ask(house, "/auth/sessions", method="GET", token=phone["accessToken"])).content[
        "sessions"
    ]
    assert len(listed) == 2
    assert [session["current"] for session in listed].count(True) == 1
    assert set(listed[0]) == {
        "id",
        "current",
        "createdAt",
        "lastUsedAt",
        "expiresAt",
        "userAgent",
        "address",
    }
    (not_this,) = [session["id"] for session in listed if not session["current"]]
    # No user ends the session of another, or learns that it exists.
    foreign = await ask(house, f"/auth/sessions/{not_this}", method="DELETE", token=other["accessToken"])
    unknown = await ask(house, "/auth/sessions/never-was", method="DELETE", token=other["accessToken"])
    assert foreign.status == unknown.status == 404
    assert foreign.content == unknown.content
    answer = await ask(house, f"/auth/sessions/{not_this}", method="DELETE", token=phone["accessToken"])
    assert (answer.status, answer.content) == (200, {"ended": 1})
    assert await status_of(house, kitchen) == 401
    assert await status_of(house, phone) == 200


@pytest.mark.parametrize("path", ["logout", "logout-all", "sessions", "refresh"])
async def test_answer_is_sent_after_the_change_was_applied(house: Household, path: str) -> None:
    applied: list[Change] = []

    async def apply(changes: Sequence[Change]) -> None:
        applied.extend(changes)

    house.store.watch_changes(apply)
    session = await sign_in(house)
    token = session["accessToken"]
    if path == "sessions":
        listed = await ask(house, "/auth/sessions", method="GET", token=token)
        session_id = listed.content["sessions"][0]["id"]
        await ask(house, f"/auth/sessions/{session_id}", method="DELETE", token=token)
    elif path == "refresh":
        following = (await refresh(house, session)).content
        await refresh(house, following)
        late = now_ms() + 61_000
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("brewos_relay.api.login_sessions.now_ms", lambda: late)
            assert (await refresh(house, session)).status == 401
    else:
        await ask(house, f"/auth/{path}", token=token)
    assert [change.kind for change in applied] == ["session_ended"]


async def test_me_returns_the_user_of_the_token(house: Household) -> None:
    await add_account(house)
    session = await sign_in(house)
    me = (await ask(house, "/auth/me", method="GET", token=session["accessToken"])).content
    assert me["user"] == {"id": session["user"]["id"], "email": EMAIL, "name": "", "picture": None}
    assert me["hasPassword"] is True
    assert me["sessionId"]


async def test_me_with_a_token_without_an_account(house: Household) -> None:
    me = (await house.ask("GET", "/auth/me", token=house.token("carol"))).content
    assert me["user"] == {"id": "carol", "email": "carol@example.org", "name": "", "picture": None}
    assert (me["isAdmin"], me["hasPassword"], me["sessionId"]) == (False, False, None)


async def test_session_of_another_user_is_not_found(house: Household) -> None:
    """A token with a session must name the user of that session, even if its signature is valid."""
    session = await sign_in(house)
    me = (await ask(house, "/auth/me", method="GET", token=session["accessToken"])).content
    mixed = house.keys.issue(user_id="mallory", email="m@example.org", session_id=me["sessionId"])
    assert (await ask(house, "/auth/me", method="GET", token=mixed)).status == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "Bearer a b", "bearer forged"])
async def test_malformed_token_is_a_401(house: Household, header: str) -> None:
    response = await house.app.test_client().get("/api/auth/me", headers={"Authorization": header})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_refreshes_are_limited_by_address(house: Household) -> None:
    assert await admitted(house, "/auth/refresh", {"refreshToken": "x"}, but=401) >= 120
