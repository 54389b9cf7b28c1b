"""A push service inside a test, which decrypts messages as browsers do (RFC 8291)."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from support.browser_push import BrowserEnd
from support.https_server import Asked, HttpsServer, answer, open_https_server

# Without the internet, no browser gets a subscription: this one is that of a `PushService`.
SUBSCRIBING: Final = """(() => {
  const stored = () => localStorage.getItem("test_subscription");
  const subscription = {
    toJSON: () => (SUBSCRIPTION),
    unsubscribe: async () => { localStorage.removeItem("test_subscription"); return true; },
  };
  PushManager.prototype.getSubscription = async () => (stored() ? subscription : null);
  PushManager.prototype.subscribe = async ({ userVisibleOnly, applicationServerKey }) => {
    if (!userVisibleOnly || applicationServerKey.length !== 65) throw new TypeError("wrong options");
    localStorage.setItem("test_subscription", "yes");
    return subscription;
  };
})()"""
SHOWN: Final = """(async () => (await (await navigator.serviceWorker.getRegistration("/console"))
  .getNotifications()).map(({ title, body, lang, data }) => ({ title, body, lang, id: data.deviceId })))()"""
"""Gives the notifications that are shown."""


class PushService:
    """A push service. Each browser has a path; `status` is the answer to it."""

    def __init__(self) -> None:
        self.browsers: dict[str, BrowserEnd] = {}
        self.status: dict[str, int] = {}
        self.server: HttpsServer

    async def __call__(self, asked: Asked) -> bytes:
        await trio.lowlevel.checkpoint()
        return answer(self.status.get(asked.target, 201))

    def got(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the path and content of each message since the last call."""
        asked, self.server.asked[:] = list(self.server.asked), []
        return [(each.target, json.loads(self.browsers[each.target].decrypt(each.body))) for each in asked]

    def subscription(self, path: str) -> dict[str, Any]:
        """Subscribe a browser."""
        browser = self.browsers[path] = BrowserEnd()
        return {"endpoint": self.server.url(path), "keys": browser.keys}

    async def next(self) -> tuple[str, dict[str, Any]]:
        """Wait for a message; return its path and content."""
        while not self.server.asked:  # noqa: ASYNC110 - it comes through a socket
            await trio.sleep(0.02)
        asked = self.server.asked.pop(0)
        return asked.target, json.loads(self.browsers[asked.target].decrypt(asked.body))


@asynccontextmanager
async def open_push_service(folder: Path) -> AsyncIterator[PushService]:
    """Open a push service. `service.server.tls` trusts its certificate."""
    service = PushService()
    async with open_https_server(folder, service) as service.server:
        yield service
