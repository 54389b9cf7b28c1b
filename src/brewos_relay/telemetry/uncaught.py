"""What nobody caught, and what libraries warn of: logged like everything else."""

import logging
import sys
import threading
from types import TracebackType

log = logging.getLogger(__name__)


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
