"""App: a client of a relay that watches a device and sends it commands."""

import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Final

import trio

from brewos_relay.client.codec import decode
from brewos_relay.client.command_outcomes import Outcome, PendingCommands
from brewos_relay.client.device_state import DeviceState
from brewos_relay.client.endpoint import RelayUnreachable, check_device_id, parse_url
from brewos_relay.client.history import History, read_history
from brewos_relay.client.http_call import get_json
from brewos_relay.client.linked_peer import LinkedPeer, ReceiveQueue, RelayClock, run_link
from brewos_relay.client.reconnecting_link import (
    LinkState,
    LinkStatus,
    LinkStopped,
    ReconnectingLink,
    RetryDecision,
)
from brewos_relay.client.token_sources import SignInEnded, StaticToken, Token, token_source
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_app
from brewos_relay.errors import CloseCode, RelayError
from brewos_relay.messages import encode

#: The capacity of the queue of received messages.
MESSAGES_AT_MOST: Final = 256
#: The largest message that a relay accepts from an app.
COMMAND_BYTES: Final = 4096
#: How long to wait for the outcome of a command after its timeout.
LATE_S: Final = 1.0
#: How long to wait for the rest of the known state once the status has arrived.
REST_S: Final = 1.0
_RENEW_AGAIN_S: Final = 10.0
_REJECTIONS_AT_MOST: Final = 2
_REFUSALS_AT_MOST: Final = 12
"""The number of attempts without access to the device, 5 min apart, before the app stops: about an hour."""
_FORBIDDEN: Final = 403
_OURS: Final = frozenset({"type", "cmd", "requestId", "notAfter"})
_NOT_FOR_PROGRAMS: Final = frozenset({"pong", "auth_refreshed", "token_expiring"})

_log = logging.getLogger(__name__)


class NothingKnown(RelayError):
    """No state of the device is known: it has sent none yet, or has been offline for a while."""

    code = "nothing_known"
    retry = True


class App(LinkedPeer):
    """An app that is attached to a device. Made by `open_app`.

    Iterate over it to receive the messages of the device and the relay, as dicts. Messages wait in a queue
    while the program is busy, 256 by default; a full queue drops its oldest message and counts it in
    `missed_messages` (`state` misses none). Iterating raises LinkStopped once the link has stopped.
    """

    def __init__(
        self,
        url: str,
        token: Token,
        device_id: str,
        *,
        ssl_context: ssl.SSLContext | None,
        messages_at_most: int,
        enabled: bool,
    ) -> None:
        parse_url(url)
        self.device_id = check_device_id(device_id)
        self._url = url
        self._token_source = token_source(token)
        self._ssl_context = ssl_context
        self._token = ""
        self._rejections = 0
        self._refusals = 0  # consecutive refusals for lack of access
        self._needs_fresh = False
        self._expiring = trio.Event()
        self._clock = RelayClock()
        self._inbox = ReceiveQueue[dict[str, Any]](messages_at_most, drops="oldest")
        self._request_ids = map(str, itertools.count(1))
        self._outcomes = PendingCommands()
        self._state = DeviceState()
        self._greeted = False
        self._complete = False
        self._changed = trio.Event()
        self._link = ReconnectingLink(
            dial=self._dial,
            parts=(self._read, self._renew),
            decide_retry=self._decide_retry,
            on_status=self._on_status,
            enabled=enabled,
        )

    @property
    def missed_messages(self) -> int:
        """The number of messages that were dropped because the program was busy."""
        return self._inbox.dropped

    def __aiter__(self) -> "App":
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self._inbox.get()

    async def state(self, *, timeout_s: float = 10.0) -> DeviceState:
        """Return the known state of the device; wait for it if necessary.

        Raises NothingKnown if no state is known within `timeout_s`, and LinkStopped.
        """
        with trio.move_on_after(timeout_s):
            await self._wait_until(lambda: self._greeted and bool(self._state.status))
            with trio.move_on_after(REST_S):
                await self._wait_until(lambda: self._complete)
        if self._greeted and self._state.messages:
            return self._state
        if not self._greeted:
            why = self.status.reason or "there is no connection"
        else:
            why = "it has sent no state" if self._state.online else "the device is offline"
        raise NothingKnown(f"no state of {self.device_id} is known after {timeout_s:g} s: {why}")

    async def history(self, *, seconds: float = 600.0, timeout_s: float = 10.0) -> History:
        """Return the measurements of the device in the last `seconds`, as far as the relay keeps them.

        This is an HTTP request of its own: it needs no connection of the app. Raises RelayUnreachable,
        RelayRefused, and SignInEnded.
        """
        path = f"/api/devices/{self.device_id}/history?seconds={seconds:g}"
        with trio.move_on_after(timeout_s):
            token = await self._token_source.token()
            return read_history(
                await get_json(self._url, path, token, ssl_context=self._ssl_context, timeout_s=timeout_s)
            )
        raise RelayUnreachable(f"{self._url.strip()} did not answer in {timeout_s:g} s")

    async def command(self, cmd: str, /, *, timeout_s: float = 5.0, **fields: Any) -> Outcome:
        """Send a command to the device, and wait for its outcome.

        The relay does not deliver it after `timeout_s`. Raises ValueError for reserved fields or a command
        that is too large, and LinkStopped.
        """
        deadline_s = trio.current_time() + timeout_s
        if taken := sorted(_OURS & fields.keys()):
            raise ValueError(f"{taken[0]!r} cannot be a field of a command: the SDK sets it")
        with trio.move_on_at(deadline_s):
            await self._wait_until(lambda: self._greeted)
        if not self._greeted:
            return Outcome("not_sent", self.status.reason or "there was no connection in time")
        request_id = next(self._request_ids)
        left_ms = int((deadline_s - trio.current_time()) * 1000)
        content = {"type": "command", "cmd": cmd, **fields}
        message = encode({**content, "requestId": request_id, "notAfter": self._clock.now_ms() + left_ms})
        if len(message.payload) > COMMAND_BYTES:
            raise ValueError(
                f"the command has {len(message.payload)} bytes; the relay accepts at most {COMMAND_BYTES}"
            )
        with self._outcomes.awaiting(request_id) as awaited:
            with trio.move_on_at(deadline_s + LATE_S):
                if not await self._link.send(message, wait=False):
                    return Outcome("unknown", "the connection broke")
                return await awaited.wait()
            return awaited.outcome

    # A connection

    async def _dial(self) -> AbstractAsyncContextManager[WebSocket]:
        rejected = self._token if self._needs_fresh else None
        self._token = await (self._token_source.fresh() if self._needs_fresh else self._token_source.token())
        if self._token == rejected:
            raise SignInEnded("the relay does not accept the token, and the source has no other")
        self._needs_fresh = False
        self._greeted = self._complete = False
        self._expiring = trio.Event()
        return dial_app(self._url, token=self._token, device_id=self.device_id, ssl_context=self._ssl_context)

    async def _read(self, websocket: WebSocket) -> None:
        try:
            while True:
                content = decode(await websocket.receive())
                kind = content.get("type") if content is not None else None
                if content is not None and isinstance(kind, str):
                    await self._handle(kind, content, websocket)
        finally:
            self._greeted = False
            self._outcomes.fail_all("the connection broke before the relay reported the outcome")

    async def _handle(self, kind: str, content: dict[str, Any], websocket: WebSocket) -> None:
        self._state = self._state.after(content)
        if kind == "connected":
            self._rejections = self._refusals = 0
            self._clock.set(content.get("timestamp"))
            self._greeted = True
            # The known state follows the greeting, and the pong follows the known state.
            await self._send_own(websocket, {"type": "ping", "timestamp": self._clock.now_ms()})
        elif kind == "pong":
            self._complete = True
        elif kind == "restarting":
            self._link.handle_restarting(content)
        elif kind == "token_expiring":
            self._expiring.set()
        elif kind == "auth_refreshed" and content.get("success") is not True:
            _log.warning("the relay does not accept the new token: %s", content.get("error"))
        elif kind == "status_delta" and "status" not in self._state.messages:
            await self._send_own(websocket, {"type": "request_full_status"})
        self._wake_waiters()
        if kind == "command_status" and self._outcomes.handle_status(content):
            return
        if kind not in _NOT_FOR_PROGRAMS:
            self._inbox.put(content)

    async def _send_own(self, websocket: WebSocket, content: dict[str, Any]) -> None:
        with suppress(ConnectionEnded):  # messages received before the end are still to be read
            await websocket.send(encode(content))

    async def _renew(self, websocket: WebSocket) -> None:
        """Send the relay a new token when the current one is about to expire."""
        while True:
            await self._expiring.wait()
            self._expiring = trio.Event()
            try:
                token = await self._token_source.fresh()
            except SignInEnded as error:
                _log.warning("%s; the connection ends when its token expires", error)
                continue
            except (RelayUnreachable, RelayRefused):
                await trio.sleep(_RENEW_AGAIN_S)
                self._expiring.set()
                continue
            if token != self._token:
                self._token = token
                await websocket.send(encode({"type": "refresh_auth", "token": token}))

    async def _wait_until(self, come: Callable[[], bool]) -> None:
        """Wait until a condition is true. Raises LinkStopped."""
        await trio.lowlevel.checkpoint()
        while not come():
            if self.status.state is LinkState.STOPPED:
                raise LinkStopped(self.status)
            await self._changed.wait()

    # Ends

    def _decide_retry(self, error: RelayError) -> RetryDecision:
        if isinstance(error, SignInEnded):
            return RetryDecision.STOP
        if isinstance(error, ConnectionEnded) and error.close_code == CloseCode.TOKEN_REJECTED:
            # Try another token, unless the rejected one was new.
            if isinstance(self._token_source, StaticToken):
                return RetryDecision.STOP
            self._rejections += 1
            self._needs_fresh = True
            return RetryDecision.STOP if self._rejections >= _REJECTIONS_AT_MOST else RetryDecision.AT_ONCE
        if (isinstance(error, ConnectionEnded) and error.close_code == CloseCode.ACCESS_ENDED) or (
            isinstance(error, RelayRefused) and error.status == _FORBIDDEN
        ):
            self._refusals += 1
            return RetryDecision.STOP if self._refusals >= _REFUSALS_AT_MOST else RetryDecision.SLOWLY
        if isinstance(error, ConnectionEnded | RelayRefused | RelayUnreachable):
            return RetryDecision.BACK_OFF
        raise error

    def _on_status(self, status: LinkStatus) -> None:
        self._inbox.end(LinkStopped(status) if status.state is LinkState.STOPPED else None)
        if status.state is LinkState.STOPPED:
            self._rejections = self._refusals = 0
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        """Wake the tasks that wait for a condition."""
        news, self._changed = self._changed, trio.Event()
        news.set()


@asynccontextmanager
async def open_app(
    url: str,
    token: Token,
    device_id: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    # Limits
    messages_at_most: int = MESSAGES_AT_MOST,
    # State
    enabled: bool = True,
) -> AsyncIterator[App]:
    """Attach to the device `device_id` while the block runs, and reconnect after each loss.

    The block starts immediately, connected or not. `token` is an access token, a function that returns one,
    or `SessionFile`. A function is called for every connection, and whenever a token is about to expire.
    The link stops when the relay accepts no token. Without access to the device (403, 4003) it tries again
    every 5 min, as access may be given back, and stops after 12 attempts.

    Raises SettingsError for an invalid URL or device id; the block also raises the exceptions of the
    function.

    **Owns:** the connection, and the tasks that live on it.
    **Ends when:** the block is left; the connection is closed with a close frame.
    """
    app = App(
        url,
        token,
        device_id,
        ssl_context=ssl_context,
        messages_at_most=messages_at_most,
        enabled=enabled,
    )
    async with run_link(app._link):
        yield app
