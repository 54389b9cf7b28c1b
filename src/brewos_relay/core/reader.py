"""Reader: some values of a message, decoded without the rest of it."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from brewos_relay.core.merging import decode
from brewos_relay.messages import Message

_NO_FIELD: Final = "no_field"
"""An attribute that is always None."""


class Reader:
    """Reads the values at the ends of some paths of keys, and skips the rest of a message.

    An empty path leads nowhere.
    """

    def __init__(self, paths: Sequence[Sequence[str]]) -> None:
        self._paths = paths
        content_type, attributes = _define([tuple(path) for path in paths if path])
        self._from_json: Callable[[bytes], object] = msgspec.json.Decoder(content_type).decode
        self._from_msgpack: Callable[[bytes], object] = msgspec.msgpack.Decoder(content_type).decode
        names = [attributes.get(tuple(path), _NO_FIELD) for path in paths]
        # With fewer than two names, it would not return a tuple.
        self._values_of: Callable[[object], tuple[object, ...]] = attrgetter(*names, _NO_FIELD, _NO_FIELD)

    def read(self, message: Message) -> tuple[object, ...]:
        """Return the value at the end of each path, and perhaps some more; None where there is none.

        Raises one of `MALFORMED`, also for a message that is no object.
        """
        try:
            content = (self._from_json if message.is_text else self._from_msgpack)(message.payload)
        except msgspec.ValidationError:
            # A path leads through a value that is no object, or a key is no text.
            return self._read_whole(message)
        return self._values_of(content)

    def _read_whole(self, message: Message) -> tuple[object, ...]:
        content = decode(message)
        if not isinstance(content, dict):
            raise ValueError("the message is no object")
        return tuple([_find(content, path) if path else None for path in self._paths])


def _define(paths: Sequence[tuple[str, ...]]) -> tuple[type[msgspec.Struct], dict[tuple[str, ...], str]]:
    """Define the type of an object with these paths. Also return the attribute at the end of each.

    Where a path ends at the object of another one, there is no attribute.
    """
    fields: list[tuple[str, Any, Any]] = []
    keys: dict[str, str] = {}
    attributes: dict[tuple[str, ...], str] = {}
    for key in dict.fromkeys(path[0] for path in paths):
        name = f"field_{len(keys)}"
        keys[name] = key
        if inner := [path[1:] for path in paths if path[0] == key and len(path) > 1]:
            inner_type, inner_attributes = _define(inner)
            fields.append((name, inner_type, inner_type()))
            attributes |= {(key, *path): f"{name}.{each}" for path, each in inner_attributes.items()}
        else:
            fields.append((name, Any, None))
            attributes[key,] = name
    namespace = {_NO_FIELD: None}
    # JSON and MessagePack have no reference cycles, so the garbage collector need not know the objects.
    content_type = msgspec.defstruct(
        "Object", fields, namespace=namespace, rename=keys, frozen=True, gc=False
    )
    return content_type, attributes


def _find(content: Any, path: Sequence[str]) -> Any:
    """Return the value at the end of a path; None if there is none."""
    for key in path:
        if not isinstance(content, dict):
            return None
        content = content.get(key)
    return content
