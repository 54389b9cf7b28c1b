"""The tables of commands and message types, made from the dialect that the relay enforces."""

from typing import Final

from brewos_relay.dialect import BREWOS, Rule

_TABLES: Final = {"cmd": BREWOS.commands, "type": BREWOS.types}


def table_of(kind: str) -> str:
    """Make the table of the commands (`cmd`) or of the other messages (`type`)."""
    if kind not in _TABLES:
        raise KeyError(f"no table of {kind!r}; choose from {', '.join(_TABLES)}")
    head = [f"| `{kind}` | Class | May wait | Effect on the machine |", "|---|---|---|---|"]
    return "\n".join([*head, *map(_row, _TABLES[kind])])


def _row(rule: Rule) -> str:
    waits = "yes" if rule.waits else "no"
    if rule.waits_in_modes:
        waits = f"with `mode` {', '.join(f'`{mode}`' for mode in sorted(rule.waits_in_modes))}"
    return f"| `{rule.name}` | {rule.command_class} | {waits} | {rule.effect} |"
