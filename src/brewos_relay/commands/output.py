"""Standard streams that may be closed, full or limited in their characters; output as text and JSON."""

import io
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final, TextIO

import click

from brewos_relay.texts import columns
from brewos_relay.vocabulary import LAST_TIME_MS

_PROGRESS_EVERY_S: Final = 0.2

_CLOSED_AS: Final = ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY))
"""Replacements of closed streams: an empty stdin, a stdout that refuses writes, a stderr that discards."""


def prepare_streams() -> None:
    """Make the standard streams safe to use, before the process opens any other file.

    A closed stream is replaced by the null device: otherwise the next file or socket that the process opens
    would get its descriptor, and the output would go there. Characters that the encoding of stdout or stderr
    lacks are written as escapes; otherwise they would raise UnicodeEncodeError.
    """
    for number, flags in _CLOSED_AS:
        try:
            os.fstat(number)
        except OSError:
            _open_as(number, flags)
    if sys.stdout is None:
        sys.stdout = _text_on(1)
    if sys.stderr is None:
        sys.stderr = _text_on(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def finish_output() -> None:
    """Flush both streams. Raises OSError if stdout cannot be written."""
    try:
        sys.stderr.flush()
    except OSError:
        _discard(sys.stderr)
    sys.stdout.flush()


def discard_output() -> None:
    """Discard all further output, including what the interpreter flushes when it exits."""
    _discard(sys.stdout)


class ProgressLine:
    """A line on stderr that shows how far a command is. It shows nothing unless stderr is a terminal."""

    def __init__(self) -> None:
        self._is_shown = sys.stderr.isatty()
        self._next_s = 0.0
        self._width = 0

    def show(self, what: str, done: int, total: int) -> None:
        """Show what was done with how many rows, a few times a second."""
        if not self._is_shown or (done < total and time.monotonic() < self._next_s):
            return
        self._next_s = time.monotonic() + _PROGRESS_EVERY_S
        self._write(f"{what} {done:,} of {total:,} rows ({done * 100 // max(total, 1)} %)")

    def clear(self) -> None:
        """Clear the line, before anything else is printed."""
        if self._width:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r{text.ljust(self._width)}\r{text}")
        sys.stderr.flush()
        self._width = len(text)


def local_time(at_ms: int) -> str:
    """Format Unix milliseconds as a local time, to the minute."""
    return f"{datetime.fromtimestamp(min(at_ms, LAST_TIME_MS) / 1000, UTC).astimezone():%Y-%m-%d %H:%M}"


def print_line(line: str) -> None:
    """Print a line, and flush it."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_json(content: object) -> None:
    """Print a value as indented JSON."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below a header, each column as wide as its widest cell."""
    lines = [head, *rows]
    widths = [max(columns(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        cells = (cell + " " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _discard(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        _open_as(stream.fileno(), os.O_WRONLY)


def _text_on(number: int) -> io.TextIOWrapper:
    return open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)


def _open_as(number: int, flags: int) -> None:
    """Open the null device as this file descriptor."""
    opened = os.open(os.devnull, flags)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
