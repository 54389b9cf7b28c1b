"""`brewos-relay device shots`: list the shots of a machine, and export them as files."""

from pathlib import Path
from typing import Final, cast, get_args

import click

from brewos_relay.commands.failures import Failed, errors_as
from brewos_relay.commands.output import print_json
from brewos_relay.commands.parameters import data_dir_option, device_argument, json_option
from brewos_relay.commands.registry_access import existing_registry
from brewos_relay.errors import DeviceUnknown
from brewos_relay.vocabulary import iso_time

_FORMATS: Final = ("json", "csv", "visualizer")


@click.command()
@device_argument
@click.option(
    "--limit",
    type=click.IntRange(1, 5000),
    metavar="COUNT",
    default=20,
    help="Maximum number of shots, newest first (default: 20).",
)
@json_option
@click.option(
    "--export",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Write a file for each of these shots into this folder.",
)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(_FORMATS),
    default="json",
    help="Format of the files (default: json). visualizer.coffee imports `visualizer`.",
)
@data_dir_option
def shots(
    device_id: str, limit: int, as_json: bool, folder: Path | None, file_format: str, data_dir: Path | None
) -> None:
    """List the shots of a device, and export them.

    \b
    Example:
      brewos-relay device shots BRW-12AB34CD --limit 5
      brewos-relay device shots BRW-12AB34CD --export shots --format csv
    """
    from brewos_relay.registry.devices import find_devices
    from brewos_relay.registry.shots import find_shot, shots_of
    from brewos_relay.shot_files import ShotFormat, file_name, shot_file

    assert get_args(ShotFormat) == _FORMATS
    with errors_as(Failed), existing_registry(data_dir) as database, database.reading() as db:
        device = next(iter(find_devices(db, [device_id])), None)
        if device is None:
            raise DeviceUnknown(device_id)
        found = shots_of(db, device_id, limit=limit)
        whole = [find_shot(db, device_id, shot.id) for shot in found] if folder is not None else []
    if not found:
        click.echo(f"There are no shots of {device_id} yet.", err=True)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for shot in whole:
                if shot is not None:
                    machine = device.name or device.id
                    content, _, extension = shot_file(shot, cast(ShotFormat, file_format), machine=machine)
                    path = folder / file_name(shot, extension)
                    path.write_bytes(content)
                    click.echo(str(path))
        except OSError as problem:
            raise Failed(f"cannot write the shots into {folder}: {problem.strerror}") from None
        return
    if as_json:
        print_json(
            [
                {
                    "id": shot.id,
                    "at": iso_time(shot.began_at_ms),
                    "durationMs": shot.duration_ms,
                    "complete": shot.is_complete,
                    "summary": dict(shot.summary),
                }
                for shot in found
            ]
        )
        return
    for shot in found:
        figures = [
            f"{shot.summary[name]:.1f} {unit}"
            for name, unit in (("weight", "g"), ("peakPressure", "bar"), ("averageTemp", "°C"))
            if name in shot.summary
        ]
        more = "" if shot.is_complete else "  incomplete"
        click.echo(
            f"{shot.id:>6}  {iso_time(shot.began_at_ms)}  {shot.duration_ms / 1000:>5.1f} s  "
            f"{'  '.join(figures)}{more}".rstrip()
        )
