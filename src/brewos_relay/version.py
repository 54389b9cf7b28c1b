"""The version of the installed package, and whether it is compiled."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

BUILD: Final = "compiled" if __file__.endswith((".so", ".pyd")) else "interpreted"
"""Whether this module, and the others of the data path, are compiled or interpreted."""


def installed_version() -> str:
    """Return the version of the installed relay, "0+unknown" if it is not installed as a package."""
    try:
        return version("brewos-relay")
    except PackageNotFoundError:
        return "0+unknown"
