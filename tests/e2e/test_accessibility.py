"""Every page in a real browser: axe-core finds no faults, and it fits on a phone."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from brewos_relay.registry.devices import remove_device
from brewos_relay.vocabulary import now_ms
from support.accessibility import PHONE, faults_of, needs_axe
from support.chromium import Page, needs_browser, open_page
from support.console import INVITE, MACHINE, furnish, open_kitchen, settle_in, sign_in
from support.shots import add_recorded_shots, recorded_shot

pytestmark = [needs_browser, needs_axe]

See = Callable[[], Awaitable[None]]


class Faults:
    """The faults of the pages that were checked."""

    def __init__(self, page: Page, url: str) -> None:
        self.found: list[str] = []
        self._page = page
        self._url = url

    async def check(self, path: str | None, ready: str, *, press: str | None = None) -> None:
        """Open a page, if `path` is given, wait for an expression, and check the page."""
        if path is not None:
            await self._page.go(self._url + path)
        if press is not None:
            await self._page.press(press)
        await self._page.wait_for(ready)
        self.found += [f"{path or press}: {fault}" for fault in await faults_of(self._page)]


def shown(selector: str) -> str:
    """Return an expression that is true once an element can be seen."""
    return f"!!document.querySelector({json.dumps(selector)})?.offsetParent"


async def test_pages_for_signed_out_users_have_no_faults(tmp_path: Path) -> None:
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving(tls_self_signed=True) as server,
        open_page() as page,
    ):
        await settle_in(server)
        faults = Faults(page, server.url)
        await faults.check("/login", shown("#sign-in"))
        await faults.check(f"/login?1#invite={INVITE}", shown("#accept"))
        await faults.check(None, shown("#choose"), press="#accept")
        open_all = "document.querySelectorAll('details:not([open])').forEach((one) => (one.open = true))"
        await faults.check("/ca", f"{shown('details')} && ({open_all}, true)")
        await server.store.write(remove_device, MACHINE, now_ms=now_ms())
        await faults.check("/", shown("#no-machines"))
        assert page.problems == []
        await faults.check("/nothing-here", "document.querySelector('main a').pathname === '/'")
        assert faults.found == []


async def test_pages_for_users_have_no_faults(tmp_path: Path) -> None:
    async with (
        open_kitchen(tmp_path) as kitchen,
        kitchen.serving() as server,
        open_page(languages="de-DE,de") as page,  # whose words are longer
    ):
        await settle_in(server, admin=True)
        await sign_in(page, kitchen, "/pair")
        faults = Faults(page, kitchen.url)
        await faults.check(None, shown("#typed"))
        await faults.check(f"/pair?id={MACHINE}&token={'t' * 32}", shown("#scanned"))
        await faults.check(f"/pair?id={MACHINE}&token={'t' * 32}&share=true", shown("#scanned"))
        await faults.check(f"/machine/{MACHINE}", "document.querySelector('#now')?.textContent === 'Offline'")
        await furnish(server)
        await faults.check(f"/machine/{MACHINE}/shots", shown("#no-shots"))
        one, other = (recorded_shot(MACHINE, began_at_ms=now_ms() - at_ms) for at_ms in (90_000, 30_000))
        await add_recorded_shots(server, one, other)
        kitchen.switch_on()
        await faults.check(
            f"/machine/{MACHINE}",
            "document.querySelector('#now')?.textContent === 'Standby'"
            " && !!document.querySelector('#shot canvas')"
            " && (document.querySelectorAll('details.values').forEach((one) => (one.open = true)), true)",
        )
        await faults.check(
            None, "document.querySelector('#share-qr').src.startsWith('data:')", press="#share button"
        )
        await faults.check(None, "document.querySelector('dialog').open", press="#restart")
        await faults.check(
            f"/machine/{MACHINE}/shots?shots=1,2",
            "!!document.querySelector('#curves canvas') && document.querySelector('#curves-values').open",
            press="#curves-values summary",
        )
        await faults.check("/", "document.querySelectorAll('#machines li').length > 1")
        await faults.check("/admin", "document.querySelectorAll('#users tr').length > 1")
        await faults.check("/settings", "document.querySelector('#clock').options[0].text.includes(':')")
        await faults.check("/console/offline", shown("#again"))
        assert faults.found == []
        assert page.problems == []


async def test_forced_colors_show_the_selected_mode(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await sign_in(page, kitchen)
        await page.wait_for("document.querySelector('#mode-standby').getAttribute('aria-pressed') === 'true'")
        forced = [{"name": "forced-colors", "value": "active"}]
        await page.call("Emulation.setEmulatedMedia", features=forced)
        assert await page.run("matchMedia('(forced-colors: active)').matches")
        color = "getComputedStyle(document.querySelector('#mode-{}')).backgroundColor"
        highlight = (
            "(() => { const one = document.body.appendChild(document.createElement('i'));"
            " one.style.cssText = 'forced-color-adjust: none; background: Highlight';"
            " return getComputedStyle(one).backgroundColor; })()"
        )
        assert await page.run(color.format("standby")) == await page.run(highlight)
        # The lines of the charts are told apart by their colors alone.
        legend = "[...document.querySelectorAll('.legend li')].filter((one) => one.offsetParent)"
        hue = "getComputedStyle(one, '::before').borderTopColor"
        assert await page.run(f"new Set({legend}.map((one) => {hue})).size") > 3


async def test_machine_is_switched_on_without_scrolling_on_a_phone(tmp_path: Path) -> None:
    async with open_kitchen(tmp_path) as kitchen, kitchen.serving() as server, open_page() as page:
        await settle_in(server)
        kitchen.switch_on()
        await page.be(**PHONE)
        await sign_in(page, kitchen)
        await page.wait_for("document.querySelector('#now').textContent === 'Standby'")
        bottom = "document.querySelector('#{}').getBoundingClientRect().bottom"
        assert await page.run(bottom.format("mode-on")) < PHONE["height"] / 2
        await page.press("#mode-on")
        await page.see("Mode “On”: delivered to the machine.")
        assert await page.run(bottom.format("mode-outcome")) < PHONE["height"] / 2
        # The keyboard can scroll the list, and the labels of the menus say what they are.
        assert await page.run("document.querySelector('#activity').tabIndex") == 0
        labels = "[...document.querySelectorAll('#share select')].map((one) => one.labels[0].textContent)"
        assert await page.run(labels) == ["Role", "Access for"]
