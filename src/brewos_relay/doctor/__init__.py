"""Checks of a server, and of a device's connections; each check returns findings."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, how it is, and what to do about it if that is not well."""

    name: str
    state: State
    text: str
    advice: str = ""
