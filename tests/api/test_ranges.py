"""Range headers: the bytes that each means."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.api.ranges import Unsatisfiable, parse_range

SIZE = 100
WHOLE = (0, SIZE)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("Bytes=10-19", (10, 20)),
        ("bytes= 10-19 ", (10, 20)),
        ("bytes=90-", (90, SIZE)),
        ("bytes=0-", WHOLE),
        ("bytes=99-99", (99, 100)),
        ("bytes=90-100", (90, SIZE)),
        ("bytes=90-99999999999999999999999", (90, SIZE)),
        ("bytes=-1", (99, SIZE)),
        ("bytes=-100", WHOLE),
        ("bytes=-101", WHOLE),
        ("bytes=-" + "9" * 5000, WHOLE),
        ("bytes=" + "0" * 5000 + "1-1", (1, 2)),
    ],
)
def test_single_range_is_parsed(value: str, part: tuple[int, int]) -> None:
    assert parse_range(value, SIZE) == part


@pytest.mark.parametrize(
    "value",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=9-2",
        "bytes=0-1,2-3",
        "bytes=0-1, 50-",
        "bytes=a-b",
        "bytes=+1-2",
        "bytes=1 - 2",
        "bytes=1--2",
        "bytes=\u0661-\u0662",
        "lines=1-2",
        "x",
    ],
)
def test_other_range_headers_mean_the_whole_file(value: str) -> None:
    assert parse_range(value, SIZE) == WHOLE


@pytest.mark.parametrize("value", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 5000 + "-"])
def test_a_range_behind_the_end_is_refused(value: str) -> None:
    with pytest.raises(Unsatisfiable):
        parse_range(value, SIZE)


def test_empty_file_has_no_satisfiable_range() -> None:
    assert parse_range("bytes=-5", 0) == (0, 0)
    with pytest.raises(Unsatisfiable):
        parse_range("bytes=0-", 0)


@given(st.one_of(st.text(), st.from_regex(r"bytes=\d*-\d*")), st.integers(0, 200))
def test_part_is_always_within_the_file(value: str, size: int) -> None:
    try:
        first, stop = parse_range(value, size)
    except Unsatisfiable:
        return
    assert 0 <= first <= stop <= size
    assert first < stop or size == 0
