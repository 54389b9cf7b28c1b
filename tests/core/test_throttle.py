from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.attachment import ClientAttachment, DeviceAttachment
from brewos_relay.core.audience import Audience
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.presence import Presence
from brewos_relay.core.rate_limits import LogLineLimits, open_bucket
from brewos_relay.core.throttle import DeviceFeed, Throttle
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message, encode
from support.peers import PassiveSession, ScriptedPeer


def packed(content: Any) -> Message:
    return Message(msgspec.msgpack.encode(content), is_text=False)


def decoded(message: Message) -> Any:
    return (msgspec.json if message.is_text else msgspec.msgpack).decode(message.payload)


def open_throttle(**changed: Any) -> Throttle:
    settings: dict[str, Any] = {
        "rate_per_s": 50.0, "burst": 200.0, "allowed": 0.0, "anonymous": False, "now": 0.0, **changed,
    }  # fmt: skip
    return Throttle(BREWOS, **settings)


def hold(throttle: Throttle, *contents: dict[str, Any] | Message) -> None:
    messages = [content if isinstance(content, Message) else encode(content) for content in contents]
    throttle.hold([(message, head) for message in messages if (head := message.peek()) is not None])


def log(number: int, level: str = "info") -> dict[str, Any]:
    return {"type": "log", "level": level, "message": f"line {number}"}


# Holding


def test_superseded_message_is_replaced_in_its_place() -> None:
    throttle = open_throttle()
    meters = [{"type": "power_meter_status", "n": n} for n in range(3)]
    infos = [{"type": "device_info", "n": n} for n in range(3)]
    hold(throttle, meters[0], log(1), infos[0], meters[1], {"type": "event", "event": "alert"}, infos[1])
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [meters[1], log(1), infos[1], {"type": "event", "event": "alert"}]
    assert (throttle.merged, throttle.dropped, len(throttle), throttle.size_bytes) == (2, 0, 0, 0)


def test_messages_leave_at_the_rate_and_in_order() -> None:
    throttle = open_throttle(allowed=2.5)
    hold(throttle, *[log(n) for n in range(60)])
    assert [decoded(message) for message in throttle.release(0.0)] == [log(0), log(1)]
    assert throttle.release(0.0) == []
    assert [decoded(message) for message in throttle.release(0.1)] == [log(n) for n in range(2, 7)]
    assert len(throttle.release(5.0)) == 53
    assert throttle.release(5.0) == []


def test_log_lines_go_first_when_there_are_too_many_messages() -> None:
    throttle = open_throttle(rate_per_s=5.0)  # ten of them
    events = [{"type": "event", "n": n} for n in range(6)]
    hold(throttle, log(0), *events[:3], log(1), log(2, "error"), *events[3:], log(3), log(4), log(5))
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [*events[:3], log(2, "error"), *events[3:], log(3), log(4), log(5)]
    assert throttle.dropped == 2


def test_then_the_oldest_go_and_the_state_stays() -> None:
    throttle = open_throttle(rate_per_s=1.0)
    hold(throttle, {"type": "status", "seq": 1}, *[{"type": "event", "n": n} for n in range(5)])
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [{"type": "status", "seq": 1}, {"type": "event", "n": 3}, {"type": "event", "n": 4}]
    assert throttle.dropped == 3


def test_a_log_line_that_has_left_is_not_dropped_again() -> None:
    throttle = open_throttle(rate_per_s=1.0, allowed=1.0)
    hold(throttle, log(0), log(1))
    assert [decoded(message) for message in throttle.release(0.0)] == [log(0)]
    hold(throttle, log(2), {"type": "event"})
    assert [decoded(message) for message in throttle.release_all()] == [log(2), {"type": "event"}]


@pytest.mark.parametrize(("anonymous", "most_bytes"), [(False, 64 * 1024), (True, 8 * 1024)])
def test_held_messages_are_bounded(anonymous: bool, most_bytes: int) -> None:
    throttle = open_throttle(anonymous=anonymous)
    for n in range(200):
        hold(
            throttle,
            {"type": "status_delta", "seq": n, f"group{n}": {"x": "x" * 1000}},
            {"type": "stats", "x": "x" * 3000, "n": n},
            {"type": "event", "x": "x" * 1000},
            log(n),
        )
        assert throttle.size_bytes <= most_bytes
    released = throttle.release_all()
    assert sum(len(message.payload) for message in released) <= most_bytes
    assert throttle.size_bytes == 0


def test_a_state_that_only_seems_to_be_large_is_kept() -> None:
    throttle = open_throttle(anonymous=True)
    for n in range(100):
        hold(throttle, {"type": "status_delta", "seq": n, "group": "x" * 1000})
    assert [decoded(message)["seq"] for message in throttle.release_all()] == [99]
    assert throttle.dropped == 0


def test_all_can_be_dropped() -> None:
    throttle = open_throttle()
    hold(throttle, log(1), {"type": "status"})
    throttle.drop_all()
    assert (throttle.release_all(), throttle.dropped) == ([], 2)
    assert throttle.summary(12.34) == {"throttledS": 12.3, "merged": 0, "dropped": 2}


# Reading


def test_reading_pauses_beyond_1000_messages_a_second_or_1_mib() -> None:
    throttle = open_throttle()
    assert throttle.count_read(1000, 1000, 0.0) == 0.0
    assert throttle.count_read(400, 1000, 0.0) == pytest.approx(0.4)
    assert throttle.count_read(9000, 1000, 0.0) == 1.0, "at a time"
    other = open_throttle()
    assert other.count_read(1, 1024 * 1024, 0.0) == 0.0
    assert other.count_read(1, 512 * 1024, 0.0) == pytest.approx(0.5)


def test_a_larger_rate_has_a_larger_bound() -> None:
    assert open_throttle(rate_per_s=5000.0).count_read(10_000, 0, 0.0) == 0.0


# The feed of a device


class Fed(PassiveSession):
    """The feed of a device with a client that listens."""

    def __init__(self, **limits: Any) -> None:
        self.counters = Counters()
        self.recorded: list[tuple[str, dict[str, str | int | float]]] = []
        bounds = Limits(**limits)
        lines = LogLineLimits("connections", rate_per_s=1.0, burst=10.0, each_at_once=2.0)
        presence = Presence("BRW-00000001", limits=bounds, dialect=BREWOS)
        audience = Audience(limits=bounds, dialect=BREWOS, counters=self.counters, lines=lines)
        self.presence = presence
        self.feed = DeviceFeed(
            presence,
            audience,
            limits=bounds,
            dialect=BREWOS,
            counters=self.counters,
            lines=lines,
            recorder=self,
        )
        bucket = open_bucket(bounds.device_rate, burst=bounds.device_burst)
        self.device = DeviceAttachment(self, ScriptedPeer(), bucket=bucket)
        self.client = ScriptedPeer()
        audience.join(ClientAttachment(self, self.client, bucket=None))
        self.feed.begin()

    def record_command(self, *_: object) -> bool:
        raise AssertionError("no command is to be recorded")

    def record_activity(
        self, device_id: str, kind: str, user_id: str | None, detail: Mapping[str, str | int | float]
    ) -> None:
        assert (device_id, user_id) == (self.device_id, None)
        self.recorded.append((kind, dict(detail)))

    def say(self, *contents: dict[str, Any] | Message) -> float:
        """Let the device send messages in one read; return for how long reading pauses."""
        received = [content if isinstance(content, Message) else encode(content) for content in contents]
        bucket, now = self.device.bucket, trio.current_time()
        if bucket is not None and (self.feed.throttle is not None or bucket.take(len(received), now)):
            return self.feed.hold(self.device, bucket, received, now)
        self.feed.pass_on(self.device, received)
        return 0.0

    def heard(self) -> list[Any]:
        heard = self.client.received
        self.client.forget()
        return heard


def event(number: int) -> dict[str, Any]:
    return {"type": "event", "n": number}


async def test_messages_within_the_rate_pass_at_once() -> None:
    fed = Fed()
    status = {"type": "status", "seq": 1}
    assert fed.say(status, event(1)) == 0.0
    assert fed.heard() == [status, event(1)]
    assert fed.presence.snapshot.has_status
    fed.feed.end(fed.device)
    assert (fed.device.received, fed.recorded) == (2, [])


async def test_unreadable_messages_are_dropped_and_counted() -> None:
    fed = Fed()
    assert fed.say(Message(b"[]"), event(1), Message(b"{")) == 0.0
    assert fed.heard() == [event(1)]
    fed.say(Message(b"1"))
    assert fed.heard() == []
    assert fed.counters.invalid == 3


async def test_messages_beyond_the_rate_are_held_and_passed_at_the_rate(autojump_clock: MockClock) -> None:
    fed = Fed(device_rate=2.0, device_burst=2.0)
    assert fed.say(event(1), event(2), event(3), Message(b"[]"), event(4)) == 0.0
    assert fed.heard() == [event(1), event(2)]
    assert (fed.counters.throttled, fed.counters.invalid) == (1, 1)
    assert fed.say(event(5)) == 0.0
    assert fed.heard() == []
    await trio.sleep(1)
    fed.feed.release(fed.device, trio.current_time())
    assert fed.heard() == [event(3), event(4)]
    await trio.sleep(0.5)
    fed.feed.release(fed.device, trio.current_time())
    assert fed.heard() == [event(5)]
    await trio.sleep(3)
    fed.feed.release(fed.device, trio.current_time())
    assert fed.feed.throttle is None
    assert [kind for kind, _ in fed.recorded] == ["throttled", "throttle_ended"]
    fed.feed.release(fed.device, trio.current_time())
    fed.feed.end(fed.device)
    assert fed.device.received == 5
    assert fed.counters.bytes_from_devices == sum(len(encode(event(n)).payload) for n in range(1, 6))


async def test_second_throttle_within_a_minute_is_not_recorded(autojump_clock: MockClock) -> None:
    fed = Fed(device_rate=2.0, device_burst=2.0)
    for _ in range(2):
        fed.say(*map(event, range(4)))
        await trio.sleep(6)
        fed.feed.release(fed.device, trio.current_time())
        await trio.sleep(1)
        fed.feed.release(fed.device, trio.current_time())
        assert fed.feed.throttle is None
    assert [kind for kind, _ in fed.recorded] == ["throttled", "throttle_ended"]
    assert fed.counters.throttled == 2


async def test_throttle_of_a_new_connection_is_recorded_within_the_minute() -> None:
    fed = Fed(device_rate=1.0, device_burst=1.0)
    for _ in range(2):
        fed.feed.begin()
        fed.say(event(1), event(2))
        fed.feed.end(fed.device)
    assert [kind for kind, _ in fed.recorded] == ["throttled", "throttle_ended"] * 2


async def test_held_messages_pass_when_the_device_goes_unless_they_are_dropped() -> None:
    fed = Fed(device_rate=1.0, device_burst=1.0)
    fed.feed.drop_held()
    fed.say(event(1), event(2))
    fed.feed.end(fed.device)
    assert fed.heard() == [event(1), event(2)]
    fed.feed.begin()
    fed.say(event(3), event(4))
    fed.feed.drop_held()
    fed.feed.end(fed.device)
    assert event(4) not in fed.heard()
    assert fed.counters.over_rate > 0
