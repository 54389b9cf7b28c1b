import msgspec
import pytest

from brewos_relay.core.history import Run, Samples
from brewos_relay.registry.records import Shot
from brewos_relay.shot_files import MOST_SAMPLES, file_name, profile_of, shot_file, shot_of


def run_of(count: int, *, complete: bool = True) -> Run:
    times = [100.0 + number / 4 for number in range(count)]
    names = ("pressure", "weight", "flow", "brewTemp", "groupTemp")
    values: dict[str, list[float | None]] = {name: [None] * count for name in names}
    values["pressure"] = [9.0] * count
    return Run(100.0, 130.0, complete, Samples(times, [True] * count, [True] * count, values))


def test_unknown_figures_are_left_out() -> None:
    shot = shot_of("BRW-00000001", run_of(2, complete=False), began_at_ms=5, dose_g=None)
    assert shot.summary == {"peakPressure": 9.0, "averagePressure": 9.0}
    assert (shot.duration_ms, shot.is_complete, shot.began_at_ms) == (30_000, False, 5)
    assert profile_of(shot).times_ms == [0, 250]


def test_run_without_samples_makes_a_shot() -> None:
    shot = shot_of("BRW-00000001", run_of(0), began_at_ms=5, dose_g=18.0)
    assert shot.summary == {"dose": 18.0}
    content, _, _ = shot_file(shot, "visualizer", machine="Kitchen")
    assert msgspec.json.decode(content)["elapsed"] == []


def test_long_profile_is_thinned_out() -> None:
    profile = profile_of(shot_of("BRW-00000001", run_of(5000), began_at_ms=5, dose_g=None))
    assert len(profile.times_ms) <= MOST_SAMPLES
    assert profile.times_ms[-1] > 1_200_000
    assert {len(column) for column in profile.values.values()} == {len(profile.times_ms)}


@pytest.mark.parametrize("stored", [b"", b"junk", b"x\x9c\xabV*\xc9\xccM\x05\x00\x06m\x02\x1e"])
def test_profile_that_cannot_be_read_is_empty(stored: bytes) -> None:
    shot = Shot(
        device_id="BRW-00000001", began_at_ms=0, duration_ms=1, is_complete=True, summary={}, profile=stored
    )
    assert profile_of(shot).times_ms == ()
    assert shot_file(shot, "csv", machine="x")[0] == b"time (s)\r\n"
    assert file_name(shot, "csv") == "BRW-00000001-19700101-000000.csv"
