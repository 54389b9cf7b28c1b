"""The reader of some values of a message."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.core.reader import Reader
from brewos_relay.messages import Message

PATHS = (("a", "b"), ("a", "c"), ("a",), (), ("odd key",), ("d", "e", "f"))
KEYS = ("a", "b", "c", "d", "e", "f", "odd key", "no_field", "field_0", "")
contents = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


READERS = [(paths, Reader(paths)) for paths in (PATHS, PATHS[:2], PATHS[:1], PATHS[3:4], ())]


def message_with(content: Any, *, is_text: bool) -> Message:
    return Message((msgspec.json if is_text else msgspec.msgpack).encode(content), is_text)


def find(content: Any, path: Sequence[str]) -> Any:
    for key in path or ("nowhere",):
        content = content.get(key) if isinstance(content, dict) else None
    return content


@pytest.mark.parametrize("is_text", [True, False], ids=["JSON", "MessagePack"])
@given(content=st.dictionaries(st.sampled_from(KEYS), contents, max_size=6))
def test_reader_finds_the_values_at_its_paths(is_text: bool, content: dict[str, Any]) -> None:
    for paths, reader in READERS:
        found = reader.read(message_with(content, is_text=is_text))
        for path, value in zip(paths, found, strict=False):
            expected = find(content, path)
            if value is None and isinstance(expected, dict):
                continue  # another path leads through this object
            assert value == expected
            assert type(value) is type(expected)


@pytest.mark.parametrize("content", [[], 5, None, "text"])
def test_reader_refuses_what_is_no_object(content: Any) -> None:
    with pytest.raises(ValueError, match="no object"):
        Reader(PATHS).read(message_with(content, is_text=True))


def test_reader_accepts_keys_that_are_no_text() -> None:
    message = message_with({1: 2, b"x": 3, "odd key": 4}, is_text=False)
    assert Reader([("odd key",), ("a", "b")]).read(message) == (4, None)
