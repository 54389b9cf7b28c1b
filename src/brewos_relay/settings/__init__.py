"""Settings, the one reader of the environment; everything else is handed what it needs.

fields     what can be set, and what of it belongs together
loading    the settings of all sources: the command line over the environment over files over defaults
parsing    how each is read from a text
sources    where the texts stand: in the environment, in credentials, in `.env`
"""

from brewos_relay.settings.fields import DATABASE_FILE, FIRST_LIMITS, MIN_JWT_SECRET_BYTES, Settings
from brewos_relay.settings.loading import find_settings, load_settings, unknown_variables
from brewos_relay.settings.parsing import LOG_FORMATS, LOG_LEVELS
from brewos_relay.settings.sources import Found, Unknown, read_variable, variable_names

__all__ = [
    "DATABASE_FILE", "FIRST_LIMITS", "LOG_FORMATS", "LOG_LEVELS", "MIN_JWT_SECRET_BYTES", "Found",
    "Settings", "Unknown", "find_settings", "load_settings", "read_variable", "unknown_variables",
    "variable_names",
]  # fmt: skip
