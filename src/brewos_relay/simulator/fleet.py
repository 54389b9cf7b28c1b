"""Many simulated machines in one process."""

import random
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from brewos_relay.client.endpoint import parse_url
from brewos_relay.simulator.connection_policy import ConnectionPolicy
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice, make_ssl_context
from brewos_relay.simulator.timer_queue import TimerQueue
from brewos_relay.simulator.usage_patterns import Barista, Household, UsagePattern
from brewos_relay.vocabulary import now_ms

#: How many machines are switched on in one second: as many as a relay accepts.
STARTS_PER_S: Final = 100.0
SHOT_EVERY_S: Final = 240.0
#: The largest fleet whose machines are reported individually.
HEARD_ALONE: Final = 10
SUMMARY_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceIdentity:
    """The id of a machine, and its key if it has one already."""

    device_id: str
    key: str | None = field(default=None, repr=False)


class Fleet:
    """Simulated machines that share a timer queue, a random source, and a TLS context.

    The first one is always in use; the others model households, which use their machines one hour of ten.
    Machines without a key register themselves, and faithful machines always do. `speed` is that of their
    time, except during shots. Links to pair them begin with `link_url` (default: `url`), and `show_link` is
    called with each.
    """

    def __init__(
        self,
        identities: Sequence[DeviceIdentity],
        *,
        url: str,
        policy: ConnectionPolicy,
        ssl_context: ssl.SSLContext | None = None,
        speed: float = 1.0,
        say: Callable[[str], None],
        link_url: str | None = None,
        show_link: Callable[[str], None] = lambda _: None,
        seed: int = 1,
    ) -> None:
        rng = random.Random(seed)  # noqa: S311 - sensor noise
        context: ssl.SSLContext | None = None
        if parse_url(url).tls:
            context = make_ssl_context(policy) if policy.faithful or ssl_context is None else ssl_context
        self._say = say
        self._refused: Counter[str] = Counter()
        self.simulators: list[SimulatedDevice] = []
        for position, identity in enumerate(identities):
            machine = Machine(device_id=identity.device_id, now_ms=now_ms, rng=rng, rich=not policy.faithful)
            usage: UsagePattern = Household(rng)
            if position == 0:
                machine.switch_on()
                usage = Barista(SHOT_EVERY_S)
            self.simulators.append(
                SimulatedDevice(
                    machine,
                    url=url,
                    key=identity.key,
                    registers=identity.key is None or policy.faithful,
                    policy=policy,
                    usage=usage,
                    speed=speed,
                    shots_in_real_time=True,
                    start_after_s=position / STARTS_PER_S,
                    ssl_context=context,
                    announce=self._announcer(identity.device_id, alone=len(identities) <= HEARD_ALONE),
                    link_url=link_url,
                    show_link=show_link,
                )
            )

    async def run(self) -> None:
        """Run all machines.

        **Owns:** the task of the timer queue, one task for each machine, and tasks for writes that had to
        wait.
        **Ends when:** cancelled; every connection is closed with a close frame then.
        """
        timers = TimerQueue()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            for simulator in self.simulators:
                nursery.start_soon(simulator.live, timers, nursery.start_soon)
            if len(self.simulators) > HEARD_ALONE:
                nursery.start_soon(self._sum_up)

    def power_cycle(self) -> None:
        """Switch all machines off and on again, as a power cut does."""
        for simulator in self.simulators:
            simulator.power_cycle()

    def summary(self) -> str:
        """Summarize the states of the machines in one line."""
        states = Counter(simulator.machine.state for simulator in self.simulators)
        doing = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        online = sum(simulator.state == "online" for simulator in self.simulators)
        text = f"{online} of {len(self.simulators)} connected ({doing})"
        lost = sum(simulator.key_losses for simulator in self.simulators)
        if lost:
            text += f"; {lost} connections ended in less than 5 s"
        if self._refused:
            text += "; " + ", ".join(f"{count} x {why}" for why, count in self._refused.most_common(3))
            self._refused.clear()
        return text

    def _announcer(self, device_id: str, *, alone: bool) -> Callable[[str], None]:
        if alone:
            return lambda text: self._say(f"{device_id}  {text}")
        return self._count

    def _count(self, text: str) -> None:
        """Count the event of one machine of many, if it is an error."""
        why, again, _ = text.partition("; next attempt in ")
        if again:
            self._refused[why] += 1

    async def _sum_up(self) -> None:
        while True:
            await trio.sleep(SUMMARY_S)
            self._say(self.summary())
