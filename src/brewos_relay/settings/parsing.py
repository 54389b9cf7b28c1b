"""Parsers for the texts of settings. Each returns a value, or raises ValueError.

The message of the ValueError continues the sentence "NAME is 'text': it must be …".
"""

import ipaddress
import math
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS: Final = ("auto", "console", "json")
SIGN_UP: Final = ("open", "invited")
PAIRING: Final = ("open", "window", "closed")
MOST_WORKERS: Final = 64

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_INSTANCE_CHARS: Final = 100
_YES: Final = ("true", "yes", "on", "1")
_NO: Final = ("false", "no", "off", "0")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_APP_ORIGINS: Final = ("capacitor://localhost", "ionic://localhost", "tauri://localhost")
"""Origins of the pages inside an app, in the frameworks that apps use."""


def parse_port(text: str) -> int:
    """Parse a port to listen on; 0 stands for any free port."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("a number from 0 to 65535")
    return int(text)


def parse_log_level(text: str) -> str:
    """Parse a log level; upper and lower case are the same."""
    return _one_of(LOG_LEVELS, text)


def parse_log_format(text: str) -> str:
    """Parse a log format; upper and lower case are the same."""
    return _one_of(LOG_FORMATS, text)


def parse_sign_up(text: str) -> str:
    """Parse the policy for new accounts; upper and lower case are the same."""
    return _one_of(SIGN_UP, text)


def parse_pairing(text: str) -> str:
    """Parse the policy for unknown machines; upper and lower case are the same."""
    return _one_of(PAIRING, text)


def parse_instance(text: str) -> str:
    """Parse the name of an instance."""
    if not (0 < len(text) <= _INSTANCE_CHARS and all("!" <= each <= "~" for each in text)):
        raise ValueError(f"1 to {_INSTANCE_CHARS} visible ASCII characters without spaces")
    return text


def parse_flag(text: str) -> bool:
    """Parse a flag: true or false, yes or no, on or off, 1 or 0."""
    if text.lower() not in _YES + _NO:
        raise ValueError("true or false")
    return text.lower() in _YES


def parse_count(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0):
        raise ValueError("a whole number greater than 0")
    return int(text)


def parse_whole_number(text: str) -> int:
    """Parse a whole number of at least 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise ValueError("a whole number, 0 or greater")
    return int(text)


def parse_pool(text: str) -> int:
    """Parse a number of database connections: at least one for reads, and one for writes."""
    if not (text.isascii() and text.isdigit() and len(text) <= 3 and 2 <= int(text) <= 100):
        raise ValueError("a number from 2 to 100")
    return int(text)


def parse_workers(text: str) -> int:
    """Parse a number of worker processes."""
    try:
        workers = parse_count(text)
    except ValueError:
        workers = 0
    if not 0 < workers <= MOST_WORKERS:
        raise ValueError(f"a whole number from 1 to {MOST_WORKERS}")
    return workers


def parse_duration_s(text: str) -> float:
    """Parse a number of seconds; fractions are allowed."""
    value_s = _number(text)
    if not (math.isfinite(value_s) and value_s > 0):
        raise ValueError("a number of seconds greater than 0")
    return value_s


def parse_number(text: str) -> float:
    """Parse a number of at least 0."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("a number, 0 or greater")
    return value


def parse_texts(text: str) -> tuple[str, ...]:
    """Split a comma-separated list, without empty elements."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_patterns(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of command patterns, in lower case.

    A comma alone is one empty pattern, which matches nothing: a list that is set is never an empty tuple.
    """
    return parse_texts(text.lower()) or ("",)


def parse_paths(text: str) -> tuple[Path, ...]:
    """Parse a comma-separated list of paths."""
    return tuple(map(Path, parse_texts(text)))


def parse_networks(text: str) -> tuple[Network, ...]:
    """Parse a comma-separated list of networks and addresses."""
    try:
        return tuple(ipaddress.ip_network(part) for part in parse_texts(text))
    except ValueError:
        # Bits after the mask mean that the address or the mask is wrong. Do not trust a wrong network.
        raise ValueError(
            "a comma-separated list of networks like 10.0.0.0/8 (no bits set after the mask) or addresses"
        ) from None


def parse_public_url(text: str) -> str:
    """Parse the public URL of the server; a `/` at its end is removed."""
    return _origin(text, "an http or https URL without a path, such as https://relay.example.com")


def parse_origins(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of origins, into the form that browsers send."""
    must_be = (
        f"a comma-separated list of origins without a path, like https://app.example.com, or of"
        f" {', '.join(_APP_ORIGINS)}"
    )
    return tuple(
        part.lower() if part.lower() in _APP_ORIGINS else _origin(part, must_be) for part in parse_texts(text)
    )


def parse_secure_url(text: str) -> str:
    """Check an https URL and return it unchanged; http is allowed for this computer only."""
    found = _split(text)
    is_safe = found is not None and (
        found.scheme == "https" or (found.scheme == "http" and found.hostname in _LOOPBACK)
    )
    if found is None or not is_safe or found.fragment:
        raise ValueError("an https URL (http only for this computer, such as http://127.0.0.1:8080)")
    return text


def parse_contact(text: str) -> str:
    """Parse the address of an operator, for push services."""
    name, _, host = text.removeprefix("mailto:").partition("@")
    parts = _split(text)
    is_mail = text.startswith("mailto:") and bool(name) and "." in host
    if not is_mail and (parts is None or parts.scheme != "https" or not parts.hostname):
        raise ValueError("mailto: with an e-mail address, or an https URL, such as mailto:ada@example.com")
    return text


def parse_releases(text: str) -> str:
    """Parse the source of firmware releases: an https URL, or a folder."""
    if "://" not in text:
        return text
    parts = _split(text)
    if parts is None or parts.scheme != "https" or not parts.hostname:
        raise ValueError("an https URL like https://releases.example.com/list.json, or a folder")
    return text


def parse_issuer(text: str) -> str:
    """Check the URL of an OpenID Connect issuer and return it unchanged, as tokens contain it."""
    parse_secure_url(text)
    if urlsplit(text).query:
        raise ValueError("an https URL without a query")
    return text


def _one_of(known: tuple[str, ...], text: str) -> str:
    if text.lower() not in known:
        raise ValueError(f"one of {', '.join(known)}")
    return text.lower()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _split(text: str) -> SplitResult | None:
    """Split a URL; return None if it is malformed, or contains a user name or password."""
    try:
        found = urlsplit(text)
        _ = found.port  # urlsplit checks the port only when it is read
    except ValueError:
        return None
    is_plain = text.isascii() and text.isprintable() and " " not in text and found.username is None
    return found if is_plain and found.hostname else None


def _origin(text: str, must_be: str) -> str:
    found = _split(text)
    if found is None or found.scheme not in _DEFAULT_PORTS or found.hostname is None:
        raise ValueError(must_be)
    name = found.hostname.removesuffix(".")  # the same host
    if not name or found.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError(must_be)
    host = f"[{name}]" if ":" in name else name
    # As browsers write it: an origin leaves out the default port of its scheme.
    port = "" if found.port in (None, _DEFAULT_PORTS[found.scheme]) else f":{found.port}"
    return f"{found.scheme}://{host}{port}"
