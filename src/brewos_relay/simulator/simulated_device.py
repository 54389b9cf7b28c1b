"""One simulated device: it is switched on, registers, connects, and reconnects after losses."""

import random
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

import trio

from brewos_relay.client.backoff import Backoff
from brewos_relay.client.endpoint import RelayUnreachable, parse_url
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.simulator.connection_policy import RICH, ConnectionPolicy
from brewos_relay.simulator.device_protocol import DeviceProtocol, EndCause
from brewos_relay.simulator.firmware.firmware_connection import (
    ConnectTimedOut,
    FirmwareConnection,
    HostNotFound,
    open_firmware_connection,
    register,
)
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.status_reports import StatusReports
from brewos_relay.simulator.timer_queue import TimerQueue
from brewos_relay.simulator.usage_patterns import Barista, UsagePattern

#: Firmware takes a connection that ends sooner than this for bad credentials.
KEY_LOSS_S: Final = 5.0
SILENT_CONNECTION_S: Final = 30.0
_SILENT_RECONNECT_S: Final = 0.006
_KEY_CHARS: Final = 43
_TOKEN_CHARS: Final = 32
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_OFFLINE_TICK_S: Final = 5.0

Spawn = Callable[[Callable[[], Awaitable[None]]], Any]


class SimulatedDevice:
    """A machine with its connections to a relay.

    `key` None makes a key. `registers` sends the key and a pairing token to the relay when the device is
    switched on. `speed` is the speed of the machine's time, except during shots if `shots_in_real_time`;
    connection timing stays real. `announce` is called with each event, and `show_link` with each link to pair
    the device, which begins with `link_url` (default: `url`).

    `key_losses` counts connections that ended within 5 s without a cause in the device. A faithful device
    then drops its key and stays offline until `power_cycle`; others continue.
    """

    def __init__(
        self,
        machine: Machine,
        *,
        url: str,
        key: str | None = None,
        registers: bool = False,
        policy: ConnectionPolicy = RICH,
        usage: UsagePattern | None = None,
        speed: float = 1.0,
        shots_in_real_time: bool = False,
        start_after_s: float = 0.0,
        ssl_context: ssl.SSLContext | None = None,
        announce: Callable[[str], None] = lambda _: None,
        link_url: str | None = None,
        show_link: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.machine = machine
        self.policy = policy
        self.key = key or _random_text(_KEY_CHARS)
        self.token = _random_text(_TOKEN_CHARS)
        # State and counters
        self.state: Literal["off", "waiting", "online", "offline"] = "off"
        self.connections = 0
        self.key_losses = 0
        self.silent_connections = 0
        self.refusals = 0
        self.messages = 0
        self.due_s = float("inf")
        self._url = url
        self._endpoint = parse_url(url)
        if not self._endpoint.tls:
            ssl_context = None
        elif ssl_context is None:
            ssl_context = make_ssl_context(policy)
        self._ssl_context = ssl_context
        self._registers = registers
        self._usage = usage or Barista()
        self._speed = speed
        self._shots_in_real_time = shots_in_real_time
        self._start_after_s = start_after_s
        self._announce = announce
        self._link_url = link_url or url
        self._show_link = show_link
        self._backoff = Backoff(chance=machine.rng.random)
        self._protocol: DeviceProtocol | None = None
        self._reports = StatusReports()
        self._new_key: str | None = None
        self._stepped_at_s = 0.0
        self._switched_on = trio.Event()
        self._power = trio.CancelScope()

    # Control

    def power_cycle(self) -> None:
        """Switch the machine off and on again: cut its connection, and restart."""
        if self._protocol is not None:
            self._protocol.abrupt = True
        self._switched_on.set()
        self._power.cancel()

    @property
    def pairing_url(self) -> str:
        """The URL in the QR code on the screen, for the future owner."""
        return f"{self._link_url.rstrip('/')}/pair?id={self.machine.device_id}&token={self.token}"

    async def run(self) -> None:
        """Run alone, with a timer queue of its own.

        **Owns:** the task of the timer queue, and the tasks of `live`.
        **Ends when:** cancelled; the connection is closed with a close frame.
        """
        timers = TimerQueue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            await self.live(timers, nursery.start_soon)

    async def live(self, timers: TimerQueue, spawn: Spawn) -> None:
        """Switch on, connect, and reconnect after each loss; `spawn` starts tasks that outlive a connection.

        **Ends when:** cancelled; a connection is closed with a close frame then.
        """
        await trio.sleep(self._start_after_s)
        self._usage.begin(self.machine)
        self._stepped_at_s = trio.current_time()
        timers.wake(self, self._stepped_at_s)
        try:
            while True:
                self._switched_on = trio.Event()
                with trio.CancelScope() as self._power:
                    await self._run_until_restart(timers, spawn)
                if self._power.cancelled_caught:
                    self._announce("switched off and on again")
                self._restart()
        finally:
            timers.forget(self)

    def tick(self, now_s: float) -> float:
        """Advance the machine and its connection; return the time of the next call."""
        machine = self.machine
        machine.step((now_s - self._stepped_at_s) * self._pace)
        self._stepped_at_s = now_s
        again_s = self._usage.act(machine) / self._pace
        if self._protocol is None:
            machine.outgoing.clear()
            return now_s + min(_OFFLINE_TICK_S, max(0.5, again_s))
        return min(self._protocol.tick(now_s), now_s + max(0.5, again_s))

    @property
    def _pace(self) -> float:
        """The present speed of the machine's time."""
        return 1.0 if self._shots_in_real_time and self.machine.shot is not None else self._speed

    # Connections

    def _restart(self) -> None:
        self.machine.switch_off()
        self.machine.uptime_s = 0.0
        self._reports = StatusReports()
        self.token = _random_text(_TOKEN_CHARS)

    @property
    def _is_offline(self) -> bool:
        return self.state == "offline"

    async def _run_until_restart(self, timers: TimerQueue, spawn: Spawn) -> None:
        """Run from power-on to the next restart."""
        policy = self.policy
        self.state = "waiting"
        await trio.sleep(policy.grace_s)
        if self._registers:
            await self._register()
            await trio.sleep(policy.after_register_s)
        while True:
            end = await self._connect_once(timers, spawn)
            if end == "restart":
                self._announce("restarts")
                await trio.sleep(policy.reboot_s)
                return
            if end == "leave" or self._is_offline:
                self.state = "offline"
                await self._switched_on.wait()
                return

    async def _register(self) -> None:
        """Register until the relay accepts it."""
        while True:
            try:
                await register(
                    self._endpoint,
                    device_id=self.machine.device_id,
                    key=self.key,
                    token=self.token,
                    ssl_context=self._ssl_context,
                )
            except (RelayRefused, RelayUnreachable) as problem:
                await self._pause(
                    self.policy.register_s, f"not registered: {problem}{_advice(problem)}", problem
                )
            else:
                self._backoff.reset()
                self._announce(f"registered; pair it at {self.pairing_url}")
                self._show_link(self.pairing_url)
                return

    async def _connect_once(self, timers: TimerQueue, spawn: Spawn) -> EndCause | None:
        """Make one connection, and pause after it; return how it ended, or None if there was none.

        **Owns:** the silent connection of firmware after a loss, for the length of the pause.
        """
        policy = self.policy
        try:
            async with self._open(spawn, self._new_key or self.key) as connection:
                opened_at_s = trio.current_time()
                protocol = await self._run_protocol(connection, timers)
                age_s = trio.current_time() - opened_at_s
        except RelayRefused as problem:
            self.refusals += 1
            if self._new_key is not None and problem.status in (401, 403):
                self._new_key = None  # the relay does not know the new key
            await self._pause(policy.refused_s, f"{problem}{self._refusal_advice(problem)}", problem)
            return None
        except (HostNotFound, ConnectTimedOut) as problem:
            await self._pause(policy.unreachable_s, str(problem), problem)
            return None
        except RelayUnreachable as problem:
            await self._pause(policy.refused_s, f"{problem}{_advice(problem)}", problem)
            return None
        end = protocol.end or "lost"
        if end in ("restart", "leave"):
            self._announce(f"disconnected: {protocol.why}")
            return end
        if age_s < KEY_LOSS_S and end in ("closed", "lost", "dropped"):
            self.key_losses += 1
            if policy.faithful:
                self.key = _random_text(_KEY_CHARS)
                self.state = "offline"
                self._announce(
                    f"disconnected after {age_s:.1f} s: {protocol.why};"
                    " it takes that for bad credentials, has made a new key,"
                    " and stays offline until it is switched off and on"
                )
                return end
        elif age_s >= KEY_LOSS_S:
            self._backoff.reset()
        if protocol.new_key is not None:
            self._new_key = protocol.new_key
            self._announce("has a new key, and reconnects with it")
            return end
        if protocol.reconnect_in_s is not None:
            self._backoff.hint(protocol.reconnect_in_s)
        why = f"disconnected: {protocol.why}"
        async with trio.open_nursery() as nursery:
            if end == "lost" and policy.faithful:
                nursery.start_soon(self._reconnect_silently, spawn)
            await self._pause(policy.reconnect_s, why, None)
            nursery.cancel_scope.cancel()
        return end

    def _refusal_advice(self, problem: RelayRefused) -> str:
        """Return the remedy for a refusal, to be appended to it."""
        if problem.status != 401:
            return ""
        if self._registers:
            return (
                f". The machine has an owner, and the new key waits for them: open the link as owner,"
                f" {self.pairing_url}"
            )
        return ". The relay has another key for this id: remove the device there, or use its key"

    def _open(self, spawn: Spawn, key: str) -> Any:
        return open_firmware_connection(
            self._endpoint,
            device_id=self.machine.device_id,
            key=key,
            spawn=spawn,
            rng=self.machine.rng,
            ssl_context=self._ssl_context,
            faithful=self.policy.faithful,
        )

    async def _run_protocol(self, connection: FirmwareConnection, timers: TimerQueue) -> DeviceProtocol:
        """Run the protocol on a connection until it ends."""
        now_s = trio.current_time()
        if not self.policy.faithful:  # firmware sends a full status only once after booting
            self._reports.begin()
        protocol = DeviceProtocol(
            connection,
            self.machine,
            policy=self.policy,
            reports=self._reports,
            now_s=now_s,
            wake=lambda at_s: timers.wake(self, at_s),
        )
        self.connections += 1
        self.state = "online"
        self._announce("connected")
        self._protocol = protocol
        timers.wake(self, now_s)
        try:
            await protocol.run(self._on_key_accepted)
        finally:
            self._protocol = None
            self.messages += protocol.messages
            self.state = "waiting"
        return protocol

    def _on_key_accepted(self) -> None:
        """Record that the relay has accepted the key."""
        if self._new_key is not None:
            self.key, self._new_key = self._new_key, None
            self._announce("the new key works")

    async def _pause(
        self, fixed_s: float | None, why: str, problem: RelayRefused | RelayUnreachable | None
    ) -> None:
        """Announce the reason, and wait until the next attempt."""
        if isinstance(problem, RelayRefused) and problem.retry_after_s is not None:
            self._backoff.hint(problem.retry_after_s)
        pause_s = self._backoff.next_s() if fixed_s is None else fixed_s
        self._announce(f"{why}; next attempt in {pause_s:.3g} s")
        await trio.sleep(pause_s)

    async def _reconnect_silently(self, spawn: Spawn) -> None:
        """Open the second, silent connection that the firmware's library makes after a loss."""
        await trio.sleep(_SILENT_RECONNECT_S)
        try:
            async with self._open(spawn, self.key) as _:
                self.silent_connections += 1
                await trio.sleep(SILENT_CONNECTION_S)
        except (RelayRefused, RelayUnreachable):
            pass


def _advice(problem: RelayRefused | RelayUnreachable) -> str:
    if "certificate verify failed" in str(problem):
        return (
            ". For a local CA, set SSL_CERT_FILE to its ca.crt, run this in the server's folder,"
            " or use --faithful, which verifies nothing as machines do"
        )
    return ""


def make_ssl_context(policy: ConnectionPolicy) -> ssl.SSLContext:
    """Make a TLS context; faithful machines do not verify certificates."""
    context = ssl.create_default_context()
    if policy.faithful:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _random_text(length: int) -> str:
    """Make a key or a token, as firmware does: each character drawn from 64."""
    rng = random.SystemRandom()
    return "".join(rng.choices(_ALPHABET, k=length))
