"""Fixtures for hostile peers: no other peer may notice them."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from support.process import HereServer, Unharmed, machine_id, serve_here
from support.quick_registries import quick_registries as quick_registries
from support.wire_client import WireClient, text

BYSTANDER = machine_id(2)
NEWCOMER = machine_id(3)


@pytest.fixture
def unharmed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Unharmed:
    """Open a server for a block, and check that bystanders stay, new peers are admitted and nothing fails.

    The block uses machine 1. Keyword arguments are those of `serve_here`.
    """

    @asynccontextmanager
    async def unharmed(**options: Any) -> AsyncIterator[HereServer]:
        async with serve_here(tmp_path, **options) as server:
            device, client = await server.device(BYSTANDER), await server.client(BYSTANDER)
            yield server
            with trio.fail_after(2):
                await exchange(device, client)
                await exchange(await server.device(NEWCOMER), await server.client(NEWCOMER))
        failures = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert not failures, [record.getMessage() for record in failures]

    return unharmed


async def exchange(device: WireClient, client: WireClient) -> None:
    """Send a message each way and see it arrive."""
    await device.send(text({"type": "status", "seq": 1}))
    assert await client.read_until("status") == {"type": "status", "seq": 1}
    await client.send(text({"type": "command", "cmd": "tare"}))
    assert await device.read_until("command") == {"type": "command", "cmd": "tare"}
