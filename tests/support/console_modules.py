"""Modules of the console in a real browser, for tests of their functions."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from brewos_relay.server.assembly import open_server
from brewos_relay.settings import Settings
from support.chromium import Page, open_page


@asynccontextmanager
async def open_module(folder: Path, name: str) -> AsyncIterator[Page]:
    """Open a page where `module` is a module of the console."""
    settings = Settings(host="127.0.0.1", port=0, data_dir=folder, jwt_secret="tests-only-" + "s" * 32)
    with trio.fail_after(60):
        async with open_server(settings) as server, open_page() as page:
            await page.go(server.url + "/login")
            await page.see("Sign in")
            await page.run(f"import('/console/{name}').then((found) => {{ globalThis.module = found; }})")
            yield page
