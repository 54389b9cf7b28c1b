"""Where settings come from besides the command line: variables in the environment, and in files."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

from brewos_relay.errors import SettingsError

PREFIX: Final = "BREWOS_RELAY_"

#: Names that hosting platforms and the service's documentation use; each goes before the prefixed one.
_SHORT_NAMES: Final = {
    "port": "PORT",
    "public_url": "PUBLIC_URL",
    "jwt_secret": "JWT_SECRET",
    "google_client_ids": "GOOGLE_CLIENT_ID",
    "data_dir": "DATA_DIR",
    "web_dist_path": "WEB_DIST_PATH",
}
#: Variables that are in the singular, as most people set one value only.
_SINGULAR: Final = {"google_client_ids": "google_client_id", "oidc_audiences": "oidc_audience"}
_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a setting, the variable that has it, and where that stands."""

    text: str
    variable: str
    source: str


def variable_names(name: str) -> tuple[str, ...]:
    """List the environment variables of a field of `Settings` or `Limits`, the one that wins first."""
    prefixed = PREFIX + _SINGULAR.get(name, name).upper()
    return (_SHORT_NAMES[name], prefixed) if name in _SHORT_NAMES else (prefixed,)


def read_variable(
    name: str, *, environ: Mapping[str, str] = os.environ, dotenv_path: Path = Path(".env")
) -> str | None:
    """Find a variable that may be none of the settings; None if unset or empty.

    SettingsError if a file is looked into and cannot be read.
    """
    in_file = read_credentials(environ, [name]).get(name)
    return environ.get(name) or in_file or read_dotenv(dotenv_path).get(name) or None


def find_texts(names: Iterable[str], *, environ: Mapping[str, str], dotenv_path: Path) -> dict[str, Found]:
    """Find the texts of fields of `Settings` and `Limits`; those that are nowhere, or empty, are left out.

    SettingsError if a file cannot be read.
    """
    variables = {name: variable_names(name) for name in names}
    sources = {
        "the environment": environ,
        "a credential": read_credentials(environ, (each for some in variables.values() for each in some)),
        str(dotenv_path): read_dotenv(dotenv_path),
    }
    found: dict[str, Found] = {}
    for source, texts in sources.items():
        for name, candidates in variables.items():
            variable = next((each for each in candidates if texts.get(each)), None)
            if variable is not None:
                found.setdefault(name, Found(texts[variable], variable, source))
    return found


def read_credentials(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Read the files that are named like these variables, in the folder of secrets that systemd makes.

    The end of the last line is no part of a value. SettingsError if there is a file that cannot be read.
    """
    folder = environ.get(_CREDENTIALS)
    if not folder:
        return {}
    found = {}
    for name in names:
        path = Path(folder, name)
        try:
            found[name] = path.read_text("utf-8").rstrip("\r\n")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
            raise SettingsError(f"{path} cannot be read: {reason}") from None
    return found


def read_dotenv(path: Path) -> dict[str, str]:
    """Read a `.env`; one that is not there has nothing in it. SettingsError if it cannot be read."""
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
