"""RemoteClients: the clients of one local device on other instances."""

from collections.abc import Callable

import trio

from brewos_relay.cluster.envelopes import pack_messages
from brewos_relay.delivery import Delivery


class RemoteClients:
    """The instances with clients of a device; a `RemoteAudience`. Each instance gets each message once.

    `send` sends an envelope to an instance; False if that is not possible now. That instance then gets the
    whole state later, by `state`, which writes the envelope.
    """

    def __init__(
        self,
        sender: str,
        device_id: str,
        send: Callable[[str, bytes], bool],
        state: Callable[[str], bytes],
    ) -> None:
        self._sender = sender
        self._device_id = device_id
        self._send = send
        self._state = state
        self._asked_at: dict[str, float] = {}  # when each instance asked last (trio time)
        self._stale: set[str] = set()

    def __len__(self) -> int:
        return len(self._asked_at)

    @property
    def instances(self) -> list[str]:
        """The instances with clients."""
        return list(self._asked_at)

    @property
    def is_stale(self) -> bool:
        """Whether an instance has to get the whole state."""
        return bool(self._stale)

    def add(self, instance: str) -> None:
        """Send the state to an instance, and all messages from here on."""
        self._asked_at[instance] = trio.current_time()
        self._stale.add(instance)
        self.send_state()

    def has_asked_since(self, instance: str, time: float) -> bool:
        """Whether an instance has asked for the messages at this time (trio time) or later."""
        return self._asked_at.get(instance, time) >= time

    def discard(self, instance: str) -> None:
        """Send nothing more to an instance."""
        self._asked_at.pop(instance, None)
        self._stale.discard(instance)

    def deliver(self, delivery: Delivery) -> None:
        """Send messages of the device; see `RemoteAudience.deliver`."""
        if len(self._stale) == len(self._asked_at):
            return
        payload = pack_messages(self._sender, self._device_id, delivery.messages)
        for instance in self._asked_at:
            if instance not in self._stale and not self._send(instance, payload):
                self._stale.add(instance)

    def renew_state(self) -> None:
        """Send the state to all instances again."""
        self._stale.update(self._asked_at)
        self.send_state()

    def send_state(self) -> None:
        """Send the state to the instances that have to get it, as far as possible."""
        if self._stale:
            payload = self._state(self._device_id)
            self._stale = {instance for instance in self._stale if not self._send(instance, payload)}
