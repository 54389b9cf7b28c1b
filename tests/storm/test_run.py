import pytest

from storm.run import longest_s, parse_arguments


def test_all_peers_get_as_many_waves_as_the_server_needs_to_admit_them() -> None:
    one, two, ten = (longest_s(devices, 200.0) for devices in (200, 201, 2000))
    assert 60 < one < two < ten
    assert ten - one == pytest.approx(9 * (two - one))


def test_stops_may_be_in_any_order() -> None:
    assert parse_arguments([]).stops == ["kill", "restart"]
    assert parse_arguments(["--stops", "kill,kill"]).stops == ["kill", "kill"]
    for wrong in (
        ["--stops", "hang"],
        ["--devices", "0"],
        ["--apps", "-1"],
        ["--admit-rate", "0"],
        ["--newcomers", "-1"],
    ):
        with pytest.raises(SystemExit) as ended:
            parse_arguments(wrong)
        assert ended.value.code == 2
