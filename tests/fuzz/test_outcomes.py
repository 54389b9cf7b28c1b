import pytest

from fuzz import outcomes
from fuzz.mutation import Mutator


def test_outcomes_do_not_depend_on_the_build() -> None:
    """An interpreted build is compared with itself, which shows that nothing but the seed counts."""
    assert outcomes.differences(1, 50) == []


def test_difference_is_reported_with_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(mutator: Mutator) -> object:
        return "other" if mutator.chance.random() < 2 else ""

    monkeypatch.setitem(outcomes.KINDS, "held", other)
    found = outcomes.differences(7, 1)
    assert len(found) == 1
    assert found[0].startswith("held with seed 7: ")
    assert '"other"' in found[0]
