import pytest

from brewos_relay.core.ends import End, detail_of, shown


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (End("peer", None), "the peer ended it without a goodbye"),
        (End("relay", 1008, "too\nquiet"), "the relay ended it with 1008: too quiet"),
    ],
)
def test_an_end_in_words(end: End, text: str) -> None:
    assert str(end) == text


def test_what_is_kept_of_an_end() -> None:
    assert detail_of(End("peer", None), connected_s=1.24, received=7) == {
        "by": "peer",
        "connectedS": "1.2",
        "messages": "7",
    }
    kept = detail_of(End("relay", 4003, "x", 0.01), connected_s=0, received=0)
    assert (kept["code"], kept["reason"], kept["roundTripMs"]) == ("4003", "x", "10.0")


def test_texts_of_others_stay_on_their_line_and_short() -> None:
    assert shown("a\x1b[2J\nb") == "a [2J b"
    assert len(shown("x" * 500)) == 120


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (None, "none"),
        (1000, "1000"),
        (1015, "1015"),
        (4002, "4002"),
        (4003, "4003"),
        (3000, "other"),
        (4999, "other"),
    ],
)
def test_metrics_have_few_close_codes_whatever_peers_think_of(code: int | None, label: str) -> None:
    assert End("peer", code).label == label
