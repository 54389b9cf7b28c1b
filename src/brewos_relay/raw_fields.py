"""Raw fields: split a message into its top-level keys and encoded values, and join them.

This is a slow but lenient decoder for messages of machines that msgspec refuses: a MessagePack map may have
keys of any type, and a text may hold unpaired surrogates or bytes that are not UTF-8.
"""

import json
import re
from typing import Any, Final, NoReturn, TypeAlias

import msgspec

Key: TypeAlias = str | bytes
"""A text, or the encoded key of a MessagePack map if it is not a UTF-8 text."""
Fields: TypeAlias = dict[Key, msgspec.Raw]

MALFORMED: Final = (msgspec.MsgspecError, ValueError, RecursionError)
"""The exceptions of decoding. RecursionError means deep nesting; UnicodeDecodeError is a ValueError."""

_decode_items = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_TEXT_STARTS: Final = {0xD9: 2, 0xDA: 3, 0xDB: 5}
_space = re.compile(r"[ \t\n\r]*").match


def split(payload: bytes, *, is_text: bool) -> Fields:
    """Return the fields of a JSON object or a MessagePack map; of a repeated key, the last.

    Raises one of `MALFORMED`. The texts of these errors repeat no content.
    """
    return _split_json(payload.decode()) if is_text else _split_msgpack(payload)


def join(fields: Fields, *, is_text: bool) -> bytes:
    """Encode fields as one object or map."""
    pairs = fields.items()
    if is_text:
        return b"{%b}" % b",".join(b"%b:%b" % (json.dumps(key).encode(), bytes(raw)) for key, raw in pairs)
    size = len(fields)
    head = bytes((0x80 | size,)) if size < 16 else b"\xdf%b" % size.to_bytes(4)
    return head + b"".join(
        b"%b%b" % (msgspec.msgpack.encode(key) if isinstance(key, str) else key, bytes(raw))
        for key, raw in pairs
    )


def map_head(payload: bytes) -> tuple[int, int] | None:
    """Return how many pairs a MessagePack map has, and where they start; None if it is not a map."""
    first = payload[0] if payload else 0
    if 0x80 <= first <= 0x8F:
        return first & 0x0F, 1
    start = {0xDE: 3, 0xDF: 5}.get(first)
    return (int.from_bytes(payload[1:start]), start) if start else None


def _split_msgpack(payload: bytes) -> Fields:
    head = map_head(payload)
    if head is None:
        raise ValueError("it is not a map")
    size, start = head
    if 2 * size > len(payload):
        raise ValueError("the map is cut off")
    # As an array of twice the size, a map may have keys of any type, and no value is decoded.
    items = _decode_items(b"\xdd%b%b" % ((2 * size).to_bytes(4), payload[start:]))
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _key(raw: msgspec.Raw) -> Key:
    encoded = bytes(raw)
    first = encoded[0]
    start = 1 if 0xA0 <= first <= 0xBF else _TEXT_STARTS.get(first)
    if start is None:
        return encoded
    try:
        return encoded[start:].decode()
    except UnicodeDecodeError:
        return encoded


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"JSON has no {constant}")


# All numbers become floats: a float may have any number of digits.
_decoder: Any = json.JSONDecoder(parse_constant=_refuse, parse_int=float)
_scan_value = _decoder.scan_once


def _split_json(text: str) -> Fields:
    fields: Fields = {}
    at = _after(text, "{", 0)
    more = text[at : at + 1] != "}"
    while more:
        if text[at : at + 1] != '"':
            raise ValueError(f"a key should be at character {at}")
        key, at = _scan_value(text, at)
        start = _after(text, ":", at)
        try:
            _, end = _scan_value(text, start)
        except StopIteration:
            raise ValueError(f"a value should be at character {start}") from None
        fields[key] = msgspec.Raw(text[start:end].encode())
        at = _end_of_space(text, end)
        more = text[at : at + 1] == ","
        if more:
            at = _end_of_space(text, at + 1)
    if _after(text, "}", at) < len(text):
        raise ValueError("something follows the object")
    return fields


def _after(text: str, mark: str, at: int) -> int:
    """Return where the text continues after a mark and the space around it."""
    at = _end_of_space(text, at)
    if text[at : at + 1] != mark:
        raise ValueError(f"{mark!r} should be at character {at}")
    return _end_of_space(text, at + 1)


def _end_of_space(text: str, at: int) -> int:
    found = _space(text, at)
    assert found is not None
    return found.end()
