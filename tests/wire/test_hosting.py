"""Trio runs inside the loop that reads the sockets."""

import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from brewos_relay.wire import hosting
from brewos_relay.wire.hosting import Gathering, Host, free_host, run_hosted
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.polling import open_poller
from support.polled import Calls, NoMemoryOnce
from support.sockets import socket_pair

LIMIT_S = 5
OPEN_FILES = Path("/proc/self/fdinfo")


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a test in the loop, with a limit of time."""

    async def limited() -> None:
        with trio.fail_after(LIMIT_S):
            await main()

    run_hosted(limited)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket_pair() as (near, far):
        yield near, far


async def until_hosted() -> None:
    """Wait until the host runs the poller."""
    host = trio.lowlevel.current_clock()
    assert isinstance(host, Host)
    while host._poller is None:
        await trio.lowlevel.checkpoint()


def count_open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


async def test_a_usual_run_has_no_host() -> None:
    assert free_host() is None


def test_result_and_arguments_are_those_of_a_run() -> None:
    async def add(one: int, two: int) -> int:
        await trio.lowlevel.checkpoint()
        assert free_host() is not None
        return one + two

    assert run_hosted(add, 1, 2) == 3


def test_an_exception_ends_the_run() -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    open_files = count_open_files()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            run_hosted(fail)
    assert count_open_files() == open_files


def test_sockets_timers_and_threads_work_side_by_side(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    received: list[bytes] = []

    async def main() -> None:
        assert await trio.to_thread.run_sync(lambda: "before") == "before"
        async with open_poller() as poller:
            came = trio.Event()

            def take(data: bytes) -> None:
                received.append(data)
                came.set()

            poller.watch(near.fileno(), Calls(lambda: near.recv(10), take))
            for data in (b"one", b"two"):
                await trio.to_thread.run_sync(far.send, data)
                await came.wait()
                came = trio.Event()
                await trio.sleep(0.001)
            poller.unwatch(near.fileno())
        with trio.move_on_after(0.01) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught

    run(main)
    assert received == [b"one", b"two"]


def test_a_read_may_only_set_an_earlier_deadline(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair

    async def main() -> None:
        async with open_poller() as poller:
            with trio.CancelScope() as scope:

                def take(_data: bytes) -> None:
                    near.recv(10)
                    scope.deadline = trio.current_time()

                poller.watch(near.fileno(), Calls(lambda: b"", take))
                await until_hosted()
                far.send(b"x")
                await trio.sleep_forever()
            assert scope.cancelled_caught
            poller.unwatch(near.fileno())

    run(main)


def test_a_read_may_start_tasks_and_move_deadlines(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair

    async def main() -> None:
        async with trio.open_nursery() as nursery, open_poller() as poller:
            ended = trio.Event()

            async def end() -> None:
                await trio.lowlevel.checkpoint()
                ended.set()

            def take(_data: bytes) -> None:
                nursery.start_soon(end)
                scope.deadline = trio.current_time() + 0.01

            poller.watch(near.fileno(), Calls(lambda: near.recv(10), take))
            far.send(b"x")
            with trio.move_on_after(LIMIT_S) as scope:
                await trio.sleep_forever()
            await ended.wait()
            poller.unwatch(near.fileno())

    run(main)


def test_socket_that_is_always_readable_stops_nothing_else(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    reads = 0

    def read() -> None:
        nonlocal reads
        reads += 1

    async def main() -> None:
        async with open_poller() as poller:
            far.send(b"x")
            poller.watch(near.fileno(), Calls(read, lambda _data: None))
            while reads < 20:
                await trio.sleep(0.001)
                await trio.to_thread.run_sync(time.sleep, 0.001)
            poller.unwatch(near.fileno())

    run(main)


def test_only_one_poller_is_in_the_loop(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair

    async def main() -> None:
        async with open_poller(), open_poller() as second:
            await trio.lowlevel.checkpoint()
            assert free_host() is None
            came = trio.Event()
            second.watch(near.fileno(), Calls(lambda: near.recv(10), lambda _data: came.set()))
            far.send(b"x")
            await came.wait()
            second.unwatch(near.fileno())
        assert free_host() is not None

    run(main)


@pytest.mark.parametrize("has_poller", [False, True])
def test_a_signal_is_handled_while_the_loop_waits(has_poller: bool) -> None:
    async def wait(token: trio.lowlevel.TrioToken) -> None:
        received = trio.Event()
        earlier = signal.signal(signal.SIGALRM, lambda *_: token.run_sync_soon(received.set))
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            await received.wait()
        finally:
            signal.signal(signal.SIGALRM, earlier)

    async def main() -> None:
        token = trio.lowlevel.current_trio_token()
        if has_poller:
            async with open_poller():
                await wait(token)
        else:
            await wait(token)

    run(main)


def test_loop_goes_on_after_a_failure_of_the_poller(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    near, far = pair

    async def main() -> None:
        async with open_poller() as poller:
            poller._connections = NoMemoryOnce()
            came = trio.Event()
            poller.watch(near.fileno(), Calls(lambda: near.recv(10), lambda _data: came.set()))
            far.send(b"x")
            await came.wait()
            poller.unwatch(near.fileno())

    run(main)
    assert "could not be polled" in caplog.text


@pytest.mark.parametrize("what", ["no list of files", "no epoll in it", "a file that was closed"])
def test_poller_is_a_task_if_the_sockets_of_trio_cannot_be_found(
    what: str,
    pair: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    near, far = pair
    files = tmp_path / "fdinfo"
    if what != "no list of files":
        files.mkdir()
    if what == "no epoll in it":
        (files / "7").write_text("pos:\t0\nflags:\t02\n")
    if what == "a file that was closed":
        (files / "7").symlink_to("nothing")
    for name in ("exists", "iterdir"):  # a compiled module does not look up its constants again
        method = getattr(Path, name)
        monkeypatch.setattr(
            Path, name, lambda path, method=method: method(files if path == OPEN_FILES else path)
        )

    async def main() -> None:
        async with open_poller() as poller:
            came = trio.Event()
            poller.watch(near.fileno(), Calls(lambda: near.recv(10), lambda _data: came.set()))
            far.send(b"x")
            await came.wait()
            poller.unwatch(near.fileno())

    run(main)


def test_tasks_that_can_always_run_do_not_stop_the_reading(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair

    async def main() -> None:
        async with open_poller() as poller:
            came = trio.Event()
            poller.watch(near.fileno(), Calls(lambda: near.recv(10), lambda _data: came.set()))
            await until_hosted()
            far.send(b"x")
            turns = 0
            while not came.is_set():
                await trio.lowlevel.checkpoint()
                turns += 1
            assert turns <= 2, "sockets are read between any two turns of such tasks"
            poller.unwatch(near.fileno())

    run(main)


def test_reading_does_not_wake_trio(pair: tuple[socket.socket, socket.socket]) -> None:
    """A message for which no task has to run costs no turn of Trio."""
    near, far = pair
    turns: list[float] = []

    class Turns(trio.abc.Instrument):
        def after_io_wait(self, timeout: float) -> None:
            turns.append(timeout)

    async def main() -> None:
        async with open_poller() as poller:
            done = trio.Event()
            reads: list[bytes] = []

            def take(data: bytes) -> None:
                reads.append(data)
                if len(reads) < 200:
                    far.send(b"x")
                else:
                    done.set()

            poller.watch(near.fileno(), Calls(lambda: near.recv(10), take))
            await until_hosted()
            trio.lowlevel.add_instrument(Turns())
            far.send(b"x")
            await done.wait()
            poller.unwatch(near.fileno())

    run(main)
    assert len(turns) < 50, "some are from the start of the poller"


SOON_S = 0.00005
MOST_SMALL_TURNS = 1024


def count_turns(
    gathering: Gathering, *, sockets: int, turns: int, now: float = 0.0, gap_s: float = SOON_S
) -> None:
    for number in range(turns):
        gathering.count_turn(sockets, now + number * gap_s)


def turns_until_on(gathering: Gathering) -> int:
    turns = 0
    while not gathering.is_on:
        turns += 1
        gathering.count_turn(1, turns * SOON_S)
    return turns


@pytest.mark.parametrize(
    ("sockets", "gap_s"),
    [(1, 0.0002), (8, SOON_S), (64, SOON_S)],
    ids=["they are rare", "many sockets", "all sockets"],
)
def test_messages_do_not_gather_without_need(sockets: int, gap_s: float) -> None:
    gathering = Gathering()
    count_turns(gathering, sockets=sockets, turns=3 * MOST_SMALL_TURNS, gap_s=gap_s)
    assert not gathering.is_on


def test_messages_gather_after_some_small_turns_in_a_row() -> None:
    gathering = Gathering()
    count_turns(gathering, sockets=7, turns=10)
    gathering.count_turn(7, 1.0)  # late
    count_turns(gathering, sockets=7, turns=15, now=1.0 + SOON_S)
    assert not gathering.is_on
    gathering.count_turn(7, 1.0 + 16 * SOON_S)
    assert gathering.is_on


def test_messages_gather_as_long_as_turns_bring_some() -> None:
    gathering = Gathering()
    turns_until_on(gathering)
    count_turns(gathering, sockets=4, turns=3, gap_s=1.0)
    assert gathering.is_on
    gathering.count_turn(3, 3.0)
    assert not gathering.is_on


def test_attempts_that_bring_nothing_become_rare_and_one_success_ends_that() -> None:
    gathering = Gathering()
    needed = []
    for _ in range(9):
        needed.append(turns_until_on(gathering))
        gathering.count_turn(1, 1.0)
    assert needed == sorted(needed)
    assert needed[-1] == MOST_SMALL_TURNS
    turns_until_on(gathering)
    gathering.count_turn(50, 1.0)
    gathering.count_turn(1, 1.0)
    assert turns_until_on(gathering) < 4 * needed[0]


@pytest.mark.interpreted(reason="it changes a constant, which compiled code does not look up again")
def test_messages_share_a_turn_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small turns follow each other until the host waits; meanwhile, a message arrives at each socket.

    What arrives after that is left to the next turn, which has more of it.
    """
    turns: list[int] = []
    run_turn = Poller.run_turn

    def count_sockets(self: Poller, wait_s: float, worth_another_look: int) -> int:
        turns.append(run_turn(self, wait_s, worth_another_look))
        return turns[-1]

    with ExitStack() as stack:
        pairs = [stack.enter_context(socket_pair()) for _ in range(20)]
        waits: list[float] = []

        def wait(wait_s: float) -> None:
            waits.append(wait_s)
            for _near, far in pairs[1:] if len(waits) < 3 else ():
                far.send(b"x")
            pairs[0][1].send(b"first")

        monkeypatch.setattr(hosting, "sleep", wait)
        monkeypatch.setattr(hosting, "_QUICK_S", LIMIT_S)
        monkeypatch.setattr(Poller, "run_turn", count_sockets)

        async def main() -> None:
            async with open_poller() as poller:
                done = trio.Event()

                def take(data: bytes) -> None:
                    if not waits:
                        pairs[0][1].send(b"x")
                    elif len(waits) == 3:
                        done.set()
                    elif data == b"first":
                        pairs[1][1].send(b"later")  # waits for the next turn, and comes with its "x"

                def watch(near: socket.socket) -> None:
                    poller.watch(near.fileno(), Calls(lambda: near.recv(10), take))

                for near, _far in pairs:
                    watch(near)
                await until_hosted()
                pairs[0][1].send(b"x")
                await done.wait()
                for near, _far in pairs:
                    poller.unwatch(near.fileno())

        run(main)
    assert turns.count(20) == 2
    assert waits == [0.0001] * 3
