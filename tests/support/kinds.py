"""Marks for tests of the registry that go for one kind of database only."""

from typing import Final

import pytest

ON_SQLITE: Final = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
ON_POSTGRESQL: Final = pytest.mark.parametrize(
    "kind", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)
