"""A headless Chromium that opens pages, over its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

PROGRAM: Final = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    PROGRAM is None and os.environ.get("BREWOS_RELAY_BROWSER_TESTS") != "required",
    reason="there is no Chromium here, and BREWOS_RELAY_BROWSER_TESTS is not 'required'",
)
_PHONE_PX: Final = 500
_PAINTED_S: Final = 0.8  # animations have ended by then
_ARGUMENTS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--ignore-certificate-errors",
)


class Page:
    """A tab.

    `problems` are exceptions, errors, and violations of the content security policy;
    `requests` are the addresses that it asked for, and `received_bytes` came back, with headers.
    """

    def __init__(self, connection: WebSocketConnection, *, port: int = 0, browser_path: str = "") -> None:
        self._connection = connection
        self.port = port
        """The port of DevTools."""
        self.browser_url = f"ws://127.0.0.1:{port}{browser_path}"
        """The DevTools of the whole browser."""
        self._number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.received_bytes = 0
        self.registrations: dict[str, str] = {}
        """The ids of service workers by scope, once the domain ServiceWorker is enabled."""

    async def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; AssertionError if it fails."""
        self._number += 1
        await self._connection.send_message(
            json.dumps({"id": self._number, "method": method, "params": params})
        )
        while True:
            message = json.loads(await self._connection.get_message())
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]

    async def go(self, url: str) -> None:
        """Open a page."""
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """Evaluate an expression in the page; None if it fails, as while a page is being loaded."""
        try:
            answer = await self.call(
                "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
            )
        except AssertionError as problem:
            if "navigated or closed" in str(problem):
                return None
            raise
        return answer["result"].get("value")

    async def wait_for(self, script: str) -> Any:
        """Wait until an expression is true; gives its value."""
        while not (value := await self.run(script)):  # noqa: ASYNC110 - it is another process
            await trio.sleep(0.05)
        return value

    async def see(self, text: str) -> None:
        """Wait until a text can be seen."""
        await self.wait_for(f"document.body?.innerText.includes({json.dumps(text)})")

    async def press(self, selector: str) -> None:
        """Press a button once it can be seen."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.wait_for(f"{found}?.offsetParent !== null && !{found}.disabled && ({found}.click(), true)")

    async def write(self, selector: str, text: str) -> None:
        """Write into a field, once it can be seen, as a keyboard does."""
        found = f"document.querySelector({json.dumps(selector)})"
        await self.wait_for(f"{found}?.offsetParent !== null && ({found}.focus(), true)")
        await self.call("Input.insertText", text=text)

    async def be(self, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Set the size of the screen. `dark` selects the dark scheme and reduced motion."""
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if dark else "no-preference",
        }
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < _PHONE_PX,
        )
        await self.call("Emulation.setScrollbarsHidden", hidden=True)

    async def set_network(self, *, is_there: bool) -> None:
        """Disconnect the tab from the network, or reconnect it."""
        await self.call(
            "Network.emulateNetworkConditions",
            offline=not is_there,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )

    async def use_slow_network(self, *, bits_per_s: float, latency_s: float) -> None:
        """Slow down the tab's network. The latency is that of each answer."""
        await self.call(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=latency_s * 1000,
            downloadThroughput=bits_per_s / 8,
            uploadThroughput=bits_per_s / 8,
        )

    async def key(self, name: str, *, text: str = "") -> None:
        """Press a key."""
        code = {"Tab": 9, "Enter": 13, "Escape": 27}.get(name, 0)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                **({"text": text} if text and kind == "keyDown" else {}),
            )

    async def look(self, path: Path, *, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Save a screenshot."""
        await self.be(width=width, height=height, dark=dark)
        await trio.sleep(_PAINTED_S)
        taken = await self.call("Page.captureScreenshot", format="png")
        await trio.Path(path).write_bytes(base64.b64decode(taken["data"]))

    def _note(self, message: dict[str, Any]) -> None:
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(message["params"]["exceptionDetails"]["text"])
            case "Log.entryAdded" if message["params"]["entry"]["level"] == "error":
                self.problems.append(message["params"]["entry"]["text"])
            case "Runtime.consoleAPICalled" if message["params"]["type"] in {"error", "warning"}:
                self.problems.append(str(message["params"]["args"]))
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Network.loadingFinished":
                self.received_bytes += int(message["params"]["encodedDataLength"])
            case "ServiceWorker.workerRegistrationUpdated":
                for each in message["params"]["registrations"]:
                    self.registrations[each["scopeURL"]] = each["registrationId"]
            case "Network.webSocketCreated":
                self.requests.append(message["params"]["url"])


@asynccontextmanager
async def open_page(*, languages: str = "en-GB,en", hosts: str = "") -> AsyncIterator[Page]:
    """Start a browser with a profile of its own, and open a tab in it.

    Its user reads `languages`; the first is its locale. `hosts` are rules for names, such as
    `MAP coffee.local 127.0.0.1`.

    **Owns:** the browser's process, and the folder of its profile.
    **Ends when:** the block does.
    """
    assert PROGRAM is not None, "there is no Chromium here"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = await trio.lowlevel.open_process(
            [
                *(PROGRAM, *_ARGUMENTS, f"--user-data-dir={folder}"),
                *(f"--lang={languages.partition(',')[0]}", f"--accept-lang={languages}"),
                *((f"--host-resolver-rules={hosts}",) if hosts else ()),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port, path = await _find_browser(trio.Path(folder) / "DevToolsActivePort")
            url = await _find_tab(port, path)
            async with open_websocket_url(url, max_message_size=64 * 2**20) as connection:
                page = Page(connection, port=port, browser_path=path)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                await process.wait()


@asynccontextmanager
async def open_worker(page: Page) -> AsyncIterator[Page]:
    """Connect to the service worker of a page; `run` evaluates expressions in it."""
    targets = (await page.call("Target.getTargets"))["targetInfos"]
    found = next(target["targetId"] for target in targets if target["type"] == "service_worker")
    async with open_websocket_url(f"ws://127.0.0.1:{page.port}/devtools/page/{found}") as connection:
        yield Page(connection)


async def _find_browser(port_file: trio.Path) -> tuple[int, str]:
    """Return the port and path of the DevTools of a browser, once it has started."""
    while not (await port_file.exists() and "\n" in await port_file.read_text()):  # noqa: ASYNC110
        await trio.sleep(0.05)
    port, path = (await port_file.read_text()).split("\n")[:2]
    return int(port), path


async def _find_tab(port: int, path: str) -> str:
    """Return the DevTools URL of the first tab."""
    async with open_websocket_url(f"ws://127.0.0.1:{port}{path}") as connection:
        browser = Page(connection)
        while True:
            targets = (await browser.call("Target.getTargets"))["targetInfos"]
            for target in targets:
                if target["type"] == "page":
                    return f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}"
            await trio.sleep(0.05)
