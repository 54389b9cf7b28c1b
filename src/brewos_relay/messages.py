"""Messages between a device and its clients, and the messages of the relay itself.

The relay forwards messages unchanged. It reads a few top-level keys of a JSON object or MessagePack map,
first of all the text `type`, and does not decode the rest.
"""

import contextlib
import json
import re
from functools import lru_cache
from types import GenericAlias
from typing import Any, Final

import msgspec

from brewos_relay.raw_fields import MALFORMED, map_head, split
from brewos_relay.texts import showable

_SHOWN_NAME_CHARS: Final = 64
_MOST_DEPTH: Final = 10
"""The deepest nesting of objects and arrays. A machine's parser ignores a message with deeper ones."""
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""Matches an escaped NUL in JSON, but not an escaped backslash before `u0000`."""


class Head(msgspec.Struct, gc=False):
    """The keys that are read of every message of a device. Only `type` is required."""

    type: str
    seq: Any = None
    level: Any = None


class CommandHead(msgspec.Struct, gc=False, rename="camel"):
    """The keys that are read of a client's message. Only `type` is required, and has to be a text."""

    type: str
    cmd: Any = None
    mode: Any = None
    request_id: Any = None
    not_after: Any = None
    timestamp: Any = None
    token: Any = None

    @property
    def wants_status(self) -> bool:
        """Whether the sender asks for the outcome."""
        return self.request_id is not None or self.not_after is not None

    @property
    def name(self) -> str:
        """Its `cmd`, or its `type` if it has none, as the activity shows it."""
        return _shown(self.cmd if self.type == "command" and isinstance(self.cmd, str) else self.type)


class DeviceInfo(msgspec.Struct, gc=False, rename="camel"):
    """What a device reports about itself, so that a list can tell devices apart. Values may have any type."""

    firmware_version: Any = None
    machine_type: Any = None


@lru_cache(maxsize=256)
def _shown(name: str) -> str:
    """Make a name from a client fit to be stored and shown."""
    return showable(name[:_SHOWN_NAME_CHARS], instead="?")


def _nested(levels: int) -> Any:
    """Build the type of a JSON value with at most this many arrays and objects inside each other."""
    scalar = None | bool | int | float | str
    value: Any = scalar
    for _ in range(levels):
        value = scalar | GenericAlias(list, (value,)) | GenericAlias(dict, (str, value))
    return value


peek_json = msgspec.json.Decoder(Head).decode
peek_msgpack = msgspec.msgpack.Decoder(Head).decode
_decode_command = msgspec.json.Decoder(GenericAlias(dict, (str, _nested(_MOST_DEPTH - 1)))).decode
_decode_info_json = msgspec.json.Decoder(DeviceInfo).decode
_decode_info_msgpack = msgspec.msgpack.Decoder(DeviceInfo).decode
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode
_decode_msgpack = msgspec.msgpack.Decoder().decode
_type_of_json = msgspec.json.Decoder(str).decode
_type_of_msgpack = msgspec.msgpack.Decoder(str).decode


class Message(msgspec.Struct, frozen=True, gc=False):
    """One WebSocket message: the received `payload`, and whether it is text (else binary).

    Text is valid UTF-8; the code that makes a message ensures that.
    """

    payload: bytes
    is_text: bool = True

    def __repr__(self) -> str:
        kind = "text" if self.is_text else "binary"
        return f"<Message {kind}, {len(self.payload)} bytes>"

    def peek(self) -> Head | None:
        """Read the head; None if the message is not an object (or map) with a text `type`."""
        try:
            return (peek_json if self.is_text else peek_msgpack)(self.payload)
        except MALFORMED:
            try:
                return self._peek_liberally()
            except MALFORMED:
                return None

    def _peek_liberally(self) -> Head:
        """Read the head of a message that msgspec refuses because of another key or text in it."""
        fields = split(self.payload, is_text=self.is_text)
        if (raw := fields.get("type")) is None:
            raise ValueError("it has no 'type'")
        try:
            head = Head((_type_of_json if self.is_text else _type_of_msgpack)(raw))
        except MALFORMED:
            raise ValueError("its 'type' is not a text") from None
        for name in ("seq", "level"):
            if (raw := fields.get(name)) is not None:
                with contextlib.suppress(*MALFORMED):
                    setattr(head, name, (_decode_json if self.is_text else _decode_msgpack)(raw))
        return head

    def why_invalid(self) -> str:
        """Return why the message has no head, without its content; an empty text if it has one."""
        if self.peek() is not None:
            return ""
        try:
            self._peek_liberally()
        except RecursionError:
            return "it is nested too deeply"
        except UnicodeDecodeError:
            return "a text is not UTF-8"
        except MALFORMED as problem:
            return str(problem)
        return ""

    def peek_type(self) -> str | None:
        """Read the `type`; None if the message is not an object (or map) with a text `type`."""
        head = self.peek()
        return head.type if head is not None else None

    def peek_command(self) -> CommandHead | None:
        """Read the head of a client's text message; None if it is not an object with a text `type`.

        Also None if another JSON parser could read the message differently: the head decides what the sender
        may do, and the machine has its own parser. See `_is_ambiguous`.
        """
        payload = self.payload
        try:
            content = _decode_command(payload)
            # A text without escapes that the encoder would write again is unambiguous: a repeated key would
            # be missing from it. Most messages of apps are like this.
            if (_encode_json(content) != payload or payload.find(b"\\") >= 0) and _is_ambiguous(payload):
                return None
        except MALFORMED:
            return None
        get = content.get  # reading these keys costs less than decoding the message a second time
        kind = get("type")
        if not isinstance(kind, str):
            return None
        return CommandHead(
            kind,
            get("cmd"),
            get("mode"),
            get("requestId"),
            get("notAfter"),
            get("timestamp"),
            get("token"),
        )

    def peek_info(self) -> DeviceInfo:
        """Read what a device reports about itself; empty if the message cannot be read."""
        try:
            return (_decode_info_json if self.is_text else _decode_info_msgpack)(self.payload)
        except MALFORMED:
            return DeviceInfo()

    def as_command(self) -> "Message | None":
        """Return a client's message as JSON text, which `peek_command` reads and a machine gets.

        None if the message has no such form, or is a MessagePack map with a repeated key.
        """
        if self.is_text:
            return self
        text = self.as_text()
        head = map_head(self.payload)
        if text is None or head is None or head[0] > len(_decode_json(text.payload)):
            return None
        return text

    def as_text(self) -> "Message | None":
        """Return the message as JSON text, which machines need; None if it has no such form."""
        if self.is_text:
            return self
        try:
            return Message(_encode_json(_decode_msgpack(self.payload)))
        except (*MALFORMED, TypeError):
            return None


def _is_ambiguous(payload: bytes) -> bool:
    """Whether JSON parsers could read a text differently; may raise one of `MALFORMED` if they could.

    Parsers disagree about repeated keys, NUL, unpaired surrogates, numbers without a value (such as 1e999),
    and deep nesting. `_decode_command` has refused the last three.
    """
    if _NUL.search(payload):
        return True
    json.loads(payload, object_pairs_hook=_dict_without_repetition)
    return False


def _dict_without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key comes twice")
    return content


def encode(content: dict[str, Any]) -> Message:
    """Make a text message of a JSON object."""
    return Message(_encode_json(content))


DEVICE_ONLINE: Final = encode({"type": "device_online"})
DEVICE_OFFLINE: Final = encode({"type": "device_offline"})
INVALID_MESSAGE: Final = encode(
    {
        "type": "error",
        "error": "invalid_message",
        "message": "The message was dropped: it must be a JSON object with a text 'type', and no key twice.",
    }
)
MESSAGE_TOO_BIG: Final = encode(
    {
        "type": "error",
        "error": "message_too_big",
        "message": "The message was dropped: the machine reads no message of this size.",
    }
)
OUTCOME_UNKNOWN: Final = encode(
    {
        "type": "error",
        "error": "outcome_unknown",
        "message": "The server did not learn in time whether the machine received the command.",
    }
)
BUS_UNAVAILABLE: Final = encode(
    {
        "type": "error",
        "error": "bus_unavailable",
        "message": "The command was not delivered: the servers cannot reach each other. Try again.",
    }
)
DEVICE_BUSY: Final = encode(
    {
        "type": "error",
        "error": "device_busy",
        "message": "The message was dropped: the machine has not read the ones before it.",
    }
)


def connected_device(timestamp_ms: int) -> Message:
    """Build the greeting of a device."""
    return encode({"type": "connected", "timestamp": timestamp_ms})


def connected_client(session_id: str, device_id: str, *, device_online: bool, timestamp_ms: int) -> Message:
    """Build the greeting of a client, which says whether its device is online."""
    return encode(
        {
            "type": "connected",
            "sessionId": session_id,
            "deviceId": device_id,
            "deviceOnline": device_online,
            "timestamp": timestamp_ms,
        }
    )


def device_offline_error(device_id: str) -> Message:
    """Build the answer to a command for an absent device; apps show the text to their user."""
    return encode(
        {
            "type": "error",
            "error": "device_offline",
            "deviceId": device_id,
            "message": "The machine is offline; the command was not delivered.",
        }
    )


def forbidden(device_id: str) -> Message:
    """Build the answer to a command that its sender may not send; apps show the text to their user."""
    return encode(
        {
            "type": "error",
            "error": "forbidden",
            "deviceId": device_id,
            "message": "You may not do this with the machine: ask one of its owners.",
        }
    )


def key_rotate(key: str) -> Message:
    """Build the message that gives a device a new key, for its next connection."""
    return encode({"type": "key_rotate", "key": key})


def key_pending(timestamp_ms: int) -> Message:
    """Tell an owner that a machine wants to replace its key; apps show this among the machine's log lines."""
    return encode(
        {
            "type": "log",
            "level": "warn",
            "source": "relay",
            "timestamp": timestamp_ms,
            "message": "A machine with this id registered another key, which is not in use. If that was "
            "yours (after a reset, say), pair it again by its QR code; if not, there is nothing to do.",
        }
    )


def owner_changed(timestamp_ms: int) -> Message:
    """Tell an owner that a machine with another key, and the user who paired it, have the device now."""
    return encode(
        {
            "type": "log",
            "level": "warn",
            "source": "relay",
            "timestamp": timestamp_ms,
            "message": "A machine with this id and another key has connected, and the user who paired it owns"
            " the device now. If the machine is yours, switch it on within a day of pairing it, or ask the"
            " administrator of this server to release it.",
        }
    )


def device_status(device_id: str, *, online: bool, last_seen: str | None, **more: Any) -> Message:
    """Build the message that tells whether a device is online, which apps do not announce to their user.

    `last_seen` is an ISO 8601 time in UTC; `more` are further fields.
    """
    return encode(
        {"type": "device_status", "deviceId": device_id, "online": online, "lastSeen": last_seen, **more}
    )


def state_request(message_type: str, timestamp_ms: int) -> Message:
    """Build a request for the state of a device; `message_type` is its name in the dialect."""
    return encode({"type": message_type, "timestamp": timestamp_ms})


def keepalive(timestamp_ms: int) -> Message:
    """Build the message that shows a client that its connection is alive."""
    return encode({"type": "keepalive", "timestamp": timestamp_ms})


def pong(timestamp_ms: int, client_timestamp: Any) -> Message:
    """Build the answer to a client's `ping`."""
    return encode({"type": "pong", "timestamp": timestamp_ms, "clientTimestamp": client_timestamp})


def metrics(
    timestamp_ms: int, *, session_id: str, clients: int, device_online: bool, queued_messages: int
) -> Message:
    """Build the answer to a client's `get_metrics`."""
    return encode(
        {
            "type": "metrics",
            "timestamp": timestamp_ms,
            "connection": {"sessionId": session_id, "clients": clients},
            "deviceOnline": device_online,
            "queuedMessages": queued_messages,
        }
    )


def queued_message_sent(message_type: str, queued_at_ms: int) -> Message:
    """Tell a client that its message, which waited, has reached the device."""
    return encode(
        {"type": "queued_message_sent", "originalTimestamp": queued_at_ms, "messageType": message_type}
    )


def command_status(request_id: Any, status: str, timestamp_ms: int) -> Message:
    """Tell a client the outcome of a command that carried a `requestId` or a `notAfter`."""
    answer = {"type": "command_status", "requestId": request_id, "status": status, "timestamp": timestamp_ms}
    try:
        return encode(answer)
    except RecursionError:  # its nesting can be decoded but not encoded
        return encode({**answer, "requestId": None})


def token_expiring(expires_at: str, expires_in_s: int) -> Message:
    """Tell a client that its token expires soon; `expires_at` is an ISO 8601 time in UTC."""
    return encode(
        {
            "type": "token_expiring",
            "expiresAt": expires_at,
            "expiresIn": expires_in_s,
            "refreshRequired": True,
        }
    )


def auth_refreshed(expires_at: str | None, *, error: str | None = None) -> Message:
    """Build the answer to a `refresh_auth`."""
    if error is not None:
        return encode({"type": "auth_refreshed", "success": False, "error": error})
    return encode({"type": "auth_refreshed", "success": True, "tokenExpiresAt": expires_at})


def restarting(reconnect_in_ms: int) -> Message:
    """Tell a client that the relay restarts, and when to connect again."""
    return encode({"type": "restarting", "reconnectInMs": reconnect_in_ms})
