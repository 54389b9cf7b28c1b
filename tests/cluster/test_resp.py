"""The connection to Redis, with a stream that the test plays the server on."""

import math
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.cluster.broker import BrokerError
from brewos_relay.cluster.resp import (
    OUTBOX_BYTES,
    PENDING_REPLIES,
    REPLY_BYTES,
    ErrorReply,
    RespConnection,
    join,
    split,
)
from support.waiting import until


class ServerSide(trio.abc.Stream):
    """A stream whose other end is the test: `written` has each write, `answer` sends bytes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.accepts = trio.Event()
        self.accepts.set()
        self.failure: Exception | None = None
        self.closed = False
        self._send, self._receive = trio.open_memory_channel[bytes](math.inf)

    def answer(self, *data: bytes) -> None:
        for each in data:
            self._send.send_nowait(each)

    def end(self) -> None:
        self._send.close()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.accepts.wait()
        if self.failure is not None:
            raise self.failure
        self.written.append(bytes(data))
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return b""

    async def aclose(self) -> None:
        self.closed = True
        await trio.lowlevel.checkpoint()


class Link:
    """A connection, its other end, and the messages that came."""

    def __init__(self) -> None:
        self.server = ServerSide()
        self.messages: list[tuple[bytes, bytes]] = []
        self.connection = RespConnection(self.server, lambda *message: self.messages.append(message))

    async def written(self) -> list[bytes]:
        """Wait until the connection has nothing to write; return what it wrote since the last time."""
        await trio.testing.wait_all_tasks_blocked()
        written, self.server.written = self.server.written, []
        return written


@asynccontextmanager
async def linked() -> AsyncIterator[Link]:
    link = Link()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.connection.run)
            yield link
            nursery.cancel_scope.cancel()
    assert link.server.closed


def command(*arguments: bytes) -> bytes:
    """Write a command as a client does."""
    parts = [b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments]
    return b"*%d\r\n" % len(arguments) + b"".join(parts)


def push(*parts: bytes) -> bytes:
    """Write a message of a channel as Redis does."""
    return b">" + command(*parts)[1:]


async def call_lost(link: Link, why: str) -> None:
    """Wait until the connection is lost for this reason, and check that it stays so."""
    with trio.fail_after(5):
        assert why in await link.connection.wait_lost()
    with pytest.raises(BrokerError, match="was lost"):
        await link.connection.call([("PING",)])
    assert not link.connection.publish(b"c", b"")
    assert link.connection.outbox_bytes == link.connection.pending_replies == 0


# Writing


async def test_everything_of_one_turn_leaves_in_one_write() -> None:
    async with linked() as link:

        async def call(text: bytes) -> None:
            await link.connection.call([(b"GET", text), (b"GET", text)])

        async with trio.open_nursery() as nursery:
            for n in range(5):
                nursery.start_soon(call, b"%d" % n)
            await trio.testing.wait_all_tasks_blocked()
            link.connection.publish(b"box", b"mail")
            link.connection.publish_now(b"box", b"probe")
            link.connection.subscribe(b"dev")
            link.server.answer(b"+OK\r\n" * 10)
            [calls, others] = await link.written()
        pairs = [command(b"GET", b"%d" % n) * 2 for n in range(5)]
        assert len(calls) == sum(map(len, pairs))
        assert all(pair in calls for pair in pairs)
        assert others == (
            command(b"PUBLISH", b"box", join([b"mail"]))
            + command(b"PUBLISH", b"box", b"probe")
            + command(b"SUBSCRIBE", b"dev")
        )


async def test_payloads_for_a_channel_become_one_publish() -> None:
    async with linked() as link:
        for payload in (b"1", b"", b"22\r\n"):
            assert link.connection.publish(b"a", payload)
            assert link.connection.publish(b"b", payload)
        assert await link.written() == [
            command(b"PUBLISH", b"a", join([b"1", b"", b"22\r\n"]))
            + command(b"PUBLISH", b"b", join([b"1", b"", b"22\r\n"]))
        ]
        link.connection.publish(b"a", b"3")
        assert await link.written() == [command(b"PUBLISH", b"a", join([b"3"]))]


async def test_payload_overtakes_no_command() -> None:
    async with linked() as link:
        link.connection.publish(b"a", b"1")
        link.connection.subscribe(b"d")
        link.connection.publish(b"a", b"2")
        assert await link.written() == [
            command(b"PUBLISH", b"a", join([b"1"]))
            + command(b"SUBSCRIBE", b"d")
            + command(b"PUBLISH", b"a", join([b"2"]))
        ]


async def test_joined_payloads_stay_small() -> None:
    async with linked() as link:
        for _ in range(40):
            link.connection.publish(b"a", b"x" * 20_000)
        [written] = await link.written()
        sizes = [len(each) for each in written.split(b"PUBLISH")[1:]]
        assert len(sizes) == 4
        assert max(sizes) < 300_000


async def test_commands_wait_while_a_write_waits_and_leave_together() -> None:
    async with linked() as link:
        link.server.accepts = trio.Event()
        link.connection.publish(b"a", b"1")
        await trio.testing.wait_all_tasks_blocked()
        link.connection.publish(b"a", b"2")
        await trio.testing.wait_all_tasks_blocked()
        link.connection.publish(b"a", b"3")
        link.server.accepts.set()
        assert await link.written() == [
            command(b"PUBLISH", b"a", join([b"1"])),
            command(b"PUBLISH", b"a", join([b"2", b"3"])),
        ]


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_joined_payloads_are_split_again(payloads: list[bytes]) -> None:
    assert split(join(payloads)) == payloads


@given(st.binary(max_size=40))
def test_any_bytes_are_split_or_refused(data: bytes) -> None:
    assert split(b"p" + data) is None
    try:
        payloads = split(b"j" + data)
    except ValueError:
        return
    assert payloads is not None
    assert join(payloads) == b"j" + data


# Bounds


async def test_outbox_of_a_server_that_accepts_nothing_is_bounded() -> None:
    async with linked() as link:
        link.server.accepts = trio.Event()
        accepted = 0
        while link.connection.publish(b"a", b"x" * 600):
            accepted += 1
            if accepted % 100 == 0:
                await trio.lowlevel.checkpoint()
        assert OUTBOX_BYTES - 1000 < link.connection.outbox_bytes <= OUTBOX_BYTES
        assert not link.connection.publish(b"a", b"x" * 600)
        done = []

        async def call() -> None:
            done.append(await link.connection.call([("PING",)]))

        async with trio.open_nursery() as nursery:
            link.connection.publish(b"a", b"")  # fills it
            while link.connection.publish(b"a", b""):
                pass
            link.connection.publish_now(b"a", b"probe")
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert link.connection.outbox_bytes < OUTBOX_BYTES + 200, "a command waits outside of the outbox"
            link.server.accepts.set()
            written = b"".join(await link.written())
            assert written.endswith(command(b"PING"))
            assert link.connection.outbox_bytes == 0
            link.server.answer(b":0\r\n" * (written.count(b"PUBLISH")) + b"+PONG\r\n")
        assert done == [[b"PONG"]]


async def test_replies_that_the_server_owes_are_bounded() -> None:
    async with linked() as link:
        sent = 0
        while link.connection.publish(b"%d" % (sent % 5000), b""):
            sent += 1
            if sent % 5000 == 0:
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                await link.written()
        assert link.connection.pending_replies == PENDING_REPLIES
        done = []

        async def call() -> None:
            done.append(await link.connection.call([("PING",)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            assert link.connection.pending_replies == PENDING_REPLIES
            link.server.answer(b":0\r\n" * PENDING_REPLIES)
            await trio.testing.wait_all_tasks_blocked()
            assert link.connection.publish(b"a", b"")
            link.server.answer(b"+PONG\r\n:0\r\n")
        assert done == [[b"PONG"]]
        assert link.connection.pending_replies == 0


@pytest.mark.parametrize(
    ("first", "more"),
    [(b"$999999999\r\n", b"x" * 65536), (b"*999999\r\n", b"$100\r\n" + b"x" * 100 + b"\r\n")],
)
async def test_reply_that_does_not_end_loses_the_connection(first: bytes, more: bytes) -> None:
    async with linked() as link:
        link.server.answer(first, *[more * (65536 // len(more))] * (REPLY_BYTES // 65536 + 3))
        await call_lost(link, "more than")


async def test_large_reply_within_the_limit_is_accepted() -> None:
    async with linked() as link, trio.open_nursery() as nursery:
        payload = b"x" * (REPLY_BYTES - 70_000)

        async def call() -> None:
            assert await link.connection.call([("GET", "k")]) == [payload]

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        data = b"$%d\r\n%b\r\n" % (len(payload), payload)
        link.server.answer(*(data[at : at + 65536] for at in range(0, len(data), 65536)))


# Reading


async def test_cancelled_calls_leave_replies_to_the_others() -> None:
    async with linked() as link:
        got: list[Any] = []

        async def call(n: int, scope: trio.CancelScope) -> None:
            with scope:
                got.append((n, await link.connection.call([("A", n), ("B", n)])))

        scopes = [trio.CancelScope() for _ in range(6)]
        async with trio.open_nursery() as nursery:
            for n, scope in enumerate(scopes):
                nursery.start_soon(call, n, scope)
                await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()
            scopes[4].cancel()
            await trio.testing.wait_all_tasks_blocked()
            link.server.answer(b":0\r\n:1\r\n:10\r\n")
            await trio.testing.wait_all_tasks_blocked()
            scopes[3].cancel()
            await trio.testing.wait_all_tasks_blocked()
            link.server.answer(b":11\r\n:20\r\n:21\r\n:30\r\n:31\r\n:40\r\n:41\r\n:50\r\n:51\r\n")
        assert sorted(got) == [(0, [0, 1]), (2, [20, 21]), (5, [50, 51])]
        assert link.connection.pending_replies == 0


async def test_messages_between_replies_are_passed_on_in_order() -> None:
    async with linked() as link, trio.open_nursery() as nursery:

        async def call() -> None:
            assert await link.connection.call([("A",), ("B",)]) == [1, None]

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        link.connection.subscribe(b"c")
        data = push(b"message", b"c", b"1") + b":1\r\n" + push(b"message", b"d", b"")
        data += push(b"invalidate", b"x") + b"_\r\n" + b">3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n"
        data += push(b"message", b"c", b"\r\n")
        link.server.answer(*(data[n : n + 1] for n in range(len(data))))
        await until(lambda: len(link.messages) == 3)
        assert link.messages == [(b"c", b"1"), (b"d", b""), (b"c", b"\r\n")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no RESP3"),
        (b"\x15\x03\x01\x00\x02\x02\x50", "no RESP3"),
        (b"*99999999\r\n:1\r\n:1\r\n", ""),
        (b"*-7\r\n", "no RESP3"),
        (b"%1\r\n*1\r\n:1\r\n:1\r\n", ""),
        (b"*1\r\n" * 10_000, ""),
        (b":1\r\n", "not asked for"),
        (b"+OK\r\n", "not asked for"),
        (push(b"subscribe", b"c", b"1"), "not asked for"),
        (push(b"unsubscribe", b"c", b"1"), "not asked for"),
        (b">3\r\n$7\r\nmessage\r\n:1\r\n$1\r\nx\r\n", "malformed"),
        (b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*1\r\n:1\r\n", "malformed"),
        (b"-ERR unknown\x00 \xff" + b"y" * 3000 + b"\r\n", "refused a command: ERR unknown?"),
    ],
)
async def test_garbage_loses_the_connection(data: bytes, why: str) -> None:
    async with linked() as link:
        link.server.answer(data)
        link.server.end()
        await call_lost(link, why)
        assert link.connection.why_lost.isprintable()
        assert len(link.connection.why_lost) < 300


@given(
    st.lists(
        st.sampled_from([b"*", b"$", b">", b"%", b"3", b"-1", b"\r\n", b":1", b"+OK", b"_"]) | st.binary()
    )
)
async def test_random_bytes_never_fail_otherwise(parts: list[bytes]) -> None:
    async with linked() as link:
        link.server.answer(*(part for part in parts if part))
        link.server.end()
        await call_lost(link, "")


async def test_reply_instead_of_a_confirmation_loses_the_connection() -> None:
    async with linked() as link:
        link.connection.subscribe(b"c")
        link.server.answer(b":1\r\n")
        await call_lost(link, "not asked for")


async def test_error_reply_loses_the_connection_also_for_a_cancelled_call() -> None:
    async with linked() as link:
        with trio.move_on_after(0.001):
            await link.connection.call([("SET", "a", 1)])
        link.server.answer(b"-READONLY You can't write against a read only replica.\r\n")
        await call_lost(link, "READONLY")


async def test_missing_script_is_returned() -> None:
    async with linked() as link, trio.open_nursery() as nursery:

        async def call() -> None:
            [first, second] = await link.connection.call([("EVALSHA",), ("GET",)])
            assert isinstance(first, ErrorReply)
            assert second == b"x"

        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()
        link.server.answer(b"-NOSCRIPT No matching script.\r\n$1\r\nx\r\n")


# The end


async def test_end_of_the_connection_reaches_all_who_wait() -> None:
    async with linked() as link:
        failures = []

        async def call() -> None:
            try:
                await link.connection.call([("A",), ("B",)])
            except BrokerError as error:
                failures.append(str(error))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)
            await trio.testing.wait_all_tasks_blocked()
            link.server.answer(b":1\r\n")
            await trio.testing.wait_all_tasks_blocked()
            link.connection.publish(b"a", b"")
            link.server.end()
        assert failures == ["the connection to Redis was lost: Redis closed the connection"] * 3
        await call_lost(link, "closed")
        await link.connection.flush()


@pytest.mark.parametrize("failure", [trio.BrokenResourceError(), OSError("no route"), ssl.SSLError("bad")])
async def test_failed_write_loses_the_connection(failure: Exception) -> None:
    async with linked() as link:
        link.server.failure = failure
        link.connection.publish(b"a", b"")
        await call_lost(link, "writing failed")


async def test_commands_in_the_outbox_are_dropped_with_the_connection() -> None:
    async with linked() as link:
        link.server.accepts = trio.Event()
        link.connection.publish(b"a", b"1")
        await trio.testing.wait_all_tasks_blocked()
        link.connection.publish(b"a", b"2")
        link.connection.lose("a test")
        link.server.accepts.set()
        assert await link.written() == []
        link.connection.subscribe(b"a")
        link.connection.lose("again")
        await call_lost(link, "a test")
        assert await link.written() == []


async def test_failure_of_the_receiver_is_not_hidden() -> None:
    server = ServerSide()

    def fail(_channel: bytes, _payload: bytes) -> None:
        raise ZeroDivisionError

    connection = RespConnection(server, fail)
    server.answer(push(b"message", b"c", b"x"))
    with trio.fail_after(5), pytest.raises(ExceptionGroup) as failed:
        await connection.run()
    assert failed.group_contains(ZeroDivisionError)
    assert connection.is_lost
