import time
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from brewos_relay import messages
from brewos_relay.core.attachment import ClientAttachment
from brewos_relay.core.audience import Audience
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message, encode
from support.peers import PassiveSession, ScriptedAudience, ScriptedPeer

STATUS = encode({"type": "status", "seq": 1})
DELTA = encode({"type": "status_delta", "seq": 2})
INFO = encode({"type": "device_info"})
ERROR = encode({"type": "log", "level": "error"})
STATE = [encode({"type": "device_status"}), encode({"type": "status", "seq": 9})]


class Opened:
    """An audience under test."""

    def __init__(self, **limits: Any) -> None:
        self.counters = Counters()
        lines = LogLineLimits("connections", rate_per_s=1.0, burst=10.0, each_at_once=2.0)
        self.audience = Audience(limits=Limits(**limits), dialect=BREWOS, counters=self.counters, lines=lines)
        self.clients: dict[ScriptedPeer, ClientAttachment] = {}

    def join(self, **options: Any) -> ScriptedPeer:
        peer = ScriptedPeer()
        self.clients[peer] = ClientAttachment(PassiveSession(), peer, bucket=None, **options)
        self.audience.join(self.clients[peer])
        return peer

    def broadcast(self, *said: Message) -> None:
        self.audience.broadcast(Delivery(said), sum(len(message.payload) for message in said))

    def look(self) -> None:
        self.audience.run_checks(trio.current_time(), lambda: STATE)

    async def pass_s(self, duration_s: int, *, alive: bool = False) -> None:
        """Let time pass with a check every second; with `alive`, all clients give signs of life."""
        for _ in range(duration_s):
            await trio.sleep(1)
            for client in self.clients.values():
                client.heard |= alive
            self.look()


# Clients without lag


async def test_all_clients_get_the_same_delivery() -> None:
    opened = Opened()
    peers = [opened.join() for _ in range(3)]
    delivery = Delivery([STATUS, INFO])
    opened.audience.broadcast(delivery, 0)
    for peer in peers:
        assert peer.deliveries == [delivery]
        assert peer.deliveries[0] is delivery, "so its encoding is made once"
        assert peer.kept == [False]
    assert len(opened.audience) == 3
    assert set(opened.audience) == set(opened.clients.values())


async def test_departed_client_gets_nothing() -> None:
    opened = Opened()
    leaving, lagging, staying = (opened.join() for _ in range(3))
    lagging.refuses = True
    opened.broadcast(STATUS)
    for peer in (leaving, lagging):
        opened.audience.leave(opened.clients[peer])
        peer.forget()
    opened.broadcast(ERROR)
    opened.audience.tell(messages.DEVICE_OFFLINE)
    assert (leaving.messages, lagging.messages) == ([], [])
    assert staying.messages == [STATUS, ERROR, messages.DEVICE_OFFLINE]
    assert len(opened.audience) == 1
    opened.audience.leave(opened.clients[leaving])
    assert len(opened.audience) == 1


async def test_a_client_that_cannot_be_delivered_to_ends_alone() -> None:
    opened = Opened()
    broken, client = opened.join(), opened.join()
    broken.deliver_error = ValueError("no way out")
    opened.broadcast(STATUS)
    assert broken.close_code == CloseCode.INTERNAL_ERROR
    assert (client.messages, client.closes) == ([STATUS], [])


async def test_messages_of_the_relay_reach_lagging_clients() -> None:
    opened = Opened()
    lagging, client = opened.join(), opened.join()
    lagging.refuses = True
    opened.broadcast(STATUS)
    client.forget()
    opened.audience.tell(messages.DEVICE_OFFLINE)
    assert lagging.messages == client.messages == [messages.DEVICE_OFFLINE]
    assert lagging.kept == client.kept == [True]


# Lagging clients


async def test_lagging_client_misses_only_repeated_messages() -> None:
    opened = Opened()
    lagging, client = opened.join(), opened.join()
    lagging.refuses = True
    lagging.backlog_bytes = 70_000
    opened.broadcast(STATUS, INFO)
    assert (opened.audience.lagging_count, len(opened.audience)) == (1, 2)
    lagging.refuses = False  # there would be room for a little
    opened.broadcast(DELTA)
    opened.broadcast(DELTA, ERROR, DELTA)
    assert lagging.messages == [INFO, ERROR]
    assert lagging.kept == [True, True]
    assert client.messages == [STATUS, INFO, DELTA, DELTA, ERROR, DELTA]
    assert opened.counters.left_out == 4
    assert lagging.closes == []


async def test_messages_without_room_in_the_outbox_are_counted() -> None:
    opened = Opened()
    lagging = opened.join()
    lagging.refuses_all = True
    opened.broadcast(STATUS, INFO)
    assert opened.counters.left_out == 2
    assert lagging.closes == []


async def test_a_client_that_has_caught_up_gets_the_state_and_goes_on(autojump_clock: MockClock) -> None:
    opened = Opened()
    lagging, client = opened.join(), opened.join()
    lagging.refuses = True
    lagging.backlog_bytes = 70_000
    opened.broadcast(STATUS)
    await opened.pass_s(3)
    assert lagging.messages == [], "it has not read the earlier messages"
    lagging.refuses = False
    lagging.backlog_bytes = 0
    opened.broadcast(DELTA)
    assert lagging.messages == []
    await opened.pass_s(1)
    assert lagging.messages == STATE
    assert lagging.kept == [True]
    opened.broadcast(DELTA)
    assert lagging.messages == [*STATE, DELTA]
    assert client.messages == [STATUS, DELTA, DELTA]


# Keepalive


@pytest.mark.parametrize("offset_s", [0.0, 0.01, 0.5, 0.99])
async def test_clients_get_a_message_at_least_every_7_s(offset_s: float, autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join()
    await opened.pass_s(3)
    await trio.sleep(offset_s)
    late = opened.join()
    opened.broadcast(STATUS)
    await trio.sleep(1 - offset_s)
    opened.look()
    await opened.pass_s(60, alive=True)
    opened.broadcast(STATUS)
    for peer in (client, late):
        gaps = [after - before for before, after in zip(peer.taken_at, peer.taken_at[1:], strict=False)]
        assert max(gaps) <= 7
        assert set(peer.types) == {"status", "keepalive"}
    assert 8 <= client.types.count("keepalive") <= 13


async def test_no_keepalive_is_sent_while_the_device_sends(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join()
    for _ in range(30):
        opened.broadcast(STATUS)
        await opened.pass_s(2)
    assert set(client.types) == {"status"}


async def test_a_client_that_lags_is_kept_alive_too(autojump_clock: MockClock) -> None:
    opened = Opened()
    lagging = opened.join()
    lagging.refuses = True
    lagging.backlog_bytes = 1
    opened.broadcast(STATUS)
    await opened.pass_s(10)
    assert "keepalive" in lagging.types


async def test_the_first_client_after_a_long_time_is_kept_alive(autojump_clock: MockClock) -> None:
    opened = Opened()
    await opened.pass_s(100)
    client = opened.join()
    await opened.pass_s(7)
    assert "keepalive" in client.types


async def test_how_often_is_a_setting(autojump_clock: MockClock) -> None:
    opened = Opened(keepalive_s=30.0)
    client = opened.join()
    await opened.pass_s(27)
    assert client.messages == []
    await opened.pass_s(2)
    assert client.types == ["keepalive"]
    assert abs(client.received[0]["timestamp"] - time.time() * 1000) < 60_000


# Signs of life


async def test_a_silent_client_is_asked_and_then_given_up_after_35_s(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join()
    await opened.pass_s(34)
    assert client.pinged_at == [15, 30]
    assert client.closes == []
    await opened.pass_s(1)
    assert client.close_code == CloseCode.POLICY_VIOLATION


async def test_a_client_that_answers_stays(autojump_clock: MockClock) -> None:
    opened = Opened()
    client, talking = opened.join(), opened.join()
    for second in range(1, 121):
        opened.clients[talking].heard = True
        if client.pinged_at and client.pinged_at[-1] == second - 1:
            opened.clients[client].heard = True
        await opened.pass_s(1)
    assert (client.closes, talking.closes) == ([], [])
    assert len(client.pinged_at) >= 6
    assert talking.pinged_at == [], "a client that sends needs no ping"


# Tokens


async def test_the_end_of_a_token_is_told_5_minutes_before_and_enforced(autojump_clock: MockClock) -> None:
    opened = Opened()
    now_s = time.time()
    client, other = opened.join(expires_at_s=now_s + 400), opened.join()
    await opened.pass_s(99, alive=True)
    assert "token_expiring" not in client.types
    await opened.pass_s(3, alive=True)
    (told,) = [content for content in client.received if content["type"] == "token_expiring"]
    assert told["expiresIn"] == pytest.approx(300, abs=2)
    assert told["refreshRequired"] is True
    assert told["expiresAt"].endswith("Z")
    await opened.pass_s(296, alive=True)
    assert client.types.count("token_expiring") == 1
    assert client.closes == []
    await opened.pass_s(4, alive=True)
    assert client.close_code == CloseCode.TOKEN_REJECTED
    assert other.closes == []
    assert "token_expiring" not in other.types


async def test_silence_limit_below_the_ping_interval_closes_without_a_ping(autojump_clock: MockClock) -> None:
    opened = Opened(client_silence_s=5.0, client_ping_s=60.0)
    client = opened.join()
    await opened.pass_s(6)
    assert client.close_code == CloseCode.POLICY_VIOLATION
    assert client.closed_at[0] <= 6


async def test_a_token_that_ends_soon_is_told_of_at_once(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join(expires_at_s=time.time() + 20)
    await opened.pass_s(1)
    (told,) = client.received
    assert (told["type"], told["expiresIn"]) == ("token_expiring", pytest.approx(19, abs=1))


async def test_a_fresh_token_puts_off_the_end_and_is_told_of_again(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join(expires_at_s=time.time() + 20)
    await opened.pass_s(10)
    opened.clients[client].set_token_end(time.time() + 31)
    await opened.pass_s(1)
    assert client.types.count("token_expiring") == 2
    await opened.pass_s(14)
    opened.clients[client].heard = True
    await opened.pass_s(5)
    assert client.closes == []
    assert client.types.count("token_expiring") == 2
    await opened.pass_s(12)
    assert client.close_code == CloseCode.TOKEN_REJECTED


async def test_a_fresh_token_that_ends_earlier_counts_too(autojump_clock: MockClock) -> None:
    opened = Opened()
    client = opened.join(expires_at_s=time.time() + 1000)
    await opened.pass_s(1, alive=True)
    opened.clients[client].set_token_end(time.time() + 5)
    await opened.pass_s(6, alive=True)
    assert client.close_code == CloseCode.TOKEN_REJECTED
    assert 6 <= client.closed_at[0] <= 7


# Access


async def test_expired_access_closes_one_client_only(autojump_clock: MockClock) -> None:
    opened = Opened()
    until_s = time.time() + 20
    guest, other = opened.join(grant=Grant(user_id="guest", until_s=until_s)), opened.join()
    await opened.pass_s(19, alive=True)
    assert guest.closes == []
    await opened.pass_s(2, alive=True)
    assert guest.close_code == CloseCode.ACCESS_ENDED
    assert 20 <= guest.closed_at[0] <= 21
    assert "token_expiring" not in guest.types
    assert other.closes == []


async def test_access_that_ends_with_the_token_closes_with_4003(
    autojump_clock: MockClock,
) -> None:
    opened = Opened()
    ends_at_s = time.time() + 20
    guest = opened.join(grant=Grant(until_s=ends_at_s), expires_at_s=ends_at_s)
    await opened.pass_s(22, alive=True)
    assert guest.close_code == CloseCode.ACCESS_ENDED


async def test_access_may_be_made_longer_and_shorter(autojump_clock: MockClock) -> None:
    opened = Opened()
    now_s = time.time()
    longer, shorter = (opened.join(grant=Grant(until_s=now_s + 20)) for _ in range(2))
    await opened.pass_s(1, alive=True)
    opened.clients[longer].set_grant(Grant(until_s=now_s + 39))
    opened.clients[shorter].set_grant(Grant(until_s=now_s + 4))
    await opened.pass_s(29, alive=True)
    assert longer.closes == []
    assert 5 <= shorter.closed_at[0] <= 6
    await opened.pass_s(12, alive=True)
    assert longer.close_code == CloseCode.ACCESS_ENDED


@pytest.mark.parametrize("by_time", [True, False])
async def test_a_client_that_lags_is_ended_as_well(by_time: bool, autojump_clock: MockClock) -> None:
    opened = Opened()
    lagging = opened.join(grant=Grant(until_s=time.time() + 5))
    lagging.refuses, lagging.backlog_bytes = True, 1
    opened.broadcast(STATUS)
    if not by_time:
        opened.clients[lagging].end_access(CloseCode.ACCESS_ENDED, "enough")
    await opened.pass_s(3)
    lagging.refuses, lagging.backlog_bytes = False, 0
    await opened.pass_s(3)
    assert lagging.close_code == CloseCode.ACCESS_ENDED
    heard = list(lagging.messages)
    opened.broadcast(ERROR)
    opened.audience.tell(messages.DEVICE_OFFLINE)
    await opened.pass_s(10)
    assert lagging.messages == heard == (STATE if by_time else [])
    opened.audience.leave(opened.clients[lagging])
    assert len(opened.audience) == 0


async def test_after_a_pause_silence_begins_again_and_a_keepalive_is_due(autojump_clock: MockClock) -> None:
    opened = Opened()
    app = opened.join(expires_at_s=time.time() + 500)
    [client] = opened.clients.values()
    await trio.sleep(50)
    opened.broadcast(STATUS)
    app.forget()
    opened.audience.resume(trio.current_time(), 350.0)
    opened.look()
    assert app.types == ["keepalive", "token_expiring"], "the wall clock continued"
    assert (client.heard_at, client.pinged_at) == (50, 50)
    assert app.closes == []


# Clients on other instances


async def test_remote_audience_gets_each_delivery_and_is_in_no_count() -> None:
    opened = Opened()
    opened.audience.remote = remote = ScriptedAudience()
    opened.broadcast(STATUS)
    client = opened.join()
    opened.broadcast(DELTA, INFO)
    opened.audience.settle()
    assert remote.messages == [STATUS, DELTA, INFO]
    assert client.messages == [DELTA, INFO]
    assert (len(opened.audience), opened.audience.lagging_count) == (1, 0)
    assert opened.counters.sent_to_clients == 2
    assert opened.counters.bytes_to_clients == len(DELTA.payload) + len(INFO.payload)


async def test_remote_audience_gets_everything_while_clients_lag() -> None:
    opened = Opened()
    opened.audience.remote = remote = ScriptedAudience()
    client = opened.join()
    client.refuses = True
    opened.broadcast(STATUS)
    opened.broadcast(DELTA, ERROR)
    assert opened.audience.lagging_count == 1
    assert client.messages == [ERROR]
    assert remote.messages == [STATUS, DELTA, ERROR]


async def test_remote_audience_gets_no_keepalive_and_no_message_of_the_relay(
    autojump_clock: MockClock,
) -> None:
    opened = Opened()
    opened.audience.remote = remote = ScriptedAudience()
    opened.join()
    opened.audience.tell(messages.DEVICE_ONLINE)
    await opened.pass_s(60, alive=True)
    opened.audience.resume(trio.current_time(), 5.0)
    assert (remote.messages, remote.renewals) == ([], 0)
