"""The tasks of a session's peers: the nursery, the task that owns a peer, and those beside it."""

# Not in `core.session` and `core.attachment`, because mypyc compiles these and knows no `except*`.

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from brewos_relay.core.peer import LEFT, Receive

if TYPE_CHECKING:
    from brewos_relay.core.attachment import Attachment

log = logging.getLogger(__name__)


class PeerOwner(Protocol):
    """The part of a session that the task of a peer uses."""

    device_id: str
    nursery: trio.Nursery | None
    """Runs the tasks of all peers, once it is open."""
    waiting: list[tuple["Attachment", Receive]]
    """The peers that were attached before, and where their messages go."""

    def give_up(self) -> None:
        """End because attaching the first peer failed."""

    def detach(self, attachment: "Attachment") -> None:
        """Detach a peer that has ended, before it is closed."""

    def forget(self, attachment: "Attachment") -> None:
        """Forget a peer that has ended, with all its resources closed."""


async def own_peers(session: PeerOwner) -> None:
    """Run the nursery of a session, and in it the first peer: a task more would take 2 KiB for each device.

    **Owns:** a task for each further peer, and the tasks that peers start besides.
    **Ends when:** the last peer has ended. If it is cancelled, it closes every peer.
    """
    waiting = session.waiting
    if not waiting:
        session.give_up()
        return
    async with trio.open_nursery() as nursery:
        session.nursery = nursery
        while len(waiting) > 1:
            nursery.start_soon(own_peer, session, *waiting.pop(), name=session.device_id)
        # No variable refers to the first peer here: others may stay for longer.
        await own_peer(session, *waiting.pop())
    session.nursery = None  # it refers to the session


async def own_peer(session: PeerOwner, attachment: "Attachment", receive: Receive) -> None:
    """Own a peer from its first message to its end. If it fails, no other peer ends."""
    try:
        try:
            attachment.end = await attachment.peer.run(attachment, receive) or attachment.end or LEFT
        except* Exception as errors:
            attachment.fail(errors)
        finally:
            try:
                session.detach(attachment)
            finally:
                await attachment.peer.aclose()
    except* Exception:
        with suppress(Exception):  # logging needs memory, and there may be none
            log.exception("closing a peer of device %s failed", session.device_id)
    finally:
        session.forget(attachment)


async def run_beside(
    fail: Callable[[Exception], None], async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
) -> None:
    """Run a task of a peer beside its `run`; an error goes to `fail`."""
    try:
        await async_fn(*args)
    except* Exception as errors:
        fail(errors)
