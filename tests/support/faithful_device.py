"""A machine in the field: its frames, its timings, and the failures that cost it its key.

If a connection ends within 5 s of its 101, the machine discards its key and stays offline until it is
restarted. Tests can read how often that happened.
"""

import math
import random
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import msgspec
import trio

from support.firmware_wire import device_frame, pack, upgrade_request
from support.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Ended,
    Frame,
    Response,
    WireClient,
    accept_value,
    close,
)

GRACE_S: Final = 10.25
RECONNECT_S: Final = 30.25
REFUSED_S: Final = 30.3
UNFORGIVING_S: Final = 5.0
ZOMBIE_S: Final = 30.0
ANSWER_S: Final = 5.0
PING_S: Final = 15.0
PONG_S: Final = 8.0
TURN_S: Final = 0.01
TICK_S: Final = 0.5
QUIET_S: Final = 30.0
FULL_S: Final = 300.0
INFO_S: Final = 3.0
MOST_BYTES: Final = 15_360
TEXT_MOST_BYTES: Final = 2047
FAREWELL: Final = b"This is a webSocket client!"

End: TypeAlias = Literal["closed", "lost", "left"]


class FaithfulDevice:
    """A machine. `run` is its life from the moment at which it is switched on; cancelling it cuts the power.

    **Owns:** its connection, and one that is left over from a loss for a while.
    """

    def __init__(
        self, address: tuple[str, int], device_id: str, key: str, *, grace_s: float = GRACE_S
    ) -> None:
        self.address = address
        self.tls_context: ssl.SSLContext | None = None
        self.device_id = device_id
        self.key = key
        self._grace_s = grace_s
        self._chance = random.Random(device_id)
        # For tests
        self.keys_destroyed = 0
        self.zombies = 0
        """Connections that were accepted, but left over from a loss."""
        self.opened_at: list[float] = []
        self.ended_at: list[float] = []
        """When its established connections ended (trio time), in the order of `opened_at`."""
        self.ends: list[End] = []
        self.refused: list[tuple[float, int]] = []
        """When it was refused (trio time), and the status."""
        self.requests = 0
        """Upgrades that it asked for, zombies included."""
        self.hasty = 0
        """Refusals that it mistook for a lost connection, so that it retried at once."""
        self.unanswered = 0
        """Requests that got no answer in time."""
        self.received: list[dict[str, Any]] = []
        self.ignored: list[Frame] = []
        """Frames that it does not understand: binary ones and fragments."""
        self.largest_bytes = 0
        # Its state
        self.seq = 0
        self.info: dict[str, Any] = {"deviceName": "Kitchen", "machineType": "dual_boiler"}
        self.info["brewSetpoint"] = 93.0
        self.state: dict[str, Any] = {
            "machine": {"state": "idle", "mode": "standby", "isHeating": False, "isBrewing": False},
            "temps": {
                "brew": {"current": 22.4, "setpoint": 93.0},
                "steam": {"current": 22.1, "setpoint": 140.0},
                "group": 21.9,
            },
            "pressure": 0.0,
            "power": {"current": 0, "voltage": 230},
            "water": {"tankLevel": "ok"},
            "esp32": {"version": "0.8.62", "freeHeap": 90_000},
        }
        self._changed: set[str] = set()
        self._full_at = -math.inf
        """When it last sent its full state (trio time). Only its first connection begins with it."""
        self._change = trio.Event()
        self._asked = trio.Event()
        self._pong = trio.Event()
        self._stalled_until = -math.inf
        self._link: WireClient | None = None
        self._sending = trio.Lock()

    # Actions of a test

    @property
    def online(self) -> bool:
        """Whether the machine considers itself connected."""
        return self._link is not None

    def change(self, **groups: Any) -> None:
        """Change a part of the state. The machine reports it at the next tick."""
        self.state |= groups
        self._changed |= set(groups)
        self._change.set()

    def stall(self, for_s: float) -> None:
        """Block the machine, as a long command does: it neither reads nor writes."""
        self._stalled_until = trio.current_time() + for_s

    def lose_connection(self) -> None:
        """Reset the connection, as a router on the path would."""
        assert self._link is not None
        self._link.abort()

    async def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame of any opcode."""
        await self._awake()
        if self._link is not None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with self._sending:
                    await self._link.send(device_frame(opcode, payload, self._chance))

    # Its life

    async def run(self) -> None:
        """Connect and stay connected, until it is switched off or has destroyed its key."""
        self._full_at = -math.inf
        await trio.sleep(self._grace_s)
        while not self.keys_destroyed:
            link = await self._connect()
            if link is None:
                await trio.sleep(REFUSED_S)
                continue
            try:
                end = await self._live(link)
            finally:
                self._link = None
                link.abort()
            self.ends.append(end)
            self.ended_at.append(trio.current_time())
            if self.ended_at[-1] - self.opened_at[-1] < UNFORGIVING_S:
                self.keys_destroyed += 1  # its new key is not registered, and it does not try it
            else:
                await self._wait(zombie=end == "lost")

    async def _connect(self) -> WireClient | None:
        """Try to connect. Return None if that failed.

        Without TLS, it mistakes a refusal that ends the connection for a loss, and retries once.
        """
        link, is_lost = await self._attempt()
        if is_lost:
            self.hasty += 1
            link, _ = await self._attempt()
        return link

    async def _attempt(self) -> tuple[WireClient | None, bool]:
        """Ask for one upgrade. Tell whether a refusal ended the connection at once."""
        for pause_s in (0.011, 0.0):
            with suppress(OSError), trio.move_on_after(ANSWER_S):
                link = await WireClient.connect(self.address, tls_context=self.tls_context)
                break
            await trio.sleep(pause_s)
        else:
            return None, False
        response = await self._ask(link)
        if response is not None and response.status == 101:
            return link, False
        is_lost = False
        if response is not None:
            self.refused.append((trio.current_time(), response.status))
            if self.tls_context is None:
                is_lost = await self._sees_end(link)
            if not is_lost:
                with suppress(trio.BrokenResourceError):
                    await link.send(FAREWELL)
        link.abort()
        return None, is_lost

    async def _sees_end(self, link: WireClient) -> bool:
        """Tell whether a connection ends within a turn of its loop."""
        with trio.move_on_after(TURN_S), suppress(trio.BrokenResourceError):
            return await link.read_to_end() == b""
        return False

    async def _ask(self, link: WireClient) -> Response | None:
        """Ask for the upgrade and read the response, one header line in each turn."""
        websocket_key = b64encode(self._chance.randbytes(16)).decode()
        self.requests += 1
        request = upgrade_request(self.device_id, self.key, port=self.address[1], websocket_key=websocket_key)
        with trio.move_on_after(ANSWER_S), suppress(Ended, trio.BrokenResourceError):
            response = await link.ask(request)
            await trio.sleep(TURN_S * response.head.count(b"\r\n"))
            if response.status == 101:
                assert b"\r\nConnection: upgrade" in response.head.replace(b"Upgrade\r\n", b"upgrade\r\n")
                assert response.header("sec-websocket-accept") == [accept_value(websocket_key)]
            return response
        self.unanswered += 1
        return None

    async def _wait(self, *, zombie: bool) -> None:
        """Wait for the next attempt. After a plain loss, a second connection exists meanwhile."""
        async with trio.open_nursery() as nursery:
            if zombie:
                nursery.start_soon(self._haunt)
            await trio.sleep(RECONNECT_S)
            nursery.cancel_scope.cancel()

    async def _haunt(self) -> None:
        """Open the connection that the firmware forgets: once accepted, it neither reads nor writes."""
        await trio.sleep(0.006)
        with suppress(OSError):
            link = await WireClient.connect(self.address, tls_context=self.tls_context)
            try:
                response = await self._ask(link)
                self.zombies += response is not None and response.status == 101
                await trio.sleep(ZOMBIE_S)
            finally:
                link.abort()

    # A connection

    async def _live(self, link: WireClient) -> End:
        """Run a connection to its end."""
        self._link = link
        self._asked = trio.Event()
        self.opened_at.append(trio.current_time())
        end: End = "left"  # unless the server or the network ends it
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_pinging, nursery.cancel_scope)
            nursery.start_soon(self._introduce)
            nursery.start_soon(self._report)
            try:
                end = await self._read(link)
            except (Ended, trio.ClosedResourceError):
                end = "lost"
            nursery.cancel_scope.cancel()
        return end

    async def _keep_pinging(self, connection: trio.CancelScope) -> None:
        missed = 0
        while missed < 2:
            self._pong = trio.Event()
            await self.send(PING, b"")
            sent_at = trio.current_time()
            with trio.move_on_after(PONG_S):
                await self._pong.wait()
            if self._stalled_until > trio.current_time():  # it reads first, before it looks at the time
                await self._awake()
                await trio.sleep(20 * TURN_S)
            if self._pong.is_set():
                missed = 0
                await trio.sleep_until(sent_at + PING_S)
            else:
                missed += 1
        connection.cancel()

    async def _introduce(self) -> None:
        with trio.move_on_after(INFO_S):
            await self._asked.wait()
            return
        await self._send_info()

    async def _report(self) -> None:
        said_at = began_at = trio.current_time()
        await trio.sleep(TICK_S)
        if self._full_at == -math.inf:
            await self._send_status(full=True)
            said_at = trio.current_time()
        while True:
            full_at = self._full_at + FULL_S
            full_due = full_at <= said_at + QUIET_S
            with trio.move_on_at(full_at if full_due else said_at + QUIET_S) as due:
                await self._change.wait()
                ticks = math.floor((trio.current_time() - began_at) / TICK_S) + 1
                await trio.sleep_until(began_at + ticks * TICK_S)
            said_at = trio.current_time()
            if "machine" in self._changed or (full_due and due.cancelled_caught):
                await self._send_status(full=True)
            elif self._changed:
                await self._send_status(full=False)
            else:
                self.seq += 1
                keepalive = {"type": "keepalive", "seq": self.seq, "uptime": round(said_at * 1000) % 2**31}
                await self.send(BINARY, pack(keepalive))

    async def _send_status(self, *, full: bool) -> None:
        self.seq += 1
        groups = self.state if full else {name: self.state[name] for name in sorted(self._changed)}
        self._changed.clear()
        self._change = trio.Event()
        kind = "status" if full else "status_delta"
        if full:
            self._full_at = trio.current_time()
        await self.send(BINARY, pack({"type": kind, "seq": self.seq, **groups}))

    async def send_text(self, content: dict[str, Any]) -> None:
        """Send a text message, unless it is too large for the machine itself."""
        payload = msgspec.json.encode(content)
        if len(payload) <= TEXT_MOST_BYTES:
            await self.send(TEXT, payload)

    async def _send_info(self) -> None:
        await self.send_text({"type": "device_info", "deviceId": self.device_id, **self.info})

    async def _awake(self) -> None:
        if self._stalled_until > trio.current_time():
            await trio.sleep_until(self._stalled_until)

    async def _read(self, link: WireClient) -> End:
        """Read a frame in each turn; return how the connection ended. Raises Ended if it is lost."""
        while True:
            found = await link.read_frame()
            await self._awake()
            if found.opcode == CLOSE:
                await self._say_close(1000)
                return "closed"
            if len(found.payload) > MOST_BYTES or found.opcode not in {
                *(TEXT, BINARY, CONTINUATION),
                *(PING, PONG),
            }:
                await self._say_close(1009 if len(found.payload) > MOST_BYTES else 1002)
                return "left"
            if found.opcode == PING:
                await self.send(PONG, found.payload)
            elif found.opcode == PONG:
                self._pong.set()
            else:
                self.largest_bytes = max(self.largest_bytes, len(found.payload))
                if found.first == 0x80 | TEXT:
                    await self._take(found.payload)
                else:
                    self.ignored.append(found)
            await trio.sleep(TURN_S)

    async def _say_close(self, code: int) -> None:
        assert self._link is not None
        with suppress(trio.BrokenResourceError):
            async with self._sending:
                await self._link.send(close(code))
        await self._link.aclose()

    async def _take(self, payload: bytes) -> None:
        try:
            message = msgspec.json.decode(payload, type=dict)
        except (msgspec.MsgspecError, ValueError):
            return
        self.received.append(message)
        if message.get("type") in {"request_state", "request_full_status"}:
            self._asked.set()
            await self._send_info()
        elif message.get("cmd") == "set_temp":
            temps = {**self.state["temps"]}
            boiler = message.get("boiler", "brew")
            temps[boiler] = {**temps[boiler], "setpoint": float(message["temp"])}
            self.change(temps=temps)
            if boiler == "brew":
                self.info["brewSetpoint"] = float(message["temp"])
            await self.send_text({"type": "log", "level": "info", "message": "set_temp", "source": "esp32"})
            await self._send_info()
