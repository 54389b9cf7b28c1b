from brewos_relay.api.answers import iso_utc


def test_times_are_iso_8601_in_utc_with_milliseconds() -> None:
    assert iso_utc(0) == "1970-01-01T00:00:00.000Z"
    assert iso_utc(1_700_000_000_001) == "2023-11-14T22:13:20.001Z"


def test_no_time_is_none() -> None:
    assert iso_utc(None) is None
