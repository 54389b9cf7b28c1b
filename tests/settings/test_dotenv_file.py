from io import StringIO

import pytest
from dotenv import dotenv_values
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.settings.dotenv_file import with_settings


def test_new_file_has_a_comment_and_the_settings() -> None:
    text = with_settings("", {"PORT": "443", "PUBLIC_URL": "https://a.example"})
    assert text.startswith("# ")
    assert text.endswith("\nPORT=443\nPUBLIC_URL=https://a.example\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("A=1\nPORT=1\nB=2\n", "A=1\nPORT=443\nB=2\n"),
        ("PORT=1\nPORT=2\n", "PORT=1\nPORT=443\n"),
        ("# PORT=1\nA=1\n", "PORT=443\nA=1\n"),
        ("# PORT=1\nPORT=2", "# PORT=1\nPORT=443"),
        ("  export PORT = 1\r\nA=1\r\n", "PORT=443\r\nA=1\r\n"),
        ("A=1", "A=1\nPORT=443\n"),
        ("METRICS_PORT=1\nPORTS=2\n", "METRICS_PORT=1\nPORTS=2\nPORT=443\n"),
    ],
)
def test_other_lines_stay(before: str, after: str) -> None:
    assert with_settings(before, {"PORT": "443"}) == after


@given(value=st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), min_size=1))
def test_value_is_read_as_it_was_written(value: str) -> None:
    if not value.isprintable():
        with pytest.raises(ValueError, match="printable"):
            with_settings("", {"A": value})
        return
    read = dotenv_values(stream=StringIO(with_settings("B=1\n", {"A": value})), interpolate=False)
    assert read == {"B": "1", "A": value}
