import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from brewos_relay.telemetry.logs import configure_logging

log = logging.getLogger("brewos_relay.tests")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_has_one_object_a_line_with_the_fields_of_the_entry() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    log.info("device %s came", "BRW-12AB34CD", extra={"device": "BRW-12AB34CD", "connection": 7})
    log.debug("not this")
    (entry,) = map(json.loads, stream.getvalue().splitlines())
    assert list(entry)[:4] == ["at", "level", "logger", "event"]
    assert entry.pop("at").endswith("Z")
    assert entry == {
        "level": "info",
        "logger": "brewos_relay.tests",
        "event": "device BRW-12AB34CD came",
        "device": "BRW-12AB34CD",
        "connection": 7,
    }


def test_what_every_entry_has_is_its_own() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream)
    with structlog.contextvars.bound_contextvars(request="r1", event="other", logger="other"):
        log.info("said", extra={"at": "other", "level": "other"})
    (entry,) = map(json.loads, stream.getvalue().splitlines())
    assert list(entry) == ["at", "level", "logger", "event", "request"]
    assert "other" not in entry.values()


def test_exceptions_stay_on_their_line_in_json() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, log_format="json")
    try:
        raise ValueError("token=abcdefgh")
    except ValueError:
        log.exception("failed")
    (entry,) = map(json.loads, stream.getvalue().splitlines())
    assert "ValueError: token=[hidden]" in entry["exception"]


@pytest.mark.parametrize(("log_format", "stream"), [("auto", Terminal()), ("console", io.StringIO())])
def test_a_terminal_gets_lines_to_read(log_format: str, stream: io.StringIO) -> None:
    configure_logging(stream=stream, log_format=log_format)  # type: ignore[arg-type]
    try:
        raise ValueError("no")
    except ValueError:
        log.exception("failed", extra={"device": "BRW-12AB34CD"})
    text = stream.getvalue()
    assert "failed" in text
    assert "BRW-12AB34CD" in text
    assert "ValueError: no" in text
    assert not text.startswith("{")
    assert ("\x1b[" in text) == stream.isatty()


def test_the_last_word_counts() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first, level="debug")
    configure_logging(stream=second, level="warning")
    log.info("a")
    log.warning("b")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


def test_libraries_are_rendered_alike_and_say_little() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, level="debug")
    logging.getLogger("hypercorn.error").info("running")
    logging.getLogger("alembic.runtime").warning("odd")
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [entry["event"] for entry in entries] == ["odd"]


def test_known_secrets_are_never_written() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, secrets=["open-sesame"])
    log.warning("x", extra={"said": "open-sesame"})
    assert json.loads(stream.getvalue())["said"] == "[hidden]"
