import io
import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import structlog

from brewos_relay.telemetry import line_writer
from brewos_relay.telemetry.logs import configure_logging, dropped_lines, flush_logs
from support.process import environment

log = logging.getLogger("brewos_relay.tests")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configure_alone(stream: io.StringIO) -> None:
    """Configure the log without the handlers of pytest, which raise what cannot be rendered."""
    configure_logging(stream=stream)
    logging.getLogger().handlers[:-1] = []


def written(stream: io.StringIO) -> str:
    assert flush_logs()
    return stream.getvalue()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers).difference(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_has_one_object_a_line_with_the_fields_of_the_entry() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    log.info("device %s came", "BRW-12AB34CD", extra={"device": "BRW-12AB34CD", "connection": 7})
    log.debug("not this")
    (entry,) = map(json.loads, written(stream).splitlines())
    assert list(entry)[:4] == ["at", "level", "logger", "event"]
    assert entry.pop("at").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "brewos_relay.tests",
        "event": "device BRW-12AB34CD came",
        "device": "BRW-12AB34CD",
        "connection": 7,
    }


def test_fields_of_the_log_record_are_not_overwritten() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    with structlog.contextvars.bound_contextvars(request="r1", event="other", logger="other"):
        log.info("said", extra={"at": "other", "level": "other"})
    (entry,) = map(json.loads, written(stream).splitlines())
    assert list(entry) == ["at", "level", "logger", "event", "request"]
    assert "other" not in entry.values()


def test_exceptions_stay_on_their_line_in_json() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, log_format="json")
    try:
        raise ValueError("token=abcdefgh")
    except ValueError:
        log.exception("failed")
    (entry,) = map(json.loads, written(stream).splitlines())
    assert "ValueError: token=[hidden]" in entry["exception"]


@pytest.mark.parametrize(("log_format", "stream"), [("auto", Terminal()), ("console", io.StringIO())])
def test_a_terminal_gets_readable_lines(
    log_format: str, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging(stream=stream, log_format=log_format)  # type: ignore[arg-type]
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed", extra={"device": "BRW-12AB34CD"})
    text = written(stream)
    assert "failed" in text
    assert "BRW-12AB34CD" in text
    assert "ValueError: no" in text
    assert not text.startswith("{")
    assert ("\x1b[" in text) == stream.isatty()


@pytest.mark.parametrize(("value", "colored"), [("1", False), ("", True)])
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch, value: str, colored: bool) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    stream = Terminal()
    configure_logging(stream=stream)
    log.warning("hot", extra={"device": "BRW-12AB34CD"})
    assert ("\x1b[" in written(stream)) == colored


def test_the_last_configuration_applies() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first, level="debug")
    configure_logging(stream=second, level="warning")
    log.info("a")
    log.warning("b")
    assert written(first) == ""
    assert written(second).count("\n") == 1


def test_log_lines_of_libraries_have_the_same_form_and_a_higher_level() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, level="debug")
    logging.getLogger("hypercorn.error").info("running")
    logging.getLogger("alembic.runtime").warning("odd")
    entries = [json.loads(line) for line in written(stream).splitlines()]
    assert [entry["event"] for entry in entries] == ["odd"]


def test_known_secrets_are_never_written() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, secrets=["open-sesame"])
    log.warning("x", extra={"said": "open-sesame"})
    assert json.loads(written(stream))["said"] == "[hidden]"


def test_an_entry_that_cannot_be_rendered_is_reported_and_raises_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("secret")

    stream = io.StringIO()
    configure_alone(stream)
    log.info("%d", "no number")
    log.info("said %s", Odd())
    events = [json.loads(line)["event"] for line in written(stream).splitlines()]
    assert events == ["cannot render '%d': TypeError", "cannot render 'said %s': ValueError"]
    assert capfd.readouterr() == ("", "")


def test_an_entry_without_memory_for_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_handler: object, _record: object) -> str:
        raise MemoryError

    stream = io.StringIO()
    configure_alone(stream)
    with monkeypatch.context() as patched:
        patched.setattr(logging.Handler, "format", fail)
        log.info("lost")
    assert dropped_lines() == 1
    log.info("after")
    events = [json.loads(line)["event"] for line in written(stream).splitlines()]
    assert events == ["1 log lines were dropped", "after"]


def test_unread_lines_are_dropped_and_reported_where_they_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "LINES_AT_MOST", 1000)
    reading, writing = os.pipe()
    with os.fdopen(reading) as reader, os.fdopen(writing, "w") as stream:
        configure_logging(stream=stream, log_format="json")
        # A pipe does not take the first line whole: its beginning shows that the thread waits with it.
        log.info("line %d", 0, extra={"pad": "x" * 1_000_000})
        assert select.select([reading], [], [], 10)[0] == [reading]
        for number in range(1, 5_001):
            log.info("line %d", number, extra={"pad": "x" * 200})
        assert not flush_logs()
        assert dropped_lines() == 4_000
        told: list[dict[str, object]] = []
        thread = threading.Thread(target=lambda: told.extend(map(json.loads, reader)))
        thread.start()
        deadline_s = time.monotonic() + 20
        while not flush_logs():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        log.info("after")
        logging.getLogger().handlers[-1].close()
        stream.close()
        thread.join(10)
    events = [entry["event"] for entry in told]
    assert events[:1001] == [f"line {number}" for number in range(1001)]
    assert events[1001:] == ["4000 log lines were dropped", "after"]
    assert (told[1001]["dropped"], told[1001]["level"]) == (4_000, "warning")


BLOCKED = """
import logging, sys
from brewos_relay.telemetry.logs import configure_logging
from brewos_relay.telemetry.logs import log_uncaught
configure_logging(log_format="json")
log_uncaught()
for number in range(5000):
    logging.warning("x" * 200)
raise RuntimeError("last words")
"""


def test_process_whose_log_is_not_read_ends_with_its_exit_code() -> None:
    with subprocess.Popen([sys.executable, "-c", BLOCKED], stderr=subprocess.PIPE) as process:
        assert process.wait(20) == 1


def test_last_lines_are_written_before_the_process_ends() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", BLOCKED.replace("5000", "50")], capture_output=True, timeout=20
    )
    assert ran.returncode == 1
    last = json.loads(ran.stderr.splitlines()[-1])
    assert last["level"] == "critical"
    assert "last words" in last["exception"]


SECRET = 'Zauber"wort-ä\\{}'
PROGRAM = f"""
import sys, threading, warnings
from brewos_relay.telemetry.logs import configure_logging
from brewos_relay.telemetry.logs import log_uncaught

SECRET = {SECRET!r}

class Late:
    def __del__(self):
        raise ValueError("late " + SECRET)

def fail():
    raise ValueError("thread " + SECRET)

configure_logging(log_format="json", secrets=[SECRET])
log_uncaught()
warnings.warn("two lines\\nof " + SECRET)
thread = threading.Thread(target=fail)
thread.start()
thread.join()
late = Late()
del late
raise LAST("last " + SECRET)
"""


def test_uncaught_exceptions_are_logged_as_json_without_secrets() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LAST", "RuntimeError")],
        env=environment(),
        capture_output=True,
        timeout=30,
    )
    assert ran.returncode == 1
    entries = [json.loads(line) for line in ran.stderr.splitlines()]
    levels = [entry["level"] for entry in entries]
    assert levels == ["warning", "error", "error", "critical"]
    warned, *raised = entries
    assert "two lines" in warned["event"]
    for entry, what in zip(raised, ("thread", "late", "last"), strict=True):
        assert f"{what} [hidden]" in entry["exception"]
        assert "Traceback" in entry["exception"]
    for text in (SECRET, "Zauber", "wort-"):
        assert text not in json.dumps(entries, ensure_ascii=False)


def test_ctrl_c_is_not_logged_as_a_failure() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("LAST", "KeyboardInterrupt")],
        env=environment(),
        capture_output=True,
        timeout=30,
    )
    assert b"nobody caught this, so" not in ran.stderr
    assert b"KeyboardInterrupt" in ran.stderr
