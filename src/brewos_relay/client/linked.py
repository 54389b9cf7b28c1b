"""What the two ends have in common: a link, which their users watch and steer."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import trio

from brewos_relay.client.link import Link, LinkState, LinkStatus, Statuses
from brewos_relay.messages import Message, encode


class Linked:
    """An end of a connection that comes back by itself."""

    _link: Link

    @property
    def status(self) -> LinkStatus:
        """How the link stands, and why."""
        return self._link.status

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link.status.state is LinkState.CONNECTED

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._link.connections

    @property
    def enabled(self) -> bool:
        """Whether there is to be a connection at all; setting it to False closes the one that there is."""
        return self._link.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._link.enabled = enabled

    def pause(self) -> None:
        """Close the connection, and open none until `resume`, as for a download that needs the memory."""
        self._link.pause()

    def resume(self) -> None:
        """End a pause: connect at once."""
        self._link.resume()

    def kick(self) -> None:
        """Do something now, as when the network has come back.

        A link that waits tries at once, and its pauses are short again. One that is connected looks whether
        it still is, within 5 s. One that has stopped begins again.
        """
        self._link.kick()

    async def wait_for_state(self, *states: LinkState) -> LinkStatus:
        """Wait until the link is in one of these states, and give its status."""
        return await self._link.wait_for_state(*states)

    def statuses(self) -> Statuses:
        """Give the status, and then each new one; who is slow misses those in between."""
        return self._link.statuses()

    async def send(self, content: dict[str, Any] | Message, *, wait: bool = False) -> bool:
        """Send a message (as JSON text, unless it is a `Message`), and say whether a connection took it.

        While there is no connection it is dropped; with `wait` it waits for one, and is sent again if that
        breaks while it is being sent, so it may arrive twice. Raises LinkStopped if it would wait for a link
        that has stopped.
        """
        message = content if isinstance(content, Message) else encode(content)
        return await self._link.send(message, wait=wait)


@asynccontextmanager
async def running(link: Link) -> AsyncGenerator[None]:
    """Run a link as long as the block lasts; what the block or the link raises comes out as it is.

    **Owns:** the task of the link. **Ends when:** the block is left.
    """
    raised: BaseException
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            yield
            nursery.cancel_scope.cancel()
        return
    except BaseExceptionGroup as group:
        raised = group
        while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
            raised = raised.exceptions[0]
        if isinstance(raised, BaseExceptionGroup):
            raise
    raise raised
