"""Logging: readable lines on a terminal, one JSON object per line otherwise.

The process and its libraries log with the standard library's `logging`; this module renders the entries. The
`extra` fields of an entry become fields of the JSON object.

The thread that logs an entry renders it, since it knows the context. Another thread writes it, so that an
unread pipe or terminal blocks only the log.
"""

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import structlog

from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.telemetry.redaction import Redaction

log = logging.getLogger(__name__)

LogFormat = Literal["auto", "console", "json"]

_LIBRARIES: Final = (
    "alembic",
    "hypercorn",
    "quart",
    "quart.app",
    "quart.serving",
    "sqlalchemy",
    "trio-websocket",
)
"""Libraries whose entries below level warning are dropped."""
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""Attributes of a record that are not `extra` fields. Formatters of other libraries add some of them."""

_encode_json: Final = json.JSONEncoder(default=str).encode


def configure_logging(
    *,
    level: str = "info",
    log_format: LogFormat = "auto",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Write log entries of at least this level to stderr or `stream`. A later call replaces an earlier one.

    Entries pass a bounded queue to a thread. `logging.shutdown`, which Python calls at exit, waits at most
    2 s until the queue is written.

    `auto` means `console` on a terminal and `json` otherwise. Neither `secrets` nor text in the form of a
    key, a token or a query string is written.
    """
    stream = stream if stream is not None else sys.stderr
    is_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    render = _render_json if is_json else _console(colors=has_colors(stream))
    root = logging.getLogger()
    for earlier in _own_handlers():
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(_QueuedHandler(stream, _Formatter(Redaction(secrets), render)))
    root.setLevel(level.upper())
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    _collect_less()


def has_colors(stream: TextIO) -> bool:
    """Whether to write colours: on a terminal, unless NO_COLOR is set and not empty (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def dropped_lines() -> int:
    """Return how many log lines were dropped or could not be written."""
    return sum(handler.writer.dropped for handler in _own_handlers())


def flush_logs() -> bool:
    """Wait at most 2 s until every log line is written. Return whether all are."""
    return all(handler.writer.flush() for handler in _own_handlers())


def _own_handlers() -> "list[_QueuedHandler]":
    return [each for each in logging.getLogger().handlers if isinstance(each, _QueuedHandler)]


class _QueuedHandler(logging.Handler):
    """Renders entries and queues them in a LineWriter."""

    def __init__(self, stream: TextIO, formatter: "_Formatter") -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(stream, tell_dropped=self._tell_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Render and queue an entry. Raises nothing, and writes nothing else to stderr."""
        try:
            line = self._render(record)
        except Exception:  # including MemoryError
            self.writer.drop()
        else:
            self.writer.put(line)

    def flush(self) -> None:
        """Wait at most 2 s until everything is written."""
        self.writer.flush()

    def close(self) -> None:
        """Write the queued lines and end the thread."""
        self.writer.close()
        super().close()

    def _render(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as problem:
            said = "cannot render %.80r: %s"
            args = (record.msg, type(problem).__name__)
            return self.format(logging.LogRecord(record.name, record.levelno, "", 0, said, args, None))

    def _tell_dropped(self, count: int) -> str:
        said = "%d log lines were dropped"
        record = logging.LogRecord(__name__, logging.WARNING, "", 0, said, (count,), None)
        record.dropped = count
        return self.format(record)


def _collect_less() -> None:
    """Switch off what `logging` collects in vain; see "Optimization" in its manual.

    The log shows neither threads and processes nor the source lines of entries.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging).update(logAsyncioTasks=False, _srcfile=None)


class _Formatter(logging.Formatter):
    """Renders entries and removes secrets from the result."""

    def __init__(self, redact: Redaction, render: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._redact = redact
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """Render an entry: the common fields, those of its context, and its own."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        always = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        # The first `always` puts these fields first; the second one prevents that others replace them.
        entry: dict[str, Any] = {**always, **structlog.contextvars.get_contextvars(), **fields, **always}
        if record.exc_info:
            entry["exc_info"] = record.exc_info
        return self._redact(self._render(entry))


def _render_json(entry: dict[str, Any]) -> str:
    return _encode_json(structlog.processors.format_exc_info(None, "", entry))


def _console(*, colors: bool) -> Callable[[dict[str, Any]], str]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=colors,
        timestamp_key="at",
        sort_keys=False,
        pad_event_to=0,
        exception_formatter=structlog.dev.plain_traceback,
    )
    return lambda entry: renderer(None, "", entry)


def log_uncaught() -> None:
    """Log uncaught exceptions and warnings. Python would write them to stderr, with secrets and line breaks.

    An exception is uncaught if it ends the process or a thread, or if Python cannot raise it.
    """
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable


def _log_uncaught(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, problem, trace)
        return
    log.critical("uncaught exception; the process ends", exc_info=(kind, problem, trace))


def _log_uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    problem = found.exc_value or found.exc_type()
    log.error("uncaught exception in a thread", exc_info=(found.exc_type, problem, found.exc_traceback))


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    problem = found.exc_value or found.exc_type()
    log.error(
        "%s",
        found.err_msg or "an exception that Python could not raise",
        exc_info=(found.exc_type, problem, found.exc_traceback),
    )
