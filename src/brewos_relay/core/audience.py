"""Audience: the clients of one device, and the lag of slow clients."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import ClientAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.core.recording import log_lagging
from brewos_relay.core.remote import RemoteAudience
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import Dialect
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.vocabulary import LONG_AGO, iso_time, now_ms

CHECK_EVERY_S: Final = 1.0
"""How often the periodic checks run."""


class Audience:
    """The clients of one device.

    A client lags after its outbox was full. Until it has caught up, it gets only messages that no later
    message repeats. Other clients do not notice.
    """

    __slots__ = (
        "_clients",
        "_counters",
        "_dialect",
        "_fed",
        "_fed_at",
        "_lagging",
        "_limits",
        "_lines",
        "_settled",
        "_settled_bytes",
        "heard",
        "heard_bytes",
        "remote",
    )

    def __init__(self, *, limits: Limits, dialect: Dialect, counters: Counters, lines: LogLineLimits) -> None:
        self._dialect = dialect
        self._limits = limits
        self._lines = lines
        self._counters = counters
        self._clients: dict[ClientAttachment, Callable[[Delivery], bool]] = {}
        self._lagging: dict[ClientAttachment, None] = {}  # an empty set would be larger
        self.heard = 0
        """How many messages of the device were sent to the clients that were attached."""
        self.heard_bytes = 0
        self._settled = self._settled_bytes = 0  # how much of these two is in the counters
        self.remote: RemoteAudience | None = None
        """The clients on other instances, if there are any. They are in no other count here."""
        self._fed = False  # whether the clients got a message since the last check
        self._fed_at = trio.current_time()

    def __len__(self) -> int:
        return len(self._clients) + len(self._lagging)

    @property
    def lagging_count(self) -> int:
        """How many clients lag."""
        return len(self._lagging)

    def __iter__(self) -> Iterator[ClientAttachment]:
        clients = list(self._clients)
        if self._lagging:
            clients.extend(self._lagging)
        return iter(clients)

    def join(self, client: ClientAttachment) -> None:
        """Attach a client: it gets every message from here on."""
        self.settle()
        self._clients[client] = client.peer.deliver

    def leave(self, client: ClientAttachment) -> None:
        """Forget a client."""
        self.settle()
        self._clients.pop(client, None)
        self._lagging.pop(client, None)

    def settle(self) -> None:
        """Bring the counters up to date.

        This runs when the clients change and with the periodic checks. Each message goes to every client, so
        it need not be counted for each.
        """
        if self.heard == self._settled:
            return
        told, told_bytes = self.heard - self._settled, self.heard_bytes - self._settled_bytes
        self._settled, self._settled_bytes = self.heard, self.heard_bytes
        self._counters.bytes_from_devices += told_bytes
        self._counters.sent_to_clients += told * len(self._clients)
        self._counters.bytes_to_clients += told_bytes * len(self._clients)

    def broadcast(self, delivery: Delivery, size_bytes: int) -> None:
        """Send messages of the device to every client. A client that is too far behind begins to lag.

        `size_bytes` is the size of all payloads together.
        """
        self._fed = True
        behind: list[ClientAttachment] | None = None
        for client, deliver in self._clients.items():
            try:
                if not deliver(delivery):
                    behind = [*(behind or ()), client]
            except Exception as error:
                client.fail(error)
        if behind is not None:
            self._let_lag(behind)
        if self._lagging:
            self._send_to_lagging(delivery)
        if self.remote is not None:
            self.remote.deliver(delivery)
        self.heard += len(delivery.messages)
        self.heard_bytes += size_bytes

    def _let_lag(self, behind: Sequence[ClientAttachment]) -> None:
        self.settle()
        for client in behind:
            del self._clients[client]
            self._lagging[client] = None
            self._counters.lagged += 1
            log_lagging(client, self._lines)

    def _send_to_lagging(self, delivery: Delivery) -> None:
        kept = [message for message in delivery.messages if must_reach(message, self._dialect)]
        for client in self._lagging:
            self._counters.left_out += len(delivery.messages) - len(kept)
            if kept and not client.deliver(Delivery(kept), keep=True):
                self._counters.left_out += len(kept)

    def tell(self, *told: Message) -> None:
        """Send messages of the relay to every client, also to lagging ones."""
        delivery = Delivery(told)
        for client in self:
            client.deliver(delivery, keep=True)

    def run_checks(self, now: float, state: Callable[[], list[Message]]) -> None:
        """Send keepalives and pings, and close clients that are silent or have expired; called once a second.

        `state` returns the messages for a client that has caught up after a lag.
        """
        limits = self._limits
        self.settle()
        if self._fed:
            self._fed, self._fed_at = False, now
        elif now - self._fed_at >= limits.keepalive_s - 2 * CHECK_EVERY_S and len(self):
            self._fed_at = now
            self.tell(messages.keepalive(now_ms()))
        for client in self:
            silent_s = client.silent_s(now)
            if silent_s >= limits.client_ping_s or silent_s >= limits.client_silence_s:
                self._check_silence(client, silent_s, now)
            if client.due_at <= now:
                self._check_ends(client, now)
        if self._lagging:
            self._let_catch_up(state)

    def resume(self, now: float, unseen_s: float) -> None:
        """Start every silence timer again after a pause, and send a keepalive; see `core.pauses`."""
        self._fed, self._fed_at = False, LONG_AGO
        for client in self:
            client.restart_silence(now)
            client.count_pause(unseen_s)

    def _let_catch_up(self, state: Callable[[], list[Message]]) -> None:
        for client in [client for client in self._lagging if client.peer.backlog_bytes == 0]:
            self._lagging.pop(client, None)
            self.join(client)
            client.deliver(Delivery(state()), keep=True)

    def _check_silence(self, client: ClientAttachment, silent_s: float, now: float) -> None:
        if silent_s >= self._limits.client_silence_s:
            client.close(CloseCode.POLICY_VIOLATION, "no sign of life for too long")
        elif now - client.pinged_at >= self._limits.client_ping_s:
            client.pinged_at = now
            client.ping()

    def _check_ends(self, client: ClientAttachment, now: float) -> None:
        """Close a client whose token or access has ended, and warn one whose token ends soon."""
        warning_s = self._limits.token_warning_s
        left_s = client.expires_at - now
        if client.access_ends_at <= now:
            client.end_access(CloseCode.ACCESS_ENDED, "the access to the machine has ended")
        elif left_s <= 0:
            client.close(CloseCode.TOKEN_REJECTED, "the token has expired")
        else:
            if left_s <= warning_s and not client.warned:
                client.warned = True
                ends_at = iso_time(now_ms() + round(left_s * 1000)) or ""
                client.deliver(Delivery((messages.token_expiring(ends_at, round(left_s)),)), keep=True)
            token_due_at = client.expires_at - (0 if client.warned else warning_s)
            client.due_at = min(client.access_ends_at, token_due_at)


def must_reach(message: Message, dialect: Dialect) -> bool:
    """Whether a message of a device must reach every client, since no later message repeats it."""
    head = message.peek()
    return head is not None and dialect.must_reach(head.type, head.level)
