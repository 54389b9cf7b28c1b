"""Exit codes of the commands, and errors that end one with a line on stderr."""

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
    """Ends a command with one line on stderr."""

    exit_code = EXIT_FAILED


class NotStarted(Failed):
    """Ends a command that never came to do what it is for."""

    exit_code = EXIT_NOT_STARTED


def say_error(message: str) -> None:
    """Print the last line of a command on stderr. One that is not read keeps it for 2 s at the longest."""
    write_last_line(sys.stderr, f"{PROGRAM}: {' '.join(message.split())}")


@contextmanager
def failing_with(failure: type[Failed], *, hint: str = "") -> Iterator[None]:
    """Turn what the relay and the system refuse into one line and an exit code.

    `hint` says what to do about an error of the network, which does not say so itself.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read the output has gone: that is click's to end quietly
    except (RelayError, OSError) as problem:
        raise failure(_describe(problem, hint)) from problem
    except ExceptionGroup as group:
        # A nursery wraps what its body raised.
        expected, others = group.split((RelayError, OSError))
        if others is not None or expected is None:
            raise
        raise failure(_describe(_first_leaf(expected), hint)) from group


def _describe(problem: BaseException, hint: str) -> str:
    if not isinstance(problem, OSError) or problem.strerror is None:
        return str(problem)
    if problem.filename is not None:
        return f"{problem.filename}: {problem.strerror}"
    return f"{problem.strerror}{hint}"


def _first_leaf(problem: BaseException) -> BaseException:
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    return problem
