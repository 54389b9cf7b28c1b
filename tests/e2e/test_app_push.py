"""Notifications of the BrewOS app in a real browser, with its service worker and a push service in the test.

Without the internet, a browser gets no subscription of its own: the test makes one, and delivers the
decrypted messages through DevTools.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay import outbound
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.outbound import Outbound
from brewos_relay.registry.access import give
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import NewDevice
from brewos_relay.server import assembly
from brewos_relay.server.assembly import Server, open_server
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import now_ms
from support.app_build import write_app
from support.chromium import Page, needs_browser, open_page
from support.push_service import open_push_service

pytestmark = needs_browser

MACHINE = "BRW-0000001A"
KEY = "k" * 43
DEADLINE_S = 60
ASK = """(async (method, path, body, headers = {}) => {
  const options = { method, headers: { ...headers } };
  if (body) Object.assign(options.headers, { "Content-Type": "application/json" });
  const answer = await fetch(path, { ...options, body: body && JSON.stringify(body) });
  return { status: answer.status, content: await answer.json().catch(() => null) };
})"""
SUBSCRIBE = """(async () => {
  const { publicKey } = await (await fetch("/api/push/vapid-key")).json();
  const padded = publicKey.replace(/-/g, "+").replace(/_/g, "/") + "=";
  const applicationServerKey = Uint8Array.from(atob(padded), (each) => each.charCodeAt(0));
  const { pushManager } = await navigator.serviceWorker.ready;
  const options = { userVisibleOnly: true, applicationServerKey };
  const permission = await pushManager.permissionState(options);
  const problem = (error) => `${error.name}: ${error.message}`;
  const wrong = { ...options, applicationServerKey: applicationServerKey.slice(1) };
  return [
    permission,
    await pushManager.subscribe(wrong).then(() => "subscribed", problem),
    await Promise.race([
      pushManager.subscribe(options).then(() => "subscribed", problem),
      new Promise((settle) => setTimeout(() => settle("waiting"), 3000)),
    ]),
  ];
})()"""


async def ask(page: Page, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Send a request as the app does: without a token."""
    answer = await page.run(f"{ASK}({json.dumps(method)}, {json.dumps(path)}, {json.dumps(body)})")
    return answer["status"], answer["content"]


async def sign_in(server: Server, page: Page, who: str) -> None:
    """Sign a user in who has MACHINE."""
    token, at_ms = f"{who}-" + "i" * 36, now_ms()
    until: dict[str, Any] = {"now_ms": at_ms, "expires_at_ms": at_ms + 600_000}
    email = f"{who}@example.org"
    await server.store.write(add_invite, email=email, token_hash=hash_secret(token), is_admin=False, **until)
    await page.go(f"{server.url}/login#invite={token}")
    await page.press("#accept")
    await page.press("#skip")
    await page.see(f"Dashboard of {email}")
    # The first visit reloads the app once its worker has taken over.
    await page.wait_for("navigator.serviceWorker.controller !== null && !!window.app")
    user_id = await page.run("JSON.parse(localStorage.brewos_session).user.id")
    await server.store.write(give, MACHINE, user_id, role="owner", now_ms=at_ms)


async def test_notifications_reach_the_app_and_no_other_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "is_public", lambda _: True)
    settings: dict[str, Any] = {"data_dir": tmp_path, "jwt_secret": "tests-only-" + "s" * 32}
    with trio.fail_after(DEADLINE_S):
        async with open_push_service(tmp_path) as service, open_page() as page:
            monkeypatch.setattr(assembly, "Outbound", lambda: Outbound(service.server.tls))
            dist = write_app(tmp_path / "dist")
            own = Settings(host="127.0.0.1", port=0, tls_self_signed=True, web_dist_path=dist, **settings)
            async with open_server(own) as server:
                devices = [NewDevice(id=MACHINE, key_hash=hash_secret(KEY), name="Kitchen")]
                await server.store.write(add_devices, devices, now_ms=now_ms())
                await page.call("ServiceWorker.enable")
                origin = server.url
                await page.call("Browser.grantPermissions", permissions=["notifications"], origin=origin)

                await sign_in(server, page, "alice")
                permission, wrong, outcome = await page.run(SUBSCRIBE)
                assert permission == "granted"
                # The browser accepts the key. Only its push service is out of reach.
                assert wrong.startswith("InvalidAccessError")
                assert outcome == "waiting" or outcome.startswith("AbortError"), outcome
                body = {"subscription": service.subscription("/alice"), "deviceId": MACHINE}
                assert (await ask(page, "POST", "/api/push/subscribe", body))[0] == 200
                assert (await ask(page, "POST", "/api/push/preferences", {"brewComplete": True}))[0] == 200
                assert (await ask(page, "GET", "/api/push/preferences"))[1]["brewComplete"] is True

                report = {"deviceId": MACHINE, "notification": {"type": "WATER_EMPTY", "message": ""}}
                script = (
                    f"{ASK}('POST', '/api/push/notify', {json.dumps(report)}, {{'X-Device-Key': '{KEY}'}})"
                )
                assert (await page.run(script))["status"] == 200
                path, content = await service.next()
                assert path == "/alice"
                await page.call(
                    "ServiceWorker.deliverPushMessage",
                    origin=origin,
                    registrationId=page.registrations[f"{origin}/"],
                    data=json.dumps(content),
                )
                assert await page.wait_for("app.shown") == {
                    "title": "Kitchen: Water is low",
                    "body": "Refill the water tank.",
                    "data": {"type": "waterEmpty", "deviceId": MACHINE, "url": f"/machine/{MACHINE}"},
                }

                # The next user of this browser gets nothing of hers, not even without a network.
                await page.run("app.signOut()")
                await page.see("E-mail address")
                assert (await ask(page, "GET", "/api/push/preferences"))[0] == 401
                await sign_in(server, page, "ben")
                assert (await ask(page, "GET", "/api/push/preferences"))[1]["brewComplete"] is False
                await page.run("navigator.serviceWorker.controller.postMessage('offline')")
                assert await ask(page, "GET", "/api/push/preferences") == (503, {"error": "offline"})
                assert (await ask(page, "GET", "/api/push/vapid-key"))[0] == 200  # it is kept, and public
                fault = {**report, "notification": {"type": "MACHINE_ERROR", "message": ""}}
                script = script.replace(json.dumps(report), json.dumps(fault))
                assert (await page.run(script))["status"] == 200
                await trio.sleep(0.3)
                assert service.server.asked == []
