"""The pages of the console in a real browser, over TLS."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.commands.run_demo import find_port
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.server.assembly import Server, open_server
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import now_ms
from support.app_build import write_app
from support.chromium import Page, needs_browser, open_page
from support.issuer import CLIENT_ID, CLIENT_SECRET, IssuerKey, open_issuer

pytestmark = needs_browser

EMAIL = "ada@example.org"
PASSWORD = "correct horse battery"
MACHINE = "BRW-0000001A"
INVITE = "invite-" + "i" * 36
CLAIM = "c" * 32
DEADLINE_S = 90


@asynccontextmanager
async def open_walk(folder: Path, **settings: Any) -> AsyncIterator[tuple[Server, Page]]:
    """Open a browser, and a server with a certificate, an invite and a registered machine."""
    with trio.fail_after(DEADLINE_S):
        async with (
            open_server(
                Settings(
                    host="127.0.0.1",
                    port=settings.pop("port", 0),
                    data_dir=folder,
                    jwt_secret="tests-only-" + "s" * 32,
                    tls_self_signed=True,
                    **settings,
                )
            ) as server,
            open_page() as page,
        ):
            at_ms = now_ms()
            until: dict[str, Any] = {"now_ms": at_ms, "expires_at_ms": at_ms + 600_000}
            token_hash = hash_secret(INVITE)
            await server.store.write(add_invite, email=EMAIL, token_hash=token_hash, is_admin=False, **until)
            await server.store.write(
                register_pairing,
                device_id=MACHINE,
                key_hash=hash_secret("k" * 43),
                token_hash=hash_secret(CLAIM),
                **until,
            )
            assert server.url.startswith("https://")
            yield server, page


async def kept(page: Page) -> Any:
    """Read the session that the page has stored."""
    return json.loads(await page.run("localStorage.getItem('brewos_session')"))


async def at(page: Page, path: str) -> None:
    """Wait until the browser is on a page."""
    await page.wait_for(f"location.pathname === {json.dumps(path)}")


async def test_from_an_invite_to_the_machines_and_back_in_with_a_password(tmp_path: Path) -> None:
    async with open_walk(tmp_path) as (server, page):
        # A user without a session is sent to the sign-in page.
        await page.go(server.url + "/")
        await at(page, "/login")
        await page.see("E-mail address")

        # The link signs in after a click, and its token leaves the URL.
        await page.go(f"{server.url}/login#invite={INVITE}")
        await page.press("#accept")
        await page.see("Set password")
        assert await page.run("location.hash") == ""
        session = await kept(page)
        assert set(session) == {"accessToken", "refreshToken", "expiresAt", "user"}
        assert session["user"]["email"] == EMAIL
        await page.write("#chosen", PASSWORD)
        await page.press("#choose button")
        await page.see("You have no machines yet.")

        # A scanned code adds a machine, and its token leaves the URL.
        await page.go(f"{server.url}/pair?id={MACHINE}&token={CLAIM}")
        await page.see(MACHINE)
        assert await page.run("location.search") == ""
        await page.write("#name", "Kitchen <b>1</b>")
        await page.press("#scanned button")
        await page.see("Open Kitchen <b>1</b>")
        await page.press("#done a")
        await at(page, f"/machine/{MACHINE}")
        await page.see("Kitchen <b>1</b>")
        await page.go(server.url + "/")
        await page.see("never seen")
        await page.see("this session")

        # An expired access token is renewed silently.
        await page.run(
            "localStorage.setItem('brewos_session', JSON.stringify("
            "{...JSON.parse(localStorage.getItem('brewos_session')), expiresAt: 0}))"
        )
        await page.go(server.url + "/")
        await page.see("Kitchen")
        await page.see("this session")  # the last request of the page has its answer
        assert (await kept(page))["expiresAt"] > now_ms()

        # Signing out clears the browser, and ends the session on the server.
        await page.press("#sign-out")
        await at(page, "/login")
        assert await page.run("localStorage.getItem('brewos_session')") is None

        # The browser reported no errors, so no page violates its policy.
        assert page.problems == []

        await page.write("#email", EMAIL)
        await page.write("#password", "a wrong password")
        await page.press("#sign-in button")
        await page.see("The e-mail address or the password is wrong.")
        await page.run("document.querySelector('#password').value = ''")
        await page.write("#password", PASSWORD)
        await page.press("#sign-in button")
        await page.see("Kitchen")


async def test_password_can_be_set_and_changed_after_not_now(tmp_path: Path) -> None:
    async with open_walk(tmp_path) as (server, page):
        await page.go(f"{server.url}/login?next=/settings#invite={INVITE}")
        await page.press("#accept")
        await page.press("#skip")
        await page.see("You have no password yet.")
        assert await page.run("document.querySelector('#current-part').hidden")
        for number, password in enumerate((PASSWORD, f"{PASSWORD} 2")):
            if number:
                await page.write("#current", PASSWORD)
            await page.write("#chosen", password)
            await page.press("#password-form button")
            await page.see("The password is saved.")
        # There is no other way to sign in.
        assert await page.run("document.querySelector('#password-remove').hidden")
        await page.press("#sign-out")
        await page.write("#email", EMAIL)
        await page.write("#password", f"{PASSWORD} 2")
        await page.press("#sign-in button")
        await page.see("this session")
        assert page.problems == []


async def test_session_ended_elsewhere_ends_here(tmp_path: Path) -> None:
    async with open_walk(tmp_path) as (server, page):
        await page.go(f"{server.url}/login#invite={INVITE}")
        await page.press("#accept")
        await page.press("#skip")
        await page.see("this session")
        ended = "fetch('/api/auth/logout-all', {method: 'POST', headers: {Authorization: 'Bearer ' + token}})"
        script = (
            f"(async token => (await {ended}).status)(JSON.parse(localStorage.brewos_session).accessToken)"
        )
        assert await page.run(script) == 200
        await page.go(server.url + "/console")
        await at(page, "/login")
        await page.see("Your session has ended. Sign in again.")
        assert await page.run("localStorage.getItem('brewos_session')") is None
        assert await page.run("location.search") == "?next=%2Fconsole&expired=true"


@pytest.mark.parametrize(
    ("next_page", "path"),
    [
        ("/console", "/console"),
        ("//elsewhere.example/", "/"),
        ("https://elsewhere.example/", "/"),
        ("/\\elsewhere.example", "/"),
        ("javascript:alert(1)", "/"),
        ("/login", "/"),
    ],
)
async def test_next_page_after_sign_in_is_on_this_server(tmp_path: Path, next_page: str, path: str) -> None:
    async with open_walk(tmp_path) as (server, page):
        await page.go(f"{server.url}/login?next={next_page}#invite={INVITE}")
        await page.press("#accept")
        await page.press("#skip")
        await page.see("Where you are signed in")
        assert await page.run("location.origin") == server.url
        assert await page.run("location.pathname") == path


async def test_scanned_code_is_kept_until_sign_in(tmp_path: Path) -> None:
    async with open_walk(tmp_path) as (server, page):
        await page.go(f"{server.url}/pair?id={MACHINE}&token={CLAIM}")
        await at(page, "/login")
        assert await page.run("location.search") == "?next=%2Fpair"
        await page.run(f"location.hash = 'invite={INVITE}'")
        await page.press("#accept")
        await page.press("#skip")
        await page.see(MACHINE)
        await page.press("#scanned button")
        await page.see("Done")


async def test_built_app_leads_to_the_pages_of_the_relay(tmp_path: Path) -> None:
    dist = write_app(tmp_path / "dist")
    async with open_walk(tmp_path, web_dist_path=dist, google_client_ids=("an-id",)) as (server, page):
        # A signed-out user with a link of a machine signs in, and comes back to it.
        await page.go(f"{server.url}/pair?id={MACHINE}&token={CLAIM}")
        await at(page, "/login")
        await page.run(f"location.hash = 'invite={INVITE}'")
        await page.press("#accept")
        await page.press("#skip")
        await page.see(f"Add the machine {MACHINE}.")
        await page.press("#scanned button")
        await page.press("#done a")
        await page.see(f"Dashboard of {EMAIL} at /machine/{MACHINE}")
        # The service worker has taken over once the app has reloaded: this is no first visit any more.
        await page.wait_for("performance.getEntriesByType('navigation')[0].type === 'reload' && !!window.app")
        await page.run("app.navigate('/settings')")
        await page.see(f"Dashboard of {EMAIL} at /settings")
        await page.run("app.signOut()")
        await page.see("E-mail address")
        assert await page.run("location.pathname + location.search") == "/login?next=%2Fsettings"
        await page.go(server.url + "/")
        await page.see("E-mail address")
        assert await page.run("location.pathname") == "/login"

        # The app's own sign-in page stays in reach, for ways to sign in that only the app offers.
        await page.see("You can also sign in with Google.")
        await page.press("#elsewhere a")
        await page.see("Connect Locally")

        # Without a network, the app itself is shown. It does not load in a loop.
        await page.run("navigator.serviceWorker.controller.postMessage('offline')")
        await page.go(server.url + "/machines")
        await page.see("Connect Locally")
        await page.run("window.wasHere = true")
        await trio.sleep(0.3)
        assert await page.run("window.wasHere")


async def test_sign_in_at_an_issuer_works_beside_a_built_app_and_leads_back(tmp_path: Path) -> None:
    dist, port = write_app(tmp_path / "dist"), find_port()
    with open_issuer(IssuerKey("ES256", "one")) as issuer:
        issuer.told = {"email": EMAIL}
        settings: dict[str, Any] = {
            "port": port,
            "public_url": f"https://127.0.0.1:{port}",
            "oidc_issuer": issuer.url,
            "oidc_client_id": CLIENT_ID,
            "oidc_client_secret": CLIENT_SECRET,
            "oidc_label": "Home",
        }
        async with open_walk(tmp_path, web_dist_path=dist, **settings) as (server, page):
            # A link of a machine leads to the sign-in page, to the issuer, and back to the machine.
            await page.go(f"{server.url}/pair?id={MACHINE}&token={CLAIM}")
            await at(page, "/login")
            await page.see("Sign in with Home")
            await page.press("#providers button")
            await page.see(f"Add the machine {MACHINE}.")
            assert (await kept(page))["user"]["email"] == EMAIL
            await page.press("#scanned button")
            await page.press("#done a")
            await page.wait_for(
                "performance.getEntriesByType('navigation')[0].type === 'reload' && !!window.app"
            )

            # The app's service worker answers page loads now. It would swallow a redirect.
            await page.run("app.signOut()")
            await page.see("Sign in with Home")
            assert await page.run("!!navigator.serviceWorker.controller")
            await page.press("#providers button")
            await page.see(f"Dashboard of {EMAIL} at /")
            callbacks = [url for url in page.requests if "/login/callback?" in url]
            assert len(callbacks) >= 2

            # A failure at the issuer leads to the sign-in page, and so does the response to another browser.
            await page.run("localStorage.removeItem('brewos_session')")
            await page.go(f"{server.url}/login/callback?error=access_denied&state=x")
            await page.see("The other service did not sign you in.")
            await page.go(callbacks[0])
            await page.see("This browser has not begun to sign in")
            assert await page.run("location.pathname + location.search") == "/login"
            assert await page.run("localStorage.getItem('brewos_session')") is None


async def test_add_a_machine_beside_a_built_app_stays_in_the_console(tmp_path: Path) -> None:
    dist = write_app(tmp_path / "dist")
    async with open_walk(tmp_path, web_dist_path=dist) as (server, page):
        await page.go(f"{server.url}/login?next=/console#invite={INVITE}")
        await page.press("#accept")
        await page.press("#skip")
        await page.see("You have no machines yet.")
        await page.press("#add")
        await at(page, "/console/pair")
        await page.see("Short code")
        await page.press("#back")
        await at(page, "/console")
        await page.run("localStorage.setItem('brewos-demo-mode', 'true')")
        await page.go(f"{server.url}/login?exitDemo=true")
        await page.see("Signed in")
        assert await page.run("localStorage.getItem('brewos-demo-mode')") is None
