"""The messages that the relay sends itself, and the fields that it reads of other messages.

The examples are created by brewos_relay.messages, so they are the messages on the wire.
"""

import json
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
    """A message that the relay sends. `made_by` is its name in brewos_relay.messages."""

    made_by: str
    to: Whom
    when: str
    forms: tuple[Message, ...]
    """An example of each form of the message."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """The meaning of each field; a nested field is written with a dot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedMessage:
    """A message from a peer with fields that the relay reads."""

    name: str
    sender: Whom
    when: str
    example: dict[str, Any]
    fields: Mapping[str, str]
    required: tuple[str, ...] = ()
    """Required fields besides `type`."""
    answers: tuple[str, ...] = ()
    """The possible answers of the relay, by `SentMessage.made_by`."""
    any_type: bool = False
    """Whether it describes messages of many types."""


_DEVICE_ID: Final = "the device that the client is attached to"
_SEEN_MEANS: Final = "when the device last connected or disconnected; null if it never connected"
_TIME: Final = "the relay's clock, in milliseconds since 1970"
_TEXT: Final = "a text for users"
_STATUS_FIELDS: Final = {
    "deviceId": _DEVICE_ID,
    "online": "whether the device is online",
    "lastSeen": _SEEN_MEANS,
}


def _error(made_by: str, form: Message, *, when: str) -> SentMessage:
    """Describe an `error` message: the meanings of its fields follow from its content."""
    content = json.loads(form.payload)
    meanings = {"error": f"`{content['error']}`", "deviceId": _DEVICE_ID, "message": _TEXT}
    fields = {name: meaning for name, meaning in meanings.items() if name in content}
    return SentMessage(made_by=made_by, to="client", when=when, forms=(form,), fields=fields)


SENT: Final[tuple[SentMessage, ...]] = (
    SentMessage(
        made_by="connected_device",
        to="device",
        when="Directly after the upgrade",
        forms=(messages.connected_device(_NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="state_request",
        to="device",
        when="When the device comes online while clients are attached, and when a client requests its state",
        forms=(messages.state_request("request_state", _NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="key_rotate",
        to="device",
        when="When an owner or administrator has requested [a new"
        " key](../how-to/rotate-secrets-and-keys.md#the-key-of-a-machine). Both keys are valid until the"
        " machine has connected with the new one; a machine that does not know this message keeps its key",
        forms=(messages.key_rotate("Zq3vN2tJ5sYw8xPb1LkCfHr7uDmGaE0oVi4T9cXyRzQ"),),
        fields={"key": "the new key, for the next connection and later ones"},
    ),
    SentMessage(
        made_by="connected_client",
        to="client",
        when="Directly after the upgrade",
        forms=(messages.connected_client(_SESSION, DEVICE, device_online=False, timestamp_ms=_NOW_MS),),
        fields={
            "sessionId": "id of this connection",
            "deviceId": _DEVICE_ID,
            "deviceOnline": "whether the device is online",
            "timestamp": _TIME,
        },
    ),
    SentMessage(
        made_by="device_status",
        to="client",
        when="Before the [last known state](protocol.md#last-known-state), when the client connects,"
        " when it has caught up, and when the device comes back (with `snapshotAgeMs`, and `staleGroups`"
        " if there are any); when it requests the state of an absent device;"
        " and when its command waits for the device (with `messageQueued` and the fields after it)",
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
            "snapshotAgeMs": "time since the device last sent its state, in milliseconds, to the"
            " second; null if no state is known",
            "staleGroups": "the groups of the following state that the device has not sent since it came"
            " back",
            "messageQueued": "true: the command waits",
            "queuedMessages": "the number of commands that wait for the device",
            "queueTTL": "the longest time that a command waits, in milliseconds",
        },
    ),
    SentMessage(
        made_by="DEVICE_ONLINE",
        to="client",
        when="When the device comes online. A device that replaces its own earlier connection stays online",
        forms=(messages.DEVICE_ONLINE,),
    ),
    SentMessage(
        made_by="DEVICE_OFFLINE",
        to="client",
        when="When the device goes offline",
        forms=(messages.DEVICE_OFFLINE,),
    ),
    SentMessage(
        made_by="keepalive",
        to="client",
        when="After some seconds without another message",
        forms=(messages.keepalive(_NOW_MS),),
        fields={"timestamp": _TIME},
    ),
    SentMessage(
        made_by="queued_message_sent",
        to="client",
        when="When a waiting command of this client was delivered",
        forms=(messages.queued_message_sent("command", _NOW_MS),),
        fields={
            "originalTimestamp": "when the relay received the command, in milliseconds since 1970",
            "messageType": "the command's `type`",
        },
    ),
    SentMessage(
        made_by="command_status",
        to="client",
        when="As the result of a command with a `requestId` or a `notAfter`; [the"
        " protocol](protocol.md#commands-for-an-absent-device) explains each status",
        forms=(messages.command_status("r-17", "delivered", _NOW_MS),),
        fields={
            "requestId": "that of the command, unchanged; null if it had none",
            "status": "`delivered`, `queued`, `expired`, `device_offline`, `forbidden`, `unknown` or"
            " `bus_unavailable`",
            "timestamp": _TIME,
        },
    ),
    _error(
        "device_offline_error",
        messages.device_offline_error(DEVICE),
        when="When a command was not delivered, at once or after it has waited",
    ),
    _error(
        "forbidden",
        messages.forbidden(DEVICE),
        when="When a command was not delivered because [its sender has no"
        " permission](protocol.md#permissions)",
    ),
    _error(
        "INVALID_MESSAGE",
        messages.INVALID_MESSAGE,
        when="When a message was dropped because it is not an object with a string `type`",
    ),
    _error(
        "MESSAGE_TOO_BIG",
        messages.MESSAGE_TOO_BIG,
        when="When a MessagePack map was dropped because its JSON form is too large",
    ),
    _error(
        "DEVICE_BUSY",
        messages.DEVICE_BUSY,
        when="When a message was dropped because the device has not read earlier ones",
    ),
    _error(
        "OUTCOME_UNKNOWN",
        messages.OUTCOME_UNKNOWN,
        when="When the instance of the device did not tell in time whether the device got a command",
    ),
    _error(
        "BUS_UNAVAILABLE",
        messages.BUS_UNAVAILABLE,
        when="When a command was not delivered because the bus to the device's instance is unavailable",
    ),
    SentMessage(
        made_by="owner_changed",
        to="client",
        when="To owners, before they lose a device to [a machine that"
        " connected](../explanation/security.md#machines-that-never-connected)",
        forms=(messages.owner_changed(_NOW_MS),),
        fields={
            "level": "`warn`: apps show it among the log messages of the machine",
            "source": "`relay`",
            "timestamp": "when the machine registered",
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
            "level": "`warn`: apps show it among the log messages of the machine",
            "source": "`relay`",
            "timestamp": _TIME,
            "message": _TEXT,
        },
    ),
    SentMessage(
        made_by="pong",
        to="client",
        when="As the answer to `ping`",
        forms=(messages.pong(_NOW_MS, _NOW_MS - 50),),
        fields={"timestamp": _TIME, "clientTimestamp": "the ping's `timestamp`, unchanged"},
    ),
    SentMessage(
        made_by="metrics",
        to="client",
        when="As the answer to `get_metrics`",
        forms=(
            messages.metrics(_NOW_MS, session_id=_SESSION, clients=2, device_online=True, queued_messages=0),
        ),
        fields={
            "timestamp": _TIME,
            "connection": "about the connection of this client",
            "connection.sessionId": "as in `connected`",
            "connection.clients": "the number of clients that are attached to the device",
            "deviceOnline": "whether the device is online",
            "queuedMessages": "the number of commands that wait for it",
        },
    ),
    SentMessage(
        made_by="token_expiring",
        to="client",
        when="5 minutes before the client's token expires, or at once if less is left",
        forms=(messages.token_expiring(_SEEN, 300),),
        fields={
            "expiresAt": "when the token expires, which ends the connection",
            "expiresIn": "the same, in seconds from now",
            "refreshRequired": "true",
        },
    ),
    SentMessage(
        made_by="auth_refreshed",
        to="client",
        when="As the answer to `refresh_auth`. Without success, the earlier token stays in use",
        forms=(
            messages.auth_refreshed("2026-01-02T04:04:05.000Z"),
            messages.auth_refreshed(None, error="the token belongs to another user"),
        ),
        fields={
            "success": "whether the fresh token replaced the old one",
            "tokenExpiresAt": "when it expires",
            "error": "why it was not accepted",
        },
    ),
    SentMessage(
        made_by="restarting",
        to="client",
        when="At the start of a drain, before the client is closed with 1012. Clients that wait for this time"
        " come back [spread over time](../explanation/restarts.md)",
        forms=(messages.restarting(31000),),
        fields={"reconnectInMs": "when to reconnect, in milliseconds from now"},
    ),
)

RECEIVED: Final[tuple[ReceivedMessage, ...]] = (
    ReceivedMessage(
        name="any_from_device",
        sender="device",
        when="Every message of a device is forwarded to all of its clients, unchanged. The relay reads these"
        " fields",
        example={"type": "status", "seq": 7, "temps": {"brew": {"current": 93.2, "setpoint": 93.0}}},
        fields={
            "seq": "the device's message count; sent with the last known state",
            "level": "of a `log`: one of level `error` reaches lagging clients too",
        },
        any_type=True,
    ),
    ReceivedMessage(
        name="any_from_client",
        sender="client",
        when="Every message of a client is forwarded to the device if [the client has"
        " permission](protocol.md#permissions). The relay reads these fields",
        example={"type": "command", "cmd": "set_temp", "boiler": "brew", "temp": 93.5, "requestId": "r-17"},
        fields={
            "cmd": "the command. Its class decides whether this client may send it, and whether it may wait",
            "mode": "of `set_mode`",
            "requestId": "any value; returned in a `command_status`",
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
            "OUTCOME_UNKNOWN",
            "BUS_UNAVAILABLE",
        ),
        any_type=True,
    ),
    ReceivedMessage(
        name="request_state",
        sender="client",
        when="Requests the state from the device; at most once in 2 s for all clients together",
        example={"type": "request_state"},
        fields={},
        answers=("device_status",),
    ),
    ReceivedMessage(
        name="request_full_status",
        sender="client",
        when="The same, and the relay answers at once with the status that it knows",
        example={"type": "request_full_status"},
        fields={},
        answers=("device_status",),
    ),
    ReceivedMessage(
        name="ping",
        sender="client",
        when="Answered by the relay and not forwarded",
        example={"type": "ping", "timestamp": _NOW_MS},
        fields={"timestamp": "any value; returned as `clientTimestamp`"},
        answers=("pong",),
    ),
    ReceivedMessage(
        name="get_metrics",
        sender="client",
        when="Answered by the relay and not forwarded",
        example={"type": "get_metrics"},
        fields={},
        answers=("metrics",),
    ),
    ReceivedMessage(
        name="refresh_auth",
        sender="client",
        when="Replaces the token of the connection with a fresh one. It must be valid, of the same user and"
        " the same session, and name this device if the earlier one did",
        example={"type": "refresh_auth", "token": "eyJhbGciOiJIUzI1NiJ9.e30.x"},
        fields={"token": "the fresh token"},
        required=("token",),
        answers=("auth_refreshed",),
    ),
)
