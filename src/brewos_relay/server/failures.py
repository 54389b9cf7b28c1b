"""Keep failures where they happened, and say of them what gives no secrets away."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from typing import Final

import trio

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
"""How long a task that failed rests."""


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Log failures and go on; what is no failure (cancellation, KeyboardInterrupt) passes through."""
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
    """Run a task of the server until it returns; one that fails, say without memory or threads, goes on.

    Where a task only maintains or measures something, its failure must not end every connection.
    """
    returned = False
    while not returned:
        with contained(what):
            await run()
            returned = True
        if not returned:
            await trio.sleep(_AGAIN_S)


def _say(what: str, error: BaseException) -> None:
    with suppress(Exception):  # there may be no memory for it
        log.error("%s failed: %s", what, describe(error))


def describe(error: BaseException) -> str:
    """Say what was raised and where, without its text: that may have a query string in it, and so a token."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace, where = error.__traceback__, ""
    while trace is not None:  # not by `traceback`, which reads the source as well
        where = f" at {PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__}{where}"
