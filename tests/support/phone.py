"""A browser as on a phone: a small screen, and fingers that hit what lies on top."""

import base64
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio
from trio_websocket import open_websocket_url

from support.chromium import Page

WIDTH_PX: Final = 360
HEIGHT_PX: Final = 740
PICTURES: Final = os.environ.get("BREWOS_RELAY_SCREENSHOTS")
"""A folder for screenshots."""

_CLICKED_S: Final = 2.0
_PAINTED_S: Final = 0.8  # animations have ended by then
# Where to touch an element: its center, once it rests and nothing lies on it.
_PLACE: Final = """(async () => {
  const one = document.querySelector(SELECTOR);
  if (!one || one.disabled || !one.checkVisibility()) return null;
  const place = () => {
    one.scrollIntoView({ block: "center", behavior: "instant" });
    const { left, top, width, height } = one.getBoundingClientRect();
    return [left + width / 2, top + height / 2];
  };
  const [x, y] = place();
  await new Promise((settle) => setTimeout(settle, 50));
  const again = place();
  if (Math.abs(again[0] - x) + Math.abs(again[1] - y) > 0.5) return null;
  const hit = document.elementFromPoint(x, y);
  if (!one.contains(hit)) return null;
  globalThis.touched = "";
  for (const kind of ["pointerdown", "click"]) {
    one.addEventListener(kind, () => { globalThis.touched = kind; }, { once: true, capture: true });
  }
  return again;
})()"""


class Phone:
    """A tab on a phone with a touch screen."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def tap(self, selector: str) -> None:
        """Scroll to an element and touch it, once nothing lies on it; again if it moves away meanwhile."""
        while True:
            x, y = await self.page.wait_for(_PLACE.replace("SELECTOR", json.dumps(selector)))
            await self.page.call(
                "Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}]
            )
            if await self.page.run("globalThis.touched !== 'pointerdown'"):
                await self.page.call("Input.dispatchTouchEvent", type="touchCancel", touchPoints=[])
                continue
            await self.page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            with trio.move_on_after(_CLICKED_S):
                # A click may lead to another page.
                await self.page.wait_for("globalThis.touched !== 'pointerdown'")
                return

    async def write(self, selector: str, text: str) -> None:
        """Touch a field and write into it."""
        await self.tap(selector)
        await self.page.wait_for(f"document.activeElement.matches({json.dumps(selector)})")
        await self.page.call("Input.insertText", text=text)

    async def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, whose menu belongs to the system."""
        found = f"document.querySelector({json.dumps(selector)})"
        changed = "dispatchEvent(new Event('change', { bubbles: true }))"
        await self.page.run(f"{found}.value = {json.dumps(value)}, {found}.{changed}")

    async def take_picture(self, path: Path, top: str | None) -> None:
        """Save what the screen shows, scrolled to an element."""
        scroll = "scrollTo({ top: 0, behavior: 'instant' })"
        if top is not None:
            scroll = f"document.querySelector({json.dumps(top)}).scrollIntoView({{ behavior: 'instant' }})"
        await self.page.run(f"(document.activeElement.blur(), {scroll})")
        await trio.sleep(_PAINTED_S)
        taken = await self.page.call("Page.captureScreenshot", format="webp", quality=_QUALITY)
        await trio.Path(path).write_bytes(base64.b64decode(taken["data"]))


_QUALITY: Final = 80


async def as_phone(page: Page) -> Phone:
    """Give a tab the screen of a phone."""
    await page.call(
        "Emulation.setDeviceMetricsOverride",
        width=WIDTH_PX,
        height=HEIGHT_PX,
        deviceScaleFactor=1,
        mobile=True,
    )
    await page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)
    await page.call("Emulation.setScrollbarsHidden", hidden=True)
    return Phone(page)


@asynccontextmanager
async def open_other_phone(page: Page) -> AsyncIterator[Phone]:
    """Open a tab that shares nothing with the other tabs of the browser, as on the phone of another user."""
    async with open_websocket_url(page.browser_url) as connection:
        browser = Page(connection)
        context = (await browser.call("Target.createBrowserContext"))["browserContextId"]
        made = await browser.call("Target.createTarget", url="about:blank", browserContextId=context)
        url = f"ws://127.0.0.1:{page.port}/devtools/page/{made['targetId']}"
        async with open_websocket_url(url, max_message_size=64 * 2**20) as tab:
            other = Page(tab, port=page.port)
            for domain in ("Page", "Runtime", "Log", "Network"):
                await other.call(f"{domain}.enable")
            yield await as_phone(other)
        await browser.call("Target.disposeBrowserContext", browserContextId=context)
