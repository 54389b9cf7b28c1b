"""`brewos-relay completion`: completion of commands and options in a shell."""

import click
from click.shell_completion import get_completion_class

from brewos_relay.commands.failures import PROGRAM

_SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_BREWOS_RELAY_COMPLETE"


@click.command()
@click.argument("shell", metavar="SHELL", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that completes commands in bash, zsh or fish.

    \b
    Example:
      echo 'eval "$(brewos-relay completion bash)"' >> ~/.bashrc
      echo 'eval "$(brewos-relay completion zsh)"' >> ~/.zshrc
      brewos-relay completion fish > ~/.config/fish/completions/brewos-relay.fish
    """
    found = get_completion_class(shell)
    assert found is not None
    made = found(ctx.find_root().command, {}, PROGRAM, _VARIABLE)
    # Not `source`: for bash, it also examines the version of the bash that it finds.
    click.echo(made.source_template % made.source_vars())
