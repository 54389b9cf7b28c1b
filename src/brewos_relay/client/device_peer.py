"""A machine's end: it says what there is to say, and is told what to do."""

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
    Verdict,
)
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused, WebSocket, dial_device
from brewos_relay.errors import CloseCode, RelayError
from brewos_relay.messages import Message, encode
from brewos_relay.vocabulary import is_key

#: How many commands wait for a program that is busy.
COMMANDS_AT_MOST: Final = 32
REPORT_EVERY_S: Final = 0.5
_LOOK_EVERY_S: Final = 5.0
_UNAUTHORIZED: Final = 401
_ASKS_FOR_STATE: Final = frozenset({"request_state", "request_full_status"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """What a device is told. `kind` is the message's `type`, and `name` the `cmd` of a command (else `kind`).

    `content` is the whole message, `received_at_s` is in Trio's time.
    """

    kind: str
    name: str
    content: dict[str, Any]
    received_at_s: float = field(compare=False)

    def get(self, key: str, default: Any = None) -> Any:
        """Give a field of the message."""
        return self.content.get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self.content[key]


class _KeySent(RelayError):
    """The relay has sent a key, which is to be used from the next connection on."""


class Device(LinkedPeer):
    """A device of a relay. Made by `open_device`.

    Iterate over it to get what it is told. What comes while the program is busy waits, 32 messages of it by
    default. When those are there, a further command is not taken: it is counted in `dropped_commands`, and
    whoever watches the machine is told in a `log` message. A command whose `notAfter` has passed while it
    waited is not given any more. Iterating raises LinkStopped once the link has stopped.
    """

    def __init__(
        self,
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
        self._unheard = True
        self._state: Mapping[str, Any] | None = None
        self._occasional: Mapping[str, Any] = {}
        self._reported = trio.Event()
        self._link = ReconnectingLink(
            dial=self._dial,
            parts=(self._read, self._report),
            judge=self._judge,
            tell=self._told,
            enabled=enabled,
        )

    @property
    def dropped_commands(self) -> int:
        """How many messages were not taken since as many waited as may."""
        return self._inbox.dropped

    def __aiter__(self) -> "Device":
        return self

    async def __anext__(self) -> Command:
        while True:
            command = await self._inbox.get()
            if not self._clock.has_passed(command.get("notAfter")):
                return command

    def report(self, state: Mapping[str, Any], *, occasional: Mapping[str, Any] | None = None) -> None:
        """Say what the state of the machine is now, all of it, as often as you like.

        What has changed enough is sent, every 0.5 s at most, and everything at the beginning of a connection,
        when somebody asks, and every 5 min; as MessagePack, in single precision. `occasional` are groups that
        go along every 5 min. Without a connection nothing is kept but the last state.
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
        # A key that was sent comes first; if it was refused, the one before it is tried again.
        self._key = keys.key if self._newest_refused else keys.newest
        self._has_two_keys = keys.next_key is not None
        self._unheard = True
        return dial_device(self._url, device_id=self.device_id, key=self._key, ssl_context=self._ssl_context)

    async def _read(self, websocket: WebSocket) -> None:
        while True:
            message = await websocket.receive()
            if self._unheard:
                await self._settle_key()
            content = decode(message)
            kind = content.get("type") if content is not None else None
            if content is None or not isinstance(kind, str):
                continue
            if kind == "connected":
                self._clock.set(content.get("timestamp"))
            elif kind == "restarting":
                self._link.heed_restarting(content)
            elif kind == "key_rotate":
                await self._take_key(content.get("key"))
            else:
                await self._take(kind, content)

    async def _take(self, kind: str, content: dict[str, Any]) -> None:
        """Hand a message to the program, or say that it is busy."""
        if kind in _ASKS_FOR_STATE:
            self.deltas.begin()
            self._reported.set()
        cmd = content.get("cmd")
        name = cmd if kind == "command" and isinstance(cmd, str) else kind
        taken = self._inbox.put(Command(kind, name, content, trio.current_time()))
        if not taken and kind == "command":
            _log.warning("%s is busy: %r was not taken", self.device_id, name)
            await self._link.send(_busy(name), wait=False)

    async def _report(self, websocket: WebSocket) -> None:
        """Send what is worth sending of what the program reports, in one message for each interval."""
        self.deltas.begin()
        while True:
            if self._state is not None:
                content = self.deltas.next(
                    self._state, now_s=trio.current_time(), occasional=self._occasional
                )
                if content is not None:
                    await websocket.send(encode_binary(content))
            await trio.sleep(self._report_every_s)
            with trio.move_on_after(_LOOK_EVERY_S):  # whether something is due that nobody reports
                await self._reported.wait()
            self._reported = trio.Event()

    # Keys

    async def _take_key(self, key: Any) -> None:
        """Keep a key that the relay has sent, and reconnect with it; raises _KeySent."""
        if not is_key(key) or key == self._key:
            return
        try:
            await trio.to_thread.run_sync(self._key_store.add_next, key)
        except KeyStoreError as error:
            _log.error("%s keeps its key, as a new one cannot be kept: %s", self.device_id, error)
            return
        self._newest_refused = False
        raise _KeySent("the relay has sent a new key")

    async def _settle_key(self) -> None:
        """Forget all keys but the one with which we were let in, now that the relay has spoken."""
        self._unheard = False
        self._newest_refused = False
        if self._key_store.known == Keys(self._key):
            return
        try:
            await trio.to_thread.run_sync(self._key_store.accepted, self._key)
        except KeyStoreError as error:
            _log.error("%s has to keep two keys for now: %s", self.device_id, error)

    # Ends

    def _judge(self, error: RelayError) -> Verdict:
        if isinstance(error, _KeySent):
            return Verdict.AT_ONCE
        if isinstance(error, RelayRefused) and error.status == _UNAUTHORIZED:
            self._newest_refused = self._has_two_keys and not self._newest_refused
            return Verdict.AT_ONCE if self._newest_refused else Verdict.BACK_OFF
        if isinstance(error, ConnectionEnded) and error.close_code == CloseCode.REPLACED:
            return Verdict.STOP
        if isinstance(error, ConnectionEnded | RelayRefused | RelayUnreachable):
            return Verdict.BACK_OFF
        raise error

    def _told(self, status: LinkStatus) -> None:
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
    """Be the device `device_id` of a relay for as long as the block lasts, whatever the network does.

    The block begins at once, connected or not. `register` (`Pairing.register`, say) is called before the
    first connection, again and again until it raises nothing. A relay that sends a new key is obeyed.

    Raises SettingsError for a URL or an id that is none; out of the block, KeyStoreError if the file with the
    key cannot be used, and what `register` raises beyond RelayUnreachable and RelayRefused.

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
    """Tell those who watch that a command was not taken."""
    return encode(
        {
            "type": "log",
            "level": "warn",
            "source": "device",
            "message": f"{name[:60]} was not taken: the machine has not got to what it was told before",
            "timestamp": int(trio.current_time() * 1000),
        }
    )
