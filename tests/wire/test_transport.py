"""The transport, over real sockets with small buffers."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from brewos_relay.wire.transport import READ_BYTES, Transport, TransportStream, WriteBatch
from support.sockets import (
    RecordingOwner,
    count_open_files,
    fill,
    read_available,
    reset,
    socket_pair,
    tcp_pair,
)

LIMIT = 10_000


class ScriptedStream:
    """A stream whose writes are a function."""

    def __init__(self, send: Callable[[bytes], int]) -> None:
        self.send = send

    def recv(self, _most_bytes: int) -> bytes:
        raise AssertionError("nothing is read")


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    before = count_open_files()
    yield
    assert count_open_files() == before


@contextmanager
def transport_pair(*, send_buffer_bytes: int = 4096) -> Iterator[tuple[Transport, socket.socket]]:
    """Open a transport and its peer."""
    with socket_pair(send_buffer_bytes=send_buffer_bytes) as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        yield transport, far
        transport.close()


async def read_exactly(far: socket.socket, length: int) -> bytes:
    """Read at the peer until this much has arrived."""
    received = b""
    while len(received) < length:
        await trio.lowlevel.wait_readable(far)
        data = far.recv(1000)
        assert data, f"the end came after {len(received)} bytes of {length}"
        received += data
    return received


# -- Reading ----------------------------------------------------------------------------------------------


async def test_read_returns_available_data() -> None:
    with transport_pair() as (transport, far):
        assert transport.read() is None
        far.send(b"abc")
        assert transport.read() == b"abc"
        assert transport.read() is None


async def test_family_is_that_of_the_socket() -> None:
    with tcp_pair() as (near, _far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        assert transport.family == socket.AF_INET
        transport.close()


async def test_one_read_is_bounded() -> None:
    with transport_pair() as (transport, far):
        sent_bytes = fill(far)
        assert sent_bytes > READ_BYTES
        first = transport.read()
        assert first is not None
        assert 0 < len(first) <= READ_BYTES


async def test_the_end_of_the_stream_reads_as_nothing_after_the_last_bytes() -> None:
    with transport_pair() as (transport, far):
        far.send(b"last")
        far.close()
        assert transport.read() == b"last"
        assert transport.read() == b""
        assert transport.read() == b""


async def test_a_reset_reads_as_the_end() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        reset(far)
        assert transport.read() == b""
        assert transport.broken
        transport.close()


async def test_waiting_for_something_to_read() -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"x")
        far.close()
        await transport.wait_readable()


async def test_peek_leaves_the_data() -> None:
    with transport_pair() as (transport, far):
        assert transport.peek(10) is None
        far.send(b"abcdef")
        assert transport.peek(3) == b"abc"
        assert transport.peek(10) == b"abcdef"
        transport.skip(2)
        assert transport.read() == b"cdef"
        transport.skip(2)  # nothing to read
        far.send(b"last")
        far.close()
        assert transport.peek(10) == b"last"
        transport.skip(4)
        assert transport.peek(10) == b""
        assert not transport.broken


async def test_peek_at_a_broken_stream_is_the_end() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        reset(far)
        assert transport.peek(10) == b""
        assert transport.broken
        transport.close()


async def test_a_stream_that_has_ended_well_is_not_broken() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        far.close()
        assert transport.read() == b""
        assert not transport.broken
        transport.close()


async def test_the_bounds_of_the_outbox_can_be_asked_for() -> None:
    with tcp_pair() as (near, _):
        transport = Transport(near, outbox_limit_bytes=LIMIT, lag_bytes=100)
        assert transport.outbox_limits == (LIMIT, 100)
        transport.limit_outbox(LIMIT + 1)
        assert transport.outbox_limits == (LIMIT, 100)
        transport.limit_outbox(50)
        assert transport.outbox_limits == (50, 50)
        transport.close()


# -- Holding writes back ----------------------------------------------------------------------------------


async def test_held_writes_are_sent_in_order() -> None:
    with transport_pair() as (one, far_one), transport_pair() as (two, far_two):
        sends = one.write_batch = two.write_batch = WriteBatch()
        assert one.write(b"at once ")
        with sends:
            for number in range(4):
                assert one.write(b"one%d " % number)
            assert two.write(b"two")
            assert read_available(far_one) == b"at once "
            assert read_available(far_two) == b""
        assert read_available(far_one) == b"one0 one1 one2 one3 "
        assert read_available(far_two) == b"two"
        assert one.write(b"at once again")
        assert read_available(far_one) == b"at once again"
        with sends:
            pass
        assert read_available(far_one) == b""


async def test_plain_write_that_is_held_beside_encrypted_ones_is_sent_as_it_is() -> None:
    with transport_pair() as (transport, far):
        transport.write_batch = batch = WriteBatch()
        batch.encrypts = True  # as a transport with TLS sets it
        with batch:
            assert transport.write(b"plain")
        assert read_available(far) == b"plain"


@pytest.mark.parametrize("is_watched", [True, False])
async def test_failing_held_write_affects_no_other(is_watched: bool) -> None:
    owner = RecordingOwner()

    def fail(_data: bytes) -> int:
        raise MemoryError

    with transport_pair() as (bad, _), transport_pair() as (good, far_good):
        sends = bad.write_batch = good.write_batch = WriteBatch()
        if is_watched:
            bad.owner = owner
        bad._stream = ScriptedStream(fail)
        with sends:
            assert bad.write(b"lost")
            assert good.write(b"sent")
        assert read_available(far_good) == b"sent"
        assert [type(each) for each in owner.failures] == [MemoryError] * is_watched
        assert bad.broken is not is_watched
        bad._stream = ScriptedStream(len)
        with sends:
            assert bad.write(b"later")


@pytest.mark.interpreted(
    reason="compiled code appends to lists without a call, so only real lack of memory fails it"
)
async def test_write_that_cannot_be_held_leaves_nothing() -> None:
    class NoRoom(list[Transport]):
        def append(self, _transport: Transport) -> None:
            raise MemoryError

    with transport_pair() as (transport, far):
        transport.write_batch = WriteBatch()
        with transport.write_batch:
            transport.write_batch.held = NoRoom()
            with pytest.raises(MemoryError):
                transport.write(b"lost")
        assert transport.write(b"sent")
        assert read_available(far) == b"sent"


async def test_small_writes_that_are_held_go_in_one_piece() -> None:
    sent: list[bytes] = []

    def send(data: bytes) -> int:
        sent.append(data)
        return len(data)

    with tcp_pair() as (near, _):
        transport = Transport(near, outbox_limit_bytes=LIMIT, lag_bytes=10)
        transport._stream = ScriptedStream(send)
        transport.write_batch = WriteBatch()
        with transport.write_batch:
            for piece in (b"1", b"2" * 8, b"3", b"4", b"5" * 10):
                assert transport.write(piece)
        transport.close()
    assert sent == [b"1" + b"2" * 8 + b"3", b"4", b"5" * 10]


async def test_held_write_without_room_goes_into_the_outbox() -> None:
    with transport_pair() as (transport, far):
        transport.owner = owner = RecordingOwner()
        filled_bytes = fill(transport._socket)
        transport.write_batch = WriteBatch()
        with transport.write_batch:
            assert transport.write(bytes(LIMIT - 10))
            assert owner.starts == 0
            assert not transport.write(bytes(11))
            assert owner.starts == 1
            assert transport.outbox_bytes == LIMIT - 10
            assert transport.write(bytes(10))
        assert transport.outbox_bytes == LIMIT
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_exactly, far, filled_bytes + LIMIT)
            assert await transport.flush(stall_s=5)


async def test_write_that_is_held_to_the_end_without_room_goes_into_the_outbox() -> None:
    with transport_pair() as (full, _), transport_pair() as (transport, far):
        full.owner = owner = RecordingOwner()
        fill(full._socket)
        full.write_batch = transport.write_batch = batch = WriteBatch()
        with batch:
            assert full.write(b"waits")
            assert transport.write(b"sent")
        assert (full.outbox_bytes, owner.starts) == (5, 1)
        assert read_available(far) == b"sent"


@given(
    st.lists(st.tuples(st.integers(1, 80), st.booleans()), max_size=12),
    st.integers(10, 100),
)
async def test_held_writes_have_the_same_limits_as_direct_ones(
    writes: list[tuple[int, bool]], lag_bytes: int
) -> None:
    with tcp_pair() as (near_one, _), tcp_pair() as (near_two, _):
        at_once = Transport(near_one, outbox_limit_bytes=200, lag_bytes=lag_bytes)
        held = Transport(near_two, outbox_limit_bytes=200, lag_bytes=lag_bytes)
        at_once._stream = held._stream = ScriptedStream(lambda _data: 0)
        held.write_batch = WriteBatch()
        with held.write_batch:
            for size, keep in writes:
                assert held.write(bytes(size), keep) == at_once.write(bytes(size), keep)
        assert held.outbox_bytes == at_once.outbox_bytes
        at_once.close()
        held.close()


async def test_held_write_of_a_closed_stream_is_dropped() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        sends = transport.write_batch = WriteBatch()
        with sends:
            assert transport.write(b"to nobody")
            reset(far)
        assert transport.broken
        with sends:
            assert transport.write(b"to nobody")
            transport.close()


# -- Writing ----------------------------------------------------------------------------------------------


async def test_write_is_sent_at_once_if_there_is_room() -> None:
    with transport_pair() as (transport, far):
        transport.owner = RecordingOwner(may_start=False)
        assert transport.write(b"abc")
        assert transport.write(b"")
        assert transport.outbox_bytes == 0
        assert read_available(far) == b"abc"


async def test_unsent_bytes_go_into_the_outbox() -> None:
    with transport_pair() as (transport, far):
        transport.owner = owner = RecordingOwner()
        filled_bytes = fill_transport(transport)
        assert transport.outbox_bytes == 0
        assert transport.write(b"first")
        assert transport.outbox_bytes == 5
        assert transport.write(b"second")
        assert transport.outbox_bytes == 11
        assert owner.starts == 1  # only when it became non-empty
        assert len(read_available(far)) == filled_bytes


async def test_transport_needs_no_owner() -> None:
    with transport_pair() as (transport, _):
        fill_transport(transport)
        assert transport.owner is None
        assert transport.write(b"first")
        assert transport.outbox_bytes == 5


async def test_a_write_may_be_taken_in_part() -> None:
    with tcp_pair() as (near, _):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        data = bytes(64 * 1024 * 1024)  # more than any system buffers
        assert transport.write(data)
        assert 0 < transport.outbox_bytes < len(data)
        transport.close()
        assert transport.outbox_bytes == 0


async def test_the_outbox_is_bounded() -> None:
    with transport_pair() as (transport, _):
        fill_transport(transport)
        assert transport.write(bytes(LIMIT - 10))
        assert transport.outbox_bytes == LIMIT - 10
        assert not transport.write(bytes(11))
        assert transport.outbox_bytes == LIMIT - 10
        assert transport.write(bytes(10))
        assert not transport.write(b"x")
        assert transport.outbox_bytes == LIMIT


async def test_writes_without_keep_fit_up_to_lag_bytes() -> None:
    with socket_pair(send_buffer_bytes=4096) as (near, _):
        transport = Transport(near, outbox_limit_bytes=LIMIT, lag_bytes=100)
        fill_transport(transport)
        assert transport.write(bytes(60), keep=False)
        assert not transport.write(bytes(41), keep=False)
        assert transport.write(bytes(40), keep=False)
        assert not transport.write(b"x", keep=False)
        assert transport.write(bytes(LIMIT - 100))
        assert not transport.write(b"x")
        assert transport.outbox_bytes == LIMIT
        transport.close()


@pytest.mark.parametrize("lag_bytes", [None, 2 * LIMIT])
async def test_the_mark_is_never_above_the_bound(lag_bytes: int | None) -> None:
    with socket_pair(send_buffer_bytes=4096) as (near, _):
        transport = Transport(near, outbox_limit_bytes=LIMIT, lag_bytes=lag_bytes)
        fill_transport(transport)
        assert transport.write(bytes(LIMIT), keep=False)
        assert not transport.write(b"x", keep=False)
        transport.close()


async def test_a_broken_stream_takes_everything() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        reset(far)
        transport.owner = RecordingOwner(may_start=False)
        for _ in range(10):
            assert transport.write(bytes(LIMIT))
        assert transport.outbox_bytes == 0
        assert transport.broken
        assert transport.read() == b""
        transport.close()


# -- Flushing ---------------------------------------------------------------------------------------------


def fill_transport(transport: Transport) -> int:
    """Fill the system's buffer of a transport's socket, exactly; return how many bytes that took."""
    duplicate = socket.socket(fileno=socket.dup(transport.fd))
    with duplicate:
        return fill(duplicate)


async def test_flushing_writes_everything_in_order() -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        filled_bytes = fill_transport(transport)
        chunks = [bytes((i,)) * 999 for i in range(10)]
        for chunk in chunks:
            assert transport.write(chunk)
        expected = b"".join(chunks)
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                assert await transport.flush(stall_s=5)

            nursery.start_soon(flush)
            received = await read_exactly(far, filled_bytes + len(expected))
        assert received[filled_bytes:] == expected
        assert transport.outbox_bytes == 0
        transport.owner = owner = RecordingOwner()
        assert transport.write(b"straight")  # as before the outbox was used
        assert await read_exactly(far, 8) == b"straight"
        assert owner.starts == 0


async def test_flush_writes_data_that_is_added_meanwhile() -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        filled_bytes = fill_transport(transport)
        assert transport.write(b"first ")
        async with trio.open_nursery() as nursery:

            async def flush() -> None:
                assert await transport.flush(stall_s=5)

            nursery.start_soon(flush)
            await trio.testing.wait_all_tasks_blocked()
            assert transport.write(b"second")
            received = await read_exactly(far, filled_bytes + 12)
        assert received[filled_bytes:] == b"first second"


async def test_flushing_nothing_is_done_at_once() -> None:
    with trio.fail_after(5), transport_pair() as (transport, _):
        assert await transport.flush(stall_s=5)


async def test_flushing_gives_up_on_a_peer_that_takes_nothing(autojump_clock: MockClock) -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        fill_transport(transport)
        assert transport.write(b"unread")
        began_s = trio.current_time()
        assert not await transport.flush(stall_s=0.05)
        assert trio.current_time() - began_s >= 0.05
        assert transport.outbox_bytes == 6
        assert b"unread" not in read_available(far)
        assert await transport.flush(stall_s=5)  # it may be tried again
        assert read_available(far) == b"unread"


async def test_a_slow_peer_is_given_more_time_whenever_it_takes_something(autojump_clock: MockClock) -> None:
    stall_s = 0.2
    with trio.fail_after(5), transport_pair() as (transport, far):
        filled_bytes = fill_transport(transport)
        assert transport.write(bytes(8 * filled_bytes + LIMIT))
        took_all = trio.Event()

        async def flush() -> None:
            assert await transport.flush(stall_s=stall_s)
            took_all.set()

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flush)
            while not took_all.is_set():
                await trio.sleep(stall_s / 4)
                read_available(far)
        assert trio.current_time() - began_s > stall_s


async def test_flushing_a_broken_stream_empties_the_outbox() -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        fill(near)
        assert transport.write(b"first")
        assert transport.write(b"second")
        far.close()  # with unread bytes, that is a reset
        assert await transport.flush(stall_s=5)
        assert transport.outbox_bytes == 0
        transport.close()


async def test_outbox_can_be_cut_to_the_begun_write() -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        transport.drop_unsent_writes()  # an empty outbox is fine too
        filled_bytes = fill_transport(transport)
        for data in (b"begun", b"second", b"third"):
            assert transport.write(data)
        transport.drop_unsent_writes()
        assert transport.outbox_bytes == 5
        assert transport.write(b", goodbye")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: transport.flush(stall_s=5))
            received = await read_exactly(far, filled_bytes + 14)
        assert received[filled_bytes:] == b"begun, goodbye"
        assert read_available(far) == b""


# -- Ending -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wake", "close"])
async def test_wake_ends_a_wait(how: str) -> None:
    with trio.fail_after(5), transport_pair() as (transport, _):
        fill_transport(transport)
        transport.write(b"waits")
        woken: list[str] = []

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.wait_readable()
            woken.append("reader")

        async def write() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.flush(stall_s=5)
            woken.append("writer")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
            if how == "wake":
                transport.wake()
            else:
                transport.close()
        assert sorted(woken) == ["reader", "writer"]
        assert transport.closed == (how == "close")
        assert transport.outbox_bytes == (5 if how == "wake" else 0)


async def test_wake_ends_a_wait_that_was_about_to_end() -> None:
    for _ in range(20):  # the order of the tasks is random
        with trio.fail_after(5), transport_pair() as (transport, far):
            filled_bytes = fill_transport(transport)
            while transport.write(bytes(100)):
                pass

            async def write(transport: Transport = transport) -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await transport.flush(stall_s=0.1)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await trio.testing.wait_all_tasks_blocked()
                far.recv(filled_bytes)
                await trio.lowlevel.checkpoint()  # here the system has reported room
                transport.wake()


async def test_the_peer_can_be_told_that_nothing_more_will_come() -> None:
    with transport_pair() as (transport, far):
        transport.write(b"last")
        transport.finish_writing()
        assert far.recv(100) == b"last"
        assert far.recv(100) == b""
        far.send(b"answer")
        assert transport.read() == b"answer"
        far.close()
        transport.finish_writing()


async def test_finishing_a_broken_stream_is_harmless() -> None:
    with tcp_pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        reset(far)
        assert transport.read() == b""
        transport.finish_writing()
        transport.close()


async def test_closing_closes_the_socket_once() -> None:
    with trio.fail_after(5), transport_pair() as (transport, far):
        closed_before = transport.closed
        transport.close()
        assert (closed_before, transport.closed) == (False, True)
        assert transport.fd == -1
        assert far.recv(1) == b""
        transport.close()
        transport.wake()
        assert await transport.flush(stall_s=5)


async def test_a_socket_that_was_given_away_stays_open() -> None:
    with transport_pair() as (transport, far):
        sock = transport.detach()
        assert transport.closed
        transport.wake()
        transport.close()
        sock.send(b"still here")
        assert far.recv(100) == b"still here"


async def test_a_peer_that_takes_little_is_not_stalled(autojump_clock: MockClock) -> None:
    with trio.fail_after(5), transport_pair(send_buffer_bytes=200_000) as (transport, far):
        filled_bytes = fill_transport(transport)
        assert transport.write(b"x" * 100)
        async with trio.open_nursery() as nursery:

            async def sip() -> None:
                for _ in range(6):
                    await trio.sleep(0.05)
                    far.recv(filled_bytes // 50)  # far too little to make room
                nursery.cancel_scope.cancel()

            nursery.start_soon(sip)
            await transport.flush(stall_s=0.08)
            raise AssertionError("it was taken for stalled")


async def test_unknown_untaken_bytes_count_as_stalled(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError

    monkeypatch.setattr("brewos_relay.wire.transport.fcntl.ioctl", fail)
    with trio.fail_after(5), transport_pair() as (transport, _):
        fill_transport(transport)
        assert transport.write(b"x")
        assert not await transport.flush(stall_s=0.05)


LIMIT = 10_000


@asynccontextmanager
async def stream_pair(
    pair: Callable[[], AbstractContextManager[tuple[socket.socket, socket.socket]]] = socket_pair,
) -> AsyncIterator[tuple[TransportStream, Transport, socket.socket]]:
    """Open a stream, the transport below it, and its peer, all with a deadline."""
    with trio.fail_after(5), pair() as (near, far):
        transport = Transport(near, outbox_limit_bytes=LIMIT)
        yield TransportStream(transport), transport, far
        transport.close()


async def test_receive_returns_pieces_of_the_wanted_size() -> None:
    async with stream_pair() as (stream, _, far):
        far.send(b"abcdef")
        assert await stream.receive_some(4) == b"abcd"
        assert await stream.receive_some(4) == b"ef"
        far.send(b"ghi")
        assert await stream.receive_some() == b"ghi"


async def test_receiving_waits_for_something_or_the_end() -> None:
    async with stream_pair() as (stream, _, far), trio.open_nursery() as nursery:

        async def receive() -> None:
            assert await stream.receive_some() == b"abc"
            assert await stream.receive_some(1) == b""
            assert await stream.receive_some() == b""

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        far.send(b"abc")
        await trio.testing.wait_all_tasks_blocked()
        far.close()


async def test_a_reset_is_told_from_an_end() -> None:
    async with stream_pair(tcp_pair) as (stream, _, far):
        reset(far)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_sending_waits_until_the_system_has_it_all() -> None:
    async with stream_pair() as (stream, transport, far), trio.open_nursery() as nursery:
        data = bytes(range(256)) * 16 * 1024  # more than any system buffers
        nursery.start_soon(stream.send_all, memoryview(data))
        await trio.testing.wait_all_tasks_blocked()
        assert transport.outbox_bytes
        received = bytearray()
        while len(received) < len(data):
            await trio.lowlevel.wait_readable(far)
            received += far.recv(READ_BYTES)
        assert received == data


async def test_sending_nothing_is_allowed() -> None:
    async with stream_pair() as (stream, _, far):
        await stream.send_all(b"")
        await stream.send_all(bytearray(b"x"))
        assert read_available(far) == b"x"


async def test_cancelled_send_without_room_breaks_the_stream() -> None:
    async with stream_pair() as (stream, transport, far):
        fill_transport(transport)
        with trio.move_on_after(0):
            await stream.send_all(bytes(LIMIT))
        with trio.CancelScope() as scope:
            scope.cancel()
            await stream.send_all(b"never written")
        assert transport.outbox_bytes == 0
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(bytes(LIMIT))

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            assert transport.outbox_bytes == LIMIT
            nursery.cancel_scope.cancel()
        read_later = trio.lowlevel.wait_readable
        async with trio.open_nursery() as nursery:

            async def read_all() -> None:
                while True:
                    await read_later(far)
                    far.recv(READ_BYTES)

            nursery.start_soon(read_all)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")
            nursery.cancel_scope.cancel()


async def test_waiting_for_room() -> None:
    async with stream_pair() as (stream, transport, far):
        await stream.wait_send_all_might_not_block()
        fill_transport(transport)
        with trio.move_on_after(0.01) as waiting:
            await stream.wait_send_all_might_not_block()
        assert waiting.cancelled_caught
        read_available(far)
        read_available(far)
        await stream.wait_send_all_might_not_block()


async def test_the_end_can_be_said_before_the_peer_says_it() -> None:
    async with stream_pair() as (stream, _, far):
        await stream.send_eof()
        assert far.recv(10) == b""
        far.send(b"late")
        assert await stream.receive_some() == b"late"


async def test_a_stream_that_was_closed_does_nothing_more() -> None:
    async with stream_pair() as (stream, transport, far):
        await stream.aclose()
        assert transport.closed
        assert far.recv(10) == b""
        await stream.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_eof()
        with pytest.raises(trio.ClosedResourceError):
            await stream.wait_send_all_might_not_block()


async def test_close_ends_a_receive() -> None:
    async with stream_pair() as (stream, _, _far), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_some()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        await stream.aclose()


async def test_detach_returns_unread_data() -> None:
    async with stream_pair() as (stream, transport, far):
        far.send(b"abcdef")
        assert await stream.receive_some(2) == b"ab"
        assert stream.detach() == (transport, b"cdef")
        assert stream.detach() == (transport, b"")
