"""Keep failures where they happened, and say of them what gives no secrets away."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath

log = logging.getLogger(__name__)


@contextmanager
def contained(what: str) -> Iterator[None]:
    """Log failures and go on; what is no failure (cancellation, KeyboardInterrupt) passes through."""
    try:
        yield
    except Exception as error:
        log.error("%s failed: %s", what, describe(error))
    except BaseExceptionGroup as group:
        failures, others = group.split(Exception)
        if failures is not None:
            log.error("%s failed: %s", what, describe(failures))
        raise (others or group) from None


def describe(error: BaseException) -> str:
    """Say what was raised and where, without its text: that may have a query string in it, and so a token."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"
