import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.raw_fields import MALFORMED, join, map_head, split

pack = msgspec.msgpack.encode
VALUES = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9)
)
ANY_TEXT = st.text(st.characters(), max_size=5) | st.just("\ud800")  # an unpaired surrogate


@st.composite
def maps(draw: st.DrawFn) -> bytes:
    """A MessagePack map with keys of any type, and values that are invalid UTF-8 or an extension."""
    keys = draw(st.lists(VALUES.map(pack) | st.sampled_from([b"\xa1\xff", b"\x91\x01", b"\x81\x01\x02"])))
    values = VALUES.map(pack) | st.sampled_from([b"\xa1\xff", b"\xd4\x05\x01", b"\xd6\xff\x00\x00\x00\x00"])
    pairs = {key: draw(values) for key in keys}
    head = bytes((0x80 | len(pairs),)) if len(pairs) < 16 else b"\xdf" + len(pairs).to_bytes(4)
    return head + b"".join(key + value for key, value in pairs.items())


@given(payload=maps())
def test_a_map_with_keys_of_any_type_is_the_same_after_split_and_join(payload: bytes) -> None:
    assert join(split(payload, is_text=False), is_text=False) == payload


@given(
    content=st.dictionaries(ANY_TEXT, st.recursive(ANY_TEXT | st.integers(), st.lists, max_leaves=5)),
    indent=st.none() | st.integers(0, 2),
)
def test_an_object_with_half_a_surrogate_pair_is_the_same_after_split_and_join(
    content: dict[str, Any], indent: int | None
) -> None:
    payload = json.dumps(content, indent=indent).encode()
    fields = split(payload, is_text=True)
    assert {key: json.loads(bytes(value)) for key, value in fields.items()} == content
    assert json.loads(join(fields, is_text=True)) == content


def test_maps_of_every_size_can_be_split() -> None:
    for size in (0, 1, 15, 16, 70_000):
        content = {str(number): number for number in range(size)}
        payload = pack(content)
        assert msgspec.msgpack.decode(join(split(payload, is_text=False), is_text=False)) == content
        assert map_head(payload) == (size, 1 if size < 16 else 3 if size < 2**16 else 5)
    assert map_head(b"") is None
    assert map_head(b"\x90") is None


def test_the_last_of_a_repeated_key_counts() -> None:
    assert split(b'{"a":1,"a":2}', is_text=True) == {"a": msgspec.Raw(b"2")}
    # The same key in two encodings of a short text.
    assert split(b"\x82\xa1a\x01\xd9\x01a\x02", is_text=False) == {"a": msgspec.Raw(b"\x02")}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{",
        b'{"a"',
        b'{"a":',
        b'{"a":}',
        b'{"a":1',
        b'{"a":1,}',
        b"{1:1}",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b'{"a":"\x01"}',
        b'{"a":1}}',
        b'{"a":1} x',
        b'{"a":"\xff"}',
        b"\x00{\x00}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_text_that_is_not_an_object_cannot_be_split(payload: bytes) -> None:
    with pytest.raises(MALFORMED):
        split(payload, is_text=True)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x90",
        b"\x81\x01",
        b"\x81\x01\xc1",
        b"\x81\x01\x01\x01",
        b"\xdf\xff\xff\xff\xff\x01\x01",
        b"\xde\x01",
    ],
)
def test_binary_that_is_not_a_map_cannot_be_split(payload: bytes) -> None:
    with pytest.raises(MALFORMED):
        split(payload, is_text=False)


def test_digits_without_end_are_a_number() -> None:
    payload = b'{"a":%b}' % (b"1" * 10_000)
    assert join(split(payload, is_text=True), is_text=True) == payload


@given(payload=st.binary(max_size=60), is_text=st.booleans())
def test_no_payload_raises_anything_else(payload: bytes, is_text: bool) -> None:
    with suppress(*MALFORMED):
        split(payload, is_text=is_text)
