"""Messages and open files between two processes, here within one."""

import os
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import msgspec
import pytest
import trio
import trio.testing

from brewos_relay.server.fd_channel import FdChannel
from support.resources import own_open_files


class Said(msgspec.Struct, frozen=True, tag=True, array_like=True):
    text: bytes


Channel: TypeAlias = FdChannel[Said]


@asynccontextmanager
async def channels() -> AsyncIterator[tuple[Channel, Channel]]:
    before = own_open_files()
    pair = [Channel(end, Said) for end in socket.socketpair()]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for channel in pair:
                nursery.start_soon(channel.run)
            yield pair[0], pair[1]
            nursery.cancel_scope.cancel()
    for channel in pair:
        channel.close()
        channel.close()
    assert own_open_files() == before


def pipe() -> tuple[int, socket.socket]:
    """Make two connected files: the first stays here, the other one is passed."""
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs


async def test_messages_arrive_in_order_with_their_files() -> None:
    async with channels() as (a, b):
        kept, passed = pipe()
        assert a.send(Said(b"1"))
        assert a.send(Said(b"2"), [passed])
        assert a.send(Said(b"3"))
        assert await b.receive() == (Said(b"1"), [])
        message, [received] = await b.receive()
        assert message == Said(b"2")
        assert not os.get_inheritable(received)
        assert await b.receive() == (Said(b"3"), [])
        os.write(received, b"x")
        assert os.read(kept, 1) == b"x"
        os.close(kept)
        os.close(received)


async def test_messages_that_the_system_does_not_take_wait() -> None:
    large = [Said(bytes([n]) * 300_000) for n in range(20)]
    async with channels() as (a, b):
        pipes = [pipe() for _ in large]
        for message, (_, passed) in zip(large, pipes, strict=True):
            assert a.send(message, [passed])
        assert not a.try_send(Said(b""), []), "it would have to wait"
        for message, (kept, _) in zip(large, pipes, strict=True):
            received, [file] = await b.receive()
            assert received == message
            os.close(file)
            assert os.read(kept, 1) == b"", "no other copy is open"
            os.close(kept)


async def test_a_file_that_is_only_tried_stays_open() -> None:
    async with channels() as (a, b):
        kept, passed = pipe()
        assert a.try_send(Said(b"1" * 1_000_000), [passed.fileno()]), "the rest waits"
        message, [received] = await b.receive()
        assert len(message.text) == 1_000_000
        passed.close()
        os.close(kept)
        os.close(received)


async def test_end_of_the_other_process_is_noticed() -> None:
    async with channels() as (a, b):
        b.close()
        assert not a.try_send(Said(b""), [0])
        kept, passed = pipe()
        assert not a.send(Said(b""), [passed])
        assert os.read(kept, 1) == b"", "the file was closed"
        os.close(kept)
        assert a.broken
        with pytest.raises(trio.EndOfChannel):
            await a.receive()
        with pytest.raises(trio.EndOfChannel):
            await b.receive()


async def test_receiving_ends_when_the_channel_is_closed() -> None:
    async with channels() as (a, _), trio.open_nursery() as nursery:

        async def receive() -> None:
            with pytest.raises(trio.EndOfChannel):
                await a.receive()

        nursery.start_soon(receive)
        await trio.testing.wait_all_tasks_blocked()
        a.close()


async def test_an_end_that_does_not_read_breaks_the_channel() -> None:
    async with channels() as (a, _):
        while a.send(Said(bytes(1_000_000))):
            pass
        assert a.broken


async def test_a_message_whose_files_did_not_fit_comes_without_them() -> None:
    async with channels() as (a, b):
        pipes = [pipe() for _ in range(3)]
        a.send(Said(b"1"), [passed for _, passed in pipes[:2]])
        a.send(Said(b"2"), [pipes[2][1]])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, limits[1]))  # one more is possible
        try:
            assert await b.receive() == (Said(b"1"), [])
            second, [received] = await b.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert second == Said(b"2")
        os.close(received)
        for kept, _ in pipes:
            os.close(kept)


def test_first_message_can_be_received_before_trio_runs() -> None:
    a, b = (Channel(end, Said) for end in socket.socketpair())
    assert a.send(Said(b"1"))
    assert b.receive_now() == (Said(b"1"), [])
    for channel in (a, b):
        channel._socket.close()
