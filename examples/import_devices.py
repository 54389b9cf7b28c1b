"""Create keys for many new devices, and a file for `brewos-relay device import`.

    python import_devices.py inventory.csv out/
    brewos-relay device import out/devices.csv

`inventory.csv` has a line for each device, with the columns `name` and `user` (and optionally `id`):

    name,user
    Kitchen,ada
    Office,"ada;grace"

The program writes `devices.csv` to `out/`, and a key file for each device, which
`KeyStore("BRW-12AB34CD.json")` reads on the device. All of them are secrets, and only your user can read
them. If you run the program again, devices keep their ids and keys.
"""

import argparse
import csv
import io
import sys
from pathlib import Path

from brewos_relay.client import KeyStore, generate_device_id
from brewos_relay.client.endpoint import check_device_id
from brewos_relay.client.key_store import write_private
from brewos_relay.errors import RelayError

COLUMNS = ["id", "key", "name", "user"]


def read_inventory(path: Path) -> list[dict[str, str]]:
    """Read the inventory; raise ValueError if a name is missing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows, start=2):
        if not (row.get("name") or "").strip():
            raise ValueError(f"line {number} of {path}: every device needs a name")
    return rows


def known_ids(folder: Path) -> dict[str, str]:
    """Return the ids of earlier runs by the names of their devices."""
    made = folder / "devices.csv"
    if not made.exists():
        return {}
    with made.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["id"] for row in csv.DictReader(file)}


def import_devices(inventory: Path, folder: Path) -> int:
    """Create the missing keys, and write the file; return the number of devices."""
    folder.mkdir(mode=0o700, exist_ok=True)
    before = known_ids(folder)
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    rows = read_inventory(inventory)
    for row in rows:
        name = row["name"].strip()
        device_id = check_device_id((row.get("id") or "").strip() or before.get(name) or generate_device_id())
        key = KeyStore(folder / f"{device_id}.json").load().key
        writer.writerow({"id": device_id, "key": key, "name": name, "user": (row.get("user") or "").strip()})
    write_private(folder / "devices.csv", out.getvalue().encode())
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Create keys for many devices.")
    parser.add_argument("inventory", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    try:
        count = import_devices(given.inventory, given.folder)
    except (OSError, ValueError, RelayError) as error:
        sys.exit(f"import_devices: {error}")
    print(f"{count} devices in {given.folder / 'devices.csv'}")
