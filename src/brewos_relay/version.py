"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """Return the version of the installed relay, "0+unknown" if it is not installed as a package."""
    try:
        return version("brewos-relay")
    except PackageNotFoundError:
        return "0+unknown"
