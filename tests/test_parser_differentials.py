"""Every parser reads a client's message in the same way, or the relay refuses it."""

import json
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brewos_relay.messages import Message
from support.arduino_json import read_message
from support.meaning import check_meaning

KEYS = ["type", "cmd", "mode", "x", "requestId", "notAfter", "source"]
WORDS = ["command", "key_rotate", "tare", "restart", "on", "off", "", "a:b", "{[", "typ\u00e9", "\U0001f600"]
ODD_PIECES = [
    *(r"\u0000", r"\\u0000", r"\\\u0000", r"\U0000", r"\0", "\0", r"\ud800", r"\udc00", r"\ud83d\ude00"),
    *(r"\ude00\ud83d", r"\u0074", r"\/", r"\'", r"\q", r"\u00", "\\", '"', "'", "\n", "\x7f", "\u2028"),
    *("\ufeff", "NaN", "1e999", "-0", "01", "1." + "0" * 70, "/*", "//", "#", ",", ":", "{", "}", "[", "]"),
    *(
        '"type":"key_rotate",',
        '"cmd":"restart",',
        ',"cmd":"restart"',
        "null",
        "[" * 11,
        "]" * 11,
        " ",
        "\x0c",
    ),
]


def written(text: str, escapes: list[bool]) -> str:
    """Write a text as JSON, with some of its characters escaped."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    if plain != text:
        return f'"{plain}"'
    pairs = zip(text, [*escapes, *[False] * len(text)], strict=False)
    chosen = (f"\\u{ord(char):04x}" if escape and ord(char) < 0x10000 else char for char, escape in pairs)
    return f'"{"".join(chosen)}"'


texts = st.builds(written, st.sampled_from([*KEYS, *WORDS]), st.lists(st.booleans(), max_size=3))
scalars = texts | st.sampled_from(["1", "-2.5e3", "true", "null", "93.5", "1e999", str(2**70)])
spaces = st.sampled_from(["", "", "", " ", "\t\n"])


def members(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.builds("{}{}:{}{}".format, texts, spaces, spaces, values)
    return st.lists(pair, max_size=5).map(lambda pairs: "{" + ",".join(pairs) + "}")


values = st.recursive(
    scalars,
    lambda inner: members(inner) | st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    max_leaves=6,
)
messages = st.builds(
    lambda head, body: '{"type":' + head + ("," + body[1:] if len(body) > 2 else "}"), texts, members(values)
)


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """Build a message with some text inserted at any place, or none."""
    text: str = draw(messages)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.sampled_from(ODD_PIECES)) + text[at:]
    return text.encode()


@settings(max_examples=400)
@given(payload=nearly_messages())
@example(payload=rb'{"type":"key_rotate","x":"\u0000"}')
@example(payload=rb'{"type":"command","cmd":"tare","\u0063md":"restart"}')
@example(payload=b'{"type":"command","cmd" :"tare","x":":","cmd":"restart"}')
@example(payload=b'{"type":"x","a":{"b":1,"b":2}}')
@example(payload=b'{"type":"x","a":1e999}')
def test_parsers_agree_about_every_message_that_is_accepted(payload: bytes) -> None:
    check_meaning(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b'{"type":"command","cmd":"tare"}',
        b'{"type":"command","cmd":"cmd","x":"cmd","y":["cmd","cmd"]}',
        b' {\n"type" : "command" , "mode":"a:b:c"}\r\n',
        rb'{"type":"command","cmd":"set_machine_info","name":"a\"b\\u0000\/\u00e9\ud83d\ude00"}',
        rb'{"\u0074ype":"command","cmd":"\u0074are"}',
        b'{"type":"x","a":' + b"[" * 9 + b"]" * 9 + b"}",
        b'{"type":"x","a":"' + b"[{" * 20 + b'"}',
        b'{"type":"x","a":[{"b":1},{"b":2}],"b":3}',
        b'{"type":"ping","timestamp":' + str(2**70).encode() + b"}",
    ],
)
def test_an_unusual_message_with_one_meaning_is_accepted(payload: bytes) -> None:
    assert check_meaning(payload)


@pytest.mark.parametrize(
    "payload",
    [
        rb'{"type":"key_rotate","x":"\u0000"}',
        rb'{"type":"x","deep":[{"a":["\\\u0000"]}]}',
        rb'{"type":"x","a\u0000":1}',
        b'{"type":"x","a":"\x00"}',
        b'{"type":"x"}\x00',
        rb'{"type":"x","a":"\0"}',
        b'{"type":"x","type":"x"}',
        rb'{"type":"x","\u0074ype":"y"}',
        rb'{"t\u0079pe":"x","\u0074ype":"y"}',
        b'{"type":"x","cmd":1,"cmd" :2,"y":":"}',
        b'{"type":"x","unread":1,"unread":1}',
        b'{"type":"x","a":{"b":1,"b":1}}',
        rb'{"type":"x","a":"\ud800"}',
        rb'{"type":"x","a":"\ud800\u0041"}',
        rb'{"type":"x","a":"\udc00"}',
        rb'{"type":"x","a":"\udc00\ud800"}',
        rb'{"type":"x","\ud800":1}',
        b'{"type":"x","a":"\xed\xa0\x80"}',
        b'{"type":"x","a":"\xff"}',
        b'\xef\xbb\xbf{"type":"x"}',
        '{"type":"x"}'.encode("utf-16-le"),
        b'{"type":"x"}{"type":"y"}',
        b'{"type":"x"} x',
        b'{"type":"x"}// y',
        b'{/* */"type":"x"}',
        b"{'type':'x'}",
        b'{type:"x"}',
        b'{"type":"x",}',
        b'{"type":"x","a":NaN}',
        b'{"type":"x","a":-Infinity}',
        b'{"type":"x","a":1e999}',
        b'{"type":"x","a":01}',
        b'{"type":"x","a":' + b"1" * 5000 + b"}",
        b'{"type":1e400}',
        b'{"type":' + b"1" * 400 + b"}",
        b'{"type":"x","a":"\n"}',
        b'{"type":"x",\x0c"a":1}',
        b'{"type":"x","a":' + b"[" * 10 + b"]" * 10 + b"}",
        b'{"type":"x","a":' + b'{"a":' * 10 + b"1" + b"}" * 10 + b"}",
        b'{"type":"x","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_message_that_two_parsers_could_read_differently_is_refused(payload: bytes) -> None:
    assert Message(payload).peek_command() is None


def test_the_model_of_the_machine_is_lenient() -> None:
    assert read_message(b"{'type':x}") is None
    assert read_message(b"""{type:'a\\u0000b',"c":"d\n","e":[1,{}],f:-2.5,} rest""") is None
    read = read_message(b"""{type:'a\\u0000b',"c":"\\t\n","e":[1,{}],f:-2.5} rest""")
    assert read == {"type": "a", "c": "\t\n", "e": [1, {}], "f": -2.5}
    twice = b'{"a":1,"a":2}'
    assert read_message(twice) == {"a": 2}
    assert read_message(twice, first_wins=True) == {"a": 1}
    assert read_message(b'{"a":' + b"[" * 9 + b"]" * 9 + b"}") is not None
    assert read_message(b'{"a":' + b"[" * 10 + b"]" * 10 + b"}") is None
    assert read_message(b'{"a":' + b"1" * 64 + b"}") is None
    assert math.isinf((read_message(b'{"a":1e999}') or {})["a"])
    assert read_message(b'{"a":"b') is read_message(b"[1]") is read_message(rb'{"a":"\q"}') is None
