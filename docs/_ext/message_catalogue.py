"""Every message that the relay itself says or answers: who gets it and when, its forms, its fields.

The examples are made by brewos_relay.messages, so they are what goes over the wire.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from brewos_relay import messages
from brewos_relay.messages import Message

DEVICE: Final = "BRW-12AB34CD"
_NOW_MS: Final = 1767322800000
_SEEN: Final = "2026-01-02T03:04:05.678Z"
_SESSION: Final = "03419d51b7d72ef5"

Whom = Literal["device", "client"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SentMessage:
    """A message of the relay. `made_by` is the name in brewos_relay.messages."""

    made_by: str
    to: Whom
    when: str
    forms: tuple[Message, ...]
    """An example of each form that it takes."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What each field means; one in another is written with a dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMessage:
    """A message of a peer of which the relay reads more than its type."""

    name: str
    sender: Whom
    when: str
    example: dict[str, Any]
    fields: Mapping[str, str]
    required: tuple[str, ...] = ()
    """Fields that must be there, besides `type`."""
    answers: tuple[str, ...] = ()
    """What the relay may answer, by `SentMessage.made_by`."""
    any_type: bool = False
    """Whether it stands for messages of many types."""


_DEVICE_ID: Final = "the device that the client is attached to"
_SEEN_MEANS: Final = "when the device last came or went; null if it was never here"
_TIME: Final = "the relay's clock, in milliseconds since 1970"
_TEXT: Final = "for people to read"
_STATUS_FIELDS: Final = {
    "deviceId": _DEVICE_ID,
    "online": "whether the device is there",
    "lastSeen": _SEEN_MEANS,
}

SENT: Final[tuple[SentMessage, ...]] = (
    SentMessage(
        made_by="connected_device",
        to="device",
        when="First of all",
        forms=(messages.connected_device(_NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="state_request",
        to="device",
        when="When it has come and clients are attached, and when a client asks for its state",
        forms=(messages.state_request("request_state", _NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="key_rotate",
        to="device",
        when="When somebody has asked for [a new"
        " key](../how-to/rotate-secrets-and-keys.md#the-key-of-a-machine). Both keys are good until the"
        " machine has come back with the new one; one that does not know this message goes on with its own",
        forms=(messages.key_rotate("Zq3vN2tJ5sYw8xPb1LkCfHr7uDmGaE0oVi4T9cXyRzQ"),),
        fields={"key": "the new key, to be used from the next connection on"},
    ),
    SentMessage(
        made_by="connected_client",
        to="client",
        when="First of all",
        forms=(messages.connected_client(_SESSION, DEVICE, device_online=False, timestamp_ms=_NOW_MS),),
        fields={
            "sessionId": "names this connection",
            "deviceId": _DEVICE_ID,
            "deviceOnline": "whether the device is there",
            "timestamp": _TIME,
        },
    ),
    SentMessage(
        made_by="device_status",
        to="client",
        when="Before the [last known state](protocol.md#what-is-known-of-a-device), when the client joins,"
        " when it has caught up, and when the device has come back (with `snapshotAgeMs`, and `staleGroups`"
        " if there are any); when it asks for the state of an absent device;"
        " and when its command waits for the device (with `messageQueued` and what follows)",
        forms=(
            messages.device_status(DEVICE, online=True, last_seen=_SEEN, snapshotAgeMs=1500),
            messages.device_status(
                DEVICE, online=True, last_seen=_SEEN, snapshotAgeMs=32500, staleGroups=["machine", "temps"]
            ),
            messages.device_status(DEVICE, online=False, last_seen=_SEEN),
            messages.device_status(
                DEVICE, online=False, last_seen=_SEEN, messageQueued=True, queuedMessages=1, queueTTL=10000
            ),
        ),
        fields={
            **_STATUS_FIELDS,
            "snapshotAgeMs": "how long ago the device last spoke of its state, in milliseconds, to the"
            " second; null if nothing is known",
            "staleGroups": "the groups of the state that follows which the device has not spoken of since it"
            " came back",
            "messageQueued": "true: the command waits",
            "queuedMessages": "how many commands wait for the device",
            "queueTTL": "how long commands wait at most, in milliseconds",
        },
    ),
    SentMessage(
        made_by="DEVICE_ONLINE",
        to="client",
        when="When the device has come. One that replaces its own earlier connection has neither gone nor"
        " come",
        forms=(messages.DEVICE_ONLINE,),
    ),
    SentMessage(
        made_by="DEVICE_OFFLINE",
        to="client",
        when="When the device has gone",
        forms=(messages.DEVICE_OFFLINE,),
    ),
    SentMessage(
        made_by="keepalive",
        to="client",
        when="When there was nothing else to say for some seconds",
        forms=(messages.keepalive(_NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="queued_message_sent",
        to="client",
        when="When a command of this client that waited has gone out",
        forms=(messages.queued_message_sent("command", _NOW_MS),),
        fields={
            "originalTimestamp": "when the command came in, in milliseconds since 1970",
            "messageType": "the command's `type`",
        },
    ),
    SentMessage(
        made_by="command_status",
        to="client",
        when="What became of a command that carried a `requestId` or a `notAfter`; the statuses are"
        " [in the protocol](protocol.md#commands-for-an-absent-device)",
        forms=(messages.command_status("r-17", "delivered", _NOW_MS),),
        fields={
            "requestId": "the command's, as it came; null if it had none",
            "status": "`delivered`, `queued`, `expired`, `device_offline` or `forbidden`",
            "timestamp": _TIME,
        },
    ),
    SentMessage(
        made_by="device_offline_error",
        to="client",
        when="When a command was not delivered, at once or after it has waited in vain",
        forms=(messages.device_offline_error(DEVICE),),
        fields={"error": "`device_offline`", "deviceId": _DEVICE_ID, "message": _TEXT},
    ),
    SentMessage(
        made_by="forbidden",
        to="client",
        when="When a command was not delivered since [its sender may not give"
        " it](protocol.md#who-may-say-what)",
        forms=(messages.forbidden(DEVICE),),
        fields={"error": "`forbidden`", "deviceId": _DEVICE_ID, "message": _TEXT},
    ),
    SentMessage(
        made_by="INVALID_MESSAGE",
        to="client",
        when="When a message was dropped that is no object with a text `type`",
        forms=(messages.INVALID_MESSAGE,),
        fields={"error": "`invalid_message`", "message": _TEXT},
    ),
    SentMessage(
        made_by="MESSAGE_TOO_BIG",
        to="client",
        when="When a MessagePack map was dropped that was small enough, but is not any more as JSON",
        forms=(messages.MESSAGE_TOO_BIG,),
        fields={"error": "`message_too_big`", "message": _TEXT},
    ),
    SentMessage(
        made_by="DEVICE_BUSY",
        to="client",
        when="When a message was dropped since the device has not read the ones before it",
        forms=(messages.DEVICE_BUSY,),
        fields={"error": "`device_busy`", "message": _TEXT},
    ),
    SentMessage(
        made_by="owner_changed",
        to="client",
        when="To owners, before they lose a device to [a machine that"
        " connected](../explanation/security.md#machines-that-never-connected)",
        forms=(messages.owner_changed(_NOW_MS),),
        fields={
            "level": "`warn`: apps show it among what the machine logs",
            "source": "`relay`",
            "timestamp": "when it registered it",
            "message": _TEXT,
        },
    ),
    SentMessage(
        made_by="key_pending",
        to="client",
        when="To owners, when a machine [registered another"
        " key](../explanation/security.md#taking-a-machine-over)",
        forms=(messages.key_pending(_NOW_MS),),
        fields={
            "level": "`warn`: apps show it among what the machine logs",
            "source": "`relay`",
            "timestamp": _TIME,
            "message": _TEXT,
        },
    ),
    SentMessage(
        made_by="pong",
        to="client",
        when="The answer to `ping`",
        forms=(messages.pong(_NOW_MS, _NOW_MS - 50),),
        fields={"timestamp": _TIME, "clientTimestamp": "the ping's `timestamp`, as it came"},
    ),
    SentMessage(
        made_by="metrics",
        to="client",
        when="The answer to `get_metrics`",
        forms=(
            messages.metrics(_NOW_MS, session_id=_SESSION, clients=2, device_online=True, queued_messages=0),
        ),
        fields={
            "timestamp": _TIME,
            "connection": "of this client",
            "connection.sessionId": "as in `connected`",
            "connection.clients": "how many clients are attached to the device",
            "deviceOnline": "whether the device is there",
            "queuedMessages": "how many commands wait for it",
        },
    ),
    SentMessage(
        made_by="token_expiring",
        to="client",
        when="5 minutes before its token ends, or at once if less is left",
        forms=(messages.token_expiring(_SEEN, 300),),
        fields={
            "expiresAt": "when the token ends, and the connection with it",
            "expiresIn": "the same in seconds from now",
            "refreshRequired": "true",
        },
    ),
    SentMessage(
        made_by="auth_refreshed",
        to="client",
        when="The answer to `refresh_auth`. Without success, the earlier token still counts",
        forms=(
            messages.auth_refreshed("2026-01-02T04:04:05.000Z"),
            messages.auth_refreshed(None, error="the token is another user's"),
        ),
        fields={
            "success": "whether the fresh token is in the place of the old one",
            "tokenExpiresAt": "when it ends",
            "error": "why it was not taken",
        },
    ),
    SentMessage(
        made_by="restarting",
        to="client",
        when="When the relay leaves, before the client is closed with 1012. Clients come back"
        " [spread over time](../explanation/restarts.md) if they wait for so long",
        forms=(messages.restarting(31000),),
        fields={"reconnectInMs": "when to come back, in milliseconds from now"},
    ),
)

RECEIVED: Final[tuple[ReceivedMessage, ...]] = (
    ReceivedMessage(
        name="said_by_device",
        sender="device",
        when="Whatever a device says goes to all of its clients as it came. The relay reads these of it",
        example={"type": "status", "seq": 7, "temps": {"brew": {"current": 93.2, "setpoint": 93.0}}},
        fields={
            "seq": "the device's own count; goes with the last known state",
            "level": "of a `log`: one of `error` reaches clients that lag as well",
        },
        any_type=True,
    ),
    ReceivedMessage(
        name="said_by_client",
        sender="client",
        when="Whatever a client says goes to the device, if [the client may say"
        " it](protocol.md#who-may-say-what). The relay reads these of it",
        example={"type": "command", "cmd": "set_temp", "boiler": "brew", "temp": 93.5, "requestId": "r-17"},
        fields={
            "cmd": "the command; its class says whether this client may send it, and whether it may wait",
            "mode": "of `set_mode`",
            "requestId": "anything; comes back in a `command_status`",
            "notAfter": "milliseconds since 1970: the command is not delivered after that",
        },
        answers=(
            "command_status",
            "device_offline_error",
            "device_status",
            "queued_message_sent",
            "forbidden",
            "INVALID_MESSAGE",
            "MESSAGE_TOO_BIG",
            "DEVICE_BUSY",
        ),
        any_type=True,
    ),
    ReceivedMessage(
        name="request_state",
        sender="client",
        when="Asks the device for its state; not more often than every 2 s, whoever asks",
        example={"type": "request_state"},
        fields={},
        answers=("device_status",),
    ),
    ReceivedMessage(
        name="request_full_status",
        sender="client",
        when="The same, and the relay answers with the status as it knows it at once",
        example={"type": "request_full_status"},
        fields={},
        answers=("device_status",),
    ),
    ReceivedMessage(
        name="ping",
        sender="client",
        when="Answered by the relay; the device does not get it",
        example={"type": "ping", "timestamp": _NOW_MS},
        fields={"timestamp": "anything; comes back as `clientTimestamp`"},
        answers=("pong",),
    ),
    ReceivedMessage(
        name="get_metrics",
        sender="client",
        when="Answered by the relay; the device does not get it",
        example={"type": "get_metrics"},
        fields={},
        answers=("metrics",),
    ),
    ReceivedMessage(
        name="refresh_auth",
        sender="client",
        when="Puts a fresh token in the place of the one that the connection was opened with. It must be"
        " good, of the same user and the same session, and name this device if the earlier one did",
        example={"type": "refresh_auth", "token": "eyJhbGciOiJIUzI1NiJ9.e30.x"},
        fields={"token": "the fresh token"},
        required=("token",),
        answers=("auth_refreshed",),
    ),
)
