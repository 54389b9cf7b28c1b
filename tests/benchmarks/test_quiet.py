from collections.abc import Iterator

import pytest
from quiet import Meter, Quiet, Report, stolen_s

STAT = "cpu  10 20 30 40 5 0 6 700 0 0\ncpu0 1 2 3 4 5 0 6 7 0 0\n"


def meter_of(*shares_pct: float) -> Iterator[Meter]:
    """Give meters that report these shares, one after the other."""
    for share_pct in shares_pct:
        moments, used = iter((0.0, 2.0)), iter((50.0, 50.0 + share_pct / 50))
        yield Meter(clock=moments.__next__, used_s=used.__next__)


def quiet_with(*shares_pct: float, repeats: int = 2) -> Quiet:
    meters = meter_of(*shares_pct)
    return Quiet(limit_pct=10, repeats=repeats, look=lambda: 0.0, meter=lambda: next(meters))


def measure_with(quiet: Quiet) -> Report:
    rounds = iter(range(10))
    return quiet.measure(lambda: {"attempt": next(rounds)}, label="")


def test_share_of_other_programs_is_in_percent_of_one_processor() -> None:
    (meter,) = meter_of(150)
    assert meter.others_pct() == pytest.approx(150)


def test_time_given_to_other_virtual_machines_is_read() -> None:
    assert stolen_s(STAT) > 0
    assert stolen_s("cpu  10 20 30 40\n") == 0


def test_undisturbed_measurement_is_not_repeated() -> None:
    assert measure_with(quiet_with(9.0)) == {"attempt": 0, "others_pct": 9.0, "attempts": 1}


def test_disturbed_measurement_is_repeated() -> None:
    assert measure_with(quiet_with(40.0, 3.0)) == {"attempt": 1, "others_pct": 3.0, "attempts": 2}


def test_measurement_that_is_disturbed_each_time_is_marked_and_the_best_is_kept() -> None:
    assert measure_with(quiet_with(40.0, 20.0, 30.0)) == {
        "attempt": 1,
        "others_pct": 20.0,
        "attempts": 3,
        "disturbed": True,
    }


def test_repeats_can_be_turned_off() -> None:
    assert measure_with(quiet_with(40.0, repeats=0))["disturbed"] is True


def test_repeat_waits_until_other_programs_are_done() -> None:
    looks = iter((80.0, 60.0, 5.0))
    meters = meter_of(40.0, 1.0)
    quiet = Quiet(limit_pct=10, look=lambda: next(looks), meter=lambda: next(meters))
    assert "disturbed" not in measure_with(quiet)
    assert list(looks) == []
    Quiet(limit_pct=10, look=lambda: 80.0).wait()  # not for ever
