"""Sources of settings besides the command line: environment variables, credentials and `.env`."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Final

from brewos_relay.errors import SettingsError

PREFIX: Final = "BREWOS_RELAY_"

#: Names that hosting platforms and the service's documentation use. They precede the prefixed names.
_SHORT_NAMES: Final = {
    "port": "PORT",
    "public_url": "PUBLIC_URL",
    "jwt_secret": "JWT_SECRET",
    "google_client_ids": "GOOGLE_CLIENT_ID",
    "data_dir": "DATA_DIR",
    "web_dist_path": "WEB_DIST_PATH",
}
#: Variables named in the singular, since most servers set one value only.
_SINGULAR: Final = {"google_client_ids": "google_client_id", "oidc_audiences": "oidc_audience"}
_CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"

#: Variables with our prefix that are not settings: those of `tail` and `send`, and those of the tests.
_OTHER_VARIABLES: Final = ("BREWOS_RELAY_URL", "BREWOS_RELAY_TOKEN")
_OF_TESTS: Final = re.compile(r"BREWOS_RELAY_[A-Z]+_TESTS")

# Kubernetes and container links describe each service to every process beside it. The variables of a service
# whose name begins with `brewos-relay` have our prefix.
# kubernetes.io/docs/concepts/services-networking/service
_SERVICE_LINK: Final = re.compile(
    r"BREWOS_RELAY_(.+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?|NAME)"
)
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://\S+")


@dataclass(frozen=True, slots=True)
class Found:
    """The text of a setting, its variable, and the source of the variable."""

    text: str
    variable: str
    source: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A variable with our prefix that is not a setting, its source, and the setting with the nearest name."""

    variable: str
    source: str
    nearest: str | None

    def __str__(self) -> str:
        meant = f"; did you mean {self.nearest}?" if self.nearest is not None else ""
        return f"{self.variable} in {self.source} is not a setting and has no effect{meant}"


def variable_names(name: str) -> tuple[str, ...]:
    """List the variables of a field of `Settings` or `ServerLimits`. The first one takes precedence."""
    prefixed = PREFIX + _SINGULAR.get(name, name).upper()
    return (_SHORT_NAMES[name], prefixed) if name in _SHORT_NAMES else (prefixed,)


def read_variable(
    name: str, *, environ: Mapping[str, str] = os.environ, dotenv_path: Path = Path(".env")
) -> str | None:
    """Read a variable, which need not be a setting. Return None if it is unset or empty.

    Raises SettingsError if a file cannot be read.
    """
    in_file = read_credentials(environ, [name]).get(name)
    return _without_service_links(environ).get(name) or in_file or read_dotenv(dotenv_path).get(name) or None


def find_texts(names: Iterable[str], *, environ: Mapping[str, str], dotenv_path: Path) -> dict[str, Found]:
    """Find the texts of fields of `Settings` and `ServerLimits`, except unset and empty ones.

    Raises SettingsError if a file cannot be read.
    """
    variables = {name: variable_names(name) for name in names}
    sources = {
        "the environment": _without_service_links(environ),
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


def find_unknown(names: Iterable[str], *, environ: Mapping[str, str], dotenv_path: Path) -> list[Unknown]:
    """Find the variables and credentials with our prefix that belong to no setting, each once.

    `names` are the fields of `Settings` and `ServerLimits`. Raises SettingsError if a file cannot be read.
    """
    known = [*(variable for name in names for variable in variable_names(name)), *_OTHER_VARIABLES]
    sources: dict[str, Iterable[str]] = {
        "the environment": _without_service_links(environ),
        "the credentials": _credential_names(environ),
        str(dotenv_path): read_dotenv(dotenv_path),
    }
    unknown: dict[str, Unknown] = {}
    for source, variables in sources.items():
        for variable in sorted(variables):
            if not variable.startswith(PREFIX) or variable in known or _OF_TESTS.fullmatch(variable):
                continue
            nearest = difflib.get_close_matches(variable, known, n=1, cutoff=0.8)
            unknown.setdefault(variable, Unknown(variable, source, nearest[0] if nearest else None))
    return list(unknown.values())


def _without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """Remove the variables with which an orchestrator describes services: they are not settings."""
    return {
        name: text
        for name, text in environ.items()
        if not name.startswith(PREFIX)
        or not (_SERVICE_LINK.fullmatch(name) or (name.endswith("_PORT") and _SERVICE_URL.fullmatch(text)))
    }


def _credential_names(environ: Mapping[str, str]) -> list[str]:
    folder = environ.get(_CREDENTIALS)
    try:
        return os.listdir(folder) if folder else []  # noqa: PTH208 - names alone are needed
    except OSError:
        return []  # `read_credentials` reports the problem


def read_credentials(environ: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """Read the files named like these variables in the folder CREDENTIALS_DIRECTORY, which systemd creates.

    Trailing line breaks are removed. Raises SettingsError if a file cannot be read.
    """
    folder = environ.get(_CREDENTIALS)
    if not folder:
        return {}
    found = {}
    for name in names:
        path = Path(folder, name)
        try:
            found[name] = path.read_text("utf-8-sig").rstrip("\r\n")
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as problem:
            reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
            raise SettingsError(f"{path} cannot be read: {reason}") from None
    return found


def read_text(path: Path) -> str:
    """Read the text of a `.env`; a missing file is empty. Raises SettingsError if it cannot be read."""
    try:
        return path.read_text("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):  # a folder of this name is a virtual environment
        return ""
    except (OSError, UnicodeDecodeError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path} cannot be read: {reason}") from None


def read_dotenv(path: Path) -> dict[str, str]:
    """Read a `.env`; a missing file is empty. Raises SettingsError if it cannot be read."""
    text = read_text(path)
    if not text:
        return {}
    # Imported late: most commands run without a .env and need not wait for it.
    from dotenv import dotenv_values

    # No interpolation: a `$` in a secret has no special meaning.
    content = dotenv_values(stream=StringIO(text), interpolate=False)
    return {name: value for name, value in content.items() if value is not None}
