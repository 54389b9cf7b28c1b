"""Device files: CSV with the columns `id,key[,name[,user]]`, UTF-8, an optional header line."""

import csv
from collections.abc import Callable, Iterable, Iterator

from brewos_relay.errors import DeviceFileError
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import check_key, parse_device_id

_HEADER = ("id", "key", "name", "user")
_HEADERS = {_HEADER[:count] for count in (2, 3, 4)}
_BOM = b"\xef\xbb\xbf"


def read_device_file(
    lines: Iterable[bytes],
    *,
    hash_key: Callable[[str], bytes],
) -> Iterator[tuple[int, NewDevice]]:
    """Read devices one by one, each with the number of its last line, counted from 1.

    DeviceFileError names the first invalid line, and never repeats a key. The last column may name several
    users, separated by `;`. `hash_key` returns the bytes to store for a key.
    """
    lines_by_id: dict[str, int] = {}
    for position, (line, cells) in enumerate(_rows(lines)):
        if position == 0 and tuple(cell.lower() for cell in cells) in _HEADERS:
            continue
        if not 2 <= len(cells) <= len(_HEADER):
            raise DeviceFileError(line, f"{len(cells)} columns instead of id,key[,name[,user]]")
        id_text, key, name, users = (*cells, "", "")[: len(_HEADER)]
        try:
            check_key(key)
            new = NewDevice(
                id=parse_device_id(id_text),
                key_hash=hash_key(key),
                name=name or None,
                more_user_ids=tuple(user_id for each in users.split(";") if (user_id := each.strip())),
            )
        except ValueError as problem:
            raise DeviceFileError(line, str(problem)) from None
        earlier = lines_by_id.setdefault(new.id, line)
        if earlier != line:
            raise DeviceFileError(line, f"{new.id} is on line {earlier} already; leave one of them out")
        yield line, new


def _rows(lines: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its last line."""
    reader = csv.reader(_decode(lines), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield reader.line_num, cells
    except csv.Error as problem:
        raise DeviceFileError(max(reader.line_num, 1), f"not CSV: {problem}") from None


def _decode(lines: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        try:
            yield (line.removeprefix(_BOM) if number == 1 else line).decode()
        except UnicodeDecodeError:
            raise DeviceFileError(number, "not UTF-8; save the file with that encoding") from None
