"""Recording: what the log and the activity say about attachments."""

import logging
from collections.abc import Sequence
from typing import Final, Literal, Protocol, TypeAlias

import msgspec
import trio

from brewos_relay.core.attachment import Attachment, ClientAttachment, DeviceAttachment
from brewos_relay.core.peer import SHUT_DOWN, Receive, end_details, shown
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.messages import CommandHead, DeviceInfo, Message
from brewos_relay.vocabulary import Detail

log = logging.getLogger(__name__)

EventKind: TypeAlias = Literal[
    "online", "offline", "client_came", "client_went", "command", "throttled", "throttle_ended"
]
"""The kinds of activity that are recorded."""


class ActivityEvent(msgspec.Struct, frozen=True, gc=False):
    """Activity of a device or of its clients, for the history that its users can read."""

    device_id: str
    kind: EventKind
    user_id: str | None
    """The user who caused it, if any."""
    detail: Detail
    anonymous: bool = False
    """Whether the device registered itself and has no user."""
    info: DeviceInfo | None = None
    """What a device that went offline has reported about itself."""


class Recorder(Protocol):
    """Records activity of devices and clients."""

    def record_activity(self, device_id: str, kind: EventKind, user_id: str | None, detail: Detail) -> None:
        """Record activity of a device, or of a client of the user."""

    def record_command(self, device_id: str, user_id: str | None, head: CommandHead, outcome: str) -> bool:
        """Record a command of a client of the user; False if such commands are ignored at present."""


_NAMED_AT_MOST: Final = 8


def log_fields(attachment: Attachment) -> dict[str, object]:
    """Return the fields that identify an attachment in the log, and how it ended."""
    fields: dict[str, object] = {"device": attachment.session.device_id, "connection": attachment.number}
    if isinstance(attachment, ClientAttachment):
        fields["client"] = attachment.id
    if attachment.end is not None:
        fields |= end_details_of(attachment)
    return fields


def end_details_of(attachment: Attachment) -> dict[str, str | int | float]:
    """Return the details of the end of an attachment as the activity keeps them."""
    return end_details(
        attachment.end or SHUT_DOWN,
        connected_s=trio.current_time() - attachment.attached_at,
        received=attachment.received,
    )


def log_came(attachment: Attachment, lines: LogLineLimits) -> None:
    """Log that a peer is attached, within the limits of such lines."""
    is_client = isinstance(attachment, ClientAttachment)
    if not lines.admit("client came" if is_client else "device came", attachment.network):
        return
    who = f"client {attachment.id} of " if isinstance(attachment, ClientAttachment) else ""
    log.info("%sdevice %s came", who, attachment.session.device_id, extra=log_fields(attachment))


def log_replaced(attachment: Attachment, lines: LogLineLimits) -> None:
    """Log that a device has a new connection, within the limits."""
    if lines.admit("device replaced its connection", attachment.network):
        device_id = attachment.session.device_id
        log.info("device %s replaced its earlier connection", device_id, extra=log_fields(attachment))


def log_went(attachment: Attachment, lines: LogLineLimits, *, stood_for_device: bool = True) -> None:
    """Log how a peer ended, within the limits."""
    device_id, end = attachment.session.device_id, attachment.end or SHUT_DOWN
    is_client = isinstance(attachment, ClientAttachment)
    kind = "client" if is_client else "device"
    became = "went" if is_client or stood_for_device else "is over"
    if not lines.admit(f"{kind} {became} ({end.by}, {end.label})", attachment.network):
        return
    if isinstance(attachment, ClientAttachment):
        what = f"client {attachment.id} of device {device_id}"
    else:
        what = f"device {device_id}" if stood_for_device else f"a connection of device {device_id}"
    log.info("%s %s: %s", what, became, end, extra=log_fields(attachment))


def log_invalid(device: DeviceAttachment, received: Sequence[Message], lines: LogLineLimits) -> None:
    """Log why a message of a device was dropped, once for each connection and within the limits."""
    if device.sent_invalid:
        return
    device.sent_invalid = True
    if lines.admit("device sent an unreadable message", device.network):
        why = next(filter(None, (message.why_invalid() for message in received)), "")
        text = "device %s sent a message that was dropped: %s; others of this connection are only counted"
        log.warning(text, device.session.device_id, shown(why), extra=log_fields(device))


def log_throttled(attachment: Attachment, lines: LogLineLimits) -> None:
    """Log that a device exceeds its rate, within the limits."""
    if lines.admit("device throttled", attachment.network):
        log.info(
            "device %s sends more than its rate allows; its messages are merged",
            attachment.session.device_id,
            extra=log_fields(attachment),
        )


def log_contested(attachment: Attachment, lines: LogLineLimits) -> None:
    """Log that two devices use the same id, within the limits."""
    if lines.admit("device contested", attachment.network):
        text = "two machines use the id %s; only one of them is let in"
        log.warning(text, attachment.session.device_id, extra=log_fields(attachment))


def log_lagging(client: ClientAttachment, lines: LogLineLimits) -> None:
    """Log that a client lags, within the limits."""
    if lines.admit("client lags", client.network):
        log.info("client %s lags", client.id, extra=log_fields(client))


def receive_logged(attachment: Attachment, receive: Receive, received: Sequence[Message]) -> float:
    """Log the types of the messages of a peer, and pass them on."""
    if received:
        types = [shown(message.peek_type() or "?") for message in received[:_NAMED_AT_MOST]]
        more = f" and {len(received) - len(types)} more" if len(received) > len(types) else ""
        kind = "client" if isinstance(attachment, ClientAttachment) else "device"
        log.debug("from a %s: %s%s", kind, ", ".join(types), more, extra=log_fields(attachment))
    return receive(received)
