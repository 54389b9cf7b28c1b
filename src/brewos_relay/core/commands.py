"""Commands: messages of clients, which the relay answers, delivers to the device or lets wait."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from brewos_relay import messages
from brewos_relay.core.attachment import (
    Attachment,
    ClientAttachment,
    DeviceAttachment,
    RemoteDeviceAttachment,
)
from brewos_relay.core.audience import Audience
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import without_seq
from brewos_relay.core.presence import Presence
from brewos_relay.core.recording import Recorder
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import Policy
from brewos_relay.errors import TokenRejected
from brewos_relay.messages import CommandHead, Message
from brewos_relay.vocabulary import iso_time, now_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedCommand:
    """A message that waits for a device, with its sender, who is told the outcome."""

    message: Message
    head: CommandHead
    sender: ClientAttachment
    queued_at_ms: int
    expires_at: float
    """When it expires (trio time)."""
    expires_at_ms: float = math.inf
    """When it expires by the wall clock (Unix ms), which runs on while the process is paused."""


class CommandQueue:
    """The commands that wait for one device, oldest first; at most `most`."""

    __slots__ = ("_commands", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._commands: deque[QueuedCommand] = deque()

    def __len__(self) -> int:
        return len(self._commands)

    def __iter__(self) -> Iterator[QueuedCommand]:
        return iter(self._commands)

    def add(self, command: QueuedCommand) -> bool:
        """Add a command; False if too many wait already."""
        if len(self._commands) >= self._most:
            return False
        self._commands.append(command)
        return True

    def take_expired(self, now: float, now_ms: int) -> list[QueuedCommand]:
        """Remove and return the commands that have expired by either clock."""
        expired: list[QueuedCommand] = []
        waiting: deque[QueuedCommand] = deque()
        for command in self._commands:
            is_over = command.expires_at <= now or command.expires_at_ms <= now_ms
            (expired if is_over else waiting).append(command)
        self._commands = waiting
        return expired

    def take_all(self) -> list[QueuedCommand]:
        """Remove and return all commands."""
        taken = list(self._commands)
        self._commands.clear()
        return taken


_LATEST_MS = 2**53
_FOR_THE_RELAY = frozenset({"ping", "get_metrics", "refresh_auth"})
_UNRECORDED_S: Final = 1.0
"""For how long the commands of a client that are not wanted are not offered to the recorder."""


class Commands:
    """Takes the messages of one device's clients: answers, delivers or keeps them."""

    __slots__ = (
        "_asked_at",
        "_audience",
        "_counters",
        "_dialect",
        "_limits",
        "_pending",
        "_policy",
        "_presence",
        "_recorder",
    )

    def __init__(
        self,
        presence: Presence,
        audience: Audience,
        *,
        limits: Limits,
        policy: Policy,
        counters: Counters,
        recorder: Recorder,
    ) -> None:
        self._presence = presence
        self._audience = audience
        self._limits = limits
        self._policy = policy
        self._dialect = policy.dialect
        self._counters = counters
        self._recorder = recorder
        self._pending: CommandQueue | None = None
        self._asked_at: dict[str, float] = {}  # when the device was last asked for its state, by message type

    def take(self, client: ClientAttachment, received: Sequence[Message], now: float) -> None:
        """Take messages of a client: answer them, pass them on to the device, or let them wait."""
        counters, size_bytes = self._counters, 0
        device = self._presence.present
        has_access, grant, class_of = client.access_ends_at > now, client.grant, self._policy.class_of
        to_device: list[Message] = []
        passed_on: list[CommandHead] = []
        answers: list[Message] = []
        for message in received:
            size_bytes += len(message.payload)
            text = message if message.is_text else message.as_command()
            head = text.peek_command() if text is not None else None
            if text is None or head is None:
                counters.invalid += 1
                answers.append(messages.INVALID_MESSAGE)
            elif len(text.payload) > self._limits.client_message_bytes:
                counters.too_big += 1
                answers.append(messages.MESSAGE_TOO_BIG)
            elif head.type in _FOR_THE_RELAY:
                answers.append(self._answer(client, head))
            elif has_access and head.type in self._dialect.state_requests:
                answers += self._answer_state_request(client, text, head, to_device, now)
            elif not (has_access and grant.allows(class_of(head.type, head.cmd, head.mode))):
                answers.append(messages.forbidden(self._presence.device_id))
                self._record_outcome(client, head, "forbidden", answers)
            elif head.not_after is not None and _remaining_s(head) <= 0:
                self._record_outcome(client, head, "expired", answers)
            elif device is None:
                self._wait(client, text, head, now, answers)
            else:
                to_device.append(text)
                passed_on.append(head)
        counters.received_from_clients += len(received)
        counters.bytes_from_clients += size_bytes
        if to_device and device is not None:
            if isinstance(device, RemoteDeviceAttachment):
                self._send_remotely(client, device, to_device)
            else:
                self._send(client, device, to_device, passed_on, now, answers)
        if answers:
            client.deliver(Delivery(answers), keep=True)

    def _send(
        self,
        client: ClientAttachment,
        device: DeviceAttachment,
        to_device: list[Message],
        commands: list[CommandHead],
        now: float,
        answers: list[Message],
    ) -> None:
        """Send messages to the device, and record the outcome of the commands among them."""
        counters = self._counters
        if device.deliver(Delivery(to_device)):
            status = "delivered"
            counters.sent_to_devices += len(to_device)
            for message in to_device:
                counters.bytes_to_devices += len(message.payload)
        else:
            status = "device_offline"
            counters.undeliverable += len(to_device)
            answers.append(messages.DEVICE_BUSY)
        outcomes = counters.commands
        for head in commands:  # as `_record_outcome`, with fewer calls
            if head.request_id is not None or head.not_after is not None:
                answers.append(messages.command_status(head.request_id, status, now_ms()))
            outcomes[status] = outcomes.get(status, 0) + 1
            if now >= client.unrecorded_until and not self._record(client, head, status):
                client.unrecorded_until = now + _UNRECORDED_S

    def _answer(self, client: ClientAttachment, head: CommandHead) -> Message:
        """Answer a message for the relay itself."""
        if head.type == "ping":
            return messages.pong(now_ms(), head.timestamp)
        if head.type == "refresh_auth":
            return _refresh(client, head.token)
        return messages.metrics(
            now_ms(),
            session_id=client.id,
            clients=len(self._audience),
            device_online=self._presence.present is not None,
            queued_messages=self.pending_count,
        )

    def _allows(self, client: ClientAttachment, head: CommandHead, now: float) -> bool:
        command_class = self._policy.class_of(head.type, head.cmd, head.mode)
        return client.access_ends_at > now and client.grant.allows(command_class)

    def _record_outcome(
        self, client: ClientAttachment, head: CommandHead, status: str, answers: list[Message]
    ) -> None:
        """Record the outcome of a command, and add it to the answers if the sender asks for it."""
        if head.wants_status:
            answers.append(messages.command_status(head.request_id, status, now_ms()))
        outcomes = self._counters.commands
        outcomes[status] = outcomes.get(status, 0) + 1
        self._record(client, head, status)

    def _record(self, client: ClientAttachment, head: CommandHead, status: str) -> bool:
        """Record a command; False if commands of this user are not recorded at present."""
        return self._recorder.record_command(self._presence.device_id, client.grant.user_id, head, status)

    def _count_sent(self, sent: Sequence[Message]) -> None:
        self._counters.sent_to_devices += len(sent)
        for message in sent:
            self._counters.bytes_to_devices += len(message.payload)

    def _answer_state_request(
        self,
        client: ClientAttachment,
        text: Message,
        head: CommandHead,
        to_device: list[Message],
        now: float,
    ) -> list[Message]:
        """Ask the device for its state, unless it was just asked; return the answers of the relay."""
        if self._presence.present is None:
            return [self._absent_status()]
        # Messages of a viewer never reach the device: the relay sends a request of its own.
        may_ask = client.grant.may_command
        question = head.type if may_ask else self._dialect.state_request
        if question is not None and self._may_ask(question, now):
            to_device.append(text if may_ask else messages.state_request(question, now_ms()))
        if head.type == self._dialect.state_request:
            return []
        known = self._presence.snapshot.messages()
        return [without_seq(message) for message in known if message.peek_type() == self._dialect.state]

    def _may_ask(self, question: str, now: float) -> bool:
        """Whether this request was not sent to the device just now; if so, it counts as sent."""
        every_s = self._limits.state_request_s
        if now - self._asked_at.get(question, -every_s) < every_s:
            return False
        self._asked_at[question] = now
        return True

    def restart_requests(self) -> None:
        """Let the next request for the state pass: the device has a new connection."""
        self._asked_at.clear()

    def ask_for_state(self, device: Attachment, now: float) -> None:
        """Ask the device for its state on behalf of the relay, unless it was just asked."""
        request = self._dialect.state_request
        if request is not None and self._may_ask(request, now):
            device.deliver(Delivery((messages.state_request(request, now_ms()),)))

    @property
    def pending_count(self) -> int:
        """How many commands wait for the device."""
        return len(self._pending) if self._pending is not None else 0

    @property
    def senders(self) -> Iterator[ClientAttachment]:
        """The senders of the commands that wait. They may have left."""
        return (command.sender for command in self._pending or ())

    def forget(self) -> None:
        """Drop the commands that wait, without telling their senders: every peer has gone."""
        self._pending = None

    def _wait(
        self, client: ClientAttachment, text: Message, head: CommandHead, now: float, answers: list[Message]
    ) -> None:
        """Keep a command for the absent device, if it may wait, and add the answers for its sender."""
        if self._enqueue(client, text, head, now):
            answers.append(self._absent_status(queued=True))
            self._record_outcome(client, head, "queued", answers)
        else:
            self._counters.undeliverable += 1
            answers.append(messages.device_offline_error(self._presence.device_id))
            self._record_outcome(client, head, "device_offline", answers)

    def _enqueue(self, client: ClientAttachment, text: Message, head: CommandHead, now: float) -> bool:
        """Keep a command until the device is back; False if it may not wait, or too many do."""
        if not self._policy.may_wait(head.type, head.cmd, head.mode):
            return False
        if self._pending is None:
            self._pending = CommandQueue(self._limits.pending_commands)
        queued_at_ms, left_s = now_ms(), min(_remaining_s(head), self._limits.pending_s)
        return self._pending.add(
            QueuedCommand(
                message=text,
                head=head,
                sender=client,
                queued_at_ms=queued_at_ms,
                expires_at=now + left_s,
                expires_at_ms=queued_at_ms + left_s * 1000,
            )
        )

    def flush(self, device: DeviceAttachment, now: float) -> None:
        """Deliver the commands that waited to the device that has come, and tell their senders."""
        self.expire(now)
        if self._pending is None:
            return
        waiting: list[QueuedCommand] = []
        for command in self._pending.take_all():
            if self._allows(command.sender, command.head, now):
                waiting.append(command)
            else:  # the sender has lost the right meanwhile
                self._tell(command, messages.forbidden(self._presence.device_id), "forbidden")
        self._pending = None
        if isinstance(device, RemoteDeviceAttachment):
            for command in waiting:
                self._send_queued_remotely(device, command)
            return
        if waiting and not device.deliver(Delivery([command.message for command in waiting]), keep=True):
            for command in waiting:
                self._tell(command, messages.DEVICE_BUSY, "device_offline")
            return
        self._count_sent([command.message for command in waiting])
        for command in waiting:
            sent = messages.queued_message_sent(command.head.type, command.queued_at_ms)
            self._tell(command, sent, "delivered")

    def _send_remotely(
        self, client: ClientAttachment, device: RemoteDeviceAttachment, commands: Sequence[Message]
    ) -> None:
        """Send messages of a client, or of the relay, to a device on another instance."""
        for message in commands:
            head = message.peek_command()
            if head is None or head.type in self._dialect.state_requests:
                device.send_command(message, None, math.inf)
            else:
                take_outcome = partial(self._take_remote_outcome, client, head)
                device.send_command(message, take_outcome, _not_after_ms(head))

    def _take_remote_outcome(
        self, client: ClientAttachment, head: CommandHead, outcome: RemoteOutcome
    ) -> None:
        answers: list[Message] = []
        if outcome in ("delivered", "expired"):
            self._record_outcome(client, head, outcome, answers)
        else:
            told, status = self._remote_failure(outcome)
            answers.append(told)
            self._record_outcome(client, head, status, answers)
        if answers:
            client.deliver(Delivery(answers), keep=True)

    def _send_queued_remotely(self, device: RemoteDeviceAttachment, command: QueuedCommand) -> None:
        def take_outcome(outcome: RemoteOutcome) -> None:
            if outcome == "delivered":
                sent = messages.queued_message_sent(command.head.type, command.queued_at_ms)
                self._tell(command, sent, outcome)
            elif outcome == "expired":
                self._tell_expired(command)
            else:
                self._tell(command, *self._remote_failure(outcome))

        not_after_ms = min(_not_after_ms(command.head), command.expires_at_ms)
        device.send_command(command.message, take_outcome, not_after_ms)

    def _remote_failure(self, outcome: RemoteOutcome) -> tuple[Message, str]:
        """Return the error for the sender of a command for a device on another instance, and the status."""
        if outcome == "unknown":
            return messages.OUTCOME_UNKNOWN, "unknown"
        self._counters.undeliverable += 1
        if outcome == "busy":
            return messages.DEVICE_BUSY, "device_offline"
        if outcome == "bus_unavailable":
            return messages.BUS_UNAVAILABLE, outcome
        return messages.device_offline_error(self._presence.device_id), outcome

    def deliver_remote(self, device: DeviceAttachment, message: Message, now: float) -> RemoteOutcome:
        """Deliver a command of a client on another instance, where its outcome is recorded.

        Requests for the state are combined with those of other clients.
        """
        kind = message.peek_type()
        if kind in self._dialect.state_requests and not self._may_ask(kind, now):
            return "delivered"
        if not device.deliver(Delivery((message,))):
            return "busy"
        self._count_sent((message,))
        return "delivered"

    def expire(self, now: float) -> None:
        """Remove commands that have waited for too long, and tell their senders."""
        if self._pending is None:
            return
        for command in self._pending.take_expired(now, now_ms()):
            self._tell_expired(command)
        if not self._pending:
            self._pending = None

    def _tell_expired(self, command: QueuedCommand) -> None:
        self._counters.undeliverable += 1
        self._tell(command, messages.device_offline_error(self._presence.device_id), "expired")

    def _tell(self, command: QueuedCommand, message: Message, status: str) -> None:
        told = [message]
        self._record_outcome(command.sender, command.head, status, told)
        command.sender.deliver(Delivery(told), keep=True)

    def _absent_status(self, *, queued: bool = False) -> Message:
        more: dict[str, object] = {}
        if queued:
            more = {
                "messageQueued": True,
                "queuedMessages": self.pending_count,
                "queueTTL": round(self._limits.pending_s * 1000),
            }
        return messages.device_status(
            self._presence.device_id, online=False, last_seen=iso_time(self._presence.last_seen_ms), **more
        )


def _remaining_s(head: CommandHead) -> float:
    """Return for how many seconds a command may still be delivered."""
    return (_not_after_ms(head) - now_ms()) / 1000


def _not_after_ms(head: CommandHead) -> float:
    """Return the time after which a command may not be delivered, in ms since the epoch."""
    if isinstance(head.not_after, bool) or not isinstance(head.not_after, int | float):
        return math.inf
    # JSON has integers that are too large for a division.
    return max(0, min(head.not_after, _LATEST_MS))


def _refresh(client: ClientAttachment, token: object) -> Message:
    """Replace the token of a client by a fresh one."""
    if client.renew is None or not isinstance(token, str):
        return messages.auth_refreshed(None, error="this client cannot take a fresh token")
    try:
        expires_at_s = client.renew(token)
    except TokenRejected as problem:
        return messages.auth_refreshed(None, error=str(problem))
    client.set_token_end(expires_at_s)
    return messages.auth_refreshed(iso_time(expires_at_s * 1000))
