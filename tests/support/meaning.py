"""Check that all parsers read the same in each client message that the relay accepts."""

import json
from typing import Any

import msgspec

from brewos_relay.messages import Message
from support.arduino_json import read_message


def no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs)
    return dict(pairs)


def check_meaning(payload: bytes) -> bool:
    """Check that all parsers agree on a message if the relay accepts it. Tell whether it does."""
    head = Message(payload).peek_command()
    if head is None:
        return False
    content = json.loads(payload, object_pairs_hook=no_repetition)
    assert msgspec.json.decode(payload) == content
    strings = json.dumps(content, ensure_ascii=False)
    assert r"\u0000" not in strings.replace(r"\\", "")
    strings.encode()  # no half of a surrogate pair
    keys = {"type": "type", "cmd": "cmd", "mode": "mode", "requestId": "request_id", "notAfter": "not_after"}
    for key, field in keys.items():
        assert content.get(key) == getattr(head, field)
    for first_wins in (False, True):
        read = read_message(payload, first_wins=first_wins)
        assert read is None or read == content
    return True
