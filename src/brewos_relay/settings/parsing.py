"""Reading the texts of settings: each function gives a value, or raises ValueError with what it must be.

The messages continue the sentence "NAME is 'text': it must be …".
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

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_YES: Final = ("true", "yes", "on", "1")
_NO: Final = ("false", "no", "off", "0")
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_APP_ORIGINS: Final = ("capacitor://localhost", "ionic://localhost", "tauri://localhost")
"""Origins of pages that an app brings along, in the shells that are in use."""


def parse_port(text: str) -> int:
    """Read a port to listen on; 0 stands for any free one."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= 65535):
        raise ValueError("a number from 0 to 65535")
    return int(text)


def parse_log_level(text: str) -> str:
    """Read the name of a level, in any case."""
    return _one_of(LOG_LEVELS, text)


def parse_log_format(text: str) -> str:
    """Read the name of a form of logs, in any case."""
    return _one_of(LOG_FORMATS, text)


def parse_sign_up(text: str) -> str:
    """Read who may make an account, in any case."""
    return _one_of(SIGN_UP, text)


def parse_pairing(text: str) -> str:
    """Read which unknown machines may register, in any case."""
    return _one_of(PAIRING, text)


def parse_flag(text: str) -> bool:
    """Read yes or no, in the ways in which people write them."""
    if text.lower() not in _YES + _NO:
        raise ValueError("true or false")
    return text.lower() in _YES


def parse_count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and len(text) <= 15 and int(text) > 0):
        raise ValueError("a whole number greater than 0")
    return int(text)


def parse_duration_s(text: str) -> float:
    """Read a number of seconds, which may have a fraction."""
    value_s = _number(text)
    if not (math.isfinite(value_s) and value_s > 0):
        raise ValueError("a number of seconds greater than 0")
    return value_s


def parse_number(text: str) -> float:
    """Read a number that may be 0."""
    value = _number(text)
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("a number, 0 or greater")
    return value


def parse_texts(text: str) -> tuple[str, ...]:
    """Read texts with a comma between them; empty ones do not count."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parse_patterns(text: str) -> tuple[str, ...]:
    """Read patterns of commands, in lower case, with a comma between them.

    A comma alone is one empty pattern, which names nothing: a list that was set is never an empty tuple.
    """
    return parse_texts(text.lower()) or ("",)


def parse_paths(text: str) -> tuple[Path, ...]:
    """Read paths with a comma between them."""
    return tuple(map(Path, parse_texts(text)))


def parse_networks(text: str) -> tuple[Network, ...]:
    """Read networks and single addresses with a comma between them."""
    try:
        return tuple(ipaddress.ip_network(part) for part in parse_texts(text))
    except ValueError:
        # What bits are set after the mask is most likely a mistake in one of the two: nobody is trusted by
        # mistake.
        raise ValueError(
            "networks like 10.0.0.0/8 (with no bits set after the mask) or addresses, with commas between"
        ) from None


def parse_public_url(text: str) -> str:
    """Read the address under which people reach the server, and give it without a `/` at its end."""
    return _origin(text, "an http or https address without a path, as in https://relay.example.com")


def parse_origins(text: str) -> tuple[str, ...]:
    """Read origins as browsers send them, with a comma between them."""
    must_be = (
        f"origins like https://app.example.com, or one of {', '.join(_APP_ORIGINS)};"
        " without a path, with commas between"
    )
    return tuple(
        part.lower() if part.lower() in _APP_ORIGINS else _origin(part, must_be) for part in parse_texts(text)
    )


def parse_secure_url(text: str) -> str:
    """Read an https address, as it is; http is for this computer only."""
    found = _split(text)
    is_safe = found is not None and (
        found.scheme == "https" or (found.scheme == "http" and found.hostname in _LOOPBACK)
    )
    if found is None or not is_safe or found.fragment:
        raise ValueError("an https address (http only on this computer, as in http://127.0.0.1:8080)")
    return text


def parse_issuer(text: str) -> str:
    """Read the address of an OpenID Connect issuer, as it is: tokens name it in exactly this form."""
    parse_secure_url(text)
    if urlsplit(text).query:
        raise ValueError("an https address without a query")
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
    """Take an address apart; None if it is none, or holds a name or a password."""
    try:
        found = urlsplit(text)
        _ = found.port  # is read, and checked, only when it is asked for
    except ValueError:
        return None
    is_plain = text.isascii() and text.isprintable() and " " not in text and found.username is None
    return found if is_plain and found.hostname else None


def _origin(text: str, must_be: str) -> str:
    found = _split(text)
    if found is None or found.scheme not in _DEFAULT_PORTS or found.hostname is None:
        raise ValueError(must_be)
    name = found.hostname.removesuffix(".")  # which is the same host
    if not name or found.path not in ("", "/") or "?" in text or "#" in text:
        raise ValueError(must_be)
    host = f"[{name}]" if ":" in name else name
    # As browsers write it: an origin never names the port that its scheme has anyway.
    port = "" if found.port in (None, _DEFAULT_PORTS[found.scheme]) else f":{found.port}"
    return f"{found.scheme}://{host}{port}"
