"""Settings: the only package that reads the environment.

One variable is read before all imports as well: BREWOS_RELAY_COMPILED, in `brewos_relay/__init__.py`.

fields         the settings, and the checks that concern several of them
loading        combines all sources: command line, environment, credentials, `.env`, defaults
parsing        parsers for the texts of settings
server_limits  the limits of a server
sources        finds the texts: in the environment, in credentials, in `.env`
"""

from brewos_relay.settings.fields import (
    DATABASE_FILE,
    FIRST_LIMITS,
    MIN_JWT_SECRET_BYTES,
    SECRET_SETTINGS,
    Settings,
)
from brewos_relay.settings.loading import find_settings, load_settings, unknown_variables
from brewos_relay.settings.parsing import LOG_FORMATS, LOG_LEVELS
from brewos_relay.settings.sources import Found, Unknown, read_variable, variable_names

__all__ = [
    "DATABASE_FILE", "FIRST_LIMITS", "LOG_FORMATS", "LOG_LEVELS", "MIN_JWT_SECRET_BYTES",
    "SECRET_SETTINGS", "Found", "Settings", "Unknown", "find_settings", "load_settings", "read_variable",
    "unknown_variables", "variable_names",
]  # fmt: skip
