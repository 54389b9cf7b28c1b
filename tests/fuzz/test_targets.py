from collections.abc import Callable
from typing import Any

import pytest

import brewos_relay.messages
from brewos_relay.core import merging, snapshot
from brewos_relay.messages import Head, Message
from brewos_relay.wire.frames import FrameParser, Parsed
from brewos_relay.wire.handshake import Refusal, Request
from brewos_relay.wire.proxy_protocol import ProxyHeader
from fuzz import targets
from fuzz.run import fuzz_target, parse_arguments
from fuzz.targets import TARGETS, Target

SECS = 0.4


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_quick_run_finds_nothing(target: Target) -> None:
    tried, found = fuzz_target(target, secs=SECS, seed=11, at_least=25)
    assert found == []
    assert tried >= 25


def find(name: str) -> list[str]:
    (target,) = [target for target in TARGETS if target.name == name]
    return fuzz_target(target, secs=1, seed=11)[1]


def forgetful(
    feed: Callable[[FrameParser, bytes], list[Message] | Parsed],
) -> Callable[..., list[Message] | Parsed]:
    """Break a parser: it forgets the rest of an incomplete frame."""

    def broken(self: FrameParser, data: bytes) -> list[Message] | Parsed:
        messages = feed(self, data)
        self._partial = None
        return messages

    return broken


def test_a_parser_that_forgets_incomplete_frames_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrameParser, "feed", forgetful(FrameParser.feed))
    assert find("frames")


def test_a_response_with_a_line_of_the_request_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(head: bytes) -> Request:
        line = head.split(b"\r\n")[0].decode("latin-1")
        raise Refusal(400, "no", headers={"X-Asked": line})

    monkeypatch.setattr(targets, "parse_head", careless)
    assert find("handshake")


def test_a_proxy_header_whose_end_depends_on_later_data_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "parse_proxy_header", lambda data: (ProxyHeader(), len(data)))
    assert find("proxy")


def test_a_peek_at_a_missing_type_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Message, "peek", lambda _: Head(type="status"))
    assert find("messages")


def test_a_message_with_two_meanings_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brewos_relay.messages, "_is_ambiguous", lambda payload: False)
    assert find("commands")


def test_a_snapshot_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def swollen(content: Any, *, is_text: bool) -> bytes:
        return b'{"type":"status","x":"' + b"x" * 80_000 + b'"}'

    monkeypatch.setattr(merging, "encode_value", swollen)
    monkeypatch.setattr(snapshot, "_MOST_BYTES", 10**6)
    assert find("snapshot")


def test_a_finding_is_reported_once_with_its_seed() -> None:
    def fail(data: bytes, _: object) -> None:
        assert data != data

    tried, found = fuzz_target(Target("frames", (b"a",), fail), secs=0.05, seed=3)
    assert tried > 1
    assert len(found) == 1
    assert "AssertionError at test_targets.py" in found[0]
    assert "--only frames --seed 3" in found[0]


def test_unknown_parts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--only", "frames,nothing"])
    assert "nothing" in capsys.readouterr().err
