"""A simulated machine that lives on a real connection to a relay."""

import math
import ssl
from collections.abc import Callable
from typing import Any, Final

import msgspec
import trio

from brewos_relay.client.connection import ConnectionEnded, RelayRefused, RelayUnreachable, WebSocket
from brewos_relay.client.device import open_device
from brewos_relay.client.machine import Machine
from brewos_relay.client.reports import Reports, encode_binary
from brewos_relay.messages import Message, encode

TICK_S: Final = 0.5
RECONNECT_S: Final = 30.25
PING_S: Final = 15.0
PONG_S: Final = 16.0  # two pings that go unanswered for 8 s each
FIRST_INFO_S: Final = 3.0
#: A machine whose connection ends sooner than this takes it for bad credentials.
KEY_LOSS_S: Final = 5.0


class Simulator:
    """A machine's cloud connection: reports, obeys, and comes back after a loss.

    `speed` lets the machine's time pass faster than ours; `shot_every_s` makes it pull a shot whenever it has
    been ready for that long, in its own time. `announce` is told what happens to the connection.

    `key_losses` counts connections that ended, by no doing of ours, in less than 5 s. Each would have cost a
    real machine its key and its access until it is switched off and on; the simulated one goes on.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        url: str,
        key: str,
        ssl_context: ssl.SSLContext | None = None,
        announce: Callable[[str], None] = lambda _: None,
        # Times
        speed: float = 1.0,
        tick_s: float = TICK_S,
        reconnect_s: float = RECONNECT_S,
        first_info_s: float = FIRST_INFO_S,
        shot_every_s: float = math.inf,
    ) -> None:
        self.machine = machine
        self.connections = 0
        self.key_losses = 0
        self._url = url
        self._key = key
        self._ssl_context = ssl_context
        self._announce = announce
        self._speed = speed
        self._tick_s = tick_s
        self._reconnect_s = reconnect_s
        self._first_info_s = first_info_s
        self._shot_every_s = shot_every_s
        self._reports = Reports()
        self._stepped_at_s: float | None = None

    async def run(self) -> None:
        """Connect, live on the connection, and begin again when it has ended.

        **Owns:** one connection at a time, and the tasks that report, ping and read on it.
        **Ends when:** cancelled; the connection is closed with a close frame then.
        Raises SettingsError if the URL cannot be read.
        """
        while True:
            try:
                async with open_device(
                    self._url,
                    device_id=self.machine.device_id,
                    key=self._key,
                    ssl_context=self._ssl_context,
                ) as websocket:
                    self.connections += 1
                    self._announce("machine connected")
                    ended = await self._live(websocket)
                    self._announce(f"machine disconnected: {ended}; again in {self._reconnect_s:g} s")
            except (RelayRefused, RelayUnreachable) as error:
                self._announce(f"machine not connected: {error}; again in {self._reconnect_s:g} s")
            await trio.sleep(self._reconnect_s)

    async def _live(self, websocket: WebSocket) -> ConnectionEnded:
        """Do what a machine does with its connection; what ended it.

        **Owns:** the tasks that ping, report and introduce the machine.
        **Ends when:** the connection has ended.
        """
        opened_at_s = trio.current_time()
        self._reports.begin()
        ended: list[ConnectionEnded] = []

        async def until_ended(work: Callable[[], Any]) -> None:
            try:
                await work()
            except ConnectionEnded as error:
                ended.append(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            introduction = trio.CancelScope()
            nursery.start_soon(until_ended, lambda: self._ping(websocket))
            nursery.start_soon(until_ended, lambda: self._report(websocket))
            nursery.start_soon(until_ended, lambda: self._introduce(websocket, introduction))
            nursery.start_soon(until_ended, lambda: self._obey(websocket, introduction))
        if trio.current_time() - opened_at_s < KEY_LOSS_S:
            self.key_losses += 1
        return ended[0]

    async def _ping(self, websocket: WebSocket) -> None:
        while True:
            await websocket.ping(timeout_s=PONG_S)
            await trio.sleep(PING_S)

    async def _report(self, websocket: WebSocket) -> None:
        while True:
            await trio.sleep(self._tick_s)
            self._catch_up()
            if self.machine.ready_s >= self._shot_every_s:
                self.machine.pull_shot()
            report = self._reports.next(
                self.machine.status(),
                self.machine.stats(),
                now_s=trio.current_time(),
                uptime_s=self.machine.uptime_s,
            )
            if report is not None:
                await websocket.send(encode_binary(report))

    async def _introduce(self, websocket: WebSocket, introduction: trio.CancelScope) -> None:
        with introduction:
            await trio.sleep(self._first_info_s)
            await websocket.send(encode(self.machine.device_info()))

    async def _obey(self, websocket: WebSocket, introduction: trio.CancelScope) -> None:
        while True:
            content = _read(await websocket.receive())
            kind = content.get("type")
            if kind in ("request_state", "request_full_status"):
                if content.get("source") != "proactive":
                    introduction.cancel()
                await websocket.send(encode(self.machine.device_info()))
            elif kind == "command":
                self._catch_up()
                outcome = self.machine.obey(content)
                log = {
                    "type": "log",
                    "level": outcome.level,
                    "message": outcome.text[:255],
                    "source": "esp32",
                    "timestamp": int(self.machine.uptime_s * 1000),
                }
                await websocket.send(encode(log))
                if outcome.settings_changed:
                    await websocket.send(encode(self.machine.device_info()))

    def _catch_up(self) -> None:
        """Let the machine's time pass as ours has."""
        now_s = trio.current_time()
        if self._stepped_at_s is not None:
            self.machine.step((now_s - self._stepped_at_s) * self._speed)
        self._stepped_at_s = now_s


def _read(message: Message) -> dict[str, Any]:
    """Read a message as a machine does: JSON objects only, whatever else is nothing."""
    if not message.is_text:
        return {}
    try:
        return msgspec.json.decode(message.payload, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {}
