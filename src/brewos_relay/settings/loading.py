"""Load the settings. The command line wins over the environment, credentials, `.env` and defaults."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from brewos_relay.errors import SettingsError
from brewos_relay.settings.fields import Settings
from brewos_relay.settings.parsing import (
    parse_contact,
    parse_count,
    parse_duration_s,
    parse_flag,
    parse_instance,
    parse_issuer,
    parse_log_format,
    parse_log_level,
    parse_networks,
    parse_number,
    parse_origins,
    parse_pairing,
    parse_paths,
    parse_patterns,
    parse_pool,
    parse_port,
    parse_public_url,
    parse_releases,
    parse_secure_url,
    parse_sign_up,
    parse_texts,
    parse_whole_number,
    parse_workers,
)
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.settings.sources import Found, Unknown, find_texts, find_unknown

#: Options whose names differ from their fields: each use of the option gives one value of a list.
_OPTIONS: Final = {"trusted_proxies": "--trusted-proxy"}


def load_settings(
    *,
    environ: Mapping[str, str] = os.environ,
    dotenv_path: Path = Path(".env"),
    **overrides: object,
) -> Settings:
    """Load the settings from all sources and check them. Raises SettingsError that names the first bad one.

    `overrides` are the fields of `Settings` or `ServerLimits` from the command line; None means not given.
    An empty variable counts as unset.
    """
    found = find_texts(_PARSERS, environ=environ, dotenv_path=dotenv_path)
    values: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        override = overrides.pop(name, None)
        if override is not None:
            option = _OPTIONS.get(name, f"--{name.replace('_', '-')}")
            values[name] = _parse(parse, option, str(override))
        elif name in found:
            values[name] = _parse(parse, found[name].variable, found[name].text)
    if overrides:
        raise TypeError(f"no such setting: {', '.join(overrides)}")
    limits = ServerLimits(**{name: values.pop(name) for name in _LIMIT_NAMES if name in values})
    return Settings(**values, limits=limits)


def find_settings(
    *, environ: Mapping[str, str] = os.environ, dotenv_path: Path = Path(".env")
) -> dict[str, Found | None]:
    """Return for each setting the source of its value, or None if it has its default.

    Raises SettingsError if a file cannot be read.
    """
    found = find_texts(_PARSERS, environ=environ, dotenv_path=dotenv_path)
    return {name: found.get(name) for name in _PARSERS}


def unknown_variables(
    *, environ: Mapping[str, str] = os.environ, dotenv_path: Path = Path(".env")
) -> list[Unknown]:
    """Find the variables with our prefix that are not settings, such as misspelt ones.

    Raises SettingsError if a file cannot be read.
    """
    return find_unknown(_PARSERS, environ=environ, dotenv_path=dotenv_path)


def _parse(parse: Callable[[str], object], name: str, text: str) -> object:
    try:
        return parse(text)
    except ValueError as problem:
        raise SettingsError(f"{name} is {text!r}: it must be {problem}") from None


_MAY_BE_ZERO: Final = ("restored_state_s", "state_retention_s", "history_s", "shots_per_device")
"""Limits that keep nothing with 0."""


def _parser_of(name: str, kind: object) -> Callable[[str], object]:
    """Return the parser of a limit."""
    if name.endswith(("_rate", "_burst")) or name in _MAY_BE_ZERO:
        return parse_number if kind is float else parse_whole_number
    if kind is int:
        return parse_count
    return parse_duration_s if kind is float else parse_patterns


_LIMIT_NAMES: Final = tuple(limit.name for limit in fields(ServerLimits))

_PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "host": str,
    "port": parse_port,
    "workers": parse_workers,
    "public_url": parse_public_url,
    "tls_cert": Path,
    "tls_key": Path,
    "tls_self_signed": parse_flag,
    "redirect_port": parse_port,
    "trusted_proxies": parse_networks,
    "proxy_protocol": parse_flag,
    "jwt_secret": str,
    "jwt_key_files": parse_paths,
    "sign_up": parse_sign_up,
    "google_client_ids": parse_texts,
    "google_client_secret": str,
    "oidc_issuer": parse_issuer,
    "oidc_client_id": str,
    "oidc_client_secret": str,
    "oidc_label": str,
    "oidc_audiences": parse_texts,
    "oidc_jwks_url": parse_secure_url,
    "facebook_app_id": str,
    "facebook_app_secret": str,
    "pairing": parse_pairing,
    "new_machines_per_network": parse_count,
    "machines_per_account": parse_count,
    "web_dist_path": Path,
    "allowed_origins": parse_origins,
    "push": parse_flag,
    "push_contact": parse_contact,
    "push_offline_s": parse_duration_s,
    "firmware_releases": parse_releases,
    "metrics_token": str,
    "metrics_host": str,
    "metrics_port": parse_port,
    "data_dir": Path,
    "database_url": str,
    "database_pool": parse_pool,
    "bus": str,
    "instance": parse_instance,
    "compiled": parse_flag,
    "log_level": parse_log_level,
    "log_format": parse_log_format,
    **{limit.name: _parser_of(limit.name, limit.type) for limit in fields(ServerLimits)},
}
