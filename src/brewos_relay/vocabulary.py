"""Vocabulary that every layer shares: roles, device ids, device keys and wall-clock times."""

import math
import re
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, overload

Detail: TypeAlias = Mapping[str, str | int | float]
"""The fields of an entry of the activity, and of a log line: texts, and numbers as numbers."""

# Roles

Role: TypeAlias = Literal["viewer", "member", "owner"]
"""What a user, or the bearer of a token, is to a device."""

GuestRole: TypeAlias = Literal["viewer", "member"]
"""The roles that a share can give. Only these can have an end."""

ROLE_RANKS: Final[Mapping[Role, int]] = MappingProxyType({"viewer": 0, "member": 1, "owner": 2})
"""A role may do everything that a role of lower rank may do."""

ROLES: Final[tuple[Role, ...]] = tuple(ROLE_RANKS)
"""All roles, lowest rank first. Compare roles with `role_includes`, not by their place in here."""


def role_includes(role: Role, other: Role) -> bool:
    """Tell whether a role may do everything that the other may do."""
    return ROLE_RANKS[role] >= ROLE_RANKS[other]


def lower_role(one: Role, other: Role) -> Role:
    """Return the role of lower rank."""
    return one if role_includes(other, one) else other


# Device ids

DEVICE_ID: Final = re.compile(r"[Bb][Rr][Ww]-[0-9A-Fa-f]{8}")
"""A device id in any case. The relay works with the form that `parse_device_id` returns."""

_ID_BYTES: Final = 4
_QUOTED_CHARS: Final = 16


def parse_device_id(text: str) -> str:
    """Return a device id in upper case, the same object each time. Raises ValueError if it is none.

    The error quotes short texts only: a long one may be a key in the wrong place.
    """
    if DEVICE_ID.fullmatch(text) is None:
        quoted = repr(text) if len(text) <= _QUOTED_CHARS else f"a text of {len(text)} characters"
        raise ValueError(f"{quoted} is not a device id: it must be BRW- and 8 hex digits, as in BRW-12AB34CD")
    return sys.intern(text.upper())


def generate_device_id() -> str:
    """Make a device id from 32 random bits, for a device that has none of its own. It is not a secret."""
    return f"BRW-{secrets.token_hex(_ID_BYTES).upper()}"


# Device keys

_KEY: Final = re.compile(r"[A-Za-z0-9_-]{32,128}")
_KEY_BYTES: Final = 32


def generate_key() -> str:
    """Make a device key of 256 random bits: 43 characters that need no escaping in a URL."""
    return secrets.token_urlsafe(_KEY_BYTES)


def is_key(value: Any) -> bool:
    """Tell whether a value has the form of a device key: 32 to 128 of `A-Z a-z 0-9 _ -`."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def check_key(text: str) -> None:
    """Raise ValueError if a text does not have the form of a device key, without repeating the text."""
    if not is_key(text):
        raise ValueError(
            f"the key has {len(text)} characters or some that no key has:"
            " it must be 32 to 128 of A-Z a-z 0-9 _ -"
        )


# Times

LONG_AGO: Final = -math.inf
"""A time before all others."""

LAST_TIME_MS: Final = 253_402_300_799_000
"""The end of the year 9999 in Unix milliseconds, the last time that ISO 8601 and `datetime` can write."""


def now_ms() -> int:
    """Read the wall clock, in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@overload
def iso_time(at_ms: int) -> str: ...
@overload
def iso_time(at_ms: int | None) -> str | None: ...
def iso_time(at_ms: int | None) -> str | None:
    """Write Unix milliseconds as ISO 8601 in UTC, like `2023-11-14T22:13:20.001Z`. None stays None."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(min(at_ms, LAST_TIME_MS) / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
