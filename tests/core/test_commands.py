import json
import time
from typing import Any, get_args

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay import messages
from brewos_relay.core.attachment import ClientAttachment, DeviceAttachment, RemoteDeviceAttachment, Renew
from brewos_relay.core.audience import Audience
from brewos_relay.core.commands import CommandQueue, Commands, QueuedCommand
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import FULL, Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.presence import Presence
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.core.snapshot import Snapshot
from brewos_relay.dialect import BREWOS, Dialect, Policy
from brewos_relay.errors import CloseCode, TokenRejected
from brewos_relay.messages import CommandHead, Message, encode
from support.peers import PassiveSession, ScriptedPeer, ScriptedRemotePeer

DEVICE_ID = "BRW-00000001"
HEAT = encode({"type": "command", "cmd": "set_mode", "mode": "on"})
TARE = encode({"type": "command", "cmd": "tare"})
SCHEDULE = encode({"type": "command", "cmd": "add_schedule", "name": "Morning"})
BROKER = encode({"type": "command", "cmd": "mqtt_config", "broker": "mqtt.example"})
UNKNOWN = encode({"type": "command", "cmd": "new_command"})
SNAPSHOT = [encode({"type": "status", "seq": 7}), encode({"type": "device_info"})]


class Recorder(PassiveSession):
    """The session of the attachments, and a record of their commands."""

    device_id = DEVICE_ID

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, ...]] = []
        self.wants_commands = True

    def record_activity(self, *_: object) -> None:
        raise AssertionError("only commands are to be recorded")

    def record_command(self, device_id: str, user_id: str | None, head: CommandHead, outcome: str) -> bool:
        assert device_id == self.device_id
        self.recorded.append(("command", user_id, head.name, outcome))
        return self.wants_commands


class Opened:
    """Commands under test, with a device that may be present or not."""

    def __init__(self, dialect: Dialect = BREWOS, **limits: Any) -> None:
        self.session = Recorder()
        self.counters = Counters()
        bounds = Limits(**limits)
        policy = Policy(dialect, owner_commands=bounds.owner_commands, never_wait=bounds.never_wait)
        self.presence = Presence(DEVICE_ID, limits=bounds, dialect=dialect)
        for message in SNAPSHOT:
            head = message.peek()
            assert head is not None
            self.presence.snapshot.update(message, head.type, head.seq)
        lines = LogLineLimits("connections", rate_per_s=1.0, burst=10.0, each_at_once=2.0)
        self.audience = Audience(limits=bounds, dialect=dialect, counters=self.counters, lines=lines)
        self.commands = Commands(
            self.presence,
            self.audience,
            limits=bounds,
            policy=policy,
            counters=self.counters,
            recorder=self.session,
        )
        self.device = ScriptedPeer()

    def comes(self) -> None:
        """Let the device come, and deliver its pending commands."""
        device = DeviceAttachment(self.session, self.device, bucket=None)
        self.presence.present = device
        self.commands.flush(device, trio.current_time())

    def comes_elsewhere(self) -> ScriptedRemotePeer:
        """Let the device come to another instance, and send its pending commands there."""
        peer = ScriptedRemotePeer()
        device = RemoteDeviceAttachment(self.session, peer)
        self.presence.yield_to(device)
        self.commands.flush(device, trio.current_time())
        return peer

    def goes(self) -> None:
        self.presence.present = None

    def client(
        self, *, renew: Renew | None = None, expires_at_s: float = float("inf"), grant: Grant = FULL
    ) -> "Client":
        return Client(self, renew=renew, expires_at_s=expires_at_s, grant=grant)


class Client:
    def __init__(self, opened: Opened, *, renew: Renew | None, expires_at_s: float, grant: Grant) -> None:
        self.peer = ScriptedPeer()
        self.attachment = ClientAttachment(
            opened.session, self.peer, bucket=None, renew=renew, expires_at_s=expires_at_s, grant=grant
        )
        self._opened = opened

    def say(self, *contents: dict[str, Any] | Message) -> None:
        received = [content if isinstance(content, Message) else encode(content) for content in contents]
        self._opened.commands.take(self.attachment, received, trio.current_time())

    def heard(self) -> list[Any]:
        """Return the messages to the client since the last call, without varying texts and times."""
        told = self.peer.received
        assert all(self.peer.kept), "a lagging client gets its answers"
        self.peer.forget()
        for content in told:
            if content["type"] == "error":
                assert content.pop("message")
            if content["type"] in {"command_status", "pong", "metrics"}:
                assert abs(content.pop("timestamp") - time.time() * 1000) < 60_000
        return told


VIEWER = Grant(user_id="eve", may_command=False, may_manage=False)
MEMBER = Grant(user_id="bob", may_manage=False)
OWNER = Grant(user_id="ada")
FORBIDDEN = {"type": "error", "error": "forbidden", "deviceId": DEVICE_ID}
OFFLINE = {"type": "error", "error": "device_offline", "deviceId": DEVICE_ID}


def command_status(request_id: Any, status: str) -> dict[str, Any]:
    return {"type": "command_status", "requestId": request_id, "status": status}


def absent(**more: Any) -> dict[str, Any]:
    return {"type": "device_status", "deviceId": DEVICE_ID, "online": False, "lastSeen": None, **more}


def queued(count: int, *, ttl_ms: int = 10_000) -> dict[str, Any]:
    return absent(messageQueued=True, queuedMessages=count, queueTTL=ttl_ms)


# To the device


async def test_commands_reach_the_device_untouched_and_in_order() -> None:
    opened = Opened()
    opened.comes()
    clients = [opened.client() for _ in range(2)]
    other = Message(b'{"type":"backflush",\n"cmd" : "record_maintenance"}')
    clients[0].say(HEAT, other)
    clients[1].say(other)
    assert opened.device.messages == [HEAT, other, other]
    assert len(opened.device.deliveries) == 2
    assert [client.heard() for client in clients] == [[], []]
    assert opened.counters.received_from_clients == 3


async def test_messagepack_of_a_client_reaches_the_device_as_json() -> None:
    opened = Opened()
    opened.comes()
    content = {"type": "command", "cmd": "set_temp", "temp": 93.5}
    opened.client().say(Message(msgspec.msgpack.encode(content), is_text=False))
    assert opened.device.received == [content]
    assert opened.device.messages[0].is_text


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"type":7}', b"", b"on"])
async def test_malformed_message_is_dropped_and_answered(payload: bytes) -> None:
    opened = Opened()
    opened.comes()
    client = opened.client()
    client.say(Message(payload), TARE, Message(b"\xc1", is_text=False))
    assert opened.device.messages == [TARE]
    assert len(client.peer.deliveries) == 1
    assert [answer["error"] for answer in client.heard()] == ["invalid_message"] * 2
    assert opened.counters.invalid == 2
    assert opened.counters.received_from_clients == 3


async def test_a_command_may_be_as_large_as_the_limit_and_no_larger() -> None:
    opened = Opened(client_message_bytes=100)
    opened.comes()
    client = opened.client()
    largest = Message(b'{"type":"command","x":"' + b"x" * 75 + b'"}')
    larger = Message(b'{"type":"command","x":"' + b"x" * 76 + b'"}')
    assert len(largest.payload) == 100
    compact = Message(msgspec.msgpack.encode({"type": "command", "x": [None] * 60}), is_text=False)
    assert len(compact.payload) < 100
    client.say(larger, largest, compact)
    assert opened.device.messages == [largest]
    assert [answer["error"] for answer in client.heard()] == ["message_too_big"] * 2


async def test_a_device_that_does_not_take_commands_is_busy() -> None:
    opened = Opened()
    opened.comes()
    opened.device.refuses = True
    client = opened.client()
    client.say(TARE, Message(b"[1]"), TARE)
    assert [answer["error"] for answer in client.heard()] == ["invalid_message", "device_busy"]
    assert opened.counters.undeliverable == 2
    opened.device.refuses = False
    client.say(TARE)
    assert opened.device.messages == [TARE]


async def test_a_command_that_a_busy_device_did_not_take_was_not_delivered() -> None:
    opened = Opened()
    opened.comes()
    opened.device.refuses = True
    client = opened.client()
    client.say({"type": "command", "cmd": "tare", "requestId": "r1"})
    told = client.heard()
    assert {"type": "error", "error": "device_busy"} in told
    assert command_status("r1", "delivered") not in told
    assert command_status("r1", "device_offline") in told


# Answers of the relay


@pytest.mark.parametrize("stamp", [17, 1.5, "mine", None, {"at": [1]}, 2**70])
async def test_pong_repeats_the_timestamp_of_the_ping(stamp: Any) -> None:
    opened = Opened()
    opened.comes()
    client = opened.client()
    client.say(Message(json.dumps({"type": "ping", "timestamp": stamp}).encode()))
    assert json.loads(client.peer.messages[0].payload)["clientTimestamp"] == stamp
    assert opened.device.messages == [], "a machine takes it for another message"


async def test_a_ping_without_anything_is_answered() -> None:
    client = Opened().client()
    client.say({"type": "ping"})
    assert client.heard() == [{"type": "pong", "clientTimestamp": None}]


async def test_metrics_tell_of_the_connection() -> None:
    opened = Opened()
    client = opened.client()
    opened.audience.join(client.attachment)
    client.say(TARE)
    client.heard()
    client.say({"type": "get_metrics"})
    expected = {
        "type": "metrics",
        "connection": {"sessionId": client.attachment.id, "clients": 1},
        "deviceOnline": False,
        "queuedMessages": 1,
    }
    assert client.heard() == [expected]
    for _ in range(2):
        opened.audience.join(opened.client().attachment)
    opened.comes()
    client.heard()
    client.say({"type": "get_metrics"})
    expected["connection"] = {"sessionId": client.attachment.id, "clients": 3}
    assert client.heard() == [expected | {"deviceOnline": True, "queuedMessages": 0}]
    assert opened.device.messages == [TARE]


async def test_fresh_token_replaces_the_old_one() -> None:
    ends_at_s = int(time.time()) + 3600
    given: list[str] = []

    def renew(token: str) -> int:
        given.append(token)
        return ends_at_s

    client = Opened().client(renew=renew, expires_at_s=time.time() + 60)
    client.attachment.warned = True
    client.say({"type": "refresh_auth", "token": "fresh"})
    (answer,) = client.heard()
    assert answer.pop("tokenExpiresAt").startswith("20")
    assert answer == {"type": "auth_refreshed", "success": True}
    assert given == ["fresh"]
    assert client.attachment.expires_at - trio.current_time() == pytest.approx(3600, abs=5)
    assert not client.attachment.warned


async def test_rejected_token_changes_nothing() -> None:
    def renew(token: str) -> int:
        raise TokenRejected("the token is of another user")

    client = Opened().client(renew=renew, expires_at_s=time.time() + 60)
    before = client.attachment.expires_at
    client.say({"type": "refresh_auth", "token": "secret"})
    assert client.heard() == [
        {"type": "auth_refreshed", "success": False, "error": "the token is of another user"}
    ]
    assert client.attachment.expires_at == before


@pytest.mark.parametrize("token", [None, 7, ["x"]])
async def test_token_that_is_not_a_text_is_refused(token: object) -> None:
    client = Opened().client(renew=lambda token: 1)
    client.say({"type": "refresh_auth", "token": token}, {"type": "refresh_auth"})
    answers = client.heard()
    assert [answer.pop("success") for answer in answers] == [False, False]
    assert all(answer["error"] for answer in answers)


async def test_where_no_token_is_needed_none_is_taken() -> None:
    client = Opened().client()
    client.say({"type": "refresh_auth", "token": "fresh"})
    assert client.heard()[0]["success"] is False


# Asking for the state


@pytest.mark.parametrize("question", ["request_state", "request_full_status"])
@pytest.mark.parametrize(
    ("last_seen_ms", "last_seen"), [(None, None), (1_700_000_000_007, "2023-11-14T22:13:20.007Z")]
)
async def test_a_question_for_an_absent_device_is_answered_quietly(
    question: str, last_seen_ms: int | None, last_seen: str | None
) -> None:
    opened = Opened()
    opened.presence.last_seen_ms = last_seen_ms
    client = opened.client()
    client.say({"type": question})
    assert client.heard() == [absent() | {"lastSeen": last_seen}]


async def test_questions_of_many_clients_become_one(autojump_clock: MockClock) -> None:
    opened = Opened()
    opened.comes()
    clients = [opened.client() for _ in range(20)]
    full = encode({"type": "request_full_status"})
    state = encode({"type": "request_state", "deviceId": DEVICE_ID})
    for client in clients:
        client.say(full, state, full)
        await trio.sleep(0.05)
    assert opened.device.messages == [full, state]
    await trio.sleep(1)
    clients[0].say(state)
    assert opened.device.messages == [full, state, state], "two seconds after the first"


async def test_request_for_the_full_state_is_answered_at_once() -> None:
    opened = Opened()
    opened.comes()
    clients = [opened.client() for _ in range(3)]
    for client in clients:
        client.say({"type": "request_full_status"})
        assert client.peer.messages == [encode({"type": "status"})], "the client may know the number already"
    assert opened.device.types == ["request_full_status"]
    clients[0].peer.forget()
    clients[0].say({"type": "request_state"})
    assert clients[0].heard() == [], "the answer of the device is on its way"


async def test_where_nothing_is_known_the_device_is_asked_alone() -> None:
    opened = Opened()
    opened.presence.snapshot = Snapshot(BREWOS)
    opened.comes()
    client = opened.client()
    client.say({"type": "request_full_status"})
    assert client.heard() == []
    assert opened.device.types == ["request_full_status"]


async def test_request_of_the_relay_counts_for_clients(autojump_clock: MockClock) -> None:
    opened = Opened()
    opened.comes()
    assert opened.presence.present is not None
    opened.commands.ask_for_state(opened.presence.present, trio.current_time())
    assert opened.device.types == ["request_state"]
    opened.device.forget()
    client = opened.client()
    client.say({"type": "request_state"})
    assert opened.device.messages == []
    await trio.sleep(2)
    client.say({"type": "request_state"})
    assert opened.device.types == ["request_state"]


async def test_relay_asks_for_nothing_where_the_dialect_has_no_request_of_its_own() -> None:
    opened = Opened(Dialect(full_state_requests=frozenset({"dump"})))
    opened.comes()
    assert opened.presence.present is not None
    opened.commands.ask_for_state(opened.presence.present, trio.current_time())
    opened.client(grant=VIEWER).say({"type": "dump"})
    assert opened.device.messages == []
    opened.client().say({"type": "dump"})
    assert opened.device.types == ["dump"]


# Waiting for an absent device


async def test_harmless_command_waits_until_the_device_comes(
    autojump_clock: MockClock,
) -> None:
    opened = Opened()
    client, other = opened.client(), opened.client()
    client.say(TARE, {"type": "setLogLevel", "level": "info"})
    other.say(TARE)
    assert client.heard() == [queued(1), queued(2)]
    assert other.heard() == [queued(3)]
    assert opened.commands.pending_count == 3
    await trio.sleep(5)
    opened.comes()
    assert opened.device.types == ["command", "setLogLevel", "command"]
    assert opened.device.kept == [True]
    sent = client.heard()
    for answer in sent:
        assert abs(answer.pop("originalTimestamp") - time.time() * 1000) < 60_000
    assert sent == [
        {"type": "queued_message_sent", "messageType": "command"},
        {"type": "queued_message_sent", "messageType": "setLogLevel"},
    ]
    assert [answer["type"] for answer in other.heard()] == ["queued_message_sent"]
    assert opened.commands.pending_count == 0
    assert opened.counters.undeliverable == 0
    opened.goes()
    opened.comes()
    assert len(opened.device.messages) == 3, "no command is delivered twice"


async def test_a_command_that_waited_for_too_long_has_expired(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE)
    await trio.sleep(4)
    client.say(TARE)
    client.heard()
    await trio.sleep(5.9)
    opened.commands.expire(trio.current_time())
    assert client.heard() == []
    await trio.sleep(0.2)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE]
    assert opened.commands.pending_count == 1
    assert opened.counters.undeliverable == 1
    await trio.sleep(4)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE]
    assert opened.commands.pending_count == 0
    opened.commands.expire(trio.current_time())
    opened.comes()
    assert (opened.device.messages, client.heard()) == ([], [])


@pytest.mark.parametrize("younger", [0, 1])
async def test_command_that_expires_as_the_device_comes_is_not_delivered(
    younger: int, autojump_clock: MockClock
) -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE)
    await trio.sleep(10)
    for _ in range(younger):
        client.say({"type": "command", "cmd": "scale_reset"})
    client.heard()
    opened.comes()
    assert [message["cmd"] for message in opened.device.received] == ["scale_reset"] * younger
    assert [answer["type"] for answer in client.heard()] == ["error", *["queued_message_sent"] * younger]


async def test_no_more_than_50_wait(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.client()
    for number in range(51):
        client.say({"type": "command", "cmd": "set_temp", "temp": number})
    *answers, last = client.heard()
    assert answers == [queued(number) for number in range(1, 51)]
    assert last == OFFLINE
    assert opened.counters.undeliverable == 1
    opened.comes()
    assert [content["temp"] for content in opened.device.received] == list(range(50))


@pytest.mark.parametrize(
    "content",
    [
        {"type": "command", "cmd": "set_mode", "mode": "on"},
        {"type": "command", "cmd": "set_mode"},
        {"type": "command", "cmd": "brew_start"},
        {"type": "command", "cmd": "ota_start"},
        {"type": "command", "cmd": "restart"},
        {"type": "command", "cmd": "factory_reset"},
        {"type": "command", "cmd": "wifi_forget"},
        {"type": "command", "cmd": "set_cloud_config"},
        {"type": "restart"},
        {"type": "command"},
    ],
)
async def test_command_that_could_harm_later_fails_at_once(content: dict[str, Any]) -> None:
    opened = Opened()
    client = opened.client()
    client.say(content)
    assert client.heard() == [OFFLINE]
    assert opened.commands.pending_count == 0
    assert opened.counters.undeliverable == 1
    opened.comes()
    assert opened.device.messages == []


async def test_settings_keep_more_commands_from_waiting_and_say_for_how_long(
    autojump_clock: MockClock,
) -> None:
    opened = Opened(never_wait=("tare",), pending_s=3.0, pending_commands=1)
    client = opened.client()
    client.say(TARE, SCHEDULE, SCHEDULE, HEAT)
    assert client.heard() == [OFFLINE, queued(1, ttl_ms=3000), OFFLINE, OFFLINE]
    await trio.sleep(3)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE]


async def test_device_that_refuses_pending_commands_is_busy() -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE, {"type": "command", "cmd": "tare", "requestId": 1})
    client.heard()
    opened.device.refuses_all = True
    opened.comes()
    busy = {"type": "error", "error": "device_busy"}
    assert client.heard() == [busy, busy, command_status(1, "device_offline")]
    opened.device.refuses_all = False
    opened.comes()
    assert opened.device.messages == []


async def test_a_client_that_left_leaves_its_command() -> None:
    opened = Opened()
    leaving, failing = opened.client(), opened.client()
    leaving.say(TARE)
    failing.say(TARE)
    leaving.peer.refuses_all = True
    failing.peer.deliver_error = ValueError("no way out")
    opened.comes()
    assert opened.device.messages == [TARE, TARE]
    assert failing.peer.close_code == CloseCode.INTERNAL_ERROR


# notAfter and requestId


async def test_command_with_a_request_id_gets_its_outcome(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.client()
    client.say(
        {"type": "command", "cmd": "tare", "requestId": "waits"},
        {"type": "command", "cmd": "restart", "requestId": {"any": "thing"}},
    )
    assert client.heard() == [
        queued(1),
        command_status("waits", "queued"),
        OFFLINE,
        command_status({"any": "thing"}, "device_offline"),
    ]
    await trio.sleep(10)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE, command_status("waits", "expired")]
    client.say({"type": "command", "cmd": "tare", "requestId": 2})
    client.heard()
    opened.comes()
    assert client.heard()[1:] == [command_status(2, "delivered")]
    client.say({"type": "command", "cmd": "restart", "requestId": 3})
    assert client.heard() == [command_status(3, "delivered")]


def in_s(seconds: float) -> float:
    return time.time() * 1000 + seconds * 1000


@pytest.mark.parametrize("present", [True, False])
async def test_a_command_is_not_delivered_late(present: bool) -> None:
    opened = Opened()
    client = opened.client()
    if present:
        opened.comes()
    client.say(
        {"type": "command", "cmd": "set_mode", "mode": "on", "notAfter": in_s(-1)},
        {"type": "command", "cmd": "tare", "notAfter": 0, "requestId": "r"},
    )
    assert client.heard() == [command_status(None, "expired"), command_status("r", "expired")]
    assert opened.device.messages == []
    assert opened.commands.pending_count == 0


@pytest.mark.parametrize(
    "not_after",
    [in_s(3600), int(in_s(3600)), 1e308, 10**400, "soon", True, None, [1]],
    ids=["float", "int", "far", "huge", "text", "bool", "none", "list"],
)
async def test_a_command_that_is_not_late_is_delivered(not_after: Any) -> None:
    opened = Opened()
    opened.comes()
    client = opened.client()
    client.say(Message(json.dumps({"type": "command", "cmd": "tare", "notAfter": not_after}).encode()))
    assert opened.device.types == ["command"]
    assert client.heard() == ([] if not_after is None else [command_status(None, "delivered")])


@pytest.mark.parametrize("not_after", [-(10**400), -1e308], ids=["huge", "far"])
async def test_a_time_long_ago_is_past(not_after: Any) -> None:
    opened = Opened()
    opened.comes()
    client = opened.client()
    client.say(Message(json.dumps({"type": "command", "cmd": "tare", "notAfter": not_after}).encode()))
    assert client.heard() == [command_status(None, "expired")]
    assert opened.device.messages == []


async def test_command_waits_until_its_not_after_at_most(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.client()
    client.say({"type": "command", "cmd": "tare", "notAfter": in_s(4)})
    assert client.heard()[1:] == [command_status(None, "queued")]
    await trio.sleep(3.5)
    opened.commands.expire(trio.current_time())
    assert client.heard() == []
    await trio.sleep(0.6)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE, command_status(None, "expired")]


async def test_a_command_that_may_wait_for_long_waits_as_long_as_any(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.client()
    client.say({"type": "command", "cmd": "tare", "notAfter": in_s(3600)})
    client.heard()
    await trio.sleep(10)
    opened.commands.expire(trio.current_time())
    assert client.heard() == [OFFLINE, command_status(None, "expired")]


async def test_command_without_request_id_and_not_after_gets_no_status() -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE, HEAT)
    opened.comes()
    client.say(TARE)
    assert "command_status" not in [answer["type"] for answer in client.heard()]


def test_errors_have_the_codes_that_apps_know() -> None:
    assert messages.DEVICE_BUSY.peek_type() == messages.INVALID_MESSAGE.peek_type() == "error"
    assert messages.forbidden(DEVICE_ID).peek_type() == "error"


# Permissions


@pytest.mark.parametrize("present", [True, False])
async def test_nothing_that_a_viewer_says_goes_to_the_device(present: bool) -> None:
    opened = Opened()
    if present:
        opened.comes()
    viewer = opened.client(grant=VIEWER)
    viewer.say(HEAT, TARE, {"type": "getConfig"}, {"type": " request_state"}, {"type": "x", "requestId": 1})
    assert viewer.heard() == [*[FORBIDDEN] * 5, command_status(1, "forbidden")]
    assert len(viewer.peer.closes) == 0
    assert opened.commands.pending_count == 0
    opened.comes()
    assert opened.device.messages == []
    assert opened.counters.undeliverable == 0
    assert opened.counters.received_from_clients == 5


async def test_viewer_gets_the_state_that_the_relay_knows() -> None:
    opened = Opened()
    opened.comes()
    viewer = opened.client(grant=VIEWER, renew=lambda token: int(time.time()) + 3600)
    viewer.say(
        {"type": "ping"},
        {"type": "get_metrics"},
        {"type": "refresh_auth", "token": "fresh"},
        Message(b"[]"),
        Message(b'{"type":"' + b"x" * 5000 + b'"}'),
    )
    told = viewer.heard()
    assert [content["type"] for content in told[:3]] == ["pong", "metrics", "auth_refreshed"]
    assert [content["error"] for content in told[3:]] == ["invalid_message", "message_too_big"]
    assert opened.device.messages == []


async def test_the_relay_asks_for_the_state_in_a_viewer_s_stead(autojump_clock: MockClock) -> None:
    opened = Opened()
    viewer, member = opened.client(grant=VIEWER), opened.client(grant=MEMBER)
    odd = encode({"type": "request_state", "source": "proactive", "cmd": "restart"})
    viewer.say(odd)
    assert viewer.heard() == [absent()]
    opened.comes()
    viewer.say(odd)
    (asked,) = opened.device.received
    assert abs(asked.pop("timestamp") - time.time() * 1000) < 60_000
    assert asked == {"type": "request_state"}, "no bytes of the viewer"
    assert viewer.heard() == []
    viewer.say({"type": "request_full_status"})
    assert viewer.peer.messages == [encode({"type": "status"})]
    assert len(opened.device.messages) == 1, "it is the same request to the device"
    member.say(odd)
    assert len(opened.device.messages) == 1
    await trio.sleep(2)
    member.say(odd)
    viewer.say(odd)
    assert opened.device.messages[1:] == [odd]
    assert opened.session.recorded == [], "a request is not a command"


async def test_state_request_of_a_viewer_to_a_busy_device_is_not_recorded() -> None:
    opened = Opened()
    opened.comes()
    opened.device.refuses = True
    viewer = opened.client(grant=VIEWER)
    viewer.say({"type": "request_state"}, TARE)
    assert viewer.heard() == [FORBIDDEN, {"type": "error", "error": "device_busy"}]
    assert [outcome for *_, outcome in opened.session.recorded] == ["forbidden"]


async def test_owner_commands_of_a_member_are_refused_and_others_delivered() -> None:
    opened = Opened()
    opened.comes()
    member, owner = opened.client(grant=MEMBER), opened.client(grant=OWNER)
    restart = {"type": "command", "cmd": "restart", "requestId": "r"}
    member.say(TARE, restart, BROKER, UNKNOWN, {"type": "anything"}, {"type": "command"}, HEAT)
    assert opened.device.messages == [TARE, HEAT]
    assert member.heard() == [FORBIDDEN, command_status("r", "forbidden"), *[FORBIDDEN] * 4]
    owner.say(restart, BROKER, UNKNOWN)
    assert opened.device.messages[2:] == [encode(restart), BROKER, UNKNOWN]
    assert owner.heard() == [command_status("r", "delivered")]


async def test_a_guest_uses_the_machine_and_sets_nothing_that_acts_later() -> None:
    opened = Opened()
    opened.comes()
    guest = opened.client(grant=Grant(user_id="guest", may_manage=False, until_s=time.time() + 60))
    guest.say(TARE, SCHEDULE, HEAT, BROKER)
    assert opened.device.messages == [TARE, HEAT]
    assert guest.heard() == [FORBIDDEN] * 2


async def test_an_end_time_that_is_set_or_taken_away_counts_from_the_next_message_on() -> None:
    opened = Opened()
    opened.comes()
    client = opened.client(grant=MEMBER)
    for until_s in (float("inf"), time.time() + 60, float("inf")):
        client.attachment.set_grant(Grant(user_id="bob", may_manage=False, until_s=until_s))
        client.say(SCHEDULE)
    assert opened.device.messages == [SCHEDULE] * 2
    assert client.heard() == [FORBIDDEN]


async def test_a_setting_that_waits_is_refused_if_its_sender_got_an_end_time() -> None:
    opened = Opened()
    client = opened.client(grant=MEMBER)
    client.say(SCHEDULE, TARE)
    client.heard()
    client.attachment.set_grant(Grant(user_id="bob", may_manage=False, until_s=time.time() + 60))
    opened.comes()
    assert opened.device.messages == [TARE]
    assert [answer["type"] for answer in client.heard()] == ["error", "queued_message_sent"]


@pytest.mark.parametrize(
    "content",
    [
        {"type": "command", "cmd": "enter_eco"},
        {"type": "command", "cmd": "set_mode", "mode": "eco"},
        {"type": "command", "cmd": "mqtt_config"},
        {"type": "command", "cmd": "new_command"},
        {"type": "command", "cmd": "Tare"},
        {"type": "command"},
        {"type": "anything"},
    ],
)
async def test_unknown_commands_never_wait(content: dict[str, Any]) -> None:
    opened = Opened()
    client = opened.client()
    client.say(content)
    assert client.heard() == [OFFLINE]
    opened.comes()
    assert opened.device.messages == []


@pytest.mark.parametrize(
    "payload",
    [
        rb'{"type":"key_rotate","x":"\u0000","key":"k"}',
        rb'{"type":"command","cmd":"tare","cmd\u0000":"restart"}',
        b'{"type":"command","cmd":"tare","cmd":"restart"}',
        rb'{"type":"command","cmd":"restart","\u0063md":"tare"}',
        rb'{"type":"command","cmd":"tare","x":"\ud800"}',
    ],
)
async def test_ambiguous_messages_reach_no_machine(payload: bytes) -> None:
    opened = Opened()
    opened.comes()
    owner = opened.client(grant=OWNER)
    owner.say(Message(payload))
    opened.goes()
    owner.say(Message(payload))
    opened.comes()
    assert opened.device.messages == []
    assert owner.heard() == [{"type": "error", "error": "invalid_message"}] * 2
    assert opened.session.recorded == []


async def test_messagepack_with_a_key_twice_is_refused() -> None:
    opened = Opened()
    opened.comes()
    client = opened.client()
    pair = msgspec.msgpack.encode("cmd") + msgspec.msgpack.encode("tare")
    other = msgspec.msgpack.encode("type") + msgspec.msgpack.encode("command")
    client.say(
        Message(b"\x83" + other + pair + pair, is_text=False),
        Message(b"\x82" + other + pair, is_text=False),
        Message(b"\xde\x00\x02" + other + pair, is_text=False),
        Message(b"\xdf\x00\x00\x00\x02" + other + pair, is_text=False),
        Message(b"\xa1x", is_text=False),
    )
    assert opened.device.messages == [TARE] * 3
    assert [answer["error"] for answer in client.heard()] == ["invalid_message"] * 2


async def test_setting_reserves_more_commands_for_owners_and_frees_none() -> None:
    opened = Opened(owner_commands=("tare",))
    opened.comes()
    member = opened.client(grant=MEMBER)
    member.say(TARE, {"type": "command", "cmd": "restart"}, HEAT)
    assert member.heard() == [FORBIDDEN] * 2
    assert opened.device.messages == [HEAT]


async def test_forbidden_command_is_not_reported_as_expired() -> None:
    opened = Opened()
    viewer = opened.client(grant=VIEWER)
    viewer.say({"type": "command", "cmd": "tare", "notAfter": 0})
    assert viewer.heard() == [FORBIDDEN, command_status(None, "forbidden")]


async def test_access_ends_exactly_and_not_with_the_next_check(autojump_clock: MockClock) -> None:
    opened = Opened()
    opened.comes()
    guest = opened.client(grant=Grant(user_id="guest", until_s=time.time() + 10))
    await trio.sleep(9)
    guest.say(TARE)
    await trio.sleep(2)
    guest.say(TARE, {"type": "request_state"}, {"type": "request_full_status"})
    assert opened.device.messages == [TARE]
    assert guest.heard() == [FORBIDDEN] * 3


@pytest.mark.parametrize("present", [True, False])
async def test_nothing_is_taken_of_one_whose_access_was_ended(present: bool) -> None:
    opened = Opened()
    if present:
        opened.comes()
    client = opened.client(grant=OWNER)
    client.peer.stays = True
    client.attachment.end_access(CloseCode.ACCESS_ENDED, "enough")
    client.attachment.set_grant(OWNER)
    client.say(TARE, {"type": "request_state"})
    opened.comes()
    assert opened.device.messages == []
    assert client.heard() == [FORBIDDEN] * 2
    assert [outcome for *_, outcome in opened.session.recorded] == ["forbidden"] * 2


async def test_pending_commands_are_authorised_again_on_delivery(autojump_clock: MockClock) -> None:
    opened = Opened()
    tare = {"type": "command", "cmd": "tare", "requestId": 1}
    clients = {
        "stays": opened.client(grant=OWNER),
        "loses its grant": opened.client(grant=OWNER),
        "ends": opened.client(grant=OWNER),
        "ends by time": opened.client(grant=Grant(user_id="guest", until_s=time.time() + 5)),
        "gets less": opened.client(grant=OWNER),
    }
    for client in clients.values():
        client.say(tare)
        client.heard()
    assert list(opened.commands.senders) == [client.attachment for client in clients.values()]
    clients["loses its grant"].attachment.set_grant(VIEWER)
    clients["ends"].peer.stays = True
    clients["ends"].attachment.end_access(CloseCode.ACCESS_ENDED, "enough")
    clients["gets less"].attachment.set_grant(MEMBER)
    opened.session.recorded.clear()
    await trio.sleep(6)
    opened.comes()
    assert opened.device.received == [tare, tare]
    assert len(opened.device.deliveries) == 1
    for name in ("stays", "gets less"):
        assert [content["type"] for content in clients[name].heard()] == [
            "queued_message_sent",
            "command_status",
        ]
    for name in ("loses its grant", "ends by time"):
        assert clients[name].heard() == [FORBIDDEN, command_status(1, "forbidden")]
    assert [(user_id, outcome) for _, user_id, _, outcome in opened.session.recorded] == [
        ("eve", "forbidden"),
        ("ada", "forbidden"),
        ("guest", "forbidden"),
        ("ada", "delivered"),
        ("bob", "delivered"),
    ]
    assert list(opened.commands.senders) == []


async def test_a_device_that_comes_is_told_nothing_if_all_that_waited_is_forbidden_now() -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE)
    client.attachment.set_grant(VIEWER)
    client.heard()
    opened.comes()
    assert opened.device.deliveries == []
    assert client.heard() == [FORBIDDEN]
    assert opened.commands.pending_count == 0


async def test_forgotten_commands_are_never_delivered() -> None:
    opened = Opened()
    client = opened.client()
    client.say(TARE)
    client.heard()
    opened.commands.forget()
    opened.comes()
    assert (opened.device.messages, client.heard(), opened.commands.pending_count) == ([], [], 0)


# Records


async def test_commands_that_are_not_wanted_are_offered_once_a_second(autojump_clock: MockClock) -> None:
    opened = Opened()
    opened.comes()
    client, other = opened.client(grant=OWNER), opened.client(grant=OWNER)
    recorded = opened.session.recorded
    opened.session.wants_commands = False
    for _ in range(3):
        client.say(TARE, TARE)
    other.say(TARE)
    assert len(recorded) == 2, "one of each client"
    await trio.sleep(0.9)
    client.say(TARE)
    assert len(recorded) == 2
    opened.session.wants_commands = True
    await trio.sleep(0.2)
    client.say(TARE, TARE)
    other.say(TARE)
    assert len(recorded) == 5
    assert opened.counters.commands == {"delivered": 11}


async def test_every_command_is_recorded_with_its_outcome(autojump_clock: MockClock) -> None:
    opened = Opened()
    owner, viewer = opened.client(grant=OWNER), opened.client(grant=VIEWER)
    recorded = opened.session.recorded
    owner.say(TARE, HEAT, {"type": "command", "cmd": "tare", "notAfter": 0}, {"type": "ping"})
    viewer.say(TARE)
    assert recorded == [
        ("command", "ada", "tare", "queued"),
        ("command", "ada", "set_mode", "device_offline"),
        ("command", "ada", "tare", "expired"),
        ("command", "eve", "tare", "forbidden"),
    ]
    recorded.clear()
    await trio.sleep(11)
    opened.commands.expire(trio.current_time())
    assert recorded == [("command", "ada", "tare", "expired")]
    owner.say({"type": "setLogLevel", "level": "info"})
    recorded.clear()
    opened.comes()
    assert recorded == [("command", "ada", "setLogLevel", "delivered")]
    recorded.clear()
    owner.say(HEAT, {"type": "request_state"})
    assert recorded == [("command", "ada", "set_mode", "delivered")]
    opened.device.refuses_all = True
    recorded.clear()
    owner.say(HEAT)
    assert recorded == [("command", "ada", "set_mode", "device_offline")]
    opened.goes()
    owner.say(TARE)
    recorded.clear()
    opened.comes()
    assert recorded == [("command", "ada", "tare", "device_offline")]


NOW_MS = 1_000


def command(name: str, *, expires_at: float = 10.0, expires_at_ms: float = 20_000) -> QueuedCommand:
    return QueuedCommand(
        message=Message(name.encode()),
        head=CommandHead(type=name),
        sender=ClientAttachment(Recorder(), ScriptedPeer(), bucket=None),
        queued_at_ms=0,
        expires_at=expires_at,
        expires_at_ms=expires_at_ms,
    )


def names(commands: list[QueuedCommand]) -> list[str]:
    return [one.head.type for one in commands]


async def test_commands_are_taken_in_the_order_in_which_they_came() -> None:
    waiting = CommandQueue(50)
    for name in "abc":
        assert waiting.add(command(name))
    assert len(waiting) == 3
    assert names(list(waiting)) == ["a", "b", "c"]
    assert names(waiting.take_all()) == ["a", "b", "c"]
    assert len(waiting) == 0
    assert waiting.take_all() == []


async def test_pending_commands_are_bounded() -> None:
    waiting = CommandQueue(2)
    assert [waiting.add(command(name)) for name in "abc"] == [True, True, False]
    assert names(waiting.take_all()) == ["a", "b"], "commands that were accepted stay"
    assert waiting.add(command("d"))


async def test_expired_commands_are_removed_and_others_keep_their_order() -> None:
    waiting = CommandQueue(50)
    for name, expires_at in (("a", 3.0), ("b", 10.0), ("c", 2.0), ("d", 5.0)):
        waiting.add(command(name, expires_at=expires_at))
    assert waiting.take_expired(1.9, NOW_MS) == []
    assert names(waiting.take_expired(3.0, NOW_MS)) == ["a", "c"], "even if later commands expire earlier"
    assert waiting.take_expired(3.0, NOW_MS) == []
    assert names(waiting.take_all()) == ["b", "d"]


async def test_a_command_also_expires_by_the_wall_clock_which_counts_while_the_process_does_not_run() -> None:
    waiting = CommandQueue(50)
    for name, expires_at_ms in (("a", 1_000), ("b", 1_001)):
        waiting.add(command(name, expires_at_ms=expires_at_ms))
    assert names(waiting.take_expired(0.0, NOW_MS)) == ["a"]
    assert names(waiting.take_all()) == ["b"]


# A device on another instance


BUSY = {"type": "error", "error": "device_busy"}
REMOTE_OUTCOMES: list[tuple[RemoteOutcome, str, list[dict[str, Any]], bool]] = [
    ("delivered", "delivered", [], False),
    ("busy", "device_offline", [BUSY], True),
    ("device_offline", "device_offline", [OFFLINE], True),
    ("expired", "expired", [], False),
    ("unknown", "unknown", [{"type": "error", "error": "outcome_unknown"}], False),
    ("bus_unavailable", "bus_unavailable", [{"type": "error", "error": "bus_unavailable"}], True),
]
"""For each outcome: the status, the errors for the sender, and whether it counts as undeliverable."""


def test_every_outcome_is_tested() -> None:
    assert {outcome for outcome, *_ in REMOTE_OUTCOMES} == set(get_args(RemoteOutcome))


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("asks", ["requestId", "notAfter", "both", "neither"])
@pytest.mark.parametrize(("outcome", "status", "errors", "undeliverable"), REMOTE_OUTCOMES)
async def test_outcome_on_another_instance_is_told_and_recorded_once(
    outcome: RemoteOutcome,
    status: str,
    errors: list[dict[str, Any]],
    undeliverable: bool,
    asks: str,
    at_once: bool,
) -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client = opened.client(grant=OWNER)
    not_after = time.time() * 1000 + 60_000
    command = {"type": "command", "cmd": "set_mode", "mode": "on"}
    if asks in {"requestId", "both"}:
        command["requestId"] = "r1"
    if asks in {"notAfter", "both"}:
        command["notAfter"] = not_after  # type: ignore[assignment]
    if at_once:
        remote.outcome = outcome
    client.say(command)
    (sent,) = remote.commands
    assert sent.message == encode(command)
    assert sent.not_after_ms == (not_after if asks in {"notAfter", "both"} else float("inf"))
    if not at_once:
        assert client.heard() == []
        assert (opened.session.recorded, opened.counters.commands) == ([], {})
        sent.becomes(outcome)
    answer = command_status("r1" if asks in {"requestId", "both"} else None, status)
    assert client.heard() == [*errors, *([answer] if asks != "neither" else [])]
    assert opened.session.recorded == [("command", "ada", "set_mode", status)]
    assert opened.counters.commands == {status: 1}
    assert opened.counters.undeliverable == undeliverable
    counters = opened.counters
    assert (counters.sent_to_devices, counters.bytes_to_devices) == (0, 0), "its instance counts them"
    assert (counters.received_from_clients, counters.bytes_from_clients) == (
        1,
        len(sent.message.payload),
    )


async def test_commands_of_one_pass_reach_a_remote_device_in_order_with_an_outcome_each() -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client = opened.client()
    commands = [{"type": "command", "cmd": "tare", "requestId": number} for number in range(3)]
    client.say(*commands)
    assert remote.sent == [encode(command) for command in commands]
    for number in (2, 0, 1):
        remote.commands[number].becomes("delivered")
        assert client.heard() == [command_status(number, "delivered")]
    assert remote.messages == [], "they are commands, not deliveries"


async def test_outcome_after_its_sender_has_left_is_recorded() -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client = opened.client(grant=OWNER)
    client.say({**json.loads(TARE.payload), "requestId": 1})
    client.peer.leave()
    opened.commands.forget()
    remote.commands[0].becomes("unknown")
    assert client.peer.messages == []
    assert client.peer.closes == []
    assert opened.session.recorded == [("command", "ada", "tare", "unknown")]
    assert opened.counters.commands == {"unknown": 1}


async def test_outcome_reaches_the_sender_after_the_device_came_to_this_instance() -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client = opened.client()
    client.say({**json.loads(TARE.payload), "requestId": 1})
    opened.comes()
    client.say(TARE)
    assert (remote.sent[1:], opened.device.messages) == ([], [TARE])
    remote.commands[0].becomes("delivered")
    assert client.heard() == [command_status(1, "delivered")]


async def test_command_that_may_not_be_sent_does_not_reach_another_instance() -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    viewer, member = opened.client(grant=VIEWER), opened.client(grant=MEMBER)
    viewer.say(TARE)
    member.say(BROKER, {"type": "key_rotate", "key": "x"}, {**json.loads(BROKER.payload), "requestId": 1})
    past_ms = time.time() * 1000 - 1
    member.say({**json.loads(TARE.payload), "notAfter": past_ms, "requestId": 2})
    assert remote.commands == []
    assert viewer.heard() == [FORBIDDEN]
    assert member.heard() == [
        FORBIDDEN,
        FORBIDDEN,
        FORBIDDEN,
        command_status(1, "forbidden"),
        command_status(2, "expired"),
    ]
    assert opened.counters.commands == {"forbidden": 4, "expired": 1}


async def test_requests_for_the_state_of_a_remote_device_have_no_outcome(autojump_clock: MockClock) -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client, viewer = opened.client(), opened.client(grant=VIEWER)
    request = {"type": "request_state", "requestId": 1}
    client.say(request)
    viewer.say(request)
    assert remote.sent == [encode(request)], "they are combined"
    await trio.sleep(2)
    viewer.say(request)
    (theirs,) = remote.commands[1:]
    assert (theirs.take_outcome, theirs.not_after_ms) == (None, float("inf"))
    assert theirs.message.peek_type() == "request_state"
    assert theirs.message != encode(request), "a viewer's messages never reach the device"
    client.say({"type": "request_full_status"})
    assert client.heard() == [{"type": "status"}], "the state that is known here"
    assert remote.commands[2].take_outcome is None
    assert (opened.session.recorded, opened.counters.commands) == ([], {})


async def test_a_failing_remote_peer_ends_alone() -> None:
    opened = Opened()
    remote = opened.comes_elsewhere()
    client = opened.client()
    remote.send_error = ValueError("no way out")
    client.say({**json.loads(TARE.payload), "requestId": 1}, {"type": "request_state"}, {"type": "ping"})
    assert remote.close_code == CloseCode.INTERNAL_ERROR
    assert client.peer.closes == []
    assert [content["type"] for content in client.heard()] == ["error", "command_status", "pong"]
    assert opened.counters.commands == {"unknown": 1}


@pytest.mark.parametrize(("outcome", "status", "errors", "undeliverable"), REMOTE_OUTCOMES)
async def test_queued_commands_go_to_a_device_that_comes_to_another_instance(
    outcome: RemoteOutcome,
    status: str,
    errors: list[dict[str, Any]],
    undeliverable: bool,
    autojump_clock: MockClock,
) -> None:
    opened = Opened()
    client = opened.client(grant=OWNER)
    soon_ms = round(time.time() * 1000) + 3000
    commands = [
        {"type": "command", "cmd": "tare", "requestId": 1},
        {"type": "command", "cmd": "tare", "requestId": 2, "notAfter": soon_ms},
    ]
    client.say(*commands)
    client.heard()
    remote = opened.comes_elsewhere()
    assert opened.commands.pending_count == 0
    assert remote.sent == [encode(command) for command in commands]
    assert 9_000 < remote.commands[0].not_after_ms - time.time() * 1000 <= 10_000, "it waits no longer"
    assert remote.commands[1].not_after_ms == pytest.approx(soon_ms, abs=20)
    assert client.heard() == []
    if outcome == "expired":  # as for a command that expires here
        errors, undeliverable = [OFFLINE], True
    for number, sent in enumerate(remote.commands, start=1):
        sent.becomes(outcome)
        told = client.heard()
        if outcome == "delivered":
            assert told.pop(0)["type"] == "queued_message_sent"
        assert told == [*errors, command_status(number, status)]
    assert opened.session.recorded[2:] == [("command", "ada", "tare", status)] * 2
    assert opened.counters.commands == {"queued": 2, status: 2}
    assert opened.counters.undeliverable == 2 * undeliverable


async def test_queued_command_without_permission_does_not_reach_another_instance() -> None:
    opened = Opened()
    client = opened.client(grant=MEMBER)
    client.say(TARE)
    client.attachment.set_grant(VIEWER)
    client.heard()
    assert opened.comes_elsewhere().commands == []
    assert client.heard() == [FORBIDDEN]


# Commands of clients on other instances


async def test_command_from_another_instance_is_delivered_and_its_outcome_recorded_there() -> None:
    opened = Opened()
    opened.comes()
    device = opened.presence.present
    assert device is not None
    assert opened.commands.deliver_remote(device, TARE, trio.current_time()) == "delivered"
    opened.device.refuses = True
    assert opened.commands.deliver_remote(device, HEAT, trio.current_time()) == "busy"
    assert opened.device.messages == [TARE]
    assert (opened.counters.sent_to_devices, opened.counters.bytes_to_devices) == (1, len(TARE.payload))
    assert (opened.session.recorded, opened.counters.commands, opened.counters.undeliverable) == ([], {}, 0)


async def test_requests_of_all_instances_for_the_state_are_combined(autojump_clock: MockClock) -> None:
    opened = Opened()
    opened.comes()
    device, request = opened.presence.present, encode({"type": "request_state"})
    assert device is not None
    opened.client().say(request)
    for _ in range(3):
        assert opened.commands.deliver_remote(device, request, trio.current_time()) == "delivered"
    assert opened.device.messages == [request]
    assert opened.counters.sent_to_devices == 1
    await trio.sleep(2)
    opened.commands.deliver_remote(device, request, trio.current_time())
    assert opened.device.messages == [request, request]


async def test_new_connection_is_asked_for_its_state_although_the_one_before_just_was() -> None:
    opened = Opened()
    opened.comes()
    assert opened.presence.present is not None
    for _ in range(2):
        opened.commands.ask_for_state(opened.presence.present, trio.current_time())
    assert opened.device.types == ["request_state"]
    opened.commands.restart_requests()
    opened.commands.ask_for_state(opened.presence.present, trio.current_time())
    assert opened.device.types == ["request_state", "request_state"]
