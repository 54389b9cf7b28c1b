"""State messages as a machine writes them, and snapshots that contain some."""

import struct
from typing import Any

import msgspec

from brewos_relay.core.merging import decode
from brewos_relay.core.snapshot import Snapshot
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message


class Float32(float):
    """A number that a machine sends in 32 bits."""


def float32(value: float) -> Float32:
    return Float32(struct.unpack("f", struct.pack("f", value))[0])


def binary(content: dict[str, Any]) -> Message:
    """Write a message as a machine does: floats in 32 bits."""
    return Message(_pack(content), is_text=False)


def _pack(value: Any) -> bytes:
    if isinstance(value, Float32):
        return b"\xca" + struct.pack(">f", value)
    if isinstance(value, dict):
        assert len(value) < 16
        return bytes([0x80 | len(value)]) + b"".join(_pack(k) + _pack(v) for k, v in value.items())
    return msgspec.msgpack.encode(value)


def update(snapshot: Snapshot, *said: Message) -> None:
    for message in said:
        head = message.peek()
        assert head is not None
        snapshot.update(message, head.type, head.seq)


def snapshot_of(*said: Message) -> Snapshot:
    snapshot = Snapshot(BREWOS)
    update(snapshot, *said)
    return snapshot


def status_of(snapshot: Snapshot) -> Any:
    return decode(snapshot.messages()[0])
