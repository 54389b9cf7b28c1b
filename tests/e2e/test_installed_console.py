"""The console as an installed app in a real browser: its manifest, its service worker, and notifications."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay import outbound
from brewos_relay.api import console_pages
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.outbound import Outbound
from brewos_relay.registry import login_sessions, push
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import find_user_by_email
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.records import NewDevice
from brewos_relay.server import assembly
from brewos_relay.server.assembly import Server
from brewos_relay.vocabulary import now_ms
from support.app_build import write_app
from support.chromium import Page, needs_browser, open_page, open_worker
from support.console import DEADLINE_S, EMAIL, INVITE, KEY, MACHINE, Kitchen, open_kitchen, settle_in, sign_in
from support.push_service import SHOWN, SUBSCRIBING, open_push_service

pytestmark = needs_browser

OTHER = "BRW-0000001B"

CACHED = """(async () => {
  const [name] = (await caches.keys()).filter((one) => one.startsWith("brewos-relay-console "));
  return name && (await (await caches.open(name)).keys()).map(({ url }) => new URL(url).pathname);
})()"""
LOADED = """performance.getEntriesByType("resource").map(({ name }) => new URL(name).pathname)
  .filter((path) => path.startsWith("/console/files/"))"""
ACTIVE = (
    "navigator.serviceWorker.getRegistration('/console').then((one) => one?.active?.state === 'activated')"
)


INSTALLING = """addEventListener("install", (event) => {
  skipWaiting();
"""
UPDATE = "navigator.serviceWorker.getRegistration('/console').then((one) => one.update()).then(() => true)"


async def install(page: Page, kitchen: Kitchen) -> None:
    """Sign in, and open the settings, which register the service worker."""
    await sign_in(page, kitchen, "/console")
    await page.go(f"{kitchen.url}/console/settings")
    await page.wait_for(ACTIVE)
    await page.wait_for("navigator.serviceWorker.controller?.scriptURL.endsWith('/console/worker.js')")


async def test_console_is_installable_and_keeps_static_files_but_no_answers_of_the_api(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chromium may take 30 s to replace a worker.
    async with (
        open_kitchen(tmp_path, within_s=DEADLINE_S + 30) as kitchen,
        open_page(languages="de-DE,de") as page,
    ):
        async with kitchen.serving() as server:
            await settle_in(server)
            await install(page, kitchen)
            manifest = await page.call("Page.getAppManifest")
            assert manifest["errors"] == []
            assert json.loads(manifest["data"])["start_url"] == "/console"
            assert (await page.call("Page.getInstallabilityErrors"))["installabilityErrors"] == []
            await page.go(f"{kitchen.url}/console")
            await page.see("Kitchen")
            cached = await page.run(CACHED)
            loaded = await page.run(LOADED)
            assert {path.rpartition("/")[2] for path in loaded} > {"home.js", "style.css", "icon.svg"}
            assert {*loaded, "/console/offline"} <= set(cached)
            others = [path for path in cached if not path.startswith("/console/files/")]
            assert others == ["/console/offline"]
            assert page.problems == []
        # Without the server: its page in the language of the user, and no answer of the API.
        await page.go(f"{kitchen.url}/console/machine/{MACHINE}")
        await page.see("Der Server ist nicht erreichbar.")
        assert await page.run("getComputedStyle(document.querySelector('#again')).cursor") == "pointer"
        assert await page.run("fetch('/api/devices').then(() => 'answered', () => 'failed')") == "failed"
        assert await page.run(f"fetch('{loaded[0]}').then(({{ ok }}) => ok)") is True
        assert await page.run("fetch('/console/home.js').then(() => 'answered', () => 'failed')") == "failed"
        # Another version of the server: the old worker gives none of its files to a new page.
        with changed_console(monkeypatch, tmp_path / "console"):
            async with kitchen.serving():
                await page.see("Kitchen")  # without a tap
                await page.go(f"{kitchen.url}/console")
                await page.see("Kitchen")
                loaded = await page.run(LOADED)
                home = next(path for path in loaded if path.endswith("/home.js"))
                assert home not in cached
                assert (await page.run(f"fetch('{home}').then((file) => file.text())")).endswith("// new\n")
                # The next worker takes over as soon as a page asks for that, and removes the files of the old
                # version. The browser looks for it by itself after some page loads.
                await page.go(f"{kitchen.url}/console/settings")
                await page.wait_for(UPDATE)
                await page.wait_for(f"{CACHED}.then((paths) => paths?.includes('{home}'))")
                assert not {path for path in await page.run(CACHED) if path in cached} - {"/console/offline"}


@contextmanager
def changed_console(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Serve a changed copy of the console, as another version of the relay does.

    Its worker waits, as Chromium sometimes lets a worker wait that has skipped waiting.
    """
    shutil.copytree(str(console_pages._CONSOLE), folder)
    with (folder / "home.js").open("a") as script:
        script.write("\n// new\n")
    worker = folder / "worker.js"
    source = worker.read_text()
    assert INSTALLING in source
    worker.write_text(source.replace(INSTALLING, INSTALLING.replace("  skipWaiting();\n", "")))
    with monkeypatch.context() as patch:
        patch.setattr(console_pages, "_CONSOLE", folder)
        console_pages._read_console.cache_clear()
        try:
            yield
        finally:
            console_pages._read_console.cache_clear()


async def test_notifications_are_switched_on_shown_in_german_and_end_with_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbound, "is_public", lambda _: True)
    async with (
        open_kitchen(tmp_path) as kitchen,
        open_push_service(tmp_path) as service,
        open_page(languages="de-DE,de") as page,
    ):
        monkeypatch.setattr(assembly, "Outbound", lambda: Outbound(service.server.tls))
        async with kitchen.serving() as server:
            await settle_in(server)
            await page.call("ServiceWorker.enable")
            await page.call("Browser.grantPermissions", permissions=["notifications"], origin=kitchen.url)
            subscribing = SUBSCRIBING.replace("SUBSCRIPTION", json.dumps(service.subscription("/ada")))
            await page.call("Page.addScriptToEvaluateOnNewDocument", source=subscribing)
            await install(page, kitchen)
            await page.press("#push-on")
            await page.see("Bezug fertig")
            await page.press("#push-brewComplete")
            await page.wait_for(f"{ASK_PREFERENCES}.then(({{ brewComplete }}) => brewComplete)")

            async def deliver(kind: str, message: str = "") -> None:
                await report(page, kind, message)
                path, content = await service.next()
                assert path == "/ada"
                await page.call(
                    "ServiceWorker.deliverPushMessage",
                    origin=kitchen.url,
                    registrationId=page.registrations[f"{kitchen.url}/console"],
                    data=json.dumps(content),
                )

            await deliver("WATER_EMPTY")
            await page.wait_for(f"{SHOWN}.then((shown) => shown.length === 1)")
            assert await page.run(SHOWN) == [
                {
                    "title": "Kitchen: Wenig Wasser",
                    "body": "Fülle den Wassertank auf.",
                    "lang": "de",
                    "id": MACHINE,
                }
            ]
            await deliver("MACHINE_ERROR", "Pump <1> blocked")
            await page.wait_for(
                f"{SHOWN}.then((shown) => shown.some(({{ body }}) => body === 'Pump <1> blocked'))"
            )

            # A click opens the machine. A test has no user activation, which opening a window needs.
            async with open_worker(page) as worker:
                clicked = (
                    "(async () => { let opened; clients.openWindow = async (path) => (opened = path);"
                    " const [notification] = await registration.getNotifications();"
                    " dispatchEvent(new NotificationEvent('notificationclick', { notification }));"
                    " while (!opened) await new Promise((settle) => setTimeout(settle, 20));"
                    " return opened; })()"
                )
                assert await worker.run(clicked) == f"/console/machine/{MACHINE}"

            # A machine that comes later is included.
            user = await server.store.read(find_user_by_email, EMAIL)
            assert user is not None
            new = [NewDevice(id=OTHER, key_hash=hash_secret(KEY), name="Office")]
            await server.store.write(add_devices, new, now_ms=now_ms())
            await server.store.write(give, OTHER, user.id, role="owner", now_ms=now_ms())
            await page.go(f"{kitchen.url}/console")
            await page.see("Office")
            while await subscribed(server, user.id) != [{MACHINE, OTHER}]:  # noqa: ASYNC110
                await trio.sleep(0.05)

            assert page.problems == []

            # The server drops a subscription with its session. The next session of the user restores it.
            await server.store.write(login_sessions.end_sessions, user.id, now_ms=now_ms())
            assert await subscribed(server, user.id) == []
            await page.go(f"{kitchen.url}/console")
            await page.see("Deine Sitzung ist beendet.")
            await sign_in_again(server, page, kitchen, EMAIL)
            while await subscribed(server, user.id) != [{MACHINE, OTHER}]:  # noqa: ASYNC110
                await trio.sleep(0.05)
            await page.press("#sign-out")
            await page.see("Anmelden")
            assert await page.run(SUBSCRIPTION) == [None, None]
            assert await subscribed(server, user.id) == []

            # Another user of this browser does not get what the last one has asked for.
            await page.run(
                f"localStorage.setItem('brewos_relay_push_user', '{user.id}');"
                " localStorage.setItem('test_subscription', 'yes')"
            )
            await sign_in_again(server, page, kitchen, "ben@example.org")
            await page.wait_for(f"{SUBSCRIPTION}.every((one) => one === null)")
            ben = await server.store.read(find_user_by_email, "ben@example.org")
            assert ben is not None
            assert await subscribed(server, ben.id) == []


SUBSCRIPTION = "['test_subscription', 'brewos_relay_push_user'].map((key) => localStorage.getItem(key))"


async def sign_in_again(server: Server, page: Page, kitchen: Kitchen, email: str) -> None:
    """Sign in with another invite, and open the machines."""
    at_ms = now_ms()
    times: dict[str, Any] = {"now_ms": at_ms, "expires_at_ms": at_ms + 600_000}
    token = f"{email:x<43}"
    await server.store.write(add_invite, email=email, token_hash=hash_secret(token), is_admin=False, **times)
    await page.go(f"{kitchen.url}/login?next=/console#invite={token}")
    await page.press("#accept")
    await page.press("#skip")
    await page.wait_for("location.pathname === '/console'")


ASK_PREFERENCES = "fetch('/api/push/preferences').then((answer) => answer.json())"


async def report(page: Page, kind: str, message: str) -> None:
    """Send a report as the firmware does."""
    body = json.dumps({"deviceId": MACHINE, "notification": {"type": kind, "message": message}})
    headers = {"Content-Type": "application/json", "X-Device-Key": KEY}
    options = json.dumps({"method": "POST", "headers": headers, "body": body})
    assert await page.run(f"fetch('/api/push/notify', {options}).then(({{ status }}) => status)") == 200


async def subscribed(server: Server, user_id: str) -> list[set[str]]:
    """Return the machines of each subscription of a user."""
    found = await server.store.read(push.subscriptions_of, user_id)
    return [set(device_ids) for _, device_ids in found.values()]


async def test_console_is_installed_beside_the_app_and_leaves_its_worker_alone(tmp_path: Path) -> None:
    dist = write_app(tmp_path / "dist")
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving(web_dist_path=dist) as server,
        open_page() as page,
    ):
        await settle_in(server)
        await page.go(f"{kitchen.url}/login?next=/#invite={INVITE}")
        await page.press("#accept")
        await page.press("#skip")
        await page.see(f"Dashboard of {EMAIL}")
        await page.wait_for("navigator.serviceWorker.controller !== null && !!window.app")
        await page.go(f"{kitchen.url}/console/settings")
        await page.wait_for(ACTIVE)
        await page.wait_for("navigator.serviceWorker.controller?.scriptURL.endsWith('/console/worker.js')")
        scopes = "navigator.serviceWorker.getRegistrations().then((all) => all.map(({ scope }) => scope))"
        assert sorted(await page.run(scopes)) == [f"{kitchen.url}/", f"{kitchen.url}/console"]
        assert (await page.call("Page.getInstallabilityErrors"))["installabilityErrors"] == []
        # Another language brings another worker, whose offline page is in that language.
        script = "field.value = 'de', field.dispatchEvent(new Event('change'))"
        await page.run(f"(() => {{ const field = document.querySelector('#language'); {script}; }})()")
        await page.see("Einstellungen")
        offline = "caches.match('/console/offline').then((page) => page?.text() ?? '')"
        await page.wait_for(f"{offline}.then((text) => text.includes('Keine Verbindung'))")
        await page.go(f"{kitchen.url}/")
        await page.see(f"Dashboard of {EMAIL}")
        assert await page.run("navigator.serviceWorker.controller.scriptURL.endsWith('/sw.js')")
        assert await page.run("caches.keys().then((keys) => keys.includes('shell'))")
