import json
import zlib
from pathlib import Path

import pytest

from brewos_relay.registry.records import Shot
from brewos_relay.registry.shots import add_shots

from .conftest import Run, assert_refused, opened

ID = "BRW-0000000A"
AT_MS = 1_700_000_000_123
PROFILE = b'{"timesMs":[0,500],"values":{"pressure":[3,9.1]}}'


@pytest.fixture
def machine(run: Run) -> None:
    """Register a device with two shots."""
    run("device", "add", ID)
    with opened() as db:
        for number, summary in enumerate(({"weight": 36.04, "peakPressure": 9.1}, {})):
            shot = Shot(
                device_id=ID,
                began_at_ms=AT_MS + number * 60_000,
                duration_ms=28_500,
                is_complete=number == 0,
                summary=summary,
                profile=zlib.compress(PROFILE),
            )
            add_shots(db, [shot], kept=10)


@pytest.mark.usefixtures("machine")
def test_shots_as_lines(run: Run) -> None:
    outcome = run("device", "shots", ID)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "     2  2023-11-14T22:14:20.123Z   28.5 s    incomplete",
        "     1  2023-11-14T22:13:20.123Z   28.5 s  36.0 g  9.1 bar",
    ]
    assert run("device", "shots", ID, "--limit", "1").out.count("\n") == 1


@pytest.mark.usefixtures("machine")
def test_shots_as_json(run: Run) -> None:
    found = json.loads(run("device", "shots", ID, "--json").out)
    assert [shot["id"] for shot in found] == [2, 1]
    assert found[1] == {
        "id": 1,
        "at": "2023-11-14T22:13:20.123Z",
        "durationMs": 28_500,
        "complete": True,
        "summary": {"weight": 36.04, "peakPressure": 9.1},
    }


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("file_format", "extension", "part"),
    [
        ("json", "json", '"units"'),
        ("csv", "csv", "0.5,9.1"),
        ("visualizer", "visualizer.json", '"elapsed":[0.0,0.5]'),
    ],
)
def test_shots_as_files(run: Run, tmp_path: Path, file_format: str, extension: str, part: str) -> None:
    folder = tmp_path / "new" / "shots"
    outcome = run("device", "shots", ID, "--export", str(folder), "--format", file_format)
    names = [f"{ID}-20231114-2214{20}.{extension}", f"{ID}-20231114-221320.{extension}"]
    assert outcome.out.splitlines() == [str(folder / name) for name in names]
    assert part in (folder / names[1]).read_text()


def test_device_without_shots(run: Run, tmp_path: Path) -> None:
    run("device", "add", ID)
    assert "no shots" in run("device", "shots", ID).err
    assert_refused(run("device", "shots", "BRW-0000000B"), 1, "BRW-0000000B")


@pytest.mark.usefixtures("machine")
def test_folder_that_cannot_be_written_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_refused(run("device", "shots", ID, "--export", str(tmp_path / "file" / "x")), 1, "cannot write")
