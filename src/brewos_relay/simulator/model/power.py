"""Who may heat, and how much: the heating strategies, within what the mains give."""

from typing import Final

BREW_ONLY: Final = 0
SEQUENTIAL: Final = 1
PARALLEL: Final = 2
STAGGERED: Final = 3
STRATEGIES: Final = range(4)

_TURN_S: Final = 12.0
_BREW_TURN_S: Final = 8.0


def share_power(
    brew_w: float, steam_w: float, *, strategy: int, budget_w: float, heating: bool, clock_s: float
) -> tuple[float, float]:
    """Give what each boiler gets of the W that it wants; never more than `budget_w` together.

    While the machine heats up (`heating`), strategy 1 lets the steam boiler wait, and strategy 3 lets the
    two take turns, so that never both of them draw. Strategy 0 never heats it. The brew boiler comes first.
    """
    budget_w = max(0.0, budget_w)
    if strategy == BREW_ONLY or (strategy == SEQUENTIAL and heating):
        steam_w = 0.0
    elif strategy == STAGGERED and brew_w and steam_w:
        if clock_s % _TURN_S < _BREW_TURN_S:
            steam_w = 0.0
        else:
            brew_w = 0.0
    brew_w = min(brew_w, budget_w)
    return brew_w, min(steam_w, budget_w - brew_w)
