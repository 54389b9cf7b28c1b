"""The web app in the field: when it reconnects, when it gives up, and which requests it sends."""

import itertools
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import msgspec
import trio

from support.wire_client import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    Ended,
    Frame,
    WireClient,
    close,
    frame,
    text,
    upgrade_head,
)

STALE_S: Final = 10.0
STALE_LOOK_S: Final = 1.0
FIRST_DELAY_S: Final = 1.0
MOST_DELAY_S: Final = 5.0
ASK_AFTER_S: Final = 0.1
TIMER_S: Final = 30.0
REFRESH_BEFORE_S: Final = 300.0
GIVES_UP_ON: Final = frozenset({1000, 4002})
STALE: Final = 4000
ABNORMAL: Final = 1006
_CLOSING_S: Final = 2.0


class FaithfulApp:
    """An app of one machine. `run` lasts until the app gives up; cancelling it kills the browser.

    `run_page` is the life of the tab: a connection that has given up comes back once the user has changed (a
    successful refresh), another device is selected, or the page is reloaded.

    `new_token` gives the token for a connection, or a fresh one for a connection whose token ends.

    **Owns:** its connection.
    """

    def __init__(self, address: tuple[str, int], device_id: str, new_token: Callable[[], str]) -> None:
        self.address = address
        self.tls_context: ssl.SSLContext | None = None
        self.device_id = device_id
        self.new_token = new_token
        # For tests
        self.opened_at: list[float] = []
        self.ends: list[tuple[float, int]] = []
        """When connections ended (trio time), and their close codes."""
        self.refused: list[tuple[float, int]] = []
        """When it was refused (trio time), and the status (0: no answer)."""
        self.received: list[dict[str, Any]] = []
        self.heard_at: list[float] = []
        self.toasts: list[str] = []
        """The error message that it shows."""
        self.undecodable = 0
        self.full_status_requests = 0
        self.gave_up = False
        self.refreshes = 0
        # The state of the page
        self._machine_online: bool | None = None
        self.state: dict[str, Any] = {}
        self.info: dict[str, Any] = {}
        self.state_known_at: float | None = None
        """Since when it shows the state of its machine (trio time). None while that is unknown."""
        self._last_seq: Any = None
        self._gone = False
        self._link: WireClient | None = None
        self._sending = trio.Lock()
        self._page_changed = trio.Event()

    # Actions of a test

    @property
    def connected(self) -> bool:
        return self._link is not None

    def of_type(self, *types: str) -> list[dict[str, Any]]:
        """Return the received messages of these types, in order."""
        return [message for message in self.received if message.get("type") in types]

    async def send(self, message_type: str, **payload: Any) -> None:
        """Send a message as the app does: the payload may overwrite the envelope."""
        await self._write(text({"type": message_type, "deviceId": self.device_id, **payload}))

    async def leave(self) -> None:
        """Close the page in an orderly way."""
        await self._write(close(1000, b"User disconnect"))

    def select(self, device_id: str) -> None:
        """Select a device on the Machines page."""
        if device_id != self.device_id:
            self.device_id = device_id
            self._page_changed.set()

    def reload(self) -> None:
        """Load the page again."""
        self._page_changed.set()

    def shows_online(self) -> bool | None:
        """Tell whether it shows its machine as online. None if the relay has not told it."""
        return self._machine_online

    def vanish(self) -> None:
        """Stop reading and writing, as a phone without a network."""
        self._gone = True

    @property
    def longest_silence_s(self) -> float:
        """The longest wait for a frame with data, over all connections."""
        times = [*self.heard_at, trio.current_time()]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    # Its life

    async def run(self) -> None:
        """Connect and stay connected, until it gives up."""
        delay_s = FIRST_DELAY_S
        while True:
            link = await self._connect()
            if link is None:
                await trio.sleep(delay_s)
                delay_s = min(MOST_DELAY_S, delay_s * 2)
                continue
            delay_s = FIRST_DELAY_S
            try:
                code = await self._live(link)
            finally:
                self._link = None
                link.abort()
            self.ends.append((trio.current_time(), code))
            if code in GIVES_UP_ON:
                self.gave_up = True
                return
            await trio.sleep(delay_s)

    async def run_page(self, *, token_s: float = 3600.0) -> None:
        """Run as a tab whose access tokens are valid for `token_s`. Each refresh opens another connection."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refresh_regularly, token_s)
            while True:
                self._page_changed = trio.Event()
                self.gave_up = False
                async with trio.open_nursery() as connection:
                    connection.start_soon(self.run)
                    await self._page_changed.wait()
                    await self.leave()
                    connection.cancel_scope.cancel()

    async def _refresh_regularly(self, token_s: float) -> None:
        ends_at = trio.current_time() + token_s
        while True:
            await trio.sleep(TIMER_S)
            if trio.current_time() > ends_at - REFRESH_BEFORE_S:
                ends_at = trio.current_time() + token_s
                self.refreshes += 1
                self._page_changed.set()

    async def _connect(self) -> WireClient | None:
        target = f"/ws/client?dev=true&token={self.new_token()}&device={self.device_id}"
        status = 0
        try:
            link = await WireClient.connect(self.address, tls_context=self.tls_context)
        except OSError:
            self.refused.append((trio.current_time(), status))
            return None
        with suppress(Ended, trio.BrokenResourceError):
            status = (await link.ask(upgrade_head(target, Origin="https://cloud.example"))).status
            if status == 101:
                return link
        self.refused.append((trio.current_time(), status))
        link.abort()
        return None

    async def _live(self, link: WireClient) -> int:
        """Run a connection to its end; return its close code."""
        self._link = link
        self._last_seq = None
        self.opened_at.append(trio.current_time())
        self.heard_at.append(trio.current_time())
        code = STALE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_silence, nursery.cancel_scope)
            nursery.start_soon(self._ask_for_state)
            try:
                code = await self._read(link)
            except Ended:
                code = ABNORMAL
            nursery.cancel_scope.cancel()
        return code

    async def _look_for_silence(self, connection: trio.CancelScope) -> None:
        while self._gone or trio.current_time() - self.heard_at[-1] <= STALE_S:  # noqa: ASYNC110 - as it does
            await trio.sleep(STALE_LOOK_S)
        await self._write(close(STALE, b"Stale connection"))
        await trio.sleep(_CLOSING_S)
        connection.cancel()

    async def _ask_for_state(self) -> None:
        await trio.sleep(ASK_AFTER_S)
        await self.send("request_state")

    async def _write(self, data: bytes) -> None:
        if self._link is not None and not self._gone:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with self._sending:
                    await self._link.send(data)

    async def _read(self, link: WireClient) -> int:
        while True:
            found = await link.read_frame()
            if self._gone:
                await trio.sleep_forever()
            if found.opcode == CLOSE:
                await self._write(frame(CLOSE, found.payload[:2]))
                with trio.move_on_after(_CLOSING_S):
                    await link.read_to_end()
                return int.from_bytes(found.payload[:2], "big") if found.payload else 1005
            if found.opcode == PING:
                await self._write(frame(PONG, found.payload))
            elif found.opcode in {TEXT, BINARY}:
                self.heard_at.append(trio.current_time())
                await self._take(found)

    async def _take(self, found: Frame) -> None:
        decode = msgspec.json.decode if found.opcode == TEXT else msgspec.msgpack.decode
        try:
            message = decode(found.payload)
            message_type = message["type"]
        except (msgspec.MsgspecError, ValueError, TypeError, KeyError):
            self.undecodable += 1
            return
        self.received.append(message)
        match message_type:
            case "status" | "status_delta":
                await self._check_seq(message)
                known = {name: value for name, value in message.items() if name not in {"type", "seq"}}
                self.state = _merged(self.state, known)
                if "state" in known.get("machine", {}) and self.state_known_at is None:
                    self.state_known_at = trio.current_time()
            case "device_info":
                self.info = message
            case "connected":
                self._machine_online = message.get("deviceOnline", False)
                self.state_known_at = None
            case "device_online" | "device_offline":
                self._machine_online = message_type == "device_online"
                self.state_known_at = None  # "offline", or "unknown" until a status comes
            case "error":
                self.toasts.append(message.get("message", ""))
            case "token_expiring":
                await self.send("refresh_auth", token=self.new_token())

    async def _check_seq(self, message: dict[str, Any]) -> None:
        """Ask for the full status after a gap in the numbers. Accept a status without a number."""
        seq, last = message.get("seq"), self._last_seq
        if seq is None:
            return
        self._last_seq = seq
        missing = message["type"] == "status_delta" if last is None else seq != last + 1
        if missing:
            self.full_status_requests += 1
            await self.send("request_full_status")


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge new state into known state, recursively."""
    merged = dict(old)
    for name, value in new.items():
        earlier = merged.get(name)
        groups = isinstance(earlier, dict) and isinstance(value, dict)
        merged[name] = _merged(dict(earlier or {}), value) if groups else value
    return merged
