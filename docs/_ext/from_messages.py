"""The messages on the WebSocket: an AsyncAPI 3.0 document and a page, both made from `message_catalogue`."""

import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, Final

from brewos_relay.errors import CloseCode
from message_catalogue import RECEIVED, SENT, ReceivedMessage, SentMessage

_KINDS: Final = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
}
_ANYTHING: Final = frozenset({"requestId", "clientTimestamp"})
_NULLABLE: Final = frozenset({"lastSeen", "snapshotAgeMs"})
_CONSTANT: Final = frozenset({"type", "error", "messageQueued", "refreshRequired", "source"})
EVERYTHING: Final[tuple[SentMessage | ReceivedMessage, ...]] = (*SENT, *RECEIVED)
_TITLES: Final = {
    "relay-to-device": "From the relay to a device",
    "relay-to-client": "From the relay to a client",
    "from-device": "From a device",
    "from-client": "From a client",
}


def document() -> dict[str, Any]:
    """Make the AsyncAPI document, in which `send` and `receive` are actions of the relay."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "brewos-relay",
            "version": version("brewos-relay"),
            "description": "A relay between espresso machines and apps.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "relay": {
                "host": "relay.example.org",
                "protocol": "wss",
                "description": "any server",
            }
        },
        "channels": {
            "device": _channel(
                "/ws/device",
                "A machine.",
                {
                    "id": {"type": "string", "pattern": "^[Bb][Rr][Ww]-[0-9A-Fa-f]{8}$"},
                    "key": {"type": "string", "pattern": "^[A-Za-z0-9_-]{32,128}$"},
                },
                [*_to("device"), *_from("device")],
            ),
            "client": _channel(
                "/ws/client",
                "An app; `/ws` is the same.",
                {
                    "token": {"type": "string", "description": "a JWT"},
                    "device": {"type": "string", "pattern": "^[Bb][Rr][Ww]-[0-9A-Fa-f]{8}$"},
                },
                [*_to("client"), *_from("client"), "from_device"],
            ),
        },
        "operations": {
            "tellDevice": _operation("send", "device", _to("device"), "Messages from the relay to a device."),
            "hearDevice": _operation("receive", "device", _from("device"), "Messages from a device."),
            "passOn": _operation(
                "send", "client", ["from_device"], "Messages of a device, forwarded to its clients."
            ),
            "tellClient": _operation("send", "client", _to("client"), "Messages from the relay to a client."),
            **{
                f"hear_{each.name}": _operation("receive", "client", [_name(each)], each.when)
                | ({"reply": _reply(each)} if each.answers else {})
                for each in RECEIVED
                if each.sender == "client"
            },
        },
        "components": {"messages": {_name(each): _message(each) for each in EVERYTHING}},
        "x-close-codes": [
            {"code": int(code), "name": name, "comeBack": code.may_reconnect}
            for name, code in CloseCode.__members__.items()
        ],
    }


def table_of(direction: str) -> str:
    """Make a section for each message of one direction, such as `relay-to-client`."""
    if direction not in _TITLES:
        raise KeyError(f"unknown direction {direction!r}; choose from {', '.join(_TITLES)}")
    source, _, whom = direction.rpartition("-to-")
    found: Iterable[SentMessage | ReceivedMessage]
    if source == "relay":
        found = [each for each in SENT if each.to == whom]
    else:
        found = [each for each in RECEIVED if direction == f"from-{each.sender}"]
    return "\n".join([f"## {_TITLES[direction]}", "", *(line for each in found for line in _section(each))])


def schema_of(each: SentMessage | ReceivedMessage) -> dict[str, Any]:
    """Make the JSON Schema of a message from its examples and the meanings of its fields."""
    if isinstance(each, SentMessage):
        forms = [json.loads(form.payload) for form in each.forms]
        return _object_schema(forms, dict(each.fields), "", always=set.intersection(*map(set, forms)))
    schema = _object_schema(
        [{"type": each.example["type"], **dict.fromkeys(each.fields)}],
        dict(each.fields),
        "",
        always={"type", *each.required},
    )
    if each.any_type:
        schema["properties"]["type"] = {"type": "string"}
    for name in each.required:
        schema["properties"][name]["type"] = _KINDS[type(each.example[name])]
    return schema | {"additionalProperties": True}


def _object_schema(
    forms: list[dict[str, Any]], meanings: dict[str, str], above: str, *, always: set[str]
) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for name in dict.fromkeys(name for form in forms for name in form):
        values = [form[name] for form in forms if name in form]
        if isinstance(values[0], dict):
            properties[name] = _object_schema(values, meanings, f"{above}{name}.", always=set(values[0]))
        else:
            properties[name] = _value_schema(name, values)
        if meaning := meanings.get(f"{above}{name}"):
            properties[name]["description"] = meaning
    return {"type": "object", "required": sorted(always), "properties": properties}


def _value_schema(name: str, values: list[Any]) -> dict[str, Any]:
    if name in _CONSTANT and not _vary(values):
        return {"const": values[0]}
    if name in _ANYTHING or values[0] is None:
        return {}
    kind = _KINDS[type(values[0])]
    return {"type": [kind, "null"] if name in _NULLABLE else kind}


def _vary(values: list[Any]) -> bool:
    """Return whether the examples of a field differ, so that it has no fixed value."""
    return any(value != values[0] for value in values)


def _name(each: SentMessage | ReceivedMessage) -> str:
    if isinstance(each, SentMessage):
        return f"to_{each.to}_{each.made_by.lower()}"
    return "from_device" if each.sender == "device" else f"from_client_{each.name}"


def _to(whom: str) -> list[str]:
    return [_name(each) for each in SENT if each.to == whom]


def _from(whom: str) -> list[str]:
    return [_name(each) for each in RECEIVED if each.sender == whom]


def _channel(address: str, title: str, query: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {
        "address": address,
        "title": title,
        "servers": [{"$ref": "#/servers/relay"}],
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {"type": "object", "required": list(query), "properties": query},
                "bindingVersion": "0.1.0",
            }
        },
    }


def _operation(action: str, channel: str, names: list[str], summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
    }


def _reply(each: ReceivedMessage) -> dict[str, Any]:
    names = [_name(said) for answer in each.answers for said in SENT if said.made_by == answer]
    return {
        "channel": {"$ref": "#/channels/client"},
        "messages": [{"$ref": f"#/channels/client/messages/{name}"} for name in names],
    }


def _message(each: SentMessage | ReceivedMessage) -> dict[str, Any]:
    examples = examples_of(each)
    return {
        "name": examples[0]["type"],
        "summary": each.when,
        "contentType": "application/json",
        "payload": schema_of(each),
        "examples": [{"payload": example} for example in examples],
    }


def examples_of(each: SentMessage | ReceivedMessage) -> list[dict[str, Any]]:
    """Return an example of each form of a message."""
    return (
        [json.loads(form.payload) for form in each.forms] if isinstance(each, SentMessage) else [each.example]
    )


def _section(each: SentMessage | ReceivedMessage) -> Iterator[str]:
    yield f"### {_title(each)}"
    yield ""
    yield f"Sent {each.when[0].lower()}{each.when[1:]}." if isinstance(each, SentMessage) else f"{each.when}."
    for example in examples_of(each):
        yield from ("", "```json", json.dumps(example, separators=(",", ":"), ensure_ascii=False), "```")
    yield ""
    if each.fields:
        schema = schema_of(each)
        yield "| Field | Type | Always present | Meaning |"
        yield "|---|---|---|---|"
        for path, meaning in each.fields.items():
            kind, is_always = _find(schema, path.split("."))
            yield f"| `{path}` | {kind} | {'yes' if is_always else 'no'} | {meaning} |"
        yield ""


def _title(each: SentMessage | ReceivedMessage) -> str:
    if isinstance(each, ReceivedMessage):
        return "Any message" if each.any_type else each.name
    content = json.loads(each.forms[0].payload)
    return f"{content['type']}: {content['error']}" if content["type"] == "error" else str(content["type"])


def _find(schema: dict[str, Any], path: list[str]) -> tuple[str, bool]:
    name, *below = path
    if below:
        return _find(schema["properties"][name], below)
    found = schema["properties"][name]
    if "const" in found:
        kind = next(kind for each, kind in _KINDS.items() if isinstance(found["const"], each))
    else:
        kind = found.get("type", "anything")
    return str(kind if isinstance(kind, str) else " or ".join(kind)), name in schema["required"]
