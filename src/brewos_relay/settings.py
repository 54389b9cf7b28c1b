"""Settings: the command line over the environment over `.env` over defaults.

The one module that reads the environment; everything else is handed what it needs.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from io import StringIO
from pathlib import Path
from typing import Any, Final

from brewos_relay.core.limits import Limits
from brewos_relay.errors import SettingsError

LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
DATABASE_FILE: Final = "brewos-relay.db"
MIN_JWT_SECRET_BYTES: Final = 32

_PREFIX: Final = "BREWOS_RELAY_"
#: Names that hosting platforms and the service's documentation use; each goes before the prefixed one.
_SHORT_NAMES: Final = {
    "port": "PORT",
    "jwt_secret": "JWT_SECRET",
    "data_dir": "DATA_DIR",
    "web_dist_path": "WEB_DIST_PATH",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set from outside, checked."""

    host: str = ""
    """Address to listen on; empty for all interfaces."""
    port: int = 3001
    """0 takes any free port."""
    jwt_secret: str = field(default="", repr=False)
    """Signs and verifies the tokens of clients; at least 32 bytes."""
    data_dir: Path = Path("data")
    """Where the registry's SQLite file lies."""
    web_dist_path: Path | None = None
    """Folder of a built web app to serve."""
    database_url: str = field(default="", repr=False)  # it may hold a password
    """SQLAlchemy URL of the registry; empty for an SQLite file in `data_dir`."""
    log_level: str = "info"
    """One of `LOG_LEVELS`."""
    limits: Limits = field(default_factory=Limits)
    """Every bound, each of which is a setting of its own."""

    def resolved_database_url(self) -> str:
        """Give the URL of the registry's database; SettingsError if `data_dir` cannot be part of one."""
        if self.database_url:
            return self.database_url
        path = (self.data_dir / DATABASE_FILE).as_posix()
        if "?" in path or "%" in path:
            raise SettingsError(
                f"DATA_DIR is {str(self.data_dir)!r}: choose a folder without '?' and '%' in its name"
            )
        return f"sqlite:///{path}"

    def require_jwt_secret(self) -> str:
        """Give the secret; SettingsError if it is missing or too short to be one."""
        try:
            size_bytes = len(self.jwt_secret.encode())
        except UnicodeEncodeError:
            problem = "is not UTF-8"
        else:
            if size_bytes >= MIN_JWT_SECRET_BYTES:
                return self.jwt_secret
            problem = f"has {size_bytes} bytes" if size_bytes else "is not set"
        raise SettingsError(
            f"JWT_SECRET {problem}: it must be a text of at least {MIN_JWT_SECRET_BYTES} bytes;"
            " `brewos-relay secret` makes one, to be put into the environment or into .env"
        )


def load_settings(
    *,
    environ: Mapping[str, str] = os.environ,
    dotenv_path: Path = Path(".env"),
    **overrides: object,
) -> Settings:
    """Gather the settings from all sources and check them; SettingsError names the first bad one.

    `overrides` are fields of `Settings` or of `Limits` that the command line gave; None is the same as not
    given. Neither is an empty variable: it counts as unset.
    """
    sources = (environ, _read_dotenv(dotenv_path))
    values: dict[str, Any] = {}
    for name, parse in _PARSERS.items():
        override = overrides.pop(name, None)
        if override is not None:
            values[name] = _parse(parse, f"--{name.replace('_', '-')}", str(override))
        elif (found := _find(sources, variable_names(name))) is not None:
            values[name] = _parse(parse, *found)
    if overrides:
        raise TypeError(f"no such setting: {', '.join(overrides)}")
    limits = Limits(**{name: values.pop(name) for name in _LIMIT_NAMES if name in values})
    return Settings(**values, limits=limits)


def variable_names(name: str) -> tuple[str, ...]:
    """List the environment variables of a field of `Settings` or `Limits`, the one that wins first."""
    prefixed = _PREFIX + name.upper()
    return (_SHORT_NAMES[name], prefixed) if name in _SHORT_NAMES else (prefixed,)


def read_variable(
    name: str, *, environ: Mapping[str, str] = os.environ, dotenv_path: Path = Path(".env")
) -> str | None:
    """Find a variable that no server needs, in the environment or else in `.env`; None if unset or empty.

    SettingsError if `.env` is looked into and cannot be read.
    """
    return environ.get(name) or _read_dotenv(dotenv_path).get(name) or None


def _find(sources: tuple[Mapping[str, str], ...], names: tuple[str, ...]) -> tuple[str, str] | None:
    for source in sources:
        for name in names:
            if value := source.get(name):
                return name, value
    return None


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError):  # a folder of that name is somebody's virtual environment
        return {}
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path} cannot be read: {reason}") from None
    # Most commands run without a .env, and need not wait for this.
    from dotenv import dotenv_values

    # No interpolation: a secret with a `$` in it means itself.
    content = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in content.items() if value is not None}


def _parse(parse: Callable[[str], object], name: str, text: str) -> object:
    try:
        return parse(text)
    except ValueError as problem:
        raise SettingsError(f"{name} is {text!r}: it must be {problem}") from None


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("a number from 0 to 65535")
    return int(text)


def _parse_log_level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise ValueError(f"one of {', '.join(LOG_LEVELS)}")
    return text.lower()


def _parse_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0):
        raise ValueError("a whole number greater than 0")
    return int(text)


def _parse_duration_s(text: str) -> float:
    try:
        value_s = float(text)
    except ValueError:
        value_s = math.nan
    if not (math.isfinite(value_s) and value_s > 0):
        raise ValueError("a number of seconds greater than 0")
    return value_s


def _parse_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("a number, 0 or greater")
    return value


def _parse_patterns(text: str) -> tuple[str, ...]:
    return tuple(pattern.strip() for pattern in text.split(",") if pattern.strip())


def _parser_of(name: str, kind: object) -> Callable[[str], object]:
    """Find how a limit is read."""
    if name.endswith(("_rate", "_burst")):
        return _parse_number
    if kind is int:
        return _parse_count
    return _parse_duration_s if kind is float else _parse_patterns


_LIMIT_NAMES: Final = tuple(limit.name for limit in fields(Limits))

_PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "host": str,
    "port": _parse_port,
    "jwt_secret": str,
    "data_dir": Path,
    "web_dist_path": Path,
    "database_url": str,
    "log_level": _parse_log_level,
    **{limit.name: _parser_of(limit.name, limit.type) for limit in fields(Limits)},
}
