"""The tasks of a session's peers: the nursery, the task that owns a peer, and those beside it."""

# Not in `core.session` and `core.attachment`, because mypyc compiles these and knows no `except*`.

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from brewos_relay.core.peer import LEFT, STAYS, Receive

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
    staying: list["Attachment"] | None
    """The peers that stay without a task; None if there are none."""
    watcher: trio.lowlevel.Task | None
    """The task that watches over them."""

    def give_up(self) -> None:
        """End because attaching the first peer failed."""

    def detach(self, attachment: "Attachment") -> None:
        """Detach a peer that has ended, before it is closed."""

    def forget(self, attachment: "Attachment") -> None:
        """Forget a peer that has ended, with all its resources closed."""


async def own_peers(session: PeerOwner) -> None:
    """Run the nursery of a session, and in it the first peer: a task more would take 2 KiB for each device.

    **Owns:** a task for each further peer that needs one, all peers that stay without, and the tasks that
    peers start besides.
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
        await run_peer(session, *waiting.pop())
        if session.watcher is None and session.staying is not None:
            await watch_over(session, nursery)
    session.nursery = None  # it refers to the session


async def own_peer(session: PeerOwner, attachment: "Attachment", receive: Receive) -> None:
    """Own a peer from its first message to its end, or until it stays and another task watches over it."""
    await run_peer(session, attachment, receive)
    if session.watcher is None and session.staying is not None:
        del attachment, receive
        assert session.nursery is not None
        await watch_over(session, session.nursery)


async def run_peer(session: PeerOwner, attachment: "Attachment", receive: Receive) -> None:
    """Run a peer until it stays, or close it at its end. If it fails, no other peer ends."""
    stays = False
    try:
        end = await attachment.peer.run(attachment, receive)
        if end is STAYS:
            if session.staying is None:
                session.staying = []
            session.staying.append(attachment)
            stays = True
        else:
            attachment.end = end or attachment.end or LEFT
    except* Exception as errors:
        attachment.fail(errors)
    finally:
        if not stays:
            await close_peer(session, attachment)


async def close_peer(session: PeerOwner, attachment: "Attachment") -> None:
    """Detach and close a peer. Errors are logged, so that no other peer ends."""
    try:
        try:
            session.detach(attachment)
        finally:
            await attachment.peer.aclose()
    except* Exception:
        with suppress(Exception):  # logging needs memory, and there may be none
            log.exception("closing a peer of device %s failed", session.device_id)
    finally:
        session.forget(attachment)


async def watch_over(session: PeerOwner, nursery: trio.Nursery) -> None:
    """Own the peers of a session that stay without a task. If it is cancelled, it closes them."""
    task = session.watcher = trio.lowlevel.current_task()
    try:
        while session.staying is not None:
            task.custom_sleep_data = session  # Trio clears this when the task is to wake up
            await trio.lowlevel.wait_task_rescheduled(_let_cancel)
    finally:
        session.watcher = None
        staying: list[Attachment] = session.staying or []
        session.staying = None
        for attachment in staying:
            nursery.start_soon(close_peer, session, attachment, name=session.device_id)


def _let_cancel(_raise_cancel: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED


def end_peer(session: PeerOwner, attachment: "Attachment") -> None:
    """Start the task that closes a peer, which stayed without one until now."""
    staying, nursery, watcher = session.staying, session.nursery, session.watcher
    if staying is None or nursery is None or attachment not in staying:
        return  # it is closed already, since the session was cancelled
    nursery.start_soon(close_peer, session, attachment, name=session.device_id)
    if len(staying) > 1:
        staying.remove(attachment)
        return
    session.staying = None
    if watcher is not None and watcher.custom_sleep_data is session:
        trio.lowlevel.reschedule(watcher)


async def run_beside(
    fail: Callable[[Exception], None], async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
) -> None:
    """Run a task of a peer beside its `run`; an error goes to `fail`."""
    try:
        await async_fn(*args)
    except* Exception as errors:
        fail(errors)
