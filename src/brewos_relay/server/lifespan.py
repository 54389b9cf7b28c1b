"""The lifespan of an ASGI app: it starts before the first request and stops after the last one."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio

from brewos_relay.errors import RelayError

_STOP_S: Final = 5.0
"""What the app is given to stop."""

App = Callable[..., Awaitable[None]]


@asynccontextmanager
async def open_lifespan(app: App) -> AsyncIterator[None]:
    """Start an app, which stops when the block is left. Raises RelayError if it cannot do either.

    **Owns:** a nursery with one task, in which the app is.
    """
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()
        await nursery.start(_run_lifespan, app, leaving)
        yield
        leaving.set()
        nursery.cancel_scope.deadline = trio.current_time() + _STOP_S


async def _run_lifespan(app: App, leaving: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    steps = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, str]:
        step = next(steps)
        if step == "lifespan.shutdown":
            await leaving.wait()
        return {"type": step}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "lifespan.startup.complete":
            task_status.started()
        elif event["type"] in {"lifespan.startup.failed", "lifespan.shutdown.failed"}:
            raise RelayError(f"the web application could not start or stop: {event.get('message', '')}")

    await app(
        {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}, receive, send
    )
