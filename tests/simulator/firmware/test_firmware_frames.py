"""Tests of simulator.firmware.firmware_frames."""

import random

import pytest

from brewos_relay.simulator.firmware.firmware_frames import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    Frame,
    FrameReader,
    UnreadableFrame,
    build,
)
from support.firmware_wire import device_frame
from support.wire_client import frame


@pytest.mark.parametrize("length", [0, 1, 125, 126, 1399, 1400, 2047])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING])
def test_frames_equal_those_of_the_reference_machine(length: int, opcode: int) -> None:
    payload = bytes(range(256)) * 8
    writes = build(opcode, payload[:length], rng=random.Random(1))
    assert b"".join(writes) == device_frame(opcode, payload[:length], random.Random(1))
    assert len(writes) == (2 if length >= 1400 else 1)


def test_always_masked_masks_large_frames() -> None:
    (data,) = build(TEXT, b"x" * 1500, rng=random.Random(1), always_masked=True)
    assert data[4:8] != b"\0\0\0\0"


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_are_read_in_pieces(step: int) -> None:
    data = b"".join(
        [
            frame(TEXT, b"a" * 300, mask=None),
            frame(PING, b"p", mask=None),
            frame(TEXT, b"masked"),
            frame(TEXT, b"part", fin=False, mask=None),
            frame(0, b"rest", mask=None),
            frame(CLOSE, b"\x03\xe8", mask=None),
        ]
    )
    found: list[Frame] = []
    reader = FrameReader()
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step], found.append)
    assert not reader.waiting
    assert [(each.opcode, each.payload[:6], each.whole) for each in found] == [
        (TEXT, b"aaaaaa", True),
        (PING, b"p", True),
        (TEXT, b"masked", True),
        (TEXT, b"part", False),
        (0, b"rest", False),
        (CLOSE, b"\x03\xe8", True),
    ]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"x" * 15_361, mask=None)[:4], 1009),
        (frame(TEXT, b"x" * 70_000, mask=None)[:10], 1009),
        (frame(0x3, mask=None), 1002),
    ],
)
def test_too_large_or_unknown_frame_is_unreadable(data: bytes, code: int) -> None:
    found: list[Frame] = []
    with pytest.raises(UnreadableFrame) as caught:
        FrameReader().feed(frame(TEXT, b"x" * 15_360, mask=None) + data, found.append)
    assert (caught.value.code, len(found)) == (code, 1)
