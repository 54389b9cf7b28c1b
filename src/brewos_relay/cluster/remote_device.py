"""RemoteDevice: a device on another instance, as a peer of its session here."""

from collections.abc import Sequence

import trio

from brewos_relay.cluster.broker import Since
from brewos_relay.cluster.remote_commands import RemoteCommands
from brewos_relay.core.peer import PeerEnd, Receive, Tasks
from brewos_relay.core.remote import TakeOutcome
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Message
from brewos_relay.vocabulary import LONG_AGO


class RemoteDevice:
    """A device on another instance; a `RemotePeer`.

    `receive` passes on its messages, as soon as its state is known.
    """

    def __init__(self, device_id: str, owner: Since, commands: RemoteCommands) -> None:
        self.device_id = device_id
        self.owner = owner
        """The connection that is followed."""
        self.has_state = False
        """Whether its state has come, so that its messages can follow."""
        self.awaits_state = True
        """Whether its state was asked for, and has not come since."""
        self.asked_at = trio.current_time()
        """When the state was last asked for (trio time)."""
        self.is_reachable = True
        """Whether its instance is connected to the broker. If not, the device may be online or not."""
        self._commands = commands
        self._receive: Receive | None = None
        self._early: list[Message] = []
        self._closed = trio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether it has ended, or another connection has taken its place."""
        return self._closed.is_set()

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        """Pass on messages until it is closed; see `Peer.run`."""
        self._receive = receive
        early, self._early = self._early, []
        if early:
            receive(early)
        try:
            await self._closed.wait()
        finally:
            self._receive = None
            self._closed.set()
        return None

    def receive(self, messages: Sequence[Message]) -> None:
        """Pass on messages of the device."""
        if self._receive is not None:
            self._receive(messages)
        elif not self.is_closed:
            self._early.extend(messages)  # the session's task has not begun yet

    def ask(self) -> None:
        """Note that the state was asked for."""
        self.awaits_state = True
        self.asked_at = trio.current_time()

    def confirm(self) -> None:
        """Note that the state has come."""
        self.has_state, self.awaits_state = True, False

    def deny(self) -> None:
        """Note that the device is not on that instance any more: it has to be found again."""
        self.has_state, self.awaits_state = False, True
        self.asked_at = LONG_AGO

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Return False: commands are sent by `send_command`."""
        return False

    def send_command(self, message: Message, take_outcome: TakeOutcome | None, not_after_ms: float) -> None:
        """Send a message to the device; see `RemotePeer.send_command`."""
        if not self.is_reachable:
            # It was not sent, so this is certain.
            if take_outcome is not None:
                take_outcome("device_offline")
            return
        self._commands.send(self.owner.instance, self.device_id, message, take_outcome, not_after_ms)

    @property
    def backlog_bytes(self) -> int:
        """Return 0: nothing is kept here."""
        return 0

    def ping(self) -> bool:
        """Return True: the device's instance checks its signs of life."""
        return True

    def close(self, code: int, reason: str) -> None:
        """End `run`; see `Peer.close`."""
        self._closed.set()

    async def aclose(self) -> None:
        """End; see `Peer.aclose`."""
        self._closed.set()
        await trio.lowlevel.checkpoint()
