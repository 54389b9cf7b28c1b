"""The usage and the options of each command, made from the click commands."""

import re
from collections.abc import Iterator
from typing import Final

import click

from brewos_relay.cli import cli

_NOTE: Final = re.compile(r" \((?P<variable>[A-Z][A-Z_]+)?(?:; )?(?:default: (?P<default>[^)]+))?\)(?=\.?$)")
_OPTION: Final = re.compile(r"(?<![\w`-])--[a-z][a-z-]*")


def commands(command: click.Command = cli, path: str = "brewos-relay") -> Iterator[tuple[str, click.Command]]:
    """List every command with the words that call it, each group before its commands."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, f"{path} {name}")


def options_of(path: str) -> str:
    """Make the usage of a command and the table of its options; KeyError if there is no such command."""
    command = dict(commands())[path]
    context = click.Context(command, info_name=path, **cli.context_settings)
    made = ["```text", f"{path} {' '.join(command.collect_usage_pieces(context))}", "```", ""]
    # Every command has --help; only the first one lists it.
    params = command.params if context.info_name != "brewos-relay" else command.get_params(context)
    if options := [param for param in params if isinstance(param, click.Option) and not param.hidden]:
        made += ["| Option | Variable | Default | Meaning |", "|---|---|---|---|"]
        made += [f"| {' | '.join(_cells(option))} |" for option in options]
    if isinstance(command, click.Group):
        made += ["", *(_line(f"{path} {name}", inner) for name, inner in command.commands.items())]
    return "\n".join(made)


def _line(path: str, command: click.Command) -> str:
    help_text = _OPTION.sub(r"`\g<0>`", command.get_short_help_str(limit=200))
    return f"- [`{path}`](#{path.replace(' ', '-')}): {help_text}"


def _cells(option: click.Option) -> tuple[str, str, str, str]:
    text = option.help or ""
    note = _NOTE.search(text)
    variable, default = (note["variable"], note["default"]) if note else (None, None)
    if option.required:
        default = "required"
    elif option.is_flag:
        default = "" if option.is_eager else "off"
    elif isinstance(option.default, (str, int, float)):
        default = f"`{option.default}`"
    elif default is not None and " " not in default:
        default = f"`{default}`"
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.metavar:
        names += f" {option.metavar}"
    text = _OPTION.sub(r"`\g<0>`", _NOTE.sub("", text))
    if isinstance(option.type, click.Choice):
        text = f"{text.rstrip('.')}: {', '.join(f'`{choice}`' for choice in option.type.choices)}."
    return (
        names,
        f"`{variable}`" if variable else "",
        _OPTION.sub(r"`\g<0>`", default or ""),
        text.replace("|", "\\|"),
    )
