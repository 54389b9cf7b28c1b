"""Exit codes of the commands, and errors that end a command with one line on stderr."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from brewos_relay.errors import RelayError
from brewos_relay.telemetry.line_writer import write_last_line

PROGRAM: Final = "brewos-relay"

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_STARTED: Final = 3
EXIT_INTERRUPTED: Final = 130


class Failed(click.ClickException):
    """An error that ends a command with one line on stderr and exit code 1."""

    exit_code = EXIT_FAILED


class NotStarted(Failed):
    """An error before the command could start its work: exit code 3."""

    exit_code = EXIT_NOT_STARTED


def print_error(message: str) -> None:
    """Print an error as one line on stderr. Waits at most 2 s for a reader that does not keep up."""
    write_last_line(sys.stderr, f"{PROGRAM}: {' '.join(message.split())}")


@contextmanager
def errors_as(failure: type[Failed], *, hint: str = "") -> Iterator[None]:
    """Raise `failure` in place of a RelayError or OSError of the body: one line on stderr, and its exit code.

    `hint` is advice for an OSError that names no file, such as a network error; it is appended to the line.
    Of a group of such errors, the first is reported. A group with any other exception is a bug, and leaves
    unchanged. So does BrokenPipeError.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the output has gone; `cli.main` ends quietly
    except (RelayError, OSError) as problem:
        raise failure(_describe(problem, hint)) from problem
    except ExceptionGroup as group:
        # A nursery wraps the exceptions of its body in a group.
        expected, others = group.split((RelayError, OSError))
        if others is not None or expected is None:
            raise
        raise failure(_describe(first_leaf(expected), hint)) from group


def _describe(problem: BaseException, hint: str) -> str:
    if not isinstance(problem, OSError) or problem.strerror is None:
        return str(problem)
    if problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return f"{problem.strerror}{hint}"


def first_leaf(problem: BaseException) -> BaseException:
    """Return the first exception in nested groups."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
