"""What the registry keeps of a device, as plain values; importing this costs no database."""

from dataclasses import dataclass
from typing import Final

_NAME_CHARS: Final = 100
_USER_ID_CHARS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A registered device. Times are Unix times in milliseconds."""

    id: str
    key_hash: bytes
    name: str | None
    created_at_ms: int
    last_seen_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device to register; ValueError for a name or a user that cannot be kept.

    `id` is in upper case, `key_hash` has 32 bytes; whoever makes one has seen to that.
    """

    id: str
    key_hash: bytes
    name: str | None = None
    user_id: str | None = None
    more_user_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.name is not None:
            _check_text("a name", self.name, longest_chars=_NAME_CHARS)
        for user_id in self.user_ids:
            _check_text("a user id", user_id, longest_chars=_USER_ID_CHARS)

    @property
    def user_ids(self) -> tuple[str, ...]:
        """Everybody who gets the device, each once."""
        first = () if self.user_id is None else (self.user_id,)
        return tuple(dict.fromkeys(first + self.more_user_ids))


def _check_text(what: str, text: str, *, longest_chars: int) -> None:
    # What is not printable (a NUL, half of a surrogate pair) cannot be stored or shown everywhere.
    if not 0 < len(text) <= longest_chars or not text.isprintable():
        raise ValueError(f"{what} must have 1 to {longest_chars} printable characters")
