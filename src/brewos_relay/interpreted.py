"""Interpret the source of modules although this build has them compiled."""

import sys
from collections.abc import Sequence
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Final

VARIABLE: Final = "BREWOS_RELAY_COMPILED"
_OFF: Final = ("false", "no", "off", "0")  # as `settings` reads a flag


class _SourceFinder:
    """Finds the source of this package's modules, where Python would find the compiled ones."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module; see `importlib.abc.MetaPathFinder`."""
        if not name.startswith(f"{__package__}."):
            return None
        finders = (FileFinder(folder, (SourceFileLoader, SOURCE_SUFFIXES)) for folder in path or ())
        return next((spec for finder in finders if (spec := finder.find_spec(name)) is not None), None)


def is_off(text: str) -> bool:
    """Whether this value of the variable switches compiled modules off."""
    return text.lower() in _OFF


def prefer_source() -> None:
    """Interpret every module of this package that is imported from here on."""
    if _SourceFinder not in sys.meta_path:
        sys.meta_path.insert(0, _SourceFinder)
