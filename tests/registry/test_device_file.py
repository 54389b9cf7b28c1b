from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import DeviceFileError
from brewos_relay.registry.device_file import read_device_file
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import DEVICE_ID

KEY = "k" * 43


def read(content: str | bytes) -> list[tuple[int, NewDevice]]:
    raw = content if isinstance(content, bytes) else content.encode()
    return list(stream(raw.splitlines(keepends=True)))


def stream(lines: list[bytes] | Iterator[bytes]) -> Iterator[tuple[int, NewDevice]]:
    return read_device_file(lines, hash_key=hash_secret)


def test_lines_with_and_without_a_name() -> None:
    assert read(f"BRW-00000001,{KEY}\nbrw-0000000a,{KEY},Kitchen\n") == [
        (1, NewDevice(id="BRW-00000001", key_hash=hash_secret(KEY))),
        (2, NewDevice(id="BRW-0000000A", key_hash=hash_secret(KEY), name="Kitchen")),
    ]


@pytest.mark.parametrize(
    "header", ["id,key", "id,key,name", "id,key,name,user", "ID, Key, Name", "\ufeffid,key", '"id","key"']
)
def test_a_header_line_is_skipped(header: str) -> None:
    assert [(line, new.id) for line, new in read(f"{header}\nBRW-00000001,{KEY}\n")] == [(2, "BRW-00000001")]


def test_a_header_line_may_only_come_first() -> None:
    with pytest.raises(DeviceFileError, match="line 2"):
        read(f"BRW-00000001,{KEY}\nid,key\n")


def test_byte_order_mark_line_ends_blanks_and_quotes() -> None:
    content = (
        f'\ufeffBRW-00000001,{KEY}\r\n\r\n , \n BRW-00000002 , {KEY} , \n"BRW-00000003","{KEY}","a, ""b"""'
    )
    assert [(line, new.id, new.name) for line, new in read(content)] == [
        (1, "BRW-00000001", None),
        (4, "BRW-00000002", None),
        (5, "BRW-00000003", 'a, "b"'),
    ]


@pytest.mark.parametrize(
    ("cell", "user_ids"),
    [
        ("", ()),
        ("ada", ("ada",)),
        ("ada;bob", ("ada", "bob")),
        (" ada ; bob;; ada ", ("ada", "bob")),
        (";", ()),
    ],
)
def test_users_are_separated_by_semicolons(cell: str, user_ids: tuple[str, ...]) -> None:
    ((_, new),) = read(f"BRW-00000001,{KEY},,{cell}\n")
    assert (new.name, new.user_ids) == (None, user_ids)


def test_an_empty_file_has_no_devices() -> None:
    assert read("") == []
    assert read("\n\n") == []
    assert read("id,key,name\n") == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("BRW-00000009", r"1 columns instead of id,key\[,name\[,user\]\]"),
        (f"BRW-00000009,{KEY},a,b,c", "5 columns"),
        (f"BRW-00000009,{KEY},a,ada;b\x07b", "a user id must have 1 to 256"),
        (f"BRW-9,{KEY}", "'BRW-9' is not a device id"),
        ("BRW-00000009,", "the key has 0 characters"),
        ("BRW-00000009,short", "the key has 5 characters"),
        (f"BRW-00000009,{KEY},{'x' * 101}", "a name must have 1 to 100"),
        (f'BRW-00000009,{KEY},"a\x07b"', "a name must have"),
        (f"brw-00000001,{KEY}", "BRW-00000001 is on line 2 already"),
        (f'BRW-00000009,{KEY},"a', "not CSV"),
        (f'BRW-00000009,{KEY},"a"b', "not CSV"),
        (f"BRW-00000009,{KEY},{'x' * 200_000}", "not CSV"),
    ],
)
def test_invalid_line_is_named(line: str, problem: str) -> None:
    with pytest.raises(DeviceFileError, match=problem) as caught:
        read(f"id,key\nBRW-00000001,{KEY}\n{line}")
    assert caught.value.line == 3
    assert str(caught.value).startswith("line 3: ")
    assert KEY not in str(caught.value)


def test_a_key_in_the_column_of_the_id_is_not_repeated() -> None:
    other = "A" * 43
    with pytest.raises(DeviceFileError, match="a text of 43 characters") as caught:
        read(f"{KEY},{other}\n")
    assert KEY not in str(caught.value)
    with pytest.raises(DeviceFileError, match="the key has") as caught:
        read("BRW-00000001,my-secret-key\n")
    assert "my-secret-key" not in str(caught.value)


def test_file_must_be_utf8() -> None:
    with pytest.raises(DeviceFileError, match="line 2: not UTF-8"):
        read(b"BRW-00000001," + KEY.encode() + b"\nBRW-00000002," + KEY.encode() + b",K\xfcche\n")


def test_lines_are_read_as_they_are_needed() -> None:
    taken = []

    def lines() -> Iterator[bytes]:
        for number in range(1, 1000):
            taken.append(number)
            yield f"BRW-{number:08X},{KEY}\n".encode()

    devices = stream(lines())
    assert next(devices)[0] == 1
    assert taken == [1]


@given(st.lists(st.binary(max_size=80)))
def test_garbage_is_a_device_file_error(lines: list[bytes]) -> None:
    try:
        devices = list(stream(lines))
    except DeviceFileError:
        return
    assert all(DEVICE_ID.fullmatch(new.id) for _, new in devices)
