import ctypes
import logging
import math
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from brewos_relay.server import process
from brewos_relay.server.process import SystemdNotifier, give_memory_back, open_notifier
from brewos_relay.settings.server_limits import ServerLimits
from support.process import serve_process
from support.waiting import until
from support.workers import needs_proc, state_of


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    """Open the socket that receives notifications."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.setblocking(False)
        yield sock


def told(sock: socket.socket) -> list[str]:
    """Return the messages since the last call."""
    words = []
    while True:
        try:
            words.append(sock.recv(4096).decode())
        except BlockingIOError:
            return words


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


def test_the_notify_socket_is_found_in_the_environment() -> None:
    notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "30000000"})
    assert notifier.watchdog_s == 30
    of_this = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}
    assert SystemdNotifier.from_environment(of_this).watchdog_s == 1.5


@pytest.mark.parametrize(
    "unwatched",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_of_another_process_is_ignored(unwatched: dict[str, str]) -> None:
    assert SystemdNotifier.from_environment({"NOTIFY_SOCKET": "/run/x", **unwatched}).watchdog_s is None


@pytest.mark.parametrize(
    "variables", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "9"}]
)
def test_without_a_notify_socket_nothing_is_sent(
    variables: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = SystemdNotifier.from_environment(variables)
    assert notifier.watchdog_s is None
    notifier.ready("here")
    assert not caplog.records


@pytest.mark.parametrize("kind", ["file", "name"])
def test_messages_to_systemd(address: str, kind: str) -> None:
    where = address if kind == "file" else f"@brewos-relay-test-{os.getpid()}"
    with listening(where) as sock:
        notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": where})
        notifier.ready("ready on 127.0.0.1:80")
        notifier.keepalive()
        notifier.stopping("going", within_s=30.5)
        assert told(sock) == [
            "READY=1\nSTATUS=ready on 127.0.0.1:80",
            "WATCHDOG=1",
            "STOPPING=1\nSTATUS=going\nEXTEND_TIMEOUT_USEC=30500000",
        ]
        notifier.reloading()
        first, second = told(sock)[0].split("\n")
        assert first == "RELOADING=1"
        assert second.removeprefix("MONOTONIC_USEC=").isdecimal()


def test_change_of_the_state_waits_for_a_queue_that_is_full_of_keepalives(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SEND_S", 10.0)
    with listening(address) as sock:
        notifier = SystemdNotifier(address)
        for _ in range(1000):  # more than any queue holds
            notifier.keepalive()
        heard: list[str] = []
        systemd = threading.Timer(0.01, lambda: heard.extend(told(sock)))
        systemd.start()
        notifier.ready("here")
        systemd.join()
        assert "READY=1\nSTATUS=here" in heard + told(sock)


def test_an_unreachable_notify_socket_is_logged_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    notifier = SystemdNotifier(address)
    for _ in range(3):
        notifier.keepalive()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert address in record.getMessage()


async def test_keepalives_are_sent_for_the_watchdog(
    address: str, autojump_clock: trio.testing.MockClock
) -> None:
    with listening(address) as sock:
        async with open_notifier(SystemdNotifier(address, watchdog_s=30)):
            for _ in range(3):
                await trio.sleep(30)
                assert len(told(sock)) >= 2
        await trio.sleep(60)
        assert told(sock) == []


async def test_no_keepalives_are_sent_without_a_watchdog(
    address: str, autojump_clock: trio.testing.MockClock
) -> None:
    async def fail() -> None:
        async with open_notifier(SystemdNotifier(address)):
            await trio.sleep(60)
            raise ZeroDivisionError

    with listening(address) as sock:
        with pytest.raises(ZeroDivisionError):  # not wrapped in a group
            await fail()
        assert told(sock) == []


@needs_proc
async def test_a_server_reports_its_state_from_start_to_end(address: str, tmp_path: Path) -> None:
    heard: list[str] = []

    async def listen(sock: socket.socket) -> None:
        """Receive at any time, as systemd does."""
        while True:
            await trio.lowlevel.wait_readable(sock)
            heard.extend(told(sock))

    async def hear(word: str) -> str:
        """Wait for a message that begins like this, past keepalives."""
        while True:
            await until(lambda: heard != [])
            said = heard.pop(0)
            if said.startswith(word):
                return said
            assert said == "WATCHDOG=1", said

    with listening(address) as sock, trio.fail_after(25):
        watched = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": 300_000}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen, sock)
            async with serve_process(tmp_path, **watched, BREWOS_RELAY_DRAIN_S=0.1) as server:
                ready = await hear("READY=1")
                assert f"STATUS=ready on 127.0.0.1:{server.address[1]}" in ready
                await hear("WATCHDOG=1")
                await hear("WATCHDOG=1")
                server.send_signal(signal.SIGHUP)
                await hear("RELOADING=1")
                assert await hear("READY=1") == ready
                server.send_signal(signal.SIGSTOP)
                await until(lambda: state_of(server.pid) == "T")
                await trio.testing.wait_all_tasks_blocked(0.01)
                heard.clear()  # messages already sent
                await trio.sleep(0.5)
                assert heard == []
                server.send_signal(signal.SIGCONT)
                await hear("WATCHDOG=1")
                server.send_signal(signal.SIGTERM)
                stopping = await hear("STOPPING=1")
                extended_us = int(re.search(r"EXTEND_TIMEOUT_USEC=(\d+)", stopping)[1])  # type: ignore[index]
                assert extended_us == math.ceil(ServerLimits(drain_s=0.1).longest_drain_s * 1e6)
                assert await server.wait(within_s=10) == 0
            nursery.cancel_scope.cancel()


async def test_memory_is_given_back_once_a_minute(autojump_clock: MockClock) -> None:
    calls: list[int] = []
    began_at = trio.current_time()

    def trim(keep_bytes: int) -> int:
        calls.append(keep_bytes)
        return 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_memory_back, trim)
        await trio.sleep(59)
        assert calls == []
        while len(calls) < 3:  # noqa: ASYNC110  it comes by itself
            await trio.sleep(1)
        assert calls == [0, 0, 0]
        assert trio.current_time() - began_at > 170
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has it")
def test_the_c_library_is_asked() -> None:
    trim = process._find_trim()
    if trim is not None:  # another C library may be in use
        assert trim(0) in {0, 1}


async def test_trimming_ends_at_once_without_malloc_trim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_find_trim", lambda: None)
    with trio.fail_after(1):
        await give_memory_back()


def test_memory_is_not_trimmed_with_a_c_library_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert process._find_trim() is None
