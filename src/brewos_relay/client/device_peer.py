"""Device: a device of a relay, which reports its state and receives commands."""

import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from brewos_relay.client.codec import decode, encode_binary
from brewos_relay.client.deltas import Deltas
from brewos_relay.client.endpoint import RelayUnreachable, check_device_id, parse_url
from brewos_relay.client.key_store import Keys, KeyStore, KeyStoreError
from brewos_relay.client.linked_peer import LinkedPeer, ReceiveQueue, RelayClock, run_link
from brewos_relay.client.reconnecting_link import (
    LinkState,
    LinkStatus,
    LinkStopped,
    ReconnectingLink,
    RetryDecision,
)
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_device
from brewos_relay.errors import CloseCode, RelayError
from brewos_relay.messages import Message, encode
from brewos_relay.vocabulary import is_key

#: The capacity of the queue of received commands.
COMMANDS_AT_MOST: Final = 32
REPORT_EVERY_S: Final = 0.5
_LOOK_EVERY_S: Final = 5.0
_UNAUTHORIZED: Final = 401
_ASKS_FOR_STATE: Final = frozenset({"request_state", "request_full_status"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """A command or another message for the device.

    `kind` is its `type`, and `name` the `cmd` of a command (otherwise `kind`). `content` is the whole
    message. `received_at_s` is in Trio's time.
    """

    kind: str
    name: str
    content: dict[str, Any]
    received_at_s: float = field(compare=False)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field of the message, or `default`."""
        return self.content.get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]


class _KeySent(RelayError):
    """The relay has sent a new key, to be used from the next connection on."""


class Device(LinkedPeer):
    """A device of a relay. Made by `open_device`.

    Iterate over it to receive commands. They wait in a queue while the program is busy, 32 by default. A full
    queue drops new commands: they are counted in `dropped_commands`, and the connected apps get a `log`
    message. A command whose `notAfter` has passed in the queue is dropped silently. Iterating raises
    LinkStopped once the link has stopped.
    """

    def __init__(
        self,
        url: str,
        device_id: str,
        key_store: KeyStore,
        *,
        register: Callable[[], Awaitable[None]] | None,
        ssl_context: ssl.SSLContext | None,
        deltas: Deltas | None,
        commands_at_most: int,
        report_every_s: float,
        enabled: bool,
    ) -> None:
        parse_url(url)
        self.device_id = check_device_id(device_id)
        self.deltas = deltas or Deltas()
        self._url = url
        self._key_store = key_store
        self._register = register
        self._ssl_context = ssl_context
        self._report_every_s = report_every_s
        self._clock = RelayClock()
        self._inbox = ReceiveQueue[Command](commands_at_most, drops="newest")
        self._key = ""
        self._has_two_keys = False
        self._newest_refused = False
        self._awaits_first_message = True
        self._state: Mapping[str, Any] | None = None
        self._occasional: Mapping[str, Any] = {}
        self._reported = trio.Event()
        self._link = ReconnectingLink(
            dial=self._dial,
            parts=(self._read, self._report),
            decide_retry=self._decide_retry,
            on_status=self._on_status,
            enabled=enabled,
        )

    @property
    def dropped_commands(self) -> int:
        """The number of messages that were dropped because the queue was full."""
        return self._inbox.dropped

    def __aiter__(self) -> "Device":
        return self

    async def __anext__(self) -> Command:
        while True:
            command = await self._inbox.get()
            if not self._clock.has_passed(command.get("notAfter")):
                return command

    def report(self, state: Mapping[str, Any], *, occasional: Mapping[str, Any] | None = None) -> None:
        """Report the complete state of the device, as often as you like.

        Changes above their thresholds are sent, at most every 0.5 s, as MessagePack in single precision. The
        whole state is sent at the start of a connection, when an app requests it, and every 5 min.
        `occasional` are groups for the message every 5 min. Without a connection, only the last state is
        kept.
        """
        self._state = state
        self._occasional = occasional or {}
        self._reported.set()

    # A connection

    async def _dial(self) -> AbstractAsyncContextManager[WebSocket]:
        if self._register is not None:
            await self._register()
            self._register = None
        keys = self._key_store.known
        if keys is None:
            keys = await trio.to_thread.run_sync(self._key_store.load)
        # Try the newest key first; if the relay refused it, the one before it.
        self._key = keys.key if self._newest_refused else keys.newest
        self._has_two_keys = keys.next_key is not None
        self._awaits_first_message = True
        return dial_device(self._url, device_id=self.device_id, key=self._key, ssl_context=self._ssl_context)

    async def _read(self, websocket: WebSocket) -> None:
        while True:
            message = await websocket.receive()
            if self._awaits_first_message:
                await self._confirm_key()
            content = decode(message)
            kind = content.get("type") if content is not None else None
            if content is None or not isinstance(kind, str):
                continue
            if kind == "connected":
                self._clock.set(content.get("timestamp"))
            elif kind == "restarting":
                self._link.handle_restarting(content)
            elif kind == "key_rotate":
                await self._store_new_key(content.get("key"))
            else:
                await self._handle(kind, content)

    async def _handle(self, kind: str, content: dict[str, Any]) -> None:
        """Queue a message for the program, or report that it is busy."""
        if kind in _ASKS_FOR_STATE:
            self.deltas.begin()
            self._reported.set()
        cmd = content.get("cmd")
        name = cmd if kind == "command" and isinstance(cmd, str) else kind
        taken = self._inbox.put(Command(kind, name, content, trio.current_time()))
        if not taken and kind == "command":
            _log.warning("%s is busy: dropped %r", self.device_id, name)
            await self._link.send(_busy(name), wait=False)

    async def _report(self, websocket: WebSocket) -> None:
        """Send the changes that the program reports, at most one message in each interval."""
        self.deltas.begin()
        while True:
            if self._state is not None:
                content = self.deltas.next(
                    self._state, now_s=trio.current_time(), occasional=self._occasional
                )
                if content is not None:
                    await websocket.send(encode_binary(content))
            await trio.sleep(self._report_every_s)
            with trio.move_on_after(
                _LOOK_EVERY_S
            ):  # a keepalive or a full status may be due without a report
                await self._reported.wait()
            self._reported = trio.Event()

    # Keys

    async def _store_new_key(self, key: Any) -> None:
        """Store a key from the relay, and reconnect with it. Raises _KeySent."""
        if not is_key(key) or key == self._key:
            return
        try:
            await trio.to_thread.run_sync(self._key_store.add_next, key)
        except KeyStoreError as error:
            _log.error("%s keeps its key, as the new one cannot be stored: %s", self.device_id, error)
            return
        self._newest_refused = False
        raise _KeySent("the relay has sent a new key")

    async def _confirm_key(self) -> None:
        """Keep only the key that the relay has accepted; called with the first message of a connection."""
        self._awaits_first_message = False
        self._newest_refused = False
        if self._key_store.known == Keys(self._key):
            return
        try:
            await trio.to_thread.run_sync(self._key_store.accepted, self._key)
        except KeyStoreError as error:
            _log.error("%s keeps both keys for now: %s", self.device_id, error)

    # Ends

    def _decide_retry(self, error: RelayError) -> RetryDecision:
        if isinstance(error, _KeySent):
            return RetryDecision.AT_ONCE
        if isinstance(error, RelayRefused) and error.status == _UNAUTHORIZED:
            self._newest_refused = self._has_two_keys and not self._newest_refused
            return RetryDecision.AT_ONCE if self._newest_refused else RetryDecision.BACK_OFF
        if isinstance(error, ConnectionEnded) and error.close_code == CloseCode.REPLACED:
            return RetryDecision.STOP
        if isinstance(error, ConnectionEnded | RelayRefused | RelayUnreachable):
            return RetryDecision.BACK_OFF
        raise error

    def _on_status(self, status: LinkStatus) -> None:
        self._inbox.end(LinkStopped(status) if status.state is LinkState.STOPPED else None)


@asynccontextmanager
async def open_device(
    url: str,
    device_id: str,
    key_store: KeyStore,
    *,
    register: Callable[[], Awaitable[None]] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    deltas: Deltas | None = None,
    # Limits
    commands_at_most: int = COMMANDS_AT_MOST,
    # Times
    report_every_s: float = REPORT_EVERY_S,
    # State
    enabled: bool = True,
) -> AsyncIterator[Device]:
    """Be the device `device_id` of a relay while the block runs, and reconnect after each loss.

    The block starts immediately, connected or not. `register` (`Pairing.register`, for example) is called
    before the first connection, until it succeeds. A new key from the relay is stored and used.

    Raises SettingsError for an invalid URL or device id. The block raises KeyStoreError if the file with the
    key cannot be used, and the exceptions of `register` other than RelayUnreachable and RelayRefused.

    **Owns:** the connection, and the tasks that live on it.
    **Ends when:** the block is left; the connection is closed with a close frame.
    """
    device = Device(
        url,
        device_id,
        key_store,
        register=register,
        ssl_context=ssl_context,
        deltas=deltas,
        commands_at_most=commands_at_most,
        report_every_s=report_every_s,
        enabled=enabled,
    )
    async with run_link(device._link):
        yield device


def _busy(name: str) -> Message:
    """Return the log message that tells apps that a command was dropped."""
    return encode(
        {
            "type": "log",
            "level": "warn",
            "source": "device",
            "message": f"{name[:60]} was dropped: the device is still busy with earlier commands",
            "timestamp": int(trio.current_time() * 1000),
        }
    )
