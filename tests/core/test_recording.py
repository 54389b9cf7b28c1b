import logging

import pytest

from brewos_relay.core.attachment import ClientAttachment, DeviceAttachment
from brewos_relay.core.peer import SHUT_DOWN, PeerEnd
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.core.recording import (
    end_details_of,
    log_came,
    log_contested,
    log_fields,
    log_invalid,
    log_lagging,
    log_replaced,
    log_throttled,
    log_went,
    receive_logged,
)
from brewos_relay.messages import Message, encode
from support.peers import PassiveSession, ScriptedPeer


class Session(PassiveSession):
    device_id = "BRW-12AB34CD"


def device() -> DeviceAttachment:
    return DeviceAttachment(Session(), ScriptedPeer(), bucket=None)


def client() -> ClientAttachment:
    return ClientAttachment(Session(), ScriptedPeer(), bucket=None)


async def test_fields_tell_connections_apart() -> None:
    one, other = device(), client()
    one.number, other.number = 3, 4
    assert log_fields(one) == {"device": "BRW-12AB34CD", "connection": 3}
    assert log_fields(other) == {"device": "BRW-12AB34CD", "connection": 4, "client": other.id}
    one.end = PeerEnd("peer", 1000)
    assert log_fields(one)["code"] == 1000
    assert end_details_of(other)["code"] == 1001, "the relay ended it when it closed"


async def test_coming_and_going_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, other = device(), client()
    other.end = PeerEnd("peer", None)
    lines = LogLineLimits("connections", rate_per_s=1.0, burst=6.0, each_at_once=10.0)
    log_came(one, lines)
    log_came(other, lines)
    log_replaced(one, lines)
    log_went(one, lines)
    log_went(one, lines, stood_for_device=False)
    log_went(other, lines)
    for tell in (log_came, log_replaced, log_went):
        tell(one, lines)
    assert caplog.messages == [
        "device BRW-12AB34CD came",
        f"client {other.id} of device BRW-12AB34CD came",
        "device BRW-12AB34CD replaced its earlier connection",
        "device BRW-12AB34CD went: the relay ended it with 1001: the relay is shutting down",
        f"a connection of device {one.session.device_id} is over: {SHUT_DOWN}",
        f"client {other.id} of device BRW-12AB34CD went: the peer ended it without a goodbye",
    ]


async def test_types_are_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    handed_on: list[object] = []

    def receive(received: object) -> float:
        handed_on.append(received)
        return 1.5

    said = [encode({"type": "status", "secret": "S3CRET"}), Message(b"[]"), *[encode({"type": "x"})] * 8]
    assert receive_logged(device(), receive, said) == 1.5
    assert receive_logged(client(), receive, said[:1]) == 1.5
    assert receive_logged(client(), receive, ()) == 1.5
    assert handed_on == [said, said[:1], ()]
    assert caplog.messages == [
        "from a device: status, ?, x, x, x, x, x, x and 2 more",
        "from a client: status",
    ]


async def test_a_dropped_message_is_logged_once_for_a_connection(caplog: pytest.LogCaptureFixture) -> None:
    lines = LogLineLimits("connections", rate_per_s=1.0, burst=1.0, each_at_once=1.0)
    one, other = device(), device()
    for attachment in (one, one, other):  # there is no room for a line about the other device
        log_invalid(attachment, [encode({"type": "status"}), Message(b'{"S3CRET":1}')], lines)
    (line,) = caplog.messages
    assert line.startswith("device BRW-12AB34CD sent a message that was dropped: it has no 'type'; ")


async def test_a_throttled_device_is_logged_unless_there_are_too_many_such_lines(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines = LogLineLimits("connections", rate_per_s=1.0, burst=1.0, each_at_once=1.0)
    log_throttled(device(), lines)
    log_throttled(device(), lines)
    [record] = caplog.records
    assert "BRW-12AB34CD sends more than its rate" in record.getMessage()


async def test_lines_that_a_peer_can_repeat_are_limited_by_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines = LogLineLimits("connections", rate_per_s=1.0, burst=100.0, each_at_once=2.0)
    one, other = device(), client()
    for _ in range(5):
        log_contested(one, lines)
        log_lagging(other, lines)
    assert (
        caplog.messages
        == [
            "two machines use the id BRW-12AB34CD; only one of them is let in",
            f"client {other.id} lags",
        ]
        * 2
    )
    caplog.clear()
    lines.report()
    assert [record.suppressed for record in caplog.records if hasattr(record, "suppressed")] == [3, 3]
