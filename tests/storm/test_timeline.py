import pytest

from storm.timeline import histogram, most_in_a_second, share_back_after


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.99, 9.0), (1.0, 9.0)])
def test_a_share_is_back_when_the_last_of_it_is(share: float, expected: float) -> None:
    assert share_back_after([9.0, 1.0, 2.0, 3.0], share) == expected


def test_the_fullest_second_may_begin_anywhere() -> None:
    assert most_in_a_second([0.0, 0.6, 1.4, 1.5, 3.0]) == 3
    assert most_in_a_second([1.0, 2.0]) == 1
    assert most_in_a_second([]) == 0


def test_a_histogram_shows_the_steps_between_too() -> None:
    assert histogram([31.0, 32.0, 44.0], step_s=5) == [
        "   30 to  35 s       2 " + "#" * 40,
        "   35 to  40 s       0",
        "   40 to  45 s       1 " + "#" * 20,
    ]
    assert histogram([], step_s=5) == []
