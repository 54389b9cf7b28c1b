"""The messages that a simulated machine sends and receives on one connection."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec
import trio

from brewos_relay.client.codec import is_number
from brewos_relay.simulator.connection_policy import ConnectionPolicy
from brewos_relay.simulator.firmware.firmware_connection import TURN_S, FirmwareConnection
from brewos_relay.simulator.firmware.firmware_frames import (
    BINARY,
    BINARY_BYTES,
    CLOSE,
    PING,
    PONG,
    TEXT,
    TEXT_BYTES,
    Frame,
    UnreadableFrame,
    close_payload,
)
from brewos_relay.simulator.firmware.messagepack import pack
from brewos_relay.simulator.model.command_fields import CommandResult
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.model.status import esp_status, pico_status, power_meter_status
from brewos_relay.simulator.status_reports import StatusReports
from brewos_relay.texts import one_line

#: How a connection ended: with the relay's close frame, without one, by the machine, or by a command.
EndCause = Literal["closed", "lost", "dropped", "restart", "reconnect", "leave"]

_METER_S: Final = 5.0
_SLACK_S: Final = 1e-6  # tolerates rounding of tick times
_STALL_S: Final = 5.0
_COOLING_TICK_S: Final = 2.0
_COLD_TICK_S: Final = 15.0
_MISSED_PONGS: Final = 2
_LOG_LEVELS: Final = ("debug", "info", "warn", "error")
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class DeviceProtocol:
    """One connection of a machine. The timer queue calls `tick`; `run` reads until the end.

    `end` and `why` tell how the connection ended. Only `run` waits.
    """

    __slots__ = (
        "_asked",
        "_busy_until_s",
        "_connection",
        "_first_info_at_s",
        "_later",
        "_machine",
        "_meter_at_s",
        "_missed",
        "_pico",
        "_ping_at_s",
        "_policy",
        "_pong_by_s",
        "_scope",
        "_tick_from_s",
        "_wake",
        "abrupt",
        "end",
        "messages",
        "new_key",
        "reconnect_in_s",
        "reports",
        "why",
    )

    def __init__(
        self,
        connection: FirmwareConnection,
        machine: Machine,
        *,
        policy: ConnectionPolicy,
        reports: StatusReports,
        now_s: float,
        wake: Callable[[float], None],
    ) -> None:
        self.reports = reports
        #: Whether to cut the connection without a close frame, as a power cut does.
        self.abrupt = False
        self.end: EndCause | None = None
        self.why = ""
        self.messages = 0
        self.new_key: str | None = None
        self.reconnect_in_s: float | None = None
        self._connection = connection
        self._machine = machine
        self._policy = policy
        self._wake = wake
        self._tick_from_s = now_s
        self._first_info_at_s = now_s + policy.first_info_s
        self._meter_at_s = now_s + _METER_S
        self._ping_at_s = now_s
        self._pong_by_s = math.inf
        self._missed = 0
        self._busy_until_s = 0.0
        self._later: list[dict[str, Any]] = []
        self._pico: dict[str, Any] | None = None
        self._asked = False
        self._scope = trio.CancelScope()

    async def run(self, on_first_message: Callable[[], None]) -> None:
        """Read until the end; `on_first_message` is called with the first message of the relay.

        **Ends when:** the connection has ended; a cancelled one sends a close frame.
        """
        connection = self._connection
        heard = False
        try:
            with self._scope:
                while self.end is None:
                    frames: list[Frame] = []
                    if not await self._receive(frames):
                        break
                    if not heard:
                        heard = True
                        on_first_message()
                    for frame in frames:
                        if self.end is None:
                            await self._handle_frame(frame)
        except UnreadableFrame as problem:
            self._finish("dropped", f"it cannot read a frame (close code {problem.code})")
            # Reads the rest of the frame: otherwise the close frame may be lost.
            await connection.say_goodbye(problem.code)
        except trio.Cancelled:
            if not self.abrupt:
                await connection.say_goodbye()
            raise
        if self.end in ("reconnect", "restart", "leave") and not self._policy.faithful:
            await connection.say_goodbye()
        elif self.end is None:
            self._finish("lost", "the connection was lost")

    def tick(self, now_s: float) -> float:
        """Send the messages that are due; return the latest time of the next call."""
        if now_s < self._busy_until_s:
            return self._busy_until_s
        machine = self._machine
        self._check_pongs(now_s)
        if self._later:
            for message in self._later:
                self._send(message)
            self._later = []
        if machine.outgoing:
            for message in machine.outgoing:
                self._send(message)
            machine.outgoing.clear()
        if now_s >= self._tick_from_s + self._policy.tick_s - _SLACK_S:
            self._report(now_s)
        if now_s >= self._first_info_at_s:
            self._introduce()
        if machine.configuration.meter_topic is not None and now_s >= self._meter_at_s:
            self._meter_at_s = now_s + _METER_S
            self._send(power_meter_status(machine))
        return self._next_s(now_s)

    # Sending

    def _next_s(self, now_s: float) -> float:
        machine, tick_s = self._machine, self._policy.tick_s
        if not machine.off or now_s < self._tick_from_s + tick_s:
            # Ticks are multiples of `tick_s` after the start of the connection.
            pace_s = tick_s - (now_s - self._tick_from_s + _SLACK_S) % tick_s
        else:
            pace_s = _COLD_TICK_S if machine.cold else _COOLING_TICK_S
        meter_at_s = self._meter_at_s if machine.configuration.meter_topic is not None else math.inf
        return min(
            now_s + pace_s,
            max(now_s + 0.01, self.reports.due_s),
            self._ping_at_s if self._pong_by_s == math.inf else self._pong_by_s,
            self._first_info_at_s,
            meter_at_s,
        )

    def _report(self, now_s: float) -> None:
        machine = self._machine
        report = self.reports.next(machine.status(), machine.stats(), now_s=now_s, uptime_s=machine.uptime_s)
        if report is None:
            return
        payload = pack(report)
        if len(payload) <= BINARY_BYTES:
            self.messages += 1
            self._connection.send(BINARY, payload)
        if machine.rich and report["type"] == "status":
            self._send_pico_status()

    def _send_pico_status(self) -> None:
        """Send the `pico_status` of old firmware if it has changed."""
        content = pico_status(self._machine)
        if content != self._pico:
            self._pico = content
            self._send(content)

    def _send(self, content: Mapping[str, Any]) -> None:
        payload = _encode(content)
        # Firmware silently drops a message that is too large.
        if len(payload) <= TEXT_BYTES or not self._policy.faithful:
            self.messages += 1
            self._connection.send(TEXT, payload)

    def _introduce(self) -> None:
        self._first_info_at_s = math.inf
        machine = self._machine
        self._send(machine.device_info())
        if machine.rich and not self._asked:
            self._asked = True
            self._send(esp_status(machine))
            self._send(machine.configuration.bbw_settings())
            self._send(machine.configuration.preinfusion_settings())

    def _check_pongs(self, now_s: float) -> None:
        """Ping when it is due, and drop the connection after two pings in a row without a pong."""
        if now_s >= self._pong_by_s:
            self._missed += 1
            self._pong_by_s = math.inf
            if self._missed >= _MISSED_PONGS:
                self._finish("dropped", "two pings were not answered")
                self._scope.cancel()
                return
            self._ping_at_s = now_s
        if now_s >= self._ping_at_s and self._pong_by_s == math.inf:
            self._connection.send(PING, b"")
            self._ping_at_s = now_s + self._policy.ping_s
            self._pong_by_s = now_s + self._policy.pong_s

    # Receiving

    async def _receive(self, frames: list[Frame]) -> bool:
        """Wait for frames; return False once the connection has ended. Raises UnreadableFrame."""
        if not self._connection.stalled:
            return await self._connection.receive(frames.append)
        with trio.move_on_after(_STALL_S):
            return await self._connection.receive(frames.append)
        raise UnreadableFrame(1002)

    async def _handle_frame(self, frame: Frame) -> None:
        """Handle a frame. Faithful machines handle one in each turn of their loop, and none while busy."""
        if self._policy.faithful:
            await trio.sleep(TURN_S)
            if trio.current_time() < self._busy_until_s:
                await trio.sleep_until(self._busy_until_s)
        if frame.opcode == TEXT and frame.whole:
            self._handle_message(frame.payload)
        elif frame.opcode == PING:
            self._connection.send(PONG, frame.payload)
        elif frame.opcode == PONG:
            self._pong_by_s, self._missed = math.inf, 0
            self._wake(self._ping_at_s)
        elif frame.opcode == CLOSE:
            code = int.from_bytes(frame.payload[:2], "big") if len(frame.payload) >= 2 else 1005
            reason = one_line(frame.payload[2:].decode(errors="replace"))
            self._finish("closed", f"closed by the relay with code {code}{reason and ': ' + reason}")
            self._connection.send(CLOSE, close_payload(1000))

    def _handle_message(self, payload: bytes) -> None:
        try:
            content = _decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return
        kind = content.get("type")
        if kind in ("request_state", "request_full_status"):
            if content.get("source") == "proactive":
                self._send(self._machine.device_info())
            else:
                self._introduce()
            if self._machine.rich and kind == "request_full_status":
                self.reports.begin()
                self._wake(trio.current_time())
        elif kind == "command":
            self._execute(content)
        elif kind == "setLogLevel":
            level = content.get("level")
            if level in _LOG_LEVELS:
                self._machine.configuration.log_level = level
        elif kind == "ping":
            self._machine.say("info", "Pico answered the ping")
            self._wake(trio.current_time())
        elif not self._policy.faithful:
            self._handle_sdk_message(content)

    def _handle_sdk_message(self, content: dict[str, Any]) -> None:
        """Handle messages that today's firmware does not support."""
        key, back_in_ms = content.get("key"), content.get("reconnectInMs")
        if content.get("type") == "key_rotate" and isinstance(key, str) and key:
            self.new_key = key
            self._finish("reconnect", "it received a new key")
        elif content.get("type") == "restarting" and is_number(back_in_ms):
            self.reconnect_in_s = back_in_ms / 1000

    def _execute(self, command: dict[str, Any]) -> None:
        machine = self._machine
        outcome: CommandResult = machine.execute(command)
        machine.say(outcome.level, outcome.text)
        answers = [*outcome.answers, *(outcome.rich_answers if machine.rich else ())]
        if outcome.settings_changed:
            answers.append(machine.device_info())
        now_s = trio.current_time()
        if outcome.busy_s:
            self._later += answers
            self._busy_until_s = now_s + outcome.busy_s
        for message in machine.outgoing:
            self._send(message)
        machine.outgoing.clear()
        if not outcome.busy_s:
            for message in answers:
                self._send(message)
        if outcome.effect is not None:
            for message in self._later:
                self._send(message)
            self._finish(outcome.effect, outcome.text)
        ticks = math.floor((now_s - self._tick_from_s) / self._policy.tick_s) + 1
        self._wake(self._tick_from_s + ticks * self._policy.tick_s)

    def _finish(self, end: EndCause, why: str) -> None:
        if self.end is None:
            self.end, self.why = end, why
