"""Notifications: the requests of the app with its cookie, and those of machines with their key."""

import base64
import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.auth.app_cookies import COOKIE, make_cookie
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.web_push import decode
from brewos_relay.notifications import KINDS, is_wanted
from brewos_relay.registry.push import recipients_of
from brewos_relay.vocabulary import now_ms
from support.browser_push import BrowserEnd
from support.household import KEY, MACHINE, OTHER_KEY, SECOND, STRANGE, Household
from support.sign_ins import EMAIL, invited

pytestmark = pytest.mark.usefixtures("each_registry")

ENDPOINT = "https://push.example/send/abc"


class Browser:
    """The app in a browser: its requests carry cookies as the browser keeps them, and no token."""

    def __init__(self, house: Household) -> None:
        self.house = house
        self.client = house.app.test_client()
        self.session: dict[str, Any] = {}
        self.set_cookies: list[str] = []
        self.headers: Any = {}

    async def sign_in(self, email: str = EMAIL) -> "Browser":
        await self.ask("POST", "/api/auth/invite", {"token": await invited(self.house, email)})
        self.session = self.content
        return self

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str | None = None
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        options: dict[str, Any] = {"headers": headers}
        if body is not None:
            options |= {"data": msgspec.json.encode(body)}
            headers["Content-Type"] = "application/json"
        response = await getattr(self.client, method.lower())(path, **options)
        self.set_cookies = response.headers.getlist("Set-Cookie")
        self.headers = response.headers
        self.content = await response.get_json()
        return response.status_code, self.content

    async def sign_out(self) -> None:
        await self.ask("POST", "/api/auth/logout", token=self.session["accessToken"])


def subscription(endpoint: str = ENDPOINT, **keys: str) -> dict[str, Any]:
    # The app encodes keys in plain base64, with padding.
    own = {name: base64.b64encode(decode(text)).decode() for name, text in BrowserEnd().keys.items()}
    return {"endpoint": endpoint, "keys": {**own, **keys}}


async def recipients(house: Household, device_id: str = MACHINE) -> Sequence[str]:
    found = await house.store.read(recipients_of, device_id, now_ms=now_ms())
    return [each.subscription.user_id for each in found]


async def test_cookie_is_set_at_sign_in_renewed_and_cleared(house: Household) -> None:
    browser = await Browser(house).sign_in()

    def check(*, value: bool) -> None:
        assert len(browser.set_cookies) == 2
        for path, cookie in zip(("/api/push", "/api/stats"), browser.set_cookies, strict=True):
            name_and_value, *attributes = cookie.split("; ")
            assert {"HttpOnly", "SameSite=Strict", f"Path={path}"} <= set(attributes)
            assert (name_and_value != f"{COOKIE}=") is value
            assert ("Max-Age=0" in attributes) is not value
            assert not any(attribute.startswith("Domain") for attribute in attributes)

    check(value=True)
    first = browser.set_cookies
    body = {"refreshToken": browser.session["refreshToken"]}
    assert (await browser.ask("POST", "/api/auth/refresh", body))[0] == 200
    check(value=True)
    assert (await browser.ask("GET", "/api/push/preferences"))[0] == 200
    assert browser.set_cookies == []
    await browser.sign_out()
    check(value=False)
    assert (await browser.ask("GET", "/api/push/preferences"))[0] == 401
    # A copy of the cookie has ended with the session.
    copy = first[0].partition(";")[0].partition("=")[2]
    browser.client.set_cookie("localhost", COOKIE, copy, path="/api/push")
    assert (await browser.ask("GET", "/api/push/preferences"))[0] == 401
    for path in ("logout", "logout-all"):
        again = await Browser(house).sign_in()
        await again.ask("POST", f"/api/auth/{path}", token=again.session["accessToken"])
        browser = again
        check(value=False)


async def test_signing_out_with_an_expired_token_clears_the_cookie(house: Household) -> None:
    browser = await Browser(house).sign_in()
    user = browser.session["user"]
    expired = house.keys.issue(user_id=user["id"], email=EMAIL, session_id="s", now_s=1, ttl_s=1)
    assert (await browser.ask("POST", "/api/auth/logout", token=expired))[0] == 401
    assert len(browser.set_cookies) == 2
    assert (await browser.ask("GET", "/api/push/preferences"))[0] == 401


async def test_cookie_is_secure_over_https(house: Household) -> None:
    token = await invited(house)
    client = house.app.test_client()
    response = await client.post("/api/auth/invite", json={"token": token}, scheme="https")
    assert all("Secure" in cookie for cookie in response.headers.getlist("Set-Cookie"))


async def test_cookie_is_valid_for_notifications_only(house: Household) -> None:
    browser = await Browser(house).sign_in()
    cookie = browser.set_cookies[0].partition(";")[0].partition("=")[2]
    for path in ("/", "/api", "/api/devices"):
        browser.client.set_cookie("localhost", COOKIE, cookie, path=path)
    for path in ("/api/devices", "/api/auth/me", "/api/auth/sessions", f"/api/logs?device={MACHINE}"):
        assert (await browser.ask("GET", path))[0] == 401
    assert (await browser.ask("GET", "/api/auth/me", token=cookie))[0] == 401
    # And an access token is no cookie.
    other = Browser(house)
    other.client.set_cookie("localhost", COOKIE, browser.session["accessToken"], path="/api/push")
    assert (await other.ask("GET", "/api/push/preferences"))[0] == 401


async def test_forged_cookie_is_refused(house: Household) -> None:
    browser = await Browser(house).sign_in("cleo@example.org")
    for session_id, user_id in (("none", browser.session["user"]["id"]), ("session of ada", "ben")):
        await house.signed_in("ada")
        in_an_hour = int(time.time()) + 3600
        cookie = make_cookie(house.keys, session_id=session_id, user_id=user_id, expires_at_s=in_an_hour)
        other = Browser(house)
        other.client.set_cookie("localhost", COOKIE, cookie, path="/api/push")
        assert (await other.ask("GET", "/api/push/preferences"))[0] == 401


async def test_foreign_pages_cannot_use_the_cookie(house: Household) -> None:
    browser = await Browser(house).sign_in()
    for path in ("subscribe", "unsubscribe", "preferences"):
        response = await browser.client.post(
            f"/api/push/{path}", json={"brewComplete": True}, headers={"Sec-Fetch-Site": "cross-site"}
        )
        assert response.status_code == 403


async def test_browser_subscribes_and_unsubscribes_without_a_token(house: Household) -> None:
    browser = await Browser(house).sign_in()
    user_id = browser.session["user"]["id"]
    await house.give(user_id)
    assert await browser.ask("GET", "/api/push/vapid-key") == (200, {"publicKey": "the public key"})
    body = {"subscription": subscription(), "userId": "ada", "deviceId": MACHINE.lower()}
    assert await browser.ask("POST", "/api/push/subscribe", body) == (200, {"success": True})
    assert await recipients(house) == [user_id]  # the userId in the body is ignored
    assert house.notifier.watched == [MACHINE]
    other = await Browser(house).sign_in("ben@example.org")
    assert (await other.ask("POST", "/api/push/unsubscribe", body))[0] == 200
    assert await recipients(house) == [user_id]  # it is not theirs
    assert (await browser.ask("POST", "/api/push/unsubscribe", body))[0] == 200
    assert await recipients(house) == []


async def test_user_lists_subscriptions_and_takes_a_machine_out(house: Household) -> None:
    token = await house.signed_in("ada")
    browser = Browser(house)
    body = {"subscription": subscription()}
    await browser.ask("POST", "/api/push/subscribe", body, token=token)
    status, content = await browser.ask("GET", "/api/push/subscriptions", token=token)
    (listed,) = content["subscriptions"]
    assert (status, browser.headers["Vary"]) == (200, "*")
    assert (listed["id"], listed["deviceIds"]) == (
        hashlib.sha256(ENDPOINT.encode()).hexdigest(),
        [MACHINE, SECOND],
    )
    assert ENDPOINT not in str(content)  # its holder could send to the browser
    await browser.ask("POST", "/api/push/unsubscribe", {**body, "deviceId": MACHINE.lower()}, token=token)
    assert (await recipients(house), await recipients(house, SECOND)) == ([], ["ada"])
    other = await Browser(house).sign_in("ben@example.org")
    assert await other.ask("GET", "/api/push/subscriptions") == (200, {"subscriptions": []})


async def test_signing_out_ends_the_notifications_of_this_browser(house: Household) -> None:
    browser = await Browser(house).sign_in()
    await house.give(browser.session["user"]["id"])
    await browser.ask("POST", "/api/push/subscribe", {"subscription": subscription(), "deviceId": MACHINE})
    await browser.sign_out()
    assert await recipients(house) == []


async def test_without_a_device_all_devices_of_the_user_are_meant(house: Household) -> None:
    token = await house.signed_in("ada")
    browser = Browser(house)
    body = {"subscription": subscription()}
    assert (await browser.ask("POST", "/api/push/subscribe", body, token=token))[0] == 200
    assert sorted(house.notifier.watched) == [MACHINE, SECOND]
    assert await recipients(house, SECOND) == ["ada"]


@pytest.mark.parametrize("device_id", [MACHINE, STRANGE, "BRW-FFFFFFFF", "x"])
async def test_device_of_others_cannot_be_subscribed(house: Household, device_id: str) -> None:
    browser = await Browser(house).sign_in("mallory@example.org")
    body = {"subscription": subscription(), "deviceId": device_id, "userId": "ada"}
    assert (await browser.ask("POST", "/api/push/subscribe", body))[0] == 404
    assert await recipients(house) == []


async def test_invalid_subscription_is_a_400(house: Household) -> None:
    token = await house.signed_in("ada")
    for given in (
        subscription("http://push.example/x"),
        subscription("https://user:pass@push.example/x"),
        subscription("https://push.example/ x"),
        subscription("https://push.example/" + "x" * 3000),
        subscription(""),
        subscription(p256dh="AAAA"),
        subscription(auth="AAAA"),
        subscription(auth="*"),
        {"endpoint": ENDPOINT},
        {},
    ):
        body = {"subscription": given, "deviceId": MACHINE}
        status, _ = await Browser(house).ask("POST", "/api/push/subscribe", body, token=token)
        assert status == 400, given


async def test_token_without_a_session_cannot_subscribe(house: Household) -> None:
    body = {"subscription": subscription(), "deviceId": MACHINE}
    status, _ = await Browser(house).ask("POST", "/api/push/subscribe", body, token=house.token("ada"))
    assert status == 403


async def test_preferences_in_the_apps_format(house: Household) -> None:
    browser = await Browser(house).sign_in()
    defaults = {name: is_wanted(name, {}) for name in KINDS}
    assert await browser.ask("GET", "/api/push/preferences") == (200, defaults)
    status, changed = await browser.ask("POST", "/api/push/preferences", {"machineReady": False})
    assert (status, changed) == (200, {**defaults, "machineReady": False})
    assert await browser.ask("GET", "/api/push/preferences") == (200, changed)
    wrongs: list[Any] = [{}, {"unknown": True}, {"machineReady": "yes"}, []]
    for wrong in wrongs:
        assert (await browser.ask("POST", "/api/push/preferences", wrong))[0] == 400


async def test_answers_of_two_users_are_not_kept_by_a_cache(house: Household) -> None:
    alice = await Browser(house).sign_in("alice@example.org")
    await alice.ask("POST", "/api/push/preferences", {"brewComplete": True})
    ben = await Browser(house).sign_in("ben@example.org")
    for browser, wanted in ((alice, True), (ben, False)):
        _, content = await browser.ask("GET", "/api/push/preferences")
        assert content["brewComplete"] is wanted
        # A cache of a service worker refuses to store it (Service Workers §5.4.5).
        assert (browser.headers["Vary"], browser.headers["Cache-Control"]) == ("*", "no-store")


async def test_changes_are_limited_by_user(house: Household) -> None:
    browser = await Browser(house).sign_in()
    asked = [await browser.ask("POST", "/api/push/preferences", {"machineReady": False}) for _ in range(31)]
    assert [status for status, _ in asked] == [200] * 30 + [429]
    other = await Browser(house).sign_in("ben@example.org")
    assert (await other.ask("POST", "/api/push/preferences", {"machineReady": False}))[0] == 200


def report(kind: str = "WATER_EMPTY", device_id: str = MACHINE, **more: Any) -> bytes:
    notification = {"type": kind, "message": "Tank", "timestamp": 1_700_000_000, "is_alert": True, **more}
    return msgspec.json.encode({"deviceId": device_id, "notification": notification})


async def notify(house: Household, body: bytes, key: str | None = KEY, **more: Any) -> int:
    headers = {"User-Agent": "ESP32HTTPClient", **({"X-Device-Key": key} if key is not None else {})}
    response = await house.app.test_client().post("/api/push/notify", data=body, headers=headers, **more)
    return response.status_code


async def test_machine_reports_with_its_key(house: Household) -> None:
    assert await notify(house, report()) == 200
    assert await notify(house, report("PICO_OFFLINE", MACHINE.lower(), message="")) == 200
    assert house.notifier.notified == [(MACHINE, "waterEmpty", "Tank"), (MACHINE, "picoOffline", "")]


@pytest.mark.parametrize(
    ("body", "key", "status"),
    [
        (report(), None, 401),
        (report(), "", 401),
        (report(), OTHER_KEY, 401),
        (report(device_id="BRW-FFFFFFFF"), KEY, 401),
        (report(device_id="x"), KEY, 404),
        (report("NONSENSE"), KEY, 400),
        (b"{", KEY, 400),
        (b"[]", KEY, 400),
        (b"\xff", KEY, 400),
        (b"[" * 10_000, KEY, 400),
        (report(message="x" * 3000), KEY, 400),
    ],
)
async def test_other_reports_are_refused(house: Household, body: bytes, key: str | None, status: int) -> None:
    assert await notify(house, body, key) == status
    assert house.notifier.notified == []


async def test_reports_are_limited_and_guesses_of_others_do_not_silence_a_machine(house: Household) -> None:
    def near(host: str) -> dict[str, Any]:
        return {"scope_base": {"client": (host, 5)}}

    guesses = [await notify(house, report(), secrets.token_hex(20), **near("203.0.113.9")) for _ in range(12)]
    assert guesses == [401] * 10 + [429] * 2
    reports = [await notify(house, report(), **near("198.51.100.7")) for _ in range(12)]
    assert reports == [200] * 10 + [429] * 2


async def test_notifications_can_be_switched_off(house: Household) -> None:
    app: QuartTrio = create_app(
        relay=house.relay,
        store=house.store,
        keys=house.keys,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
    )
    client = app.test_client()
    for path in ("vapid-key", "preferences"):
        assert (await client.get(f"/api/push/{path}")).status_code == 404
    for path in ("subscribe", "unsubscribe", "preferences", "notify"):
        assert (await client.post(f"/api/push/{path}", json={})).status_code == 404
