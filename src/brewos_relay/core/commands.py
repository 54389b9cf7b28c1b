"""What clients say: what the relay answers itself, what goes to the device, and what waits for it."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from brewos_relay import messages
from brewos_relay.core.attachment import Attachment, ClientAttachment
from brewos_relay.core.clock import iso_time, now_ms
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.pending import PendingCommand, PendingCommands
from brewos_relay.core.snapshot import unnumbered
from brewos_relay.errors import TokenRejected
from brewos_relay.messages import CommandHead, Delivery, Message

log = logging.getLogger(__name__)

_LATEST_MS = 2**53
_STATE_REQUESTS = frozenset({"request_state", "request_full_status"})


class Session(Protocol):
    """What commands need to know of the session that they are given in."""

    device_id: str
    last_seen_ms: int | None

    @property
    def device(self) -> Attachment | None:
        """The connection that stands for the device, if it is there."""

    @property
    def client_count(self) -> int:
        """How many clients are attached."""

    def snapshot_messages(self) -> list[Message]:
        """Give what is known of the device's state."""


class Commands:
    """Takes what the clients of one device say. Commands for an absent device wait here, if they may."""

    __slots__ = ("_asked_at", "_counters", "_limits", "_pending", "_session")

    def __init__(self, session: Session, *, limits: Limits, counters: Counters) -> None:
        self._session = session
        self._limits = limits
        self._counters = counters
        self._pending: PendingCommands[ClientAttachment] | None = None
        self._asked_at: dict[str, float] = {}  # when the device was last asked for its state, by message type

    def take(self, client: ClientAttachment, received: Sequence[Message], now: float) -> None:
        """Answer a client, or pass on to the device what it says."""
        self._counters.received_from_clients += len(received)
        to_device: list[Message] = []
        answers: list[Message] = []
        passed_on: list[CommandHead] = []  # of those that are to be told what became of them
        for message in received:
            text = message.as_text()
            head = text.peek_command() if text is not None else None
            if text is None or head is None:
                self._counters.invalid += 1
                answers.append(messages.INVALID_MESSAGE)
            elif len(text.payload) > self._limits.client_message_bytes:
                answers.append(messages.MESSAGE_TOO_BIG)
            elif (answer := self._answer(client, head)) is not None:
                answers.append(answer)
            elif head.type in _STATE_REQUESTS:
                answers += self._ask_for_state(text, head, to_device, now)
            else:
                answers += self._pass_on(client, text, head, to_device, passed_on, now)
        device = self._session.device
        became = "delivered"
        if to_device and device is not None and not device.deliver(Delivery(to_device)):
            self._counters.undeliverable += len(to_device)
            answers.append(messages.DEVICE_BUSY)
            became = "device_offline"
        answers += [messages.command_status(head.request_id, became, now_ms()) for head in passed_on]
        if answers:
            client.deliver(Delivery(answers), keep=True)

    def _answer(self, client: ClientAttachment, head: CommandHead) -> Message | None:
        """Answer what is meant for the relay; None if it is meant for the device."""
        if head.type == "ping":
            return messages.pong(now_ms(), head.timestamp)
        if head.type == "get_metrics":
            return messages.metrics(
                now_ms(),
                session_id=client.id,
                clients=self._session.client_count,
                device_online=self._session.device is not None,
                queued_messages=self.pending_count,
            )
        if head.type == "refresh_auth":
            return _refresh(client, head.token)
        return None

    def _ask_for_state(
        self, text: Message, head: CommandHead, to_device: list[Message], now: float
    ) -> list[Message]:
        """Ask the device for its state, unless somebody has just done so; whoever has a gap is helped now."""
        if self._session.device is None:
            return [self._absent_status()]
        if now - self._asked_at.get(head.type, -self._limits.state_request_s) >= self._limits.state_request_s:
            self._asked_at[head.type] = now
            to_device.append(text)
        if head.type == "request_state":
            return []
        known = self._session.snapshot_messages()
        return [unnumbered(message) for message in known if message.peek_type() == "status"]

    def note_asked(self, now: float) -> None:
        """Note that the relay itself has asked the device for its state."""
        self._asked_at["request_state"] = now

    def _pass_on(
        self,
        client: ClientAttachment,
        text: Message,
        head: CommandHead,
        to_device: list[Message],
        passed_on: list[CommandHead],
        now: float,
    ) -> list[Message]:
        wants_status = head.request_id is not None or head.not_after is not None
        left_s = self._left_s(head)
        answers: list[Message] = []
        if left_s <= 0:
            status = "expired"
        elif self._session.device is not None:
            to_device.append(text)
            if wants_status:
                passed_on.append(head)
            return []
        elif self._wait(client, text, head, min(left_s, self._limits.pending_s), now):
            answers.append(self._absent_status(queued=True))
            status = "queued"
        else:
            self._counters.undeliverable += 1
            answers.append(messages.device_offline_error(self._session.device_id))
            status = "device_offline"
        if wants_status:
            answers.append(messages.command_status(head.request_id, status, now_ms()))
        return answers

    @staticmethod
    def _left_s(head: CommandHead) -> float:
        """Look for how long a command may still be delivered, in s."""
        if isinstance(head.not_after, bool) or not isinstance(head.not_after, int | float):
            return float("inf")
        # JSON has whole numbers that are too large to be divided.
        return (max(0, min(head.not_after, _LATEST_MS)) - now_ms()) / 1000

    @property
    def pending_count(self) -> int:
        """How many commands wait for the device."""
        return len(self._pending) if self._pending is not None else 0

    def _wait(
        self, client: ClientAttachment, text: Message, head: CommandHead, wait_s: float, now: float
    ) -> bool:
        """Let a command wait for the device; False if it must not, or cannot."""
        if never_waits(head, self._limits.never_wait):
            return False
        if self._pending is None:
            self._pending = PendingCommands(self._limits.pending_commands)
        return self._pending.add(
            PendingCommand(
                message=text,
                message_type=head.type,
                sender=client,
                request_id=head.request_id,
                wants_status=head.request_id is not None or head.not_after is not None,
                queued_at_ms=now_ms(),
                expires_at=now + wait_s,
            )
        )

    def flush(self, device: Attachment, now: float) -> None:
        """Give the device that has come what waited for it, and tell the senders."""
        self.expire(now)
        if self._pending is None:
            return
        waiting, self._pending = self._pending.take_all(), None
        if waiting and not device.deliver(Delivery([command.message for command in waiting]), keep=True):
            for command in waiting:
                self._tell(command, messages.DEVICE_BUSY, "device_offline")
            return
        for command in waiting:
            sent = messages.queued_message_sent(command.message_type, command.queued_at_ms)
            self._tell(command, sent, "delivered")

    def expire(self, now: float) -> None:
        """Tell the senders of commands that have waited for too long."""
        if self._pending is None:
            return
        for command in self._pending.take_expired(now):
            self._counters.undeliverable += 1
            self._tell(command, messages.device_offline_error(self._session.device_id), "expired")
        if not self._pending:
            self._pending = None

    @staticmethod
    def _tell(command: PendingCommand[ClientAttachment], message: Message, status: str) -> None:
        told = [message]
        if command.wants_status:
            told.append(messages.command_status(command.request_id, status, now_ms()))
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
            self._session.device_id, online=False, last_seen=iso_time(self._session.last_seen_ms), **more
        )


def _refresh(client: ClientAttachment, token: object) -> Message:
    """Put a fresh token in the place of the one that a client came with."""
    if client.renew is None or not isinstance(token, str):
        return messages.auth_refreshed(None, error="no token can be taken here")
    try:
        expires_at_s = client.renew(token)
    except TokenRejected as problem:
        return messages.auth_refreshed(None, error=str(problem))
    client.set_token_end(expires_at_s)
    return messages.auth_refreshed(iso_time(expires_at_s * 1000))


def never_waits(head: CommandHead, patterns: Sequence[str]) -> bool:
    """Whether a command must not be delivered later than it was meant.

    A pattern names a `cmd`, or a `cmd` and its `mode` as `cmd:mode`; `*` stands for anything. A message that
    is no command is taken by its `type`, and a command that does not name its `cmd` never waits.
    """
    if head.type != "command":
        return any(fnmatchcase(head.type, pattern) for pattern in patterns)
    if not isinstance(head.cmd, str):
        return True
    name = head.cmd.strip().lower()
    names = (name, f"{name}:{head.mode.strip().lower()}" if isinstance(head.mode, str) else f"{name}:*")
    return any(fnmatchcase(one, pattern) for one in names for pattern in patterns) or (
        not isinstance(head.mode, str) and any(pattern.startswith(f"{name}:") for pattern in patterns)
    )
