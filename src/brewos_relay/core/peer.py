"""Peer: whatever messages can be delivered to, seen from a session."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from brewos_relay.core.ends import End
from brewos_relay.messages import Delivery, Message

Receive: TypeAlias = Callable[[Sequence[Message]], float]
"""Takes the messages that a peer sent, in order; never blocks.

No messages at all are a sign of life. Gives back for how many seconds nothing more is to be read from the
peer, mostly 0.0. It is called only while `Peer.run` runs.
"""


class Tasks(Protocol):
    """Where a peer starts what must go on beside its reading; the tasks belong to the peer's session."""

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start `async_fn(*args)`. Its failure ends the peer, and nobody else."""


class Peer(Protocol):
    """A connection to one device or to one client.

    A session owns it: the session calls `run` once, in a task of its own, and `aclose` after that, whatever
    happened.
    """

    async def run(self, tasks: Tasks, receive: Receive) -> End | None:
        """Hand on what the peer sends, until it ends by its own doing or by `close`; tell how, if known.

        What must go on beside the reading (a writer) is started in `tasks`, and ends with `aclose` at the
        latest.
        """

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Send messages without waiting; False if the peer is too far behind, or ending, and gets none.

        What is to be kept is for a peer that is behind already: it has a bound of its own.
        """

    @property
    def backlog_bytes(self) -> int:
        """How much waits for the peer to take it; how exactly that is known is the peer's matter."""

    def ping(self) -> bool:
        """Ask for a sign of life, which comes through `receive`; True if it is sure that the peer lives."""

    def close(self, code: int, reason: str) -> None:
        """Ask `run` to end, with a WebSocket close code (errors.CloseCode). Only the first call counts."""

    async def aclose(self) -> None:
        """Say goodbye to the peer and let go of everything, within a bounded time, cancelled or not.

        The peer itself knows how early it may be closed without harm.
        """
