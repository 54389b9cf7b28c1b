"""The life of a simulated machine: it is switched on, connects, and comes back after a loss."""

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

#: A machine whose connection ends sooner than this takes it for bad credentials.
KEY_LOSS_S: Final = 5.0
ZOMBIE_S: Final = 30.0
_SILENT_RECONNECT_S: Final = 0.006
_KEY_CHARS: Final = 43
_TOKEN_CHARS: Final = 32
_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
_OFFLINE_TICK_S: Final = 5.0

Spawn = Callable[[Callable[[], Awaitable[None]]], Any]


class SimulatedDevice:
    """A machine and its life with a relay.

    `key` None makes one, and `registers` tells the relay of the key and of a token to be claimed with, as
    machines do when they are switched on. `speed` lets the machine's time pass faster than ours; the times
    of its connection stay as they are. `announce` is told what happens.

    `key_losses` counts connections that ended, by no doing of ours, in less than 5 s. Each costs a faithful
    machine its key and its place in the cloud until `power_cycle`; others just go on.
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
        start_after_s: float = 0.0,
        ssl_context: ssl.SSLContext | None = None,
        announce: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.machine = machine
        self.policy = policy
        self.key = key or _random_text(_KEY_CHARS)
        self.token = _random_text(_TOKEN_CHARS)
        # What happened
        self.state: Literal["off", "waiting", "online", "dead"] = "off"
        self.connections = 0
        self.key_losses = 0
        self.zombies = 0
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
        self._start_after_s = start_after_s
        self._announce = announce
        self._backoff = Backoff(chance=machine.chance.random)
        self._protocol: DeviceProtocol | None = None
        self._reports = StatusReports()
        self._new_key: str | None = None
        self._stepped_at_s = 0.0
        self._switched_on = trio.Event()
        self._power = trio.CancelScope()

    # What somebody does to it

    def power_cycle(self) -> None:
        """Switch the machine off and on again: its connection is cut, and it begins anew."""
        if self._protocol is not None:
            self._protocol.abrupt = True
        self._switched_on.set()
        self._power.cancel()

    @property
    def pairing_url(self) -> str:
        """What its screen shows as a QR code, for whoever wants to have it."""
        return f"{self._url.rstrip('/')}/pair?id={self.machine.device_id}&token={self.token}"

    async def run(self) -> None:
        """Live, with a clock of its own.

        **Owns:** the clock's task, and all that living takes.
        **Ends when:** cancelled; it says goodbye then.
        """
        timers = TimerQueue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            await self.live(timers, nursery.start_soon)

    async def live(self, timers: TimerQueue, spawn: Spawn) -> None:
        """Be switched on, and stay connected as well as it goes; `spawn` starts tasks that outlive a
        connection.

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
                    await self._be_on(timers, spawn)
                if self._power.cancelled_caught:
                    self._announce("switched off and on again")
                self._restart()
        finally:
            timers.forget(self)

    def tick(self, now_s: float) -> float:
        """Let the machine and its connection go on; gives when to come again."""
        machine = self.machine
        machine.step((now_s - self._stepped_at_s) * self._speed)
        self._stepped_at_s = now_s
        again_s = self._usage.act(machine) / self._speed
        if self._protocol is None:
            machine.news.clear()
            return now_s + min(_OFFLINE_TICK_S, max(0.5, again_s))
        return min(self._protocol.tick(now_s), now_s + max(0.5, again_s))

    # Its life

    def _restart(self) -> None:
        self.machine.switch_off()
        self.machine.uptime_s = 0.0
        self._reports = StatusReports()
        self.token = _random_text(_TOKEN_CHARS)

    @property
    def _is_dead(self) -> bool:
        return self.state == "dead"

    async def _be_on(self, timers: TimerQueue, spawn: Spawn) -> None:
        """Live from switching on to the next restart."""
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
            if end == "leave" or self._is_dead:
                self.state = "dead"
                await self._switched_on.wait()
                return

    async def _register(self) -> None:
        """Register until it is taken."""
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
                await self._pause(self.policy.register_s, f"not registered: {problem}", problem)
            else:
                self._backoff.reset()
                self._announce(f"registered; claim it at {self.pairing_url}")
                return

    async def _connect_once(self, timers: TimerQueue, spawn: Spawn) -> EndCause | None:
        """Have one connection, from its attempt to the pause after it; how it ended, None without one.

        **Owns:** what a machine leaves behind that was cut off, for as long as the pause takes.
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
                self._new_key = None  # the relay does not know it after all
            await self._pause(policy.refused_s, str(problem), problem)
            return None
        except (HostNotFound, ConnectTimedOut) as problem:
            await self._pause(policy.unreachable_s, str(problem), problem)
            return None
        except RelayUnreachable as problem:
            await self._pause(policy.refused_s, str(problem), problem)
            return None
        end = protocol.end or "lost"
        if end in ("restart", "leave"):
            self._announce(f"disconnected: {protocol.why}")
            return end
        if age_s < KEY_LOSS_S and end in ("closed", "lost", "dropped"):
            self.key_losses += 1
            if policy.faithful:
                self.key = _random_text(_KEY_CHARS)
                self.state = "dead"
                self._announce(
                    f"disconnected after {age_s:.1f} s: {protocol.why};"
                    " it takes that for bad credentials, has made a new key,"
                    " and is off the cloud until it is switched off and on"
                )
                return end
        elif age_s >= KEY_LOSS_S:
            self._backoff.reset()
        if protocol.new_key is not None:
            self._new_key = protocol.new_key
            self._announce("has a new key, and comes back with it")
            return end
        if protocol.back_in_s is not None:
            self._backoff.hint(protocol.back_in_s)
        why = f"disconnected: {protocol.why}"
        async with trio.open_nursery() as nursery:
            if end == "lost" and policy.faithful:
                nursery.start_soon(self._reconnect_silently, spawn)
            await self._pause(policy.reconnect_s, why, None)
            nursery.cancel_scope.cancel()
        return end

    def _open(self, spawn: Spawn, key: str) -> Any:
        return open_firmware_connection(
            self._endpoint,
            device_id=self.machine.device_id,
            key=key,
            spawn=spawn,
            chance=self.machine.chance,
            ssl_context=self._ssl_context,
            faithful=self.policy.faithful,
        )

    async def _run_protocol(self, connection: FirmwareConnection, timers: TimerQueue) -> DeviceProtocol:
        """Be connected, to the end."""
        now_s = trio.current_time()
        if not self.policy.faithful:  # firmware sends everything once in each boot
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
            await protocol.run(self._key_works)
        finally:
            self._protocol = None
            self.messages += protocol.messages
            self.state = "waiting"
        return protocol

    def _key_works(self) -> None:
        """Take note that the relay has let us in with the key that was tried."""
        if self._new_key is not None:
            self.key, self._new_key = self._new_key, None
            self._announce("the new key works")

    async def _pause(
        self, fixed_s: float | None, why: str, problem: RelayRefused | RelayUnreachable | None
    ) -> None:
        """Say why there is no connection, and wait until the next attempt."""
        if isinstance(problem, RelayRefused) and problem.retry_after_s is not None:
            self._backoff.hint(problem.retry_after_s)
        pause_s = self._backoff.next_s() if fixed_s is None else fixed_s
        self._announce(f"{why}; again in {pause_s:.3g} s")
        await trio.sleep(pause_s)

    async def _reconnect_silently(self, spawn: Spawn) -> None:
        """Connect as the library does after a bare loss, without the firmware knowing: nothing is said."""
        await trio.sleep(_SILENT_RECONNECT_S)
        try:
            async with self._open(spawn, self.key) as _:
                self.zombies += 1
                await trio.sleep(ZOMBIE_S)
        except (RelayRefused, RelayUnreachable):
            pass


def make_ssl_context(policy: ConnectionPolicy) -> ssl.SSLContext:
    """Make what TLS needs; a faithful machine looks at no certificate."""
    context = ssl.create_default_context()
    if policy.faithful:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _random_text(length: int) -> str:
    """Make a key or a token, as machines do: of 64 characters, each drawn on its own."""
    chance = random.SystemRandom()
    return "".join(chance.choices(_ALPHABET, k=length))
