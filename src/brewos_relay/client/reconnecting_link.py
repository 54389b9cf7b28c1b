"""A connection to a relay that is opened again after each loss, and its status.

RelayError
└── LinkStopped   the link does not reconnect any more
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

#: Pauses are short again after a connection of this length.
STABLE_S: Final = 30.0
PING_S: Final = 15.0
PONG_S: Final = 16.0
#: Timeout of the pong after a kick.
KICKED_PONG_S: Final = 5.0
#: The pause while the app has no access to the device.
LONG_PAUSE_S: Final = 300.0
_AT_ONCE_S: Final = 1.0


class LinkState(StrEnum):
    """The state of a link."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    #: Between two attempts; the next one is at `next_attempt_at_s`.
    WAITING = "waiting"
    PAUSED = "paused"
    DISABLED = "disabled"
    #: Does not reconnect until it is kicked.
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The state of a link and its reason: why the last connection or attempt ended, if known.

    `next_attempt_at_s` is in Trio's time.
    """

    state: LinkState
    reason: str = ""
    close_code: int | None = None
    http_status: int | None = None
    next_attempt_at_s: float | None = None


class LinkStopped(RelayError):
    """The link has stopped; `status` has the reason."""

    code = "link_stopped"

    def __init__(self, status: LinkStatus) -> None:
        self.status = status
        super().__init__(f"the link has stopped: {status.reason}")


class RetryDecision(Enum):
    """How to continue after a connection or an attempt has ended."""

    BACK_OFF = "reconnect after the next pause of the backoff"
    AT_ONCE = "reconnect immediately"
    SLOWLY = "reconnect after a long pause"
    STOP = "do not reconnect"


class StatusIterator:
    """The statuses of a link as an endless asynchronous iterator."""

    def __init__(self, link: "ReconnectingLink") -> None:
        self._link = link
        self._last: LinkStatus | None = None

    def __aiter__(self) -> "StatusIterator":
        return self

    async def __anext__(self) -> LinkStatus:
        await trio.lowlevel.checkpoint()
        while self._link.status == self._last:
            await self._link.wait_for_change()
        self._last = self._link.status
        return self._last


class ReconnectingLink:
    """Keeps one connection open, and opens it again after each loss.

    `dial` prepares an attempt and returns the connection to enter. `parts` are functions that use the
    connection, each in its own task, until one of them raises. `decide_retry` decides how to continue after a
    RelayError: RelayUnreachable, RelayRefused, ConnectionEnded, or another one of `parts` and `dial`. Other
    exceptions leave `run`. `on_status` is called with every new status.
    """

    def __init__(
        self,
        *,
        dial: Callable[[], Awaitable[AbstractAsyncContextManager[WebSocket]]],
        parts: Sequence[Callable[[WebSocket], Awaitable[None]]],
        decide_retry: Callable[[RelayError], RetryDecision],
        on_status: Callable[[LinkStatus], None] = lambda _: None,
        # Times
        backoff: Backoff | None = None,
        stable_s: float = STABLE_S,
        # State
        enabled: bool = True,
    ) -> None:
        self.connections = 0
        self.status = LinkStatus(LinkState.CONNECTING if enabled else LinkState.DISABLED)
        self._dial = dial
        self._parts = parts
        self._decide_retry = decide_retry
        self._on_status = on_status
        self._backoff = backoff or Backoff()
        self._stable_s = stable_s
        self._enabled = enabled
        self._paused = False
        self._stopped: LinkStatus | None = None
        self._websocket: WebSocket | None = None
        self._reconnect_at_s: float | None = None
        self._changed = trio.Event()
        self._control_changed = trio.Event()
        self._kicked = trio.Event()
        self._scope = trio.CancelScope()

    # Control

    @property
    def enabled(self) -> bool:
        """Whether the link may connect; setting it to False closes an open connection."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        if enabled != self._enabled:
            self._enabled = enabled
            self._apply_control()

    def pause(self) -> None:
        """Close the connection until `resume`, for example during a download that needs the memory."""
        if not self._paused:
            self._paused = True
            self._apply_control()

    def resume(self) -> None:
        """End a pause, and connect immediately."""
        if self._paused:
            self._paused = False
            self._apply_control()

    def kick(self) -> None:
        """Act now, for example when the network is back.

        A waiting link tries immediately, and its pauses are short again. A connected link checks its
        connection within 5 s. A stopped link starts again.
        """
        self._backoff.reset()
        self._kicked.set()  # wakes the wait for the next attempt, and the ping task
        if self._stopped is not None:
            self._stopped = None
            self._apply_control()

    # Observation

    async def wait_for_state(self, *states: LinkState) -> LinkStatus:
        """Wait until the link is in one of these states, and return its status."""
        await trio.lowlevel.checkpoint()
        while self.status.state not in states:
            await self._changed.wait()
        return self.status

    def statuses(self) -> "StatusIterator":
        """Iterate over the current status and each new one; a slow reader misses those in between."""
        return StatusIterator(self)

    async def wait_for_change(self) -> None:
        """Wait for the next status."""
        await self._changed.wait()

    async def send(self, message: Message, *, wait: bool) -> bool:
        """Send a message, and tell whether a connection accepted it.

        Without a connection, the message is dropped, unless `wait` is true. Raises LinkStopped instead of
        waiting for a stopped link.
        """
        await trio.lowlevel.checkpoint()
        while True:
            if self._websocket is not None:
                try:
                    await self._websocket.send(message)
                    return True
                except ConnectionEnded:
                    pass  # the reader reports the reason
            if not wait:
                return False
            if self._stopped is not None:
                raise LinkStopped(self._stopped)
            await self._changed.wait()

    def handle_restarting(self, content: dict[str, Any]) -> None:
        """Handle a `restarting` message: after this connection, reconnect at the time that it gives."""
        pause_ms = content.get("reconnectInMs")
        if is_number(pause_ms):
            self._reconnect_at_s = trio.current_time() + pause_ms / 1000

    # Connections

    async def run(self) -> None:
        """Stay connected while the link is enabled, not paused and not stopped.

        **Owns:** one connection at a time, and the tasks that live on it.
        **Ends when:** cancelled; the connection is closed with a close frame then.
        """
        while True:
            self._control_changed = trio.Event()
            why_not = self._reason_not_to_connect()
            if why_not is None:
                with trio.CancelScope() as self._scope:
                    await self._connect_once()
            else:
                self._set(why_not)
                await self._control_changed.wait()

    def _reason_not_to_connect(self) -> LinkStatus | None:
        """Return the reason not to connect, or None."""
        if not self._enabled:
            return LinkStatus(LinkState.DISABLED, "the link is disabled")
        if self._paused:
            return LinkStatus(LinkState.PAUSED, "the link is paused")
        return self._stopped

    async def _connect_once(self) -> None:
        """Connect, run the parts on the connection, and wait for the next attempt."""
        self._kicked = trio.Event()
        self._reconnect_at_s = None
        self._set(LinkStatus(LinkState.CONNECTING, self.status.reason))
        opened_at_s: float | None = None
        try:
            async with await self._dial() as websocket:
                opened_at_s = trio.current_time()
                error = await self._run_parts(websocket)
        except RelayError as failure:
            error = failure
        decision = self._decide_retry(error)
        if opened_at_s is not None and trio.current_time() - opened_at_s >= self._stable_s:
            self._backoff.reset()
        why = LinkStatus(
            LinkState.STOPPED,
            str(error),
            close_code=error.close_code if isinstance(error, ConnectionEnded) else None,
            http_status=error.status if isinstance(error, RelayRefused) else None,
        )
        if decision is RetryDecision.STOP:
            self._stopped = why
            return
        pause_s = self._pause_s(decision, error)
        self._set(replace(why, state=LinkState.WAITING, next_attempt_at_s=trio.current_time() + pause_s))
        with trio.move_on_after(pause_s):
            await self._kicked.wait()

    def _pause_s(self, decision: RetryDecision, error: RelayError) -> float:
        if decision is RetryDecision.AT_ONCE:
            return _AT_ONCE_S * random.random()  # noqa: S311 - only spreads the reconnects of a fleet
        if decision is RetryDecision.SLOWLY:
            return LONG_PAUSE_S * (1 + 0.2 * random.random())  # noqa: S311
        if self._reconnect_at_s is not None:
            self._backoff.hint(self._reconnect_at_s - trio.current_time())
        elif isinstance(error, RelayRefused) and error.retry_after_s is not None:
            self._backoff.hint(error.retry_after_s, same_for_all=True)
        return self._backoff.next_s()

    async def _run_parts(self, websocket: WebSocket) -> RelayError:
        """Run the parts on a connection; return the error that ended it.

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
        """Ping immediately, which makes a device present, and then every 15 s or when kicked."""
        pong_s = PONG_S
        while True:
            await websocket.ping(timeout_s=pong_s)
            pong_s = PONG_S
            with trio.move_on_after(PING_S):
                await self._kicked.wait()
                self._kicked = trio.Event()
                pong_s = KICKED_PONG_S

    def _apply_control(self) -> None:
        """Apply a change of the control state: end the current attempt, connection or wait."""
        self._control_changed.set()
        self._scope.cancel()

    def _set(self, status: LinkStatus) -> None:
        self.status = status
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        self._on_status(status)
