"""Checks of a server and of a device's connections; each check returns findings."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check, with advice if there is a problem."""

    name: str
    state: State
    text: str
    advice: str = ""
