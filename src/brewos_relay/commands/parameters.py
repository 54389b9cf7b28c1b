"""Parameter types, options and settings that several commands share."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.texts import EMAIL_CHARS, NAME_CHARS, USER_ID_CHARS, is_identifier, is_name
from brewos_relay.vocabulary import ROLES, parse_device_id

if TYPE_CHECKING:
    import ssl

    from brewos_relay.settings import Settings

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_DURATION: Final = re.compile(r"([0-9]{1,15})([smhd])")
_LONGEST_DAYS: Final = 36_500  # the end is a date that datetime can represent

_SHOWN_CHARS: Final = 40


class HelpfulGroup(click.Group):
    """A group that shows its help, with exit code 0, when no command is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments, or show the help if there are none."""
        # Not `no_args_is_help`: its exit code and stream depend on the version of click.
        return super().parse_args(ctx, args or ["--help"])


def device_id(text: str) -> str:
    """Parse a device id in any case; the command gets it in upper case."""
    try:
        return parse_device_id(text)
    except ValueError as problem:
        raise click.BadParameter(str(problem)) from None


def duration_s(text: str) -> int:
    """Parse a whole number with a unit, as in 90s, 15m, 12h or 7d; the command gets seconds."""
    match = _DURATION.fullmatch(text)
    if match is None or int(match[1]) == 0:
        raise click.BadParameter(
            f"{text!r} is not a duration: it must be a number with a unit, like 90s, 15m, 12h or 7d"
        )
    length_s = int(match[1]) * _UNITS_S[match[2]]
    if length_s > _LONGEST_DAYS * _UNITS_S["d"]:
        raise click.BadParameter(f"{text!r} is too long: it must be {_LONGEST_DAYS}d at most")
    return length_s


def user_id(text: str) -> str:
    """Accept a user id of printable characters."""
    return _checked(text, is_identifier(text, longest_chars=USER_ID_CHARS), longest_chars=USER_ID_CHARS)


def email(text: str) -> str:
    """Accept an e-mail address of printable characters."""
    return _checked(text, is_identifier(text, longest_chars=EMAIL_CHARS), longest_chars=EMAIL_CHARS)


def token_name(text: str) -> str:
    """Accept the name of a token, of printable characters."""
    return _checked(text, is_name(text, longest_chars=NAME_CHARS), longest_chars=NAME_CHARS)


def account_email(text: str) -> str:
    """Parse the e-mail address of an account; the command gets it in the form that accounts have."""
    from brewos_relay.registry.emails import normal_email

    try:
        return normal_email(text)
    except ValueError as problem:
        raise click.BadParameter(f"{_quoted(text)}: {problem}") from None


def base_url(text: str) -> str:
    """Parse the public URL of a server."""
    from brewos_relay.settings.parsing import parse_public_url

    try:
        return parse_public_url(text)
    except ValueError as problem:
        raise click.BadParameter(f"{_quoted(text)}: it must be {problem}") from None


port_number: Final = click.IntRange(0, 65535)
role_choice: Final = click.Choice(ROLES[::-1], case_sensitive=False)

# Not click's `envvar`, which does not read `.env`.
url_option = click.option(
    "--url",
    help="URL of the relay (BREWOS_RELAY_URL; default: that of the server of this folder).",
)

device_argument = click.argument("device_id", metavar="ID", type=device_id)

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory of the registry's SQLite file (DATA_DIR; default: data).",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")


def settings_from(**overrides: Any) -> "Settings":
    """Load the settings; `overrides` are options of the command line, and go before the environment."""
    from brewos_relay.settings import load_settings

    return load_settings(**overrides)


def variable(name: str) -> str | None:
    """Read a variable that the server does not use from the environment or from `.env`."""
    from brewos_relay.settings import read_variable

    with errors_as(Failed):
        return read_variable(name)


def find_server(given: str | None) -> tuple[str, "ssl.SSLContext | None"]:
    """Return the URL of the relay, and the TLS context for it.

    The URL is the given one, that of BREWOS_RELAY_URL, or that of a server on this computer with the settings
    of this folder. Certificates of these settings are trusted in every case. Raises SettingsError.
    """
    from brewos_relay.errors import SettingsError
    from brewos_relay.server.own_client import local_url, tls_context
    from brewos_relay.settings import Settings

    url = given or variable("BREWOS_RELAY_URL")
    try:
        settings = settings_from()
    except SettingsError:
        if url is None:
            raise
        settings = Settings()  # the server is elsewhere, and the settings are not for it
    if url is None and settings.port == 0:
        raise SettingsError("the server of this folder has any free port; name its URL with --url")
    url = url or local_url(settings)
    return url, tls_context(settings, url)


def find_public_url(given: str | None) -> str | None:
    """Return the URL of `find_server` as users know it, for links; None if it is the same.

    Only the server of this folder can have another one (PUBLIC_URL).
    """
    if given or variable("BREWOS_RELAY_URL"):
        return None
    return settings_from().public_url


def _checked(text: str, is_good: bool, *, longest_chars: int) -> str:
    if not is_good:
        raise click.BadParameter(f"{_quoted(text)}: it must have 1 to {longest_chars} printable characters")
    return text


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…")
