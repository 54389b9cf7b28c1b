"""The entry point of the command `brewos-relay`.

Commands import their dependencies when they run: `--help` loads neither Trio nor SQLAlchemy nor Quart. Exit
codes: 0 success, 1 failure, 2 wrong usage, 3 not started, 130 after Ctrl-C.
"""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from brewos_relay.commands import (
    cluster,
    completion,
    db,
    device,
    device_activity,
    device_shots,
    device_users,
    doctor,
    init,
    pairing,
    serve,
    simulate,
    tail_and_send,
    token,
    user,
)
from brewos_relay.commands.failures import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, PROGRAM, print_error
from brewos_relay.commands.output import discard_output, finish_output, prepare_streams
from brewos_relay.commands.parameters import HelpfulGroup

__all__ = ["cli", "main"]


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import PackageNotFoundError, version

    from brewos_relay.version import BUILD

    try:
        click.echo(f"{PROGRAM} {version('brewos-relay')} ({BUILD})")
    except PackageNotFoundError:  # run from a source tree that was never installed
        click.echo(f"{PROGRAM} (not installed, {BUILD})")
    ctx.exit()


@click.group(cls=HelpfulGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Relay live messages between espresso machines at home and the apps that watch and control them.

    \b
    Try it without any setup:
      brewos-relay demo
    \b
    Run it at home, for devices and apps:
      brewos-relay init
      brewos-relay serve

    Settings come from command-line options, environment variables and a .env file; the first one that
    sets a value wins.
    """


for _command in (
    simulate.demo, init.init, serve.serve, token.secret, token.token, user.user, device.device,
    pairing.pairing, db.database, cluster.cluster, tail_and_send.tail, tail_and_send.send, doctor.doctor,
    simulate.simulate, completion.completion,
):  # fmt: skip
    cli.add_command(_command)

for _command in (
    device_users.users, device_users.give, device_users.take, device_users.release, device_activity.activity,
    device_activity.device_doctor, device_shots.shots,
):  # fmt: skip
    device.device.add_command(_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit. Every error becomes one line on stderr and an exit code."""
    if os.getpid() == 1:
        # In a container, the kernel drops a signal for process 1 that has no handler.
        signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))
    prepare_streams()
    code = _run(args)
    try:
        finish_output()
    except OSError as problem:
        discard_output()
        if code == 0:
            code = _report_write_error(problem)
    sys.exit(code)


def _run(args: Sequence[str] | None) -> int:
    try:
        result = cli.main(args, prog_name=PROGRAM, standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.UsageError as problem:
        path = problem.ctx.command_path if problem.ctx is not None else PROGRAM
        print_error(f"{problem.format_message().rstrip('.')}. See `{path} --help`.")
        return EXIT_USAGE
    except click.ClickException as problem:
        print_error(problem.format_message())
        return problem.exit_code
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except OSError as problem:
        return _report_write_error(problem)
    except BaseExceptionGroup as group:
        # Trio wraps a KeyboardInterrupt that arrives while several tasks run.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        return EXIT_INTERRUPTED


def _report_write_error(problem: OSError) -> int:
    """Report that the output could not be written, unless its reader closed the pipe, as `head` does."""
    if not isinstance(problem, BrokenPipeError):
        print_error(f"cannot write the output: {problem.strerror or problem}")
    return EXIT_FAILED
