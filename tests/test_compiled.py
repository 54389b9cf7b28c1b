"""The two builds: which one is loaded, and how the compiled one is switched off."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from brewos_relay.core.counters import Counters
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.errors import CloseCode
from brewos_relay.interpreted import _SourceFinder, is_off
from brewos_relay.settings.parsing import parse_flag
from brewos_relay.version import BUILD
from brewos_relay.wire.frames import FrameParser, Parsed, encode_close
from support.build import builds, check_build, compiled_modules
from support.process import run_command

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


# Where machine code could differ from the interpreter: integers, attributes, types of arguments


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
