"""Contain failures, and log them without secrets."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Final

import trio

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
"""How long a failed task pauses before it runs again."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Log and suppress exceptions of the block, except cancellation and KeyboardInterrupt."""
    try:
        yield
    except Exception as error:
        _say(what, error)
    except BaseExceptionGroup as group:
        failures, others = group.split(Exception)
        if failures is not None:
            _say(what, failures)
        raise (others or group) from None


async def keep_running(what: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a task until it returns. After a failure, such as a lack of memory, log it and run the task again.

    For tasks that only maintain or measure something: their failures must not end the connections.
    """
    returned = False
    while not returned:
        with contained(what):
            await run()
            returned = True
        if not returned:
            await trio.sleep(_AGAIN_S)


def _say(what: str, error: BaseException) -> None:
    with suppress(Exception):  # there may be no memory for the log line
        log.error("%s failed: %s", what, describe(error))


def describe(error: BaseException) -> str:
    """Return the type and source line of an exception, without its text, which may contain a token."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace, where = error.__traceback__, ""
    while trace is not None:  # the module `traceback` would read the source files, too
        where = f" at {PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{where}"
