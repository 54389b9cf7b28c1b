"""Merging: split state messages into raw groups, overlay one message with another, and join them again.

Only the top-level keys are decoded. The value of a group stays as the device wrote it.
"""

import contextlib
import math
import struct
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from brewos_relay.dialect import Dialect, Volatile
from brewos_relay.messages import Head, Message
from brewos_relay.raw_fields import MALFORMED, Fields, Key, join, split

EMPTY_GROUPS: Final = frozenset({b"{}", b"\x80"})
_NO_GROUPS: Final = frozenset({"type", "seq"})
_decode_json = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_msgpack = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


def without_seq(message: Message) -> Message:
    """Return a message without its `seq`, for a client that has missed messages.

    The client may know that number already. It would take that for another gap, and ask again without end.
    """
    fields = fields_of(message)
    if fields.pop("seq", None) is None:
        return message
    return Message(join_fields(fields, is_text=message.is_text), message.is_text)


def readable_content(message: Message) -> Any:
    """Decode a message to JSON content. A 32-bit float is written with 7 digits; see `readable`.

    Fields that JSON cannot hold, such as a text that is not UTF-8, are left out. None if nothing can be
    decoded.
    """
    text = message.as_text()
    if text is not None:
        with contextlib.suppress(*MALFORMED):
            return readable(decode(text))
    return _readable_fields(message) or None


def _readable_fields(message: Message) -> dict[str, Any]:
    """Decode the fields of a message one by one, without the ones that JSON cannot hold."""
    content: dict[str, Any] = {}
    for name, value in fields_of(message).items():
        text = Message(bytes(value), message.is_text).as_text()
        with contextlib.suppress(*MALFORMED):
            if isinstance(name, str) and text is not None:
                encode_value(name, is_text=True)
                content[name] = readable(decode(text))
    return content


def without_volatile(message: Message, volatile: Sequence[Volatile]) -> Message | None:
    """Return a state without its `seq` and its volatile parts; None if it has no fields."""
    fields = fields_of(message)
    if not fields:
        return None
    fields.pop("seq", None)
    for part in volatile:
        group = fields.get(part.group)
        if group is None:
            continue
        if part.field is None:
            del fields[part.group]
            continue
        with contextlib.suppress(*MALFORMED):
            inner = split_fields(group, is_text=message.is_text)
            expected = None if part.value is None else encode_value(part.value, is_text=message.is_text)
            if part.field in inner and expected in (None, bytes(inner[part.field])):
                del inner[part.field]
                fields[part.group] = msgspec.Raw(join_fields(inner, is_text=message.is_text))
    return Message(join_fields(fields, is_text=message.is_text), message.is_text)


def overlay(base: Message, status: Message) -> Message:
    """Overlay an earlier state with a later one; the result has the encoding of the earlier one."""
    fields = fields_of(base)
    for name, value in fields_of(status).items():
        fields[name] = merge_group(fields.get(name), value, is_text=base.is_text)
    return Message(join_fields(fields, is_text=base.is_text), base.is_text)


def group_names(status: Message) -> list[str]:
    """List the groups of a state that have a text as their name."""
    return [name for name in fields_of(status) if isinstance(name, str) and name not in _NO_GROUPS]


def fields_of(message: Message) -> Fields:
    """Return the fields of a message; none if it is malformed."""
    try:
        return split_fields(message.payload, is_text=message.is_text)
    except MALFORMED:
        return {}


def split_fields(payload: bytes | msgspec.Raw, *, is_text: bool) -> Fields:
    try:
        return cast("Fields", (_decode_json if is_text else _decode_msgpack)(payload))
    except MALFORMED:
        return split(bytes(payload), is_text=is_text)


def merge_group(old: msgspec.Raw | None, new: msgspec.Raw, *, is_text: bool) -> msgspec.Raw:
    """Overlay the fields of `old` with those of `new` if both are maps; else return `new`."""
    if old is None:
        return new
    try:
        group = {**split_fields(old, is_text=is_text), **split_fields(new, is_text=is_text)}
    except MALFORMED:
        return new
    return msgspec.Raw(join_fields(group, is_text=is_text))


def join_fields(fields: Fields, *, is_text: bool) -> bytes:
    if all(type(key) is str for key in fields):
        with contextlib.suppress(UnicodeEncodeError):  # an unpaired surrogate
            return encode_value(fields, is_text=is_text)
    return join(fields, is_text=is_text)


def encode_value(content: Any, *, is_text: bool) -> bytes:
    return msgspec.json.encode(content) if is_text else msgspec.msgpack.encode(content)


def raw_value(content: Any, *, is_text: bool) -> msgspec.Raw:
    return msgspec.Raw(encode_value(content, is_text=is_text))


def recode(message: Message, *, is_text: bool) -> Fields:
    """Return the fields of a message, converted to the other encoding if it is not in this one.

    A field that the other encoding cannot hold is left out.
    """
    fields = fields_of(message)
    if message.is_text == is_text:
        return fields
    found: Fields = {}
    for name, value in fields.items():
        with contextlib.suppress(*MALFORMED, TypeError, OverflowError):
            content = readable(decode(Message(bytes(value), message.is_text)))
            if isinstance(name, str):
                encode_value(name, is_text=True)
                found[name] = raw_value(content, is_text=is_text)
    return found


def decode(message: Message) -> Any:
    """Decode a whole message. Raises msgspec.MsgspecError or RecursionError."""
    return (msgspec.json.decode if message.is_text else msgspec.msgpack.decode)(message.payload)


def readable(value: Any) -> Any:
    """Write 32-bit floats with the 7 digits that they hold: 93.2, not 93.19999694824219."""
    if isinstance(value, float):
        return _readable_float(value)
    if isinstance(value, dict):
        return {name: readable(content) for name, content in value.items()}
    if isinstance(value, list):
        return [readable(content) for content in value]
    return value


def _readable_float(value: float) -> float:
    # Integers stay: times in ms have more than 7 digits, and are sent in 64 bits.
    if value.is_integer() or not math.isfinite(value):
        return value
    in_32_bits = struct.unpack("f", struct.pack("f", value))[0]  # larger floats are integers
    return float(f"{value:.7g}") if in_32_bits == value else value


class HeldState:
    """Several state messages of a device, merged into one: a whole state or a change.

    A whole state replaces the groups that it names; a change replaces the fields that it names in a group. So
    an app that gets the one message knows the same as from all of them. The message has the last `seq`.
    """

    __slots__ = ("_dialect", "_groups", "_is_text", "_is_whole", "_only", "_seq", "size_bytes")

    def __init__(self, dialect: Dialect, *, is_text: bool) -> None:
        self._dialect = dialect
        self._is_text = is_text
        self._groups: dict[Key, Fields | msgspec.Raw] = {}
        self._only: Message | None = None  # a single message passes unchanged
        self._is_whole = False
        self._seq: Any = None
        self.size_bytes = 0
        """An upper bound of the size of the merged message."""

    def add(self, message: Message, head: Head) -> None:
        """Merge a message of this device's state."""
        if message.is_text == self._is_text:
            groups = split_fields(message.payload, is_text=self._is_text)
        else:
            groups = recode(message, is_text=self._is_text)
        self._only = None if self._groups else message
        self.size_bytes += len(message.payload)
        if head.type == self._dialect.state:
            self._is_whole = True
            self._groups.update(groups)
        else:
            for name, group in groups.items():
                self._groups[name] = self._merged(self._groups.get(name), group)
        if isinstance(head.seq, int) and abs(head.seq) < 2**63:
            self._seq = head.seq

    def _merged(self, old: Fields | msgspec.Raw | None, new: msgspec.Raw) -> Fields | msgspec.Raw:
        """Overlay `old` with `new` if both are maps; else return `new`. Each group is decoded only once."""
        if old is None:
            return new
        try:
            fields = split_fields(new, is_text=self._is_text)
            merged = split_fields(old, is_text=self._is_text) if isinstance(old, msgspec.Raw) else old
        except MALFORMED:
            return new
        merged.update(fields)
        return merged

    def message(self) -> Message:
        """Return everything as one message."""
        if self._only is None:
            fields = {
                name: group
                if isinstance(group, msgspec.Raw)
                else msgspec.Raw(join(group, is_text=self._is_text))
                for name, group in self._groups.items()
            }
            kind = self._dialect.state if self._is_whole else self._dialect.state_change
            fields["type"] = raw_value(kind, is_text=self._is_text)
            if self._seq is not None:
                fields["seq"] = raw_value(self._seq, is_text=self._is_text)
            self._only = Message(join(fields, is_text=self._is_text), self._is_text)
            self.size_bytes = len(self._only.payload)
        return self._only
