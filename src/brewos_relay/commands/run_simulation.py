"""The work of `brewos-relay simulate`: run a fleet in this process."""

import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

import trio

from brewos_relay.commands.output import discard_output, print_line
from brewos_relay.commands.qr_code import can_print_qr, qr_lines
from brewos_relay.simulator.fleet import Fleet
from brewos_relay.telemetry.logs import has_colors

_FILES_BESIDE = 64  # open files other than the devices' connections


def run_fleet(make: Callable[[Callable[[str], None]], Fleet]) -> None:
    """Run a fleet until SIGINT or SIGTERM. `make` gets the function that prints its lines."""
    try:
        trio.run(_run, make)
    except* KeyboardInterrupt:
        pass
    except* BrokenPipeError:
        discard_output()


async def _run(make: Callable[[Callable[[str], None]], Fleet]) -> None:
    """Run a fleet until a signal. **Owns:** the fleet's task."""
    fleet = make(_say)
    _allow_files(len(fleet.simulators) + _FILES_BESIDE)
    hang_up = getattr(signal, "SIGHUP", None)
    wanted = [signal.SIGINT, signal.SIGTERM, *([hang_up] if hang_up is not None else [])]
    with trio.open_signal_receiver(*wanted) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fleet.run)
            async for number in signals:
                if number != hang_up:
                    break
                _say("power cut")
                fleet.power_cycle()
            nursery.cancel_scope.cancel()
    _say(fleet.summary())


def show_qr(link: str) -> None:
    """Print the QR code of a link, as the screen of a machine shows it, if stdout is a terminal."""
    if sys.stdout.isatty() and can_print_qr(sys.stdout):
        for line in qr_lines(link, colors=has_colors(sys.stdout)):
            print_line(line)


def _say(text: str) -> None:
    print_line(f"{datetime.now().astimezone():%H:%M:%S}  {text}")


def _allow_files(count: int) -> None:
    """Raise the limit of open files to `count`, as far as the hard limit allows."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
