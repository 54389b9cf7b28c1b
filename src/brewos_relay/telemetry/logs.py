"""Logs: lines to read on a terminal, one JSON object a line elsewhere.

Everything in this process, also what libraries say, is logged with the standard library's `logging`, and
rendered here. Fields that an entry has (`extra`) become fields of the JSON object.
"""

import logging
import sys
from collections.abc import Iterable
from typing import Any, Final, Literal, TextIO, cast

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
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(Redaction(secrets), is_json=is_json, colors=stream.isatty()))
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each.formatter, _Formatter)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class _Formatter(structlog.stdlib.ProcessorFormatter):
    """Renders what any library logs, and takes secrets out of what came of it."""

    def __init__(self, redact: Redaction, *, is_json: bool, colors: bool) -> None:
        shared: list[structlog.typing.Processor] = [
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _drop_rendered,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        ]
        rendering: list[structlog.typing.Processor] = (
            [structlog.processors.format_exc_info, _order, structlog.processors.JSONRenderer(default=str)]
            if is_json
            else [
                structlog.dev.ConsoleRenderer(
                    colors=colors,
                    timestamp_key="at",
                    sort_keys=False,
                    pad_event_to=0,
                    exception_formatter=structlog.dev.plain_traceback,
                )
            ]
        )
        super().__init__(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
            foreign_pre_chain=shared,
        )
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Render an entry."""
        return self._redact(super().format(record))


def _drop_rendered(
    _logger: object, _name: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Leave out what another handler's formatter has left on the record."""
    for name in ("message", "asctime"):
        entry.pop(name, None)
    return entry


def _order(_logger: object, _name: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Put what every entry has first."""
    first: dict[str, Any] = {
        name: entry.pop(name) for name in ("at", "level", "logger", "event") if name in entry
    }
    return cast("structlog.typing.EventDict", {**first, **entry})
