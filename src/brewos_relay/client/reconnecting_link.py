"""A connection to a relay that comes back by itself, and says how it stands.

RelayError
└── LinkStopped   the link does not come back by itself, since that would be of no use
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Any, Final

import trio

from brewos_relay.client.backoff import Backoff
from brewos_relay.client.codec import is_number
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket
from brewos_relay.errors import RelayError
from brewos_relay.messages import Message

#: A connection is a good one, after which pauses are short again, once it has lived for so long.
GOOD_S: Final = 30.0
PING_S: Final = 15.0
PONG_S: Final = 16.0
#: How long a connection that was kicked has to show that it is alive.
KICKED_PONG_S: Final = 5.0
#: The pause where coming back soon is of no use, and never coming back would be worse.
LONG_PAUSE_S: Final = 300.0
_AT_ONCE_S: Final = 1.0


class LinkState(StrEnum):
    """How a link stands."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    #: It has lost its connection, or got none, and tries again at `next_attempt_at_s`.
    WAITING = "waiting"
    PAUSED = "paused"
    DISABLED = "disabled"
    #: It does not come back unless it is kicked.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """How a link stands, and why: what ended the last connection or attempt, as far as that is known.

    `next_attempt_at_s` is in Trio's time.
    """

    state: LinkState
    reason: str = ""
    close_code: int | None = None
    http_status: int | None = None
    next_attempt_at_s: float | None = None


class LinkStopped(RelayError):
    """The link has stopped; `status` says why."""

    code = "link_stopped"

    def __init__(self, status: LinkStatus) -> None:
        self.status = status
        super().__init__(f"the link has stopped: {status.reason}")


class Verdict(Enum):
    """What to do after a connection or an attempt has ended."""

    BACK_OFF = "come back after the usual pause"
    AT_ONCE = "come back at once"
    SLOWLY = "come back after a long pause"
    STOP = "do not come back"


class Statuses:
    """The statuses of a link, one after the other, without end."""

    def __init__(self, link: "ReconnectingLink") -> None:
        self._link = link
        self._given: LinkStatus | None = None

    def __aiter__(self) -> "Statuses":
        return self

    async def __anext__(self) -> LinkStatus:
        await trio.lowlevel.checkpoint()
        while self._link.status == self._given:
            await self._link.wait_for_change()
        self._given = self._link.status
        return self._given


class ReconnectingLink:
    """Keeps one connection open, and opens it again.

    `dial` prepares an attempt and gives the connection to enter. `parts` are what is done with every
    connection, each in a task of its own, until one of them raises. `judge` decides what to do after a
    RelayError: RelayUnreachable, RelayRefused, ConnectionEnded, or what `parts` and `dial` raise besides.
    Whatever else they raise comes out of `run`. `tell` hears of every change, at once.
    """

    def __init__(
        self,
        *,
        dial: Callable[[], Awaitable[AbstractAsyncContextManager[WebSocket]]],
        parts: Sequence[Callable[[WebSocket], Awaitable[None]]],
        judge: Callable[[RelayError], Verdict],
        tell: Callable[[LinkStatus], None] = lambda _: None,
        # Times
        backoff: Backoff | None = None,
        good_s: float = GOOD_S,
        # State
        enabled: bool = True,
    ) -> None:
        self.connections = 0
        self.status = LinkStatus(LinkState.CONNECTING if enabled else LinkState.DISABLED)
        self._dial = dial
        self._parts = parts
        self._judge = judge
        self._tell = tell
        self._backoff = backoff or Backoff()
        self._good_s = good_s
        self._enabled = enabled
        self._paused = False
        self._stopped: LinkStatus | None = None
        self._websocket: WebSocket | None = None
        self._come_back_at_s: float | None = None
        self._changed = trio.Event()
        self._wished = trio.Event()
        self._kicked = trio.Event()
        self._turn = trio.CancelScope()

    # What a program wants

    @property
    def enabled(self) -> bool:
        """Whether there is to be a connection at all; setting it to False closes the one that there is."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled != self._enabled:
            self._enabled = enabled
            self._wish()

    def pause(self) -> None:
        """Close the connection, and open none until `resume`, as for a download that needs the memory."""
        if not self._paused:
            self._paused = True
            self._wish()

    def resume(self) -> None:
        """End a pause: connect at once."""
        if self._paused:
            self._paused = False
            self._wish()

    def kick(self) -> None:
        """Do something now, as when the network has come back.

        A link that waits tries at once, and its pauses are short again. One that is connected looks whether
        it still is, within 5 s. One that has stopped begins again.
        """
        self._backoff.reset()
        self._kicked.set()  # whoever waits for the next attempt, or pings
        if self._stopped is not None:
            self._stopped = None
            self._wish()

    # What a program sees

    async def wait_for_state(self, *states: LinkState) -> LinkStatus:
        """Wait until the link is in one of these states, and give its status."""
        await trio.lowlevel.checkpoint()
        while self.status.state not in states:
            await self._changed.wait()
        return self.status

    def statuses(self) -> "Statuses":
        """Give the status, and then each new one; who is slow misses those in between."""
        return Statuses(self)

    async def wait_for_change(self) -> None:
        """Wait for the next status."""
        await self._changed.wait()

    async def send(self, message: Message, *, wait: bool) -> bool:
        """Send a message, and say whether it was handed to a connection.

        While there is none, it waits for one if `wait` says so, and is dropped otherwise. Raises LinkStopped
        if it would wait for a link that has stopped.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._websocket is not None:
                try:
                    await self._websocket.send(message)
                    return True
                except ConnectionEnded:
                    pass  # the reader finds out why
            if not wait:
                return False
            if self._stopped is not None:
                raise LinkStopped(self._stopped)
            await self._changed.wait()

    def heed_restarting(self, content: dict[str, Any]) -> None:
        """Take a `restarting` message: once this connection has ended, come back when it says."""
        pause_ms = content.get("reconnectInMs")
        if is_number(pause_ms):
            self._come_back_at_s = trio.current_time() + pause_ms / 1000

    # Its life

    async def run(self) -> None:
        """Be connected whenever that is wanted.

        **Owns:** one connection at a time, and the tasks that live on it.
        **Ends when:** cancelled; the connection is closed with a close frame then.
        """
        while True:
            self._wished = trio.Event()
            why_not = self._why_not()
            if why_not is None:
                with trio.CancelScope() as self._turn:
                    await self._try()
            else:
                self._set(why_not)
                await self._wished.wait()

    def _why_not(self) -> LinkStatus | None:
        """Say why there is to be no connection; None if there is to be one."""
        if not self._enabled:
            return LinkStatus(LinkState.DISABLED, "it is not enabled")
        if self._paused:
            return LinkStatus(LinkState.PAUSED, "it is paused")
        return self._stopped

    async def _try(self) -> None:
        """Connect, live on the connection, and wait for the next attempt."""
        self._kicked = trio.Event()
        self._come_back_at_s = None
        self._set(LinkStatus(LinkState.CONNECTING, self.status.reason))
        opened_at_s: float | None = None
        try:
            async with await self._dial() as websocket:
                opened_at_s = trio.current_time()
                error = await self._live(websocket)
        except RelayError as failure:
            error = failure
        verdict = self._judge(error)
        if opened_at_s is not None and trio.current_time() - opened_at_s >= self._good_s:
            self._backoff.reset()
        why = LinkStatus(
            LinkState.STOPPED,
            str(error),
            close_code=error.close_code if isinstance(error, ConnectionEnded) else None,
            http_status=error.status if isinstance(error, RelayRefused) else None,
        )
        if verdict is Verdict.STOP:
            self._stopped = why
            return
        pause_s = self._pause_s(verdict, error)
        self._set(replace(why, state=LinkState.WAITING, next_attempt_at_s=trio.current_time() + pause_s))
        with trio.move_on_after(pause_s):
            await self._kicked.wait()

    def _pause_s(self, verdict: Verdict, error: RelayError) -> float:
        if verdict is Verdict.AT_ONCE:
            return _AT_ONCE_S * random.random()  # noqa: S311 - only spreads a fleet that is told all at once
        if verdict is Verdict.SLOWLY:
            return LONG_PAUSE_S * (1 + 0.2 * random.random())  # noqa: S311
        if self._come_back_at_s is not None:
            self._backoff.hint(self._come_back_at_s - trio.current_time())
        elif isinstance(error, RelayRefused) and error.retry_after_s is not None:
            self._backoff.hint(error.retry_after_s, same_for_all=True)
        return self._backoff.next_s()

    async def _live(self, websocket: WebSocket) -> RelayError:
        """Live on a connection; what ended it.

        **Owns:** a task for each part, and one that pings. **Ends when:** one of them raises.
        """
        ended: list[RelayError] = []

        async def until_ended(part: Callable[[WebSocket], Awaitable[None]]) -> None:
            try:
                await part(websocket)
            except RelayError as error:
                ended.append(error)
                nursery.cancel_scope.cancel()

        self.connections += 1
        self._websocket = websocket
        try:
            self._set(LinkStatus(LinkState.CONNECTED))
            async with trio.open_nursery() as nursery:
                for part in (self._ping, *self._parts):
                    nursery.start_soon(until_ended, part)
        finally:
            self._websocket = None
        return ended[0]

    async def _ping(self, websocket: WebSocket) -> None:
        """Ping at once, as a device is there from its first frame, and then every 15 s or when kicked."""
        pong_s = PONG_S
        while True:
            await websocket.ping(timeout_s=pong_s)
            pong_s = PONG_S
            with trio.move_on_after(PING_S):
                await self._kicked.wait()
                self._kicked = trio.Event()
                pong_s = KICKED_PONG_S

    def _wish(self) -> None:
        """Act on a wish that has changed: end whatever is going on."""
        self._wished.set()
        self._turn.cancel()

    def _set(self, status: LinkStatus) -> None:
        self.status = status
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._tell(status)
