"""Logs: lines to read on a terminal, one JSON object a line elsewhere.

Everything in this process, also what libraries say, is logged with the standard library's `logging`, and
rendered here. Fields that an entry has (`extra`) become fields of the JSON object.
"""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog

from brewos_relay.telemetry.redaction import Redaction

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

    `auto` takes `console` for a terminal and `json` for everything else. `secrets` are never written, and
    neither is what has the form of a key, a token or a query string.
    """
    stream = stream if stream is not None else sys.stderr
    is_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    render = _render_json if is_json else _console(colors=stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(Redaction(secrets), render))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each.formatter, _Formatter)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    _look_for_less()


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
