"""Checks of the settings: the value and the source of each one, and whether they are valid together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from brewos_relay.doctor import Finding
from brewos_relay.errors import RelayError, SettingsError
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.settings import (
    SECRET_SETTINGS,
    Settings,
    find_settings,
    load_settings,
    unknown_variables,
    variable_names,
)

_DEFAULT: Final = "default"
_COMMAND_LINE: Final = "the command line"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """A setting to show: its variable, its value with secrets masked, and the source of the value."""

    variable: str
    value: str
    source: str


def list_settings(environ: Mapping[str, str], dotenv_path: Path, **overrides: object) -> list[SettingRow]:
    """List all settings. Raises SettingsError if a settings file cannot be read."""
    shown = []
    defaults = Settings()
    for name, found in find_settings(environ=environ, dotenv_path=dotenv_path).items():
        if overrides.get(name) is not None:
            shown.append(SettingRow(variable_names(name)[0], mask(name, str(overrides[name])), _COMMAND_LINE))
        elif found is not None:
            shown.append(SettingRow(found.variable, mask(name, found.text), found.source))
        else:
            value = getattr(defaults if hasattr(defaults, name) else defaults.limits, name)
            shown.append(SettingRow(variable_names(name)[0], _written(value), _DEFAULT))
    return shown


def mask(name: str, text: str) -> str:
    """Return the value of a setting with secrets masked."""
    if name == "database_url":
        scheme, separator, rest = text.partition("://")
        is_server = separator and not scheme.startswith("sqlite")
        return f"{scheme}://… ({len(rest)} characters)" if is_server else text
    if name in SECRET_SETTINGS:
        return f"set ({len(text.encode('utf-8', 'replace'))} bytes)"
    return text


def check_settings(
    environ: Mapping[str, str], dotenv_path: Path, **overrides: object
) -> tuple[Settings | None, list[Finding]]:
    """Check whether the settings are valid, and return them if they are."""
    try:
        settings = load_settings(environ=environ, dotenv_path=dotenv_path, **overrides)
    except SettingsError as problem:
        return None, [Finding("settings", "failed", str(problem), "correct it; nothing else can be checked")]
    changed = [each for each in list_settings(environ, dotenv_path, **overrides) if each.source != _DEFAULT]
    text = f"{len(changed)} set, all others have their defaults; --settings shows each one"
    found = [Finding("settings", "ok", text)]
    found += [
        Finding("unknown setting", "warning", str(unknown), "correct the name, or remove the variable")
        for unknown in unknown_variables(environ=environ, dotenv_path=dotenv_path)
    ]
    try:
        read_key_ring(settings)
    except (RelayError, OSError) as problem:
        found.append(Finding("token keys", "failed", str(problem), "make a secret: brewos-relay secret"))
    else:
        found.append(Finding("token keys", "ok", "tokens can be signed and verified"))
    return settings, found


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if value is None else str(value)
