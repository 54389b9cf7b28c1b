"""The live console in a real browser, with a real server and a simulated machine.

With BREWOS_RELAY_SCREENSHOTS=FOLDER, it takes the screenshots of the docs.
"""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import update

from brewos_relay.auth.passwords import hash_password
from brewos_relay.commands.run_demo import demonstrate, find_port, prepare
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import find_user_by_email, set_password_hash
from brewos_relay.registry.issued_tokens import add_token, revoked_tokens
from brewos_relay.registry.records import StoredState, StoredToken
from brewos_relay.registry.schema import device_users
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.vocabulary import now_ms
from support.chromium import Page, needs_browser, open_page
from support.console import (
    DEADLINE_S,
    EMAIL,
    INVITE,
    MACHINE,
    brew_temp,
    complaints,
    furnish,
    open_kitchen,
    settle_in,
    sign_in,
)
from support.redis_server import RedisServer
from support.shots import add_recorded_shots, recorded_shot
from support.waiting import until

pytestmark = needs_browser

PASSWORD = "correct horse battery"
KIND = 4 if os.environ.get("CI") else 2
"""How much longer than they should things may take on a busy computer."""
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"width": 1160, "height": 1112},
    "dark": {"width": 1160, "height": 850, "dark": True},
    "phone-dark": {"width": 390, "height": 844, "dark": True},
}
PICTURES = os.environ.get("BREWOS_RELAY_SCREENSHOTS")
# Console messages of a browser about an unreachable server. These tests cause them on purpose.
EXPECTED = ("Failed to load resource", "WebSocket connection to")


class Wire:
    """A forwarder to a port. Once cut, it drops all bytes without closing the connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._whole = trio.Event()
        self._whole.set()

    def cut(self) -> None:
        self._whole = trio.Event()

    def mend(self) -> None:
        self._whole.set()

    async def carry(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for content in source:
                await self._whole.wait()
                await sink.send_all(content)
            await sink.send_eof()


@asynccontextmanager
async def open_wire(port: int) -> AsyncIterator[Wire]:
    """Start a forwarder to a local port."""

    async def take(stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as further, trio.open_nursery() as both:
            both.start_soon(wire.carry, stream, further)
            both.start_soon(wire.carry, further, stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        wire = Wire(listeners[0].socket.getsockname()[1])
        yield wire
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_breaking_wire(port: int, *, at: bytes) -> AsyncIterator[int]:
    """Forward a port to another one, and break once: in the first answer that contains `at`."""
    whole = True

    async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        nonlocal whole
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for content in source:
                if whole and at in content:
                    whole = False
                    await sink.send_all(content[:-20])
                    break
                await sink.send_all(content)
            await sink.aclose()

    async def take(stream: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as further, trio.open_nursery() as both:
            both.start_soon(carry, stream, further)
            both.start_soon(carry, further, stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, take, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def picture(page: Page, name: str, **screen: Any) -> None:
    """Take a screenshot for the docs, if screenshots are wanted."""
    if PICTURES is not None:
        await page.look(Path(PICTURES) / f"{name}.png", **screen)


async def test_page_shows_and_controls_the_machine(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on(speed=10)
        await sign_in(page, kitchen, "/")
        await page.see("Kitchen")
        await page.see("Standby · brew 22 °C · steam 22 °C")
        await page.press("#machines a")
        await page.wait_for(f"location.pathname === '/machine/{MACHINE}'")
        await page.see("Standby")
        await page.see("Live")
        cold = await brew_temp(page)
        assert cold < 30

        # A button is pressed, and the machine heats.
        await page.press("#mode-on")
        await page.see("Mode “On”: delivered to the machine.")
        await page.see("Heating")
        assert kitchen.machine.mode == "on"
        await page.wait_for(f"Number(document.querySelector('#gauge-brew .figure').textContent) > {cold + 5}")
        await page.wait_for("document.querySelector('#mode-on').getAttribute('aria-pressed') === 'true'")

        # A temperature is set, and the machine reports it.
        await page.run("document.querySelector('#brew-target').value = ''")
        await page.write("#brew-target", "95.5")
        await page.press("#set-brew button")
        await page.see("Brew at 95.5 °C: delivered to the machine.")
        await page.wait_for("document.querySelector('#gauge-brew .aim').textContent === 'to 95.5'")
        assert kitchen.machine.brew.setpoint_c == 95.5
        await page.wait_for("document.querySelectorAll('#log li').length > 0")

        # The activity names the user and the command.
        await page.wait_for("document.querySelectorAll('#activity li').length > 0 || null")
        await page.see("changed a temperature")
        assert complaints(page) == []
        assert {url.split("/")[2] for url in page.requests if "://" in url} == {f"127.0.0.1:{kitchen.port}"}


async def test_first_view_of_a_machine_is_small_and_shows_live_values_soon(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen, "/console")
        await page.go("about:blank")
        await page.call("Network.clearBrowserCache")
        await page.use_slow_network(bits_per_s=1.6e6, latency_s=0.15)
        page.requests.clear()
        page.received_bytes = 0
        await page.go(f"{kitchen.url}/machine/{MACHINE}")
        value = "Number(document.querySelector('#gauge-brew .figure')?.textContent)"
        shown_ms = await page.wait_for(f"{value} > 0 && performance.now()")
        await page.wait_for("!!document.querySelector('#trend canvas')")  # which is loaded after the values
        # All modules arrive before the value, and each one once.
        modules = [url for url in page.requests if url.endswith(".js")]
        assert len(set(modules)) == len(modules)
        print(f"first view: {page.received_bytes} bytes in {len(page.requests)} requests, {shown_ms:.0f} ms")
        assert page.received_bytes <= 120_000
        assert shown_ms < 2000 * KIND
        assert complaints(page) == []

        # The next view takes nothing but the page, as all files are of this version.
        page.received_bytes = 0
        page.requests.clear()
        await page.go(f"{kitchen.url}/machine/{MACHINE}?again")
        await page.wait_for(f"location.search === '?again' && {value} > 0")
        assert page.received_bytes < 10_000


@pytest.mark.parametrize("signed_in", [True, False])
async def test_signing_in_leads_to_no_foreign_site(tmp_path: Path, signed_in: bool) -> None:
    foreign = [
        "/..//evil.example",
        "/.//evil.example/",
        "/machine/..//evil.example",
        "//evil.example",
        "/%09/evil.example",
        "/%5Cevil.example",
        "%5C%5Cevil.example",
        "https:%2F%2Fevil.example",
        "http:%2F%2F{host}@evil.example",
        "http:%2F%2Fevil.example@{host}/machine/x",
        "javascript:document.title='evil'",
        "data:text/html,evil",
        "blob:{url}/evil",
        "/login?next=//evil.example",
    ]
    own = {"/pair%3Fx=1%23y": "/pair?x=1#y", "/..//pair": "//pair", "{url}/pair": "/pair"}
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        user = await settle_in(server)
        await server.store.write(set_password_hash, user.id, hash_password(PASSWORD))
        if signed_in:
            await sign_in(page, kitchen, "/")
        names = {"host": kitchen.url.removeprefix("http://"), "url": kitchen.url}
        ways = (
            {next_.format(**names): None for next_ in foreign}
            if signed_in
            else {foreign[0]: "//evil.example"}
        )
        for next_, expected in {**ways, **{key.format(**names): path for key, path in own.items()}}.items():
            if not signed_in:
                # On this path, no script redirects to the sign-in page.
                await page.go(f"{kitchen.url}/livez")
                await page.run("localStorage.clear()")
            await page.go(f"{kitchen.url}/login?next={next_}")
            if signed_in:
                await page.press("#go-on")
            else:
                await page.write("#email", EMAIL)
                await page.write("#password", PASSWORD)
                await page.press("#sign-in button")
            if expected is not None:
                await page.wait_for(f"location.href === '{kitchen.url}{expected}'")
            await page.wait_for("location.pathname !== '/login'")
            assert await page.run("location.origin") == kitchen.url, next_
        assert {url.split("/")[2] for url in page.requests if "://" in url} == {names["host"]}
        assert await page.run("document.title") != "evil"


async def test_link_signs_in_only_after_a_click_and_names_the_server(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await page.go(f"{kitchen.url}/login#demo&invite={INVITE}")
        await page.see(f"This link signs you in at 127.0.0.1:{kitchen.port}")
        # The page has the answer of /api/info by now.
        assert await page.run("fetch('/api/info').then((it) => it.json()).then((it) => it.demo)") is False
        assert not any("/api/auth/" in url for url in page.requests)
        await page.press("#accept")
        await page.see("Set a password")
        assert await page.run("document.querySelector('#account').value") == EMAIL
        # A second link names the session that it would replace.
        await page.go(f"{kitchen.url}/login?again#demo&invite=another")
        await page.see(f"You are signed in as {EMAIL} now. This link may belong to another")


@pytest.mark.parametrize("origin", ["null", "same-site"])
async def test_foreign_page_registers_no_machine(tmp_path: Path, origin: str) -> None:
    """It tries each way to send a request without a preflight."""
    document = b"<!doctype html><title>foreign</title>"

    async def serve_foreign(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            await stream.receive_some()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(document)}\r\n\r\n"
            await stream.send_all(head.encode() + document)

    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving() as server,
        open_page() as page,
        trio.open_nursery() as nursery,
    ):
        listeners = await nursery.start(partial(trio.serve_tcp, serve_foreign, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        foreign = "data:text/html,foreign" if origin == "null" else f"http://127.0.0.1:{port}/"
        target = f"{kitchen.url}/api/devices/register-claim"
        fields = {"deviceId": "BRW-0BADC0DE", "token": "t" * 32, "deviceKey": "k" * 43}
        body = json.dumps(fields)
        bodies = [f"'{body}'", f"new Blob(['{body}'])", f"new Blob(['{body}'], {{type: 'text/plain'}})"]
        await page.go(foreign)
        await page.wait_for("document.readyState === 'complete' && location.protocol !== 'about:'")
        for sent in bodies:
            for how in ("", "mode: 'no-cors', "):
                await page.run(f"fetch('{target}', {{{how}method: 'POST', body: {sent}}}).catch(() => 1)")
            await page.run(f"navigator.sendBeacon('{target}', {sent})")
        declared = "headers: {'Content-Type': 'application/json'}"
        await page.run(f"fetch('{target}', {{method: 'POST', {declared}, body: '{body}'}}).catch(() => 1)")
        # A form whose only field has the JSON as its name.
        name = body.removesuffix("}") + ', "x": "'
        await page.run(
            f"(() => {{ const form = document.createElement('form'); form.action = '{target}';"
            " form.method = 'POST'; form.enctype = 'text/plain';"
            " const field = document.createElement('input');"
            f" field.name = '{name}'; field.value = '\"}}'; form.append(field);"
            " document.body.append(form); form.submit(); })()"
        )
        await page.see("another site")
        assert await server.store.find_device("BRW-0BADC0DE") is None
        # A page of the server itself can send it.
        await page.go(f"{kitchen.url}/login")
        await page.wait_for(f"location.origin === '{kitchen.url}'")
        await page.run(f"fetch('{target}', {{method: 'POST', {declared}, body: '{body}'}})")
        assert await server.store.find_device("BRW-0BADC0DE") is not None
        nursery.cancel_scope.cancel()


async def test_a_tab_whose_answer_was_cut_off_redeems_its_link_again(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        async with open_breaking_wire(kitchen.port, at=b'"accessToken"') as port:
            await page.go(f"http://127.0.0.1:{port}/login#invite={INVITE}")
            await page.press("#accept")
            await page.see("Try again")
            await page.press("#accept")
            await page.see("Set a password")
        # Another browser cannot redeem the link.
        await page.go(f"{kitchen.url}/login?again#invite={INVITE}")
        await page.press("#accept")
        await page.see("This link was used already")


async def test_page_shows_a_machine_going_offline_and_online(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Standby")
        kitchen.cut()
        await page.wait_for("document.querySelector('#now').textContent === 'Offline'")
        await page.wait_for("document.querySelector('main').classList.contains('away')")
        # Nothing shows that the values are live or that a command would reach the machine.
        await page.see("Connected to the server")
        assert await page.run("document.querySelector('#link').classList.contains('live')") is False
        await page.see("last seen")
        await page.see("The controls work while the machine is online.")
        controls = "[...document.querySelectorAll(':is(#modes, #controls) :is(button, input)')]"
        assert await page.run(f"{controls}.length > 6 && {controls}.every((one) => one.disabled)")
        # After a reload, the page still has the time.
        await page.call("Page.reload")
        await page.see("last seen")
        await page.see("Connected to the server")
        kitchen.switch_on()
        await page.wait_for("document.querySelector('#now').textContent === 'Standby'")
        await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")
        assert await page.run(f"{controls}.every((one) => !one.disabled)")
        assert await page.run("document.querySelector('main').classList.contains('away')") is False
        assert complaints(page) == []


async def test_user_who_left_the_page_is_not_watching_and_is_again_after_going_back(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Standby")
        await page.go(f"{kitchen.url}/settings")
        await page.see("Language")
        await until(lambda: server.relay.client_count == 0)
        await page.run("history.back()")
        await page.wait_for("!!document.querySelector('#link.live')")
        await until(lambda: server.relay.client_count == 1)
        assert complaints(page) == []


async def test_an_old_state_is_shown_as_the_last_known_one(tmp_path: Path) -> None:
    status = {
        "type": "status",
        "machine": {"state": "ready", "mode": "on"},
        "temps": {"brew": {"current": 91.5, "setpoint": 93.0}},
    }
    two_hours_ms = 2 * 3_600_000

    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        earlier = update(device_users).values(claimed_at_ms=now_ms() - 2 * two_hours_ms)
        await server.store.write(lambda db: db.execute(earlier))
        state = StoredState(
            device_id=MACHINE,
            payload=json.dumps(status).encode(),
            is_text=True,
            at_ms=now_ms() - two_hours_ms,
        )
        await server.store.save_states([state])
        await sign_in(page, kitchen)
        await page.see("last known state, 2 hours ago: Ready")
        assert await brew_temp(page) == 91.5
        assert await page.run("document.querySelector('#now').textContent") == "Offline"
        kitchen.switch_on()
        await page.wait_for("document.querySelector('#now').textContent === 'Standby'")
        assert await page.run("document.querySelector('#last-known').textContent") == ""
        assert complaints(page) == []


async def test_the_page_survives_a_restart_of_the_server(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, open_page() as page:
        async with kitchen.serving() as server:
            await settle_in(server)
            kitchen.switch_on()
            await sign_in(page, kitchen)
            await page.see("Standby")
        await page.see("The server is restarting")
        await page.see("next attempt in")
        async with kitchen.serving():
            await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")
            await page.wait_for("document.querySelector('#now').textContent === 'Standby'")
            await page.press("#mode-on")
            await page.see("Heating")
        assert complaints(page, expected=EXPECTED) == []


async def test_page_is_back_soon_after_a_restart_that_is_shorter_than_announced(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, open_page() as page:
        async with kitchen.serving(drain_s=15.0) as server:
            await settle_in(server)
            kitchen.switch_on()
            await sign_in(page, kitchen)
            await page.see("Live")
        async with kitchen.serving(drain_s=15.0):
            with trio.fail_after(4 * KIND):
                await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")
        assert complaints(page, expected=EXPECTED) == []


async def test_the_page_survives_the_loss_of_its_network(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Live")
        await page.set_network(is_there=False)
        await page.see("No network")
        await page.press("#retry")
        await page.see("No network")
        await page.set_network(is_there=True)
        await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")
        await page.wait_for("document.querySelector('#now').textContent === 'Standby'")
        assert complaints(page, expected=EXPECTED) == []


async def test_a_viewer_only_watches(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, role="viewer")
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Standby")
        await page.see("viewer")
        visible = "[...document.querySelectorAll('main button')].filter((one) => one.offsetParent)"
        assert await page.run(f"{visible}.map((one) => one.id)") == ["leave"]
        assert complaints(page) == []


async def test_page_tells_about_lost_access(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        user = await settle_in(server, role="member")
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Live")
        from brewos_relay.registry.access import take

        await server.store.write(take, MACHINE, user.id, by_user_id="somebody-else", now_ms=now_ms())
        await page.see("You no longer have access to this machine.")
        await page.go(f"{kitchen.url}/machine/{MACHINE}")  # a reload finds no access either
        await page.see("You no longer have access to this machine.")
        await server.store.write(give, MACHINE, user.id, role="member", now_ms=now_ms())
        await page.run("document.dispatchEvent(new Event('visibilitychange'))")
        await page.see("Live")


async def test_a_viewer_and_a_stranger_see_no_server_page(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await sign_in(page, kitchen, "/admin")
        await page.see("Only an administrator of this server may do this.")
        await page.go(kitchen.url + "/machine/BRW-99999999")
        await page.see("You no longer have access to this machine.")
        await page.see("There is no such device, or you have no access to it.")


async def test_an_owner_shares_renames_and_removes(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        await furnish(server)
        await sign_in(page, kitchen)
        await page.see("watching")
        await page.press("#share button")
        await page.wait_for("document.querySelector('#share-qr').naturalWidth > 0")
        code = await page.run("document.querySelector('#share-code').textContent")
        assert len(code) == 9
        await page.see("link valid until")
        # Over plain HTTP, browsers offer no clipboard, and copy what is selected.
        await page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined}); undefined")
        await page.run("document.querySelector('#share-copy').focus()")
        await page.key("Enter", text="\r")
        await page.wait_for("document.querySelector('#share-copy').textContent === 'Copied'")
        assert "/pair?" in await page.run("getSelection().toString()")
        assert "bad" in await page.run("document.querySelector('#shares button').className")
        await page.press("#shares button")
        await page.wait_for("document.querySelector('#shares').hidden")

        await page.run(
            "(() => { const role = document.querySelector('[aria-label=\"Role of Ben\"]');"
            " role.value = 'viewer'; role.dispatchEvent(new Event('change')); })()"
        )
        await page.see("changed a role to viewer")
        await page.press("[aria-label='Remove Cleo']")
        await page.press("#confirm-do")
        await page.wait_for("!document.querySelector('#users').innerText.includes('Cleo')")

        await page.run("document.querySelector('#new-name').value = ''")
        await page.write("#new-name", "Bar <i>1</i>")
        await page.press("#rename button")
        await page.wait_for("document.querySelector('h1').textContent === 'Bar <i>1</i>'")
        await page.press("#leave")
        await page.press("#confirm-not")
        await page.press("#leave")
        await page.press("#confirm-do")
        await page.wait_for("location.pathname === '/'")
        await page.wait_for("document.querySelectorAll('#machines li').length === 1")
        assert complaints(page) == []


async def test_one_link_invites_a_person_and_shares_the_machine(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, admin=True)
        await sign_in(page, kitchen)
        await page.wait_for("!document.querySelector('#share-email').hidden")
        await page.write("#share-email", "ben@example.org")
        await page.press("#share button")
        await page.see("This link signs ben@example.org in and then offers this machine.")
        url = await page.run("document.querySelector('#share-url').value")
        assert "?" not in url, "servers and proxies log no secret"

        await page.press("#sign-out")
        await page.see("Sign in")
        page.requests.clear()
        await page.go(url)
        await page.press("#accept")
        await page.press("#skip")
        await page.see(f"You were invited to use the machine {MACHINE}.")
        assert not [one for one in page.requests if url[-20:] in one]
        await page.press("#take")
        await page.press("#done a")
        await page.see("ben@example.org")
        ben = await server.store.read(find_user_by_email, "ben@example.org")
        assert ben is not None
        access = await server.store.access_of(ben.id, MACHINE)
        assert access is not None
        assert access.role == "member"
        assert complaints(page) == []

        # A link that was used leads to the machine after a sign-in by other means.
        await page.go("about:blank")
        await page.go(url)
        await page.press("#accept")
        await page.wait_for("location.search === '?next=/pair'")


async def test_an_administrator_opens_pairing_and_releases_a_machine(tmp_path: Path) -> None:
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving(pairing="window") as server,
        open_page() as page,
    ):
        await settle_in(server, admin=True)
        await sign_in(page, kitchen, "/admin")
        await page.see("New machines may not register until you open pairing.")
        await page.press("#pairing-open")
        await page.see("New machines may register until")
        await page.press("#pairing-close")
        await page.see("New machines may not register until you open pairing.")
        await page.press(f"[aria-label='Release {MACHINE}']")
        await page.press("#confirm-do")
        await page.wait_for(f"!document.querySelector('[aria-label=\\'Release {MACHINE}\\']')")
        await page.go(f"{kitchen.url}/")
        await page.see(f"An administrator released {MACHINE}: all of its users lost access.")
        await page.press("#notices-read")
        await page.wait_for("document.querySelector('#notices-part').hidden")
        assert complaints(page) == []


async def test_administrator_sees_the_instances_on_a_bus(tmp_path: Path, redis: RedisServer) -> None:
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving(bus=redis.url, instance="one") as server,
        open_page() as page,
    ):
        await settle_in(server, admin=True)
        await sign_in(page, kitchen, "/admin")
        await page.see("People")
        await page.wait_for("document.querySelector('#rate-devices').textContent === '0.0'")
        await page.wait_for("document.querySelector('#instances-section').hidden")
        redis.run("SET", "brewos:alive:dead-1", '{"host":"<b>kitchen</b>"}')
        redis.run("ZADD", "brewos:instances", "99999999999999999", "dead-1")
        await page.wait_for("document.querySelectorAll('#instances li').length === 2")
        await page.wait_for("!document.querySelector('#instances-section').hidden")
        await page.see("No answer from dead-1. What to do:")
        await page.see("<b>kitchen</b> · 0 machines")
        await page.see("running")
        assert complaints(page) == []


async def test_administrator_manages_people_and_tokens(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, admin=True)
        await furnish(server)
        token = StoredToken(
            id="known",
            name="wall",
            user_id="wall",
            role="viewer",
            devices=frozenset({MACHINE}),
            created_at_ms=now_ms(),
            expires_at_ms=now_ms() + 86_400_000,
        )
        await server.store.write(add_token, token)
        kitchen.switch_on()
        await sign_in(page, kitchen, "/")
        await page.press("#to-admin")
        await page.see("BRW-12AB34CD")
        await page.wait_for("document.querySelector('#devices-online').textContent === '1'")
        await page.wait_for("document.querySelector('#rate-devices').textContent.includes('.')")
        # Sorted by a column, and a second time the other way round. The URL keeps it.
        names = "[...document.querySelectorAll('#devices .name')].map((one) => one.innerText).join()"
        await page.wait_for(f"{names} === 'Kitchen,Office'")
        for order, expected in (("ascending", "Kitchen,Office"), ("descending", "Office,Kitchen")):
            await page.press("th[data-sort='name'] button")
            await page.wait_for(f"{names} === '{expected}'")
            heading = "document.querySelector('[aria-labelledby=devices-title] [data-sort=name]')"
            assert await page.run(f"{heading}.ariaSort") == order
        await page.call("Page.reload")
        await page.wait_for(f"{names} === 'Office,Kitchen'")
        # Rows link to the people, these to their machines, and the user's own machines to their pages.
        await page.press("#devices td:nth-child(3) a")
        await page.wait_for("document.querySelector('#find-user').value === 'ada@example.org'")
        await page.wait_for("document.querySelectorAll('#users tr').length === 1")
        await page.press("#users td:nth-child(2) a")
        await page.wait_for(f"document.querySelector('#owner').value === 'ada@example.org' && {names}")
        machine = "document.querySelector('#devices a').pathname"
        assert str(await page.run(machine)).startswith("/machine/BRW-")
        await page.go(f"{kitchen.url}/admin")
        await page.wait_for(f"{names} === 'Kitchen,Office'")
        await page.write("#find-device", "offi")
        await page.wait_for("!document.querySelector('#devices').innerText.includes('Kitchen')")
        await page.press("[aria-label='Make administrator: ben@example.org']")
        await page.wait_for("document.querySelectorAll('#users .tag').length === 2")
        await page.press("[aria-label='Remove cleo@example.org']")
        await page.press("#confirm-do")
        await page.wait_for("document.querySelectorAll('#users tr').length === 2")
        await page.press("[aria-label='Revoke wall']")
        await page.press("#confirm-do")
        await page.wait_for("document.querySelector('#tokens').innerText.includes('revoked')")
        assert await server.store.read(revoked_tokens) == {"known"}
        await page.write("#invite-email", "dora@example.org")
        await page.press("#invite button")
        link = await page.wait_for("document.querySelector('#invited-url').value")
        assert link.startswith(f"{kitchen.url}/login#invite=")
        assert complaints(page) == []


async def test_page_works_with_the_keyboard_alone(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.see("Standby")
        await page.see("Activity")

        async def tab_to(element_id: str) -> None:
            while await page.run("document.activeElement.id") != element_id:
                await page.key("Tab")

        await tab_to("mode-on")
        assert await page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await page.key("Enter", text="\r")
        await page.see("Heating")
        # A confirmation dialog opens, and the keyboard can cancel it.
        await tab_to("restart")
        await page.key("Enter", text="\r")
        await page.see("Restart the machine?")
        assert await page.run("document.activeElement.id") == "confirm-not"
        await page.key("Escape")
        await page.wait_for("!document.querySelector('dialog').open")
        assert await page.run("document.activeElement.id") == "restart"


@pytest.mark.parametrize("path", ["/", f"/machine/{MACHINE}", "/pair", "/admin"])
async def test_pages_fit_on_a_phone_and_all_buttons_have_names(tmp_path: Path, path: str) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, admin=True)
        await furnish(server)
        kitchen.switch_on()
        await page.be(width=390, height=844, dark=True)
        await sign_in(page, kitchen, path)
        await page.see({"/pair": "Short code"}.get(path, "Kitchen"))
        assert await page.run("document.documentElement.scrollWidth") <= 390
        nameless = (
            "[...document.querySelectorAll('button, a, input, select')].filter((one) => one.offsetParent"
            " && !one.textContent.trim() && !one.ariaLabel && !one.labels?.length).length"
        )
        assert await page.run(nameless) == 0


async def test_besides_a_web_app_all_pages_are_below_console(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    dist.mkdir()
    (dist / "index.html").write_text("<!doctype html><title>app</title><p>The app")
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving(web_dist_path=dist) as server,
        open_page() as page,
    ):
        await settle_in(server, admin=True)
        kitchen.switch_on()
        await sign_in(page, kitchen, "/console")
        await page.press("#machines a")
        await page.wait_for(f"location.pathname === '/console/machine/{MACHINE}'")
        await page.see("Standby")
        await page.press("#to-admin")
        await page.wait_for("location.pathname === '/console/admin'")
        await page.see(MACHINE)
        await page.press("header .mark")
        await page.see("Where you are signed in")
        assert complaints(page) == []


async def test_silent_connection_is_dropped_after_ten_seconds(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        async with open_wire(kitchen.port) as wire:
            await page.go(f"http://127.0.0.1:{wire.port}/login?next=/machine/{MACHINE}#invite={INVITE}")
            await page.press("#accept")
            await page.press("#skip")
            await page.see("Standby")
            wire.cut()
            began = trio.current_time()
            await page.see("No connection")
            assert 8 < trio.current_time() - began < 14
            wire.mend()
            await page.wait_for("document.querySelector('#link-text').textContent === 'Live'")


async def test_the_demo_shows_a_machine_heating_up_at_once(tmp_path: Path) -> None:
    demo = prepare(tmp_path, port=find_port())
    said: list[str] = []
    async with open_page() as page:
        with trio.fail_after(DEADLINE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: demonstrate(demo, say=said.append, until=trio.sleep_forever))
                while not any("#demo" in line for line in said):  # noqa: ASYNC110
                    await trio.sleep(0.05)
                link = next(word for line in said for word in line.split() if "#" in word)
                began = trio.current_time()
                await page.go(link)
                await page.see("Heating")
                first = await brew_temp(page)
                figure = "Number(document.querySelector('#gauge-brew .figure').textContent)"
                await page.wait_for(f"{figure} > {first}")
                # This takes three seconds on an idle computer.
                assert trio.current_time() - began < 3 * KIND
                assert await page.run("location.pathname") == f"/machine/{demo.device_id}"
                assert page.problems == []
                nursery.cancel_scope.cancel()


WARP = 20.0


@pytest.mark.skipif(PICTURES is None, reason="pictures are made if BREWOS_RELAY_SCREENSHOTS names a folder")
async def test_pictures_for_the_docs(tmp_path: Path) -> None:
    began_ms = now_ms()

    def warped_ms() -> int:
        return began_ms + round((now_ms() - began_ms) * WARP)

    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server, admin=True)
        await furnish(server)
        kitchen.machine = Machine(device_id=MACHINE, now_ms=warped_ms, rich=True)
        kitchen.machine.switch_on()
        # Ten minutes pass in half a minute, for the machine and for the page.
        warp = (
            f"const real = Date.now, began = {began_ms}; Date.now = () => began + (real() - began) * {WARP};"
        )
        warped = await page.call("Page.addScriptToEvaluateOnNewDocument", source=f"(() => {{{warp}}})()")
        await page.be(width=1280, height=900)
        kitchen.switch_on(speed=WARP, tick_s=0.5 / WARP * 2, shot_every_s=100.0)
        await sign_in(page, kitchen)
        for state in ("Brewing", "Ready", "Brewing", "Ready"):
            await page.wait_for(f"document.querySelector('#now').textContent === {state!r}")
        for name, screen in SCREENS.items():
            await picture(page, f"machine-{name}", **screen)
        await page.press("#share button")
        await page.wait_for("document.querySelector('#share-qr').src.startsWith('data:')")
        screen = {"width": 1280, "height": 720}
        await page.be(**screen)
        await page.run("document.querySelector('#people').scrollIntoView()")
        await picture(page, "sharing", **screen)
        await page.call("Page.removeScriptToEvaluateOnNewDocument", **warped)
        morning_ms = now_ms() - 6 * 3_600_000
        brews = [(29.0, 38.5, 9.0), (27.5, 36.0, 9.3), (31.0, 36.5, 8.4)]
        shots = [
            recorded_shot(
                MACHINE,
                began_at_ms=morning_ms + place * 2_500_000,
                seconds=time,
                weight_g=weight,
                peak_bar=peak,
            )
            for place, (time, weight, peak) in enumerate(brews)
        ]
        await add_recorded_shots(server, *shots)
        await page.go(f"{kitchen.url}/machine/{MACHINE}/shots?shots=3,2")
        await page.wait_for("!!document.querySelector('#curves canvas')")
        await picture(page, "shots", width=1160, height=1010)
        await page.go(kitchen.url + "/")
        await page.see("Office")
        await page.press("#to-admin")
        await page.wait_for("document.querySelector('#rate-devices').textContent.includes('.')")
        await picture(page, "server", width=1280, height=900)
        assert complaints(page) == []


async def test_units_clock_and_language_follow_the_settings_of_the_device(tmp_path: Path) -> None:
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving() as server,
        open_page(languages="en-US,en") as page,
    ):
        await settle_in(server)
        kitchen.switch_on(speed=10)
        # The locale en-US suggests °F and a clock with 12 hours.
        await sign_in(page, kitchen)
        assert await brew_temp(page) > 60
        gauge = "document.querySelector('#gauge-brew .{}').textContent"
        assert await page.run(gauge.format("unit")) == "°F"
        await page.wait_for("/ [AP]M$/.test(document.querySelector('#activity time')?.textContent)")
        await page.wait_for("document.querySelector('#brew-target').value === '199'")
        # 200 °F are sent as °C.
        await page.run("document.querySelector('#brew-target').value = '200'; undefined")
        await page.press("#set-brew button")
        await page.see("Brew at 200 °F: delivered to the machine.")
        await page.wait_for(f"{gauge.format('aim')} === 'to 200.0'")
        assert abs(kitchen.machine.brew.setpoint_c - 93.33) < 0.01

        await page.press("#to-settings")
        await page.see("Automatic: Fahrenheit (°F)")
        for name, value in {"temperature": "celsius", "clock": "24", "language": "de"}.items():
            await page.wait_for(
                f"(() => {{ const field = document.querySelector('#{name}'); field.value = '{value}';"
                f" return field.dispatchEvent(new Event('change')); }})()"
            )
        await page.see("Einstellungen")
        await page.wait_for("document.querySelector('#temperature').value === 'celsius'")
        await page.go(f"{kitchen.url}/machine/{MACHINE}")
        await page.see("Brühtemperatur")
        await page.wait_for(f"{gauge.format('aim')} === 'Soll 93,3'")
        assert await page.run(gauge.format("unit")) == "°C"
        await page.wait_for(r"/^\d\d:\d\d:\d\d$/.test(document.querySelector('#activity time')?.textContent)")
        assert complaints(page) == []
