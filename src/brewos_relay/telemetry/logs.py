"""Logs: lines to read on a terminal, one JSON object a line elsewhere.

Everything in this process, also what libraries say, is logged with the standard library's `logging`, and
rendered here. Fields that an entry has (`extra`) become fields of the JSON object.

An entry is rendered where it is made, which knows its context and its secrets. A thread writes it, so that a
pipe or a terminal that is not read stops nothing but the log.
"""

import json
import logging
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
"""Those that have little to say that matters here."""
_OF_EVERY_RECORD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What a record has beside the fields of an entry, some of it left there by others' formatters."""

_encode_json: Final = json.JSONEncoder(default=str).encode


def configure_logging(
    *,
    level: str = "info",
    log_format: LogFormat = "auto",
    secrets: Iterable[str] = (),
    stream: TextIO | None = None,
) -> None:
    """Send everything that is logged to stderr, or to `stream`, from this level on; may be called again.

    A bounded queue and a thread are in between; `logging.shutdown`, which Python calls at the end, waits 2 s
    for what is left.

    `auto` takes `console` for a terminal and `json` for everything else. `secrets` are never written, and
    neither is what has the form of a key, a token or a query string.
    """
    stream = stream if stream is not None else sys.stderr
    is_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    render = _render_json if is_json else _console(colors=stream.isatty())
    root = logging.getLogger()
    for earlier in _own_handlers():
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(_QueuedHandler(stream, _Formatter(Redaction(secrets), render)))
    root.setLevel(level.upper())
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    _look_for_less()


def dropped_lines() -> int:
    """Count the lines of the log that were dropped, or could not be written."""
    return sum(handler.writer.dropped for handler in _own_handlers())


def flush_logs() -> bool:
    """Wait until every line of the log is written, 2 s at the longest; False if some are not."""
    return all(handler.writer.flush() for handler in _own_handlers())


def _own_handlers() -> "list[_QueuedHandler]":
    return [each for each in logging.getLogger().handlers if isinstance(each, _QueuedHandler)]


class _QueuedHandler(logging.Handler):
    """Renders an entry and leaves it to a LineWriter."""

    def __init__(self, stream: TextIO, formatter: "_Formatter") -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(stream, tell_dropped=self._tell_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        """Render an entry and queue it; nothing is raised, and nothing else is written to stderr."""
        try:
            line = self._render(record)
        except Exception:  # also no memory
            self.writer.drop()
        else:
            self.writer.put(line)

    def flush(self) -> None:
        """Wait until everything is written, 2 s at the longest."""
        self.writer.flush()

    def close(self) -> None:
        """Write what waits, and end the thread."""
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


def _look_for_less() -> None:
    """Let `logging` find out nothing that is not shown here, as its manual says in "Optimization".

    Not shown are threads and processes, and where in the code an entry was made.
    """
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    vars(logging).update(logAsyncioTasks=False, _srcfile=None)


class _Formatter(logging.Formatter):
    """Renders what any library logs, and takes secrets out of what came of it."""

    def __init__(self, redact: Redaction, render: Callable[[dict[str, Any]], str]) -> None:
        super().__init__()
        self._redact = redact
        self._render = render

    def format(self, record: logging.LogRecord) -> str:
        """Render an entry: what every entry has, what belongs to its context, and its own fields."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        always = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        # Once to be first, and once more so that nothing else takes its place.
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
    """Log from now on what would be written to stderr as it is: several lines, perhaps with a secret in them.

    These are exceptions that end the process or a thread, or that Python cannot raise, and warnings.
    """
    logging.captureWarnings(True)
    sys.excepthook = _log_the_last
    threading.excepthook = _log_of_thread
    sys.unraisablehook = _log_unraisable


def _log_the_last(kind: type[BaseException], problem: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, problem, trace)
        return
    log.critical("nobody caught this, so the process ends", exc_info=(kind, problem, trace))


def _log_of_thread(found: threading.ExceptHookArgs) -> None:
    problem = found.exc_value or found.exc_type()
    log.error("nobody caught this in a thread", exc_info=(found.exc_type, problem, found.exc_traceback))


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    problem = found.exc_value or found.exc_type()
    log.error(
        "%s",
        found.err_msg or "this could not be raised",
        exc_info=(found.exc_type, problem, found.exc_traceback),
    )
