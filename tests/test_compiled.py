"""The two builds: which one is loaded, and how the compiled one is switched off."""

import ast
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import brewos_relay
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import STAYS, PeerEnd
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.errors import CloseCode
from brewos_relay.interpreted import _SourceFinder, is_off
from brewos_relay.messages import Message
from brewos_relay.settings.parsing import parse_flag
from brewos_relay.version import BUILD
from brewos_relay.wire.connection import client_connection
from brewos_relay.wire.frames import FrameParser, Parsed, encode_close
from brewos_relay.wire.poller import PolledConnection, Poller
from brewos_relay.wire.transport import Transport, TransportStream
from support.build import builds, check_build, compiled_modules
from support.frames import TEXT, client_frame
from support.peers import PeerTasks
from support.process import SOURCES, run_command
from support.sockets import read_available, socket_pair

compiled_only = pytest.mark.skipif(BUILD != "compiled", reason="interpreted code does not do this")

_NONE: Mapping[str, str] = {}
_LIST_LOADED = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    print(import_module(name).__file__)
"""


_LIST_AT_EXIT = """
import atexit, runpy, sys
names = sys.argv.pop().split()
atexit.register(lambda: print(*(sys.modules[name].__file__ for name in names)))
runpy.run_module("brewos_relay", run_name="__main__")
"""


def run(*args: str, cwd: Path | None = None, code: int = 0, variables: Mapping[str, str] = _NONE) -> str:
    """Run Python in a process of its own, until it ends with `code`; return what it printed."""
    environ = {name: text for name, text in os.environ.items() if not name.startswith("BREWOS_RELAY_")}
    command = [sys.executable, *args]
    done = subprocess.run(
        command,
        env={**environ, **variables},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def build_of(file: str) -> str:
    return "compiled" if file.endswith(tuple(EXTENSION_SUFFIXES)) else "interpreted"


def _messages(fed: list[Message] | Parsed) -> list[Message]:
    return fed.messages if isinstance(fed, Parsed) else fed


def test_all_modules_are_of_one_build() -> None:
    assert set(builds().values()) == {BUILD}


def test_wrong_build_is_not_tested() -> None:
    other = "interpreted" if BUILD == "compiled" else "compiled"
    assert check_build(None) is None
    assert check_build(BUILD) is None
    assert check_build(other) == (
        f"BREWOS_RELAY_BUILD_TESTS is {other}, but these modules are not: {', '.join(compiled_modules())}"
    )


def test_each_compiled_module_has_a_reason() -> None:
    assert all(len(reason) > 10 for reason in compiled_modules().values())


@pytest.mark.parametrize("text", ["false", "No", "OFF", "0", "true", "YES", "on", "1"])
def test_variable_is_read_like_a_flag(text: str) -> None:
    assert is_off(text) is not parse_flag(text)


@pytest.mark.parametrize(
    ("variables", "build"), [({}, BUILD), ({"BREWOS_RELAY_COMPILED": "0"}, "interpreted")]
)
def test_environment_switches_compiled_modules_off(variables: dict[str, str], build: str) -> None:
    files = run("-c", _LIST_LOADED, *compiled_modules(), variables=variables).split()
    assert {build_of(file) for file in files} == {build}


def test_dotenv_switches_compiled_modules_of_a_server_off(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"JWT_SECRET={'x' * 32}\nBREWOS_RELAY_COMPILED=false\n")
    # The address is of no interface here, so the server ends after all imports.
    serve = ("serve", "--host", "192.0.2.1", "--port", "0", " ".join(compiled_modules()))
    files = run("-c", _LIST_AT_EXIT, *serve, cwd=tmp_path, code=3).split()
    assert len(files) == len(compiled_modules())
    assert {build_of(file) for file in files} == {"interpreted"}


async def test_relay_of_a_process_that_a_test_starts_is_the_build_under_test(tmp_path: Path) -> None:
    done = await run_command(tmp_path, "--version")
    assert f"{BUILD})" in done.stdout.decode()


def test_source_is_found_beside_a_compiled_module(tmp_path: Path) -> None:
    for suffix in (".py", EXTENSION_SUFFIXES[0]):
        (tmp_path / f"frames{suffix}").touch()
    spec = _SourceFinder.find_spec("brewos_relay.wire.frames", [str(tmp_path)])
    assert spec is not None
    assert spec.origin == str(tmp_path / "frames.py")
    assert _SourceFinder.find_spec("brewos_relay.missing", [str(tmp_path)]) is None
    assert _SourceFinder.find_spec("frames", [str(tmp_path)]) is None


# Where machine code could differ from the interpreter: integers, attributes, types, exceptions, coroutines.
# `fuzz.outcomes` compares both builds with random input.


def test_counters_exceed_64_bits() -> None:
    counters = Counters()
    counters.bytes_from_devices = 2**64
    counters.bytes_from_devices += 1
    assert counters.bytes_from_devices == 2**64 + 1


@pytest.mark.parametrize("length", [2**62, 2**63 - 1])
def test_largest_frame_lengths_are_too_big(length: int) -> None:
    header = b"\x82\xff" + length.to_bytes(8, "big") + bytes(4)
    strict = FrameParser(max_message_bytes=1000).feed(header)
    assert isinstance(strict, Parsed)
    assert strict.ending is not None
    assert strict.ending.code == CloseCode.MESSAGE_TOO_BIG
    parser = FrameParser(max_message_bytes=1000, skip_oversize=True)
    skipping = parser.feed(header)
    assert isinstance(skipping, Parsed)
    assert (skipping.ending, skipping.oversized) == (None, 1)
    more = parser.feed(bytes(10_000))
    assert isinstance(more, Parsed)
    assert more.skipped_bytes == 10_000
    assert more.incomplete


def test_close_code_is_the_same_as_a_number_and_as_a_member() -> None:
    assert encode_close(4002, "x") == encode_close(CloseCode(4002), "x") == b"\x88\x03\x0f\xa2x"


def test_attributes_are_fixed() -> None:
    counters = Counters()
    with pytest.raises(AttributeError):
        counters.unknown = 1  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        counters.unknown += 1  # type: ignore[attr-defined]


def test_whole_numbers_are_accepted_as_durations() -> None:
    bucket = TokenBucket(rate_per_s=2, burst=4, now=10)
    assert bucket.take(6, 10) == 1.0
    assert bucket.take(0, 11) == 0.0


class _Bytes(bytes):
    pass


class _Text(str):
    __slots__ = ()


def test_subclasses_of_the_expected_types_are_accepted() -> None:
    (message,) = _messages(FrameParser(max_message_bytes=True).feed(_Bytes(client_frame(TEXT, b"x"))))
    assert message.payload == b"x"
    assert encode_close(True, _Text("x")) == encode_close(1, "x")


@compiled_only
@pytest.mark.parametrize("wrong", [bytearray(b"x"), memoryview(b"x"), "x", None, 1])
def test_compiled_code_refuses_other_types(wrong: Any) -> None:
    with pytest.raises(TypeError, match="bytes object expected"):
        FrameParser(max_message_bytes=1000).feed(wrong)
    with pytest.raises(TypeError, match="int object expected"):
        setattr(Counters(), "invalid", "x" if wrong == 1 else wrong)  # noqa: B010 - mypy would refuse it


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, _Bytes])
async def test_stream_sends_every_kind_of_bytes(kind: Callable[[bytes], bytes]) -> None:
    with trio.fail_after(5), socket_pair() as (near, far):
        stream = TransportStream(Transport(near, outbox_limit_bytes=100))
        await stream.send_all(kind(b"hello"))
        assert read_available(far) == b"hello"
        await stream.aclose()


def test_close_code_of_an_end_is_the_same_as_a_number_and_as_a_member() -> None:
    ends = [PeerEnd("relay", code, "x") for code in (1012, CloseCode.SERVICE_RESTART)]
    assert ends[0] == ends[1]
    assert [end.label for end in ends] == ["1012"] * 2
    assert str(ends[0]) == str(ends[1]) == "the relay ended it with 1012: x"


@compiled_only
def test_attributes_of_compiled_objects_cannot_be_deleted_or_unset() -> None:
    with pytest.raises(AttributeError, match="cannot be deleted"):
        del Counters().invalid
    with pytest.raises(TypeError, match="max_message_bytes"):
        FrameParser.__new__(FrameParser)


def test_methods_of_an_object_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError, match="feed"):
        FrameParser(max_message_bytes=1).feed = None  # type: ignore[method-assign, assignment]


def test_no_interpreted_class_of_the_relay_inherits_from_a_compiled_one() -> None:
    """Such a class could not be used: only those of `PolledConnection` are allowed."""
    for found in walk_packages(brewos_relay.__path__, "brewos_relay."):
        if "__main__" not in found.name and "migrations" not in found.name:  # these begin to work
            import_module(found.name)
    classes: list[type[object]] = [
        value
        for name in compiled_modules()
        for value in vars(import_module(name)).values()
        if isinstance(value, type) and value.__module__ == name and value is not PolledConnection
    ]
    assert len(classes) > 30
    inheriting = {derived.__module__ for each in classes for derived in each.__subclasses__()}
    assert {name for name in inheriting if name.startswith("brewos_relay.")} <= set(compiled_modules())


def test_no_compiled_function_calls_itself_as_often_as_input_says() -> None:
    """Machine code does not count how deep calls are nested, so input must not decide about that."""
    found = {
        f"{name}.{function.name}"
        for name in compiled_modules()
        for function, is_method in _functions_of(name)
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
        and ast.unparse(call.func) == (f"self.{function.name}" if is_method else function.name)
    }
    assert found == {
        "brewos_relay.core.reader._define",  # as deep as a path of the dialect has parts
        "brewos_relay.wire.transport.write",  # once, without the held data
    }


def _functions_of(module: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Return the functions and methods of a module, and which of them are methods."""
    for each in ast.parse((SOURCES / f"{module.replace('.', '/')}.py").read_text()).body:
        for function in each.body if isinstance(each, ast.ClassDef) else [each]:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                yield function, isinstance(each, ast.ClassDef)


def test_traceback_shows_the_line_of_the_source() -> None:
    with pytest.raises(OverflowError) as caught:
        encode_close(-1)
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename.endswith("wire/frames.py")
    assert last.name == "encode_close"
    line = (SOURCES / "brewos_relay/wire/frames.py").read_text().splitlines()[(last.lineno or 0) - 1]
    assert "code.to_bytes" in line


async def _flush(transport: Transport, _poller: Poller) -> None:
    assert transport.write(bytes(1_000_000))
    assert transport.outbox_bytes
    await transport.flush(stall_s=math.inf)


async def _wait_readable(transport: Transport, _poller: Poller) -> None:
    await transport.wait_readable()


async def _receive(transport: Transport, _poller: Poller) -> None:
    await TransportStream(transport).receive_some()


async def _poll(_transport: Transport, poller: Poller) -> None:
    await poller.run()


async def _close(transport: Transport, poller: Poller) -> None:
    connection = client_connection(transport, poller=poller, limits=Limits())
    try:
        async with trio.open_nursery() as nursery:
            assert await connection.run(PeerTasks(nursery), lambda _messages: 0.0) is STAYS
            await trio.sleep_forever()
    finally:
        await connection.aclose()
        assert transport.closed


@pytest.mark.parametrize("wait", [_flush, _wait_readable, _receive, _poll, _close])
async def test_cancellation_passes_through(
    autojump_clock: MockClock, wait: Callable[[Transport, Poller], Awaitable[None]]
) -> None:
    with socket_pair() as (near, _far):
        poller = Poller()
        transport = Transport(near, outbox_limit_bytes=2_000_000)
        try:
            with trio.move_on_after(3) as scope:
                await wait(transport, poller)
            assert scope.cancelled_caught
            assert trio.current_time() <= 3 + Limits().close_s
        finally:
            transport.close()
            poller.close()


async def test_coroutine_that_is_closed_half_way_runs_no_further() -> None:
    with socket_pair() as (near, _far):
        transport = Transport(near, outbox_limit_bytes=100)
        closing = TransportStream(transport).aclose()
        closing.send(None)  # up to the checkpoint
        assert transport.closed
        closing.close()
        with pytest.raises((RuntimeError, StopIteration)):
            closing.send(None)


# Compiled code throws it on in a form that Python 3.12 deprecates. Trio throws nothing into coroutines.
@pytest.mark.filterwarnings(r"ignore:the \(type, exc, tb\) signature:DeprecationWarning")
async def test_exception_that_is_thrown_in_passes_through() -> None:
    with socket_pair() as (near, _far):
        closing = TransportStream(Transport(near, outbox_limit_bytes=100)).aclose()
        closing.send(None)
        with pytest.raises(KeyboardInterrupt):
            closing.throw(KeyboardInterrupt())
