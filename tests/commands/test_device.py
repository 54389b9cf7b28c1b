import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import pytest

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.cli import main
from brewos_relay.commands.output import local_time, print_table
from brewos_relay.registry.access import users_of
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, all_devices, record_seen, set_name
from brewos_relay.registry.records import Activity, Device, NewDevice
from brewos_relay.vocabulary import is_key, now_ms

from .conftest import Run, add_account, assert_refused, opened

TypeIn = Callable[[bytes], None]

KEY = "k" * 43
FILE = Path("data", "brewos-relay.db")


def stored(folder: Path = Path("data")) -> list[Device]:
    with (
        Database.open(f"sqlite:///{folder.as_posix()}/brewos-relay.db") as database,
        database.reading() as db,
    ):
        return all_devices(db)


def owners(device_id: str) -> set[str]:
    with opened() as db:
        return {user.user_id for user in users_of(db, device_id, now_ms=0) if user.role == "owner"}


def see(device_id: str, at_ms: int) -> None:
    with opened() as db:
        record_seen(db, {device_id: at_ms})


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> TypeIn:
    """Return a function that sets the content of stdin."""

    def type_in(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))

    return type_in


# add


def test_generated_key_alone_goes_to_stdout(run: Run) -> None:
    outcome = run("device", "add", "brw-0000000a")
    assert outcome.code == 0
    key = outcome.out.removesuffix("\n")
    assert is_key(key)
    assert outcome.err == f"Registered BRW-0000000A in {FILE.absolute()}.\nIts key is shown only once:\n"
    (device,) = stored()
    assert (device.id, device.key_hash, device.name) == ("BRW-0000000A", hash_secret(key), None)
    assert key not in run("device", "list", "--json").out


def test_given_key_is_not_shown(run: Run) -> None:
    outcome = run("device", "add", "BRW-0000000A", "--key", KEY, "--name", "Küche")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"Registered BRW-0000000A in {FILE.absolute()}.\n"
    (device,) = stored()
    assert (device.key_hash, device.name) == (hash_secret(KEY), "Küche")


@pytest.mark.parametrize("line", [f"{KEY}\n", f" {KEY} \r\nand more\n", KEY])
def test_key_comes_from_stdin(run: Run, type_in: TypeIn, line: str) -> None:
    type_in(line.encode())
    assert run("device", "add", "BRW-0000000A", "--key", "-").code == 0
    (device,) = stored()
    assert device.key_hash == hash_secret(KEY)


@pytest.mark.parametrize("line", [b"", b"\n", b"my-secret-key\n", b"\xff" * 43, b"x" * 10_000])
def test_invalid_key_from_stdin_is_refused(run: Run, type_in: TypeIn, line: bytes) -> None:
    type_in(line)
    outcome = run("device", "add", "BRW-0000000A", "--key", "-")
    assert_refused(outcome, 2, "the key has", "32 to 128", "See `brewos-relay device add --help`.")
    assert "my-secret-key" not in outcome.err
    assert not FILE.exists()


def test_added_device_has_its_owners(run: Run) -> None:
    assert run("device", "add", "BRW-0000000A", "--user", "ada", "--user", "bob", "--user", "ada").code == 0
    assert owners("BRW-0000000A") == {"ada", "bob"}


def test_owner_is_found_by_e_mail_address(run: Run, type_in: TypeIn) -> None:
    add_account("u1", "ada@example.org")
    outcome = run("device", "add", "BRW-0000000A", "--user", "Ada@Example.org", "--user", "no@body")
    assert owners("BRW-0000000A") == {"u1", "no@body"}
    assert "There is no account no@body; using it as the user id of a token." in outcome.err
    type_in(f"BRW-0000000B,{KEY},,ada@example.org;eve\n".encode())
    assert run("device", "import", "-").code == 0
    assert owners("BRW-0000000B") == {"u1", "eve"}


def test_registered_device_is_not_added_again(run: Run) -> None:
    run("device", "add", "BRW-0000000A")
    assert_refused(run("device", "add", "brw-0000000a"), 1, "BRW-0000000A is already registered", "remove it")


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["BRW-1"], ["'BRW-1' is not a device id"]),
        (["BRW-00000001", "--key", "my-secret-key"], ["the key has 13 characters", "32 to 128"]),
        (["BRW-00000001", "--name", ""], ["a name must have 1 to 100"]),
        (["BRW-00000001", "--user", "a\tb"], ["--user", "'a\\tb'", "1 to 256 printable characters"]),
    ],
)
def test_invalid_device_is_refused(run: Run, args: list[str], parts: list[str]) -> None:
    outcome = run("device", "add", *args)
    assert_refused(outcome, 2, *parts, "See `brewos-relay device add --help`.")
    assert "my-secret-key" not in outcome.err


# import


def write_csv(count: int, *more: str) -> str:
    lines = ["id,key,name", *(f"BRW-{number:08X},{KEY},Machine {number}" for number in range(count)), *more]
    Path("machines.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "machines.csv"


def test_import_registers_the_devices_of_a_file(run: Run) -> None:
    outcome = run("device", "import", write_csv(3))
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"Registered 3 devices in {FILE.absolute()}.\n"
    assert [(device.id, device.name) for device in stored()][1] == ("BRW-00000001", "Machine 1")


def test_import_reads_stdin(run: Run, type_in: TypeIn) -> None:
    type_in(f"BRW-00000001,{KEY}\n".encode())
    assert run("device", "import", "-").code == 0
    assert len(stored()) == 1


def test_import_sets_owners(run: Run, type_in: TypeIn) -> None:
    type_in(f"id,key,name,user\nBRW-00000001,{KEY},,ada; eve\nBRW-00000002,{KEY},Two,\n".encode())
    assert run("device", "import", "-").code == 0
    assert owners("BRW-00000001") == {"ada", "eve"}
    assert owners("BRW-00000002") == set()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("BRW-1," + KEY, "'BRW-1' is not a device id"),
        ("BRW-FFFFFFFF,short", "the key has 5 characters"),
        ("brw-00000000," + KEY, "BRW-00000000 is on line 2 already"),
    ],
)
def test_invalid_line_imports_nothing(run: Run, line: str, problem: str) -> None:
    assert_refused(run("device", "import", write_csv(3, line)), 1, "line 5", problem)
    assert not Path("data").exists()


def test_id_with_another_key_imports_nothing(run: Run) -> None:
    run("device", "add", "BRW-00000002", "--key", "o" * 43)
    parts = ("line 4", "BRW-00000002 is already registered with another key; delete the line")
    assert_refused(run("device", "import", write_csv(5)), 1, *parts)
    assert len(stored()) == 1


def test_first_of_several_registered_ids_is_named(run: Run) -> None:
    for number in range(3):
        run("device", "add", f"BRW-0000000{number}", "--key", "o" * 43)
    parts = ("line 2", "BRW-00000000 (and 2 more) is already registered")
    assert_refused(run("device", "import", write_csv(5)), 1, *parts)
    assert len(stored()) == 3


def test_interrupted_import_continues_when_run_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_pause_s: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["brewos_relay.commands.device"], "ROWS_AT_ONCE", 2)
    monkeypatch.setattr("brewos_relay.registry.bulk.sleep", interrupt)
    assert run("device", "import", write_csv(5)).code != 0
    assert len(stored()) == 2, "each transaction registers some"
    with opened() as db:
        set_name(db, "BRW-00000000", "Renamed", now_ms=1)
    monkeypatch.setattr("brewos_relay.registry.bulk.sleep", lambda _pause_s: None)
    outcome = run("device", "import", write_csv(5))
    assert outcome.err.startswith("Registered 3 devices in ")
    assert outcome.err.endswith("; 2 were already registered with the same keys.\n")
    assert [device.name for device in stored()] == ["Renamed", *(f"Machine {n}" for n in range(1, 5))]


def test_import_leaves_time_for_other_writers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def write(_pause_s: float) -> None:
        with opened() as db:
            record_seen(db, {"BRW-00000000": len(written)})
        written.append(len(stored()))

    monkeypatch.setattr(sys.modules["brewos_relay.commands.device"], "ROWS_AT_ONCE", 2)
    monkeypatch.setattr("brewos_relay.registry.bulk.sleep", write)
    assert run("device", "import", write_csv(5)).code == 0
    assert written == [2, 4]


def test_id_registered_during_an_import_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def register(_pause_s: float) -> None:
        with opened() as db:
            add_devices(db, [NewDevice(id="BRW-00000004", key_hash=hash_secret("o" * 43))], now_ms=1)

    monkeypatch.setattr(sys.modules["brewos_relay.commands.device"], "ROWS_AT_ONCE", 4)
    monkeypatch.setattr("brewos_relay.registry.bulk.sleep", register)
    assert_refused(run("device", "import", write_csv(6)), 1, "line 6", "BRW-00000004 is already registered")


def test_command_may_exceed_the_quota_with_a_warning(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_MACHINES_PER_ACCOUNT", "1")
    assert "machines now" not in run("device", "add", "BRW-00000001", "--user", "ada").err
    for command in (
        ("add", "BRW-00000002", "--user", "ada"),
        ("give", "BRW-00000001", "--user", "bob"),
    ):
        run("device", *command)
    Path("more.csv").write_text(f"BRW-00000003,{KEY},,bob\n", encoding="utf-8")
    said = "bob has 2 devices now, more than BREWOS_RELAY_MACHINES_PER_ACCOUNT (1)."
    assert said in run("device", "import", "more.csv").err
    assert said.replace("2", "3") in run("device", "give", "BRW-00000002", "--user", "bob").err


def test_missing_file_is_refused(run: Run) -> None:
    assert_refused(run("device", "import", "nowhere.csv"), 2, "nowhere.csv", "No such file")


def test_terminal_shows_a_progress_bar(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    file = write_csv(1500)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit):
        main(["device", "import", file])
    assert "Registering" in terminal.getvalue()
    assert "100%" in terminal.getvalue()
    assert len(stored()) == 1500


# list


@pytest.mark.parametrize(("args", "out"), [((), ""), (("--json",), "[]\n")])
def test_empty_registry_lists_no_devices(run: Run, args: tuple[str, ...], out: str) -> None:
    run("device", "add", "BRW-0000000A")
    run("device", "remove", "BRW-0000000A")
    outcome = run("device", "list", *args)
    assert (outcome.code, outcome.out) == (0, out)
    assert outcome.err == (
        f"No devices are registered, in {FILE.absolute()}; `brewos-relay device add` registers one.\n"
    )


def test_help_explains_last_seen(run: Run) -> None:
    text = " ".join(run("device", "list", "--help").out.split())
    assert "LAST SEEN is when a device last connected or disconnected" in text


def test_list_as_table(run: Run) -> None:
    run("device", "add", "BRW-0000000B", "--name", "Küche", "--user", "ada")
    add_account("u1", "bob@example.org")
    run("device", "give", "BRW-0000000B", "--user", "bob@example.org", "--role", "viewer")
    run("device", "add", "BRW-0000000A")
    see("BRW-0000000B", 1_700_000_000_123)
    outcome = run("device", "list")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "ID            PRESENCE  LAST SEEN         NAME   OWNER  SHARED WITH",
        "BRW-0000000A  -         never",
        f"BRW-0000000B  -         {local_time(1_700_000_000_123)}  Küche  ada    bob@example.org (viewer)",
    ]


def test_list_has_presence_and_filters(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, user in enumerate(("ada", "Bob@example.org", "ada"), start=1):
        run("device", "add", f"BRW-0000000{number}", "--name", f"Kitchen {number}", "--user", user)
    at_ms = now_ms()
    # The server of the third one was killed two hours ago.
    for device_id, seen_ms in (("BRW-00000001", at_ms), ("BRW-00000003", at_ms - 7_200_000)):
        see(device_id, seen_ms)
        with opened() as db:
            add_activity(db, [Activity(device_id=device_id, at_ms=seen_ms, kind="online")])
    with opened() as db:
        add_activity(db, [Activity(device_id="BRW-00000002", at_ms=1, kind="online")])
        add_activity(db, [Activity(device_id="BRW-00000002", at_ms=2, kind="offline")])

    def listed(*args: str) -> list[str]:
        return [each["id"][-1] for each in json.loads(run("device", "list", "--json", *args).out)]

    assert listed() == ["1", "2", "3"]
    assert listed("--online") == ["1"]
    assert listed("--offline") == ["2", "3"]
    assert listed("--owner", "bob@example.org") == ["2"]
    assert listed("--find", "KITCHEN 3") == ["3"]
    assert listed("--unseen-for", "1h") == ["2", "3"]
    assert listed("--online", "--owner", "nobody") == []
    assert "that match" in run("device", "list", "--find", "x").err
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        see("BRW-00000002", 1_700_000_000_123)
        table = run("device", "list").out
    finally:
        monkeypatch.undo()
        time.tzset()
    assert re.search(r"^BRW-00000001  online ", table, re.M)
    assert re.search(r"^BRW-00000002  offline   2023-11-15 07:13  Kitchen 2", table, re.M)


def test_list_as_json(run: Run) -> None:
    run("device", "add", "BRW-0000000B", "--name", "Küche", "--user", "ada")
    see("BRW-0000000B", 1_700_000_000_123)
    (listed,) = json.loads(run("device", "list", "--json").out)
    created_at = datetime.fromisoformat(listed.pop("createdAt"))
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 60
    assert listed == {
        "id": "BRW-0000000B",
        "name": "Küche",
        "online": None,
        "lastSeen": "2023-11-14T22:13:20.123Z",
        "users": [{"userId": "ada", "email": None, "role": "owner", "until": None}],
    }


# remove


def test_removed_device_is_gone(run: Run) -> None:
    run("device", "add", "BRW-0000000A")
    outcome = run("device", "remove", "brw-0000000a")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "Removed BRW-0000000A.\n")
    assert stored() == []
    assert_refused(
        run("device", "remove", "BRW-0000000A"),
        1,
        f"BRW-0000000A is not registered in {FILE.absolute()}",
        "device list",
    )


# Location of the registry


def test_data_dir_option_selects_the_registry(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "env"))
    elsewhere = ("--data-dir", str(tmp_path / "elsewhere"))
    assert run("device", "add", "BRW-0000000A", *elsewhere).code == 0
    assert run("device", "import", write_csv(1), *elsewhere).code == 0
    assert run("device", "remove", "BRW-00000000", *elsewhere).code == 0
    assert "BRW-0000000A" in run("device", "list", *elsewhere).out
    assert len(stored(tmp_path / "elsewhere")) == 1
    assert run("device", "list").out == ""
    assert not (tmp_path / "env").exists()
    assert run("device", "add", "BRW-0000000A").code == 0
    assert (tmp_path / "env" / "brewos-relay.db").exists()


def test_list_creates_no_registry(run: Run, tmp_path: Path) -> None:
    for args, out in (((), ""), (("--json",), "[]\n")):
        outcome = run("device", "list", *args)
        assert (outcome.code, outcome.out) == (0, out)
        assert outcome.err.startswith(
            f"No devices are registered, as there is no registry {FILE.absolute()}; "
        )
        assert "--data-dir" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "args",
    [
        ("remove",),
        ("give", "--user", "ada"),
        ("take", "--user", "ada"),
        ("users",),
        ("activity",),
        ("rotate-key",),
    ],
)
def test_change_creates_no_registry(run: Run, tmp_path: Path, args: tuple[str, ...]) -> None:
    refused = run("device", *args, "BRW-0000000A")
    assert_refused(refused, 1, f"there is no registry {FILE.absolute()};", "--data-dir")
    assert list(tmp_path.iterdir()) == []


@contextmanager
def umask(mode: int) -> Iterator[None]:
    before = os.umask(mode)
    try:
        yield
    finally:
        os.umask(before)


def test_created_files_are_private(run: Run) -> None:
    with umask(0):
        assert run("device", "add", "BRW-0000000A").code == 0
    assert FILE.parent.stat().st_mode & 0o777 == 0o700
    assert FILE.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "args",
    [
        ("list",),
        ("add", "BRW-0000000A"),
        ("remove", "BRW-0000000A"),
        ("give", "BRW-0000000A", "--user", "ada"),
        ("take", "BRW-0000000A", "--user", "ada"),
        ("import", "machines.csv"),
    ],
)
def test_unreadable_registry_is_reported(run: Run, args: tuple[str, ...]) -> None:
    write_csv(1)
    Path("data").mkdir()
    Path("data", "brewos-relay.db").write_bytes(b"espresso" * 1000)
    assert_refused(run("device", *args), 1, "cannot open the database", "file is not a database")


def test_invalid_settings_are_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "http")
    assert_refused(run("device", "list"), 1, "PORT is 'http'")


def test_wide_characters_keep_table_columns_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("ID", "NAME", "X"), [("1", "\u53f0\u6240", "x"), ("2", "e\u0301", "x")])
    assert capsys.readouterr().out.splitlines() == ["ID  NAME  X", "1   \u53f0\u6240  x", "2   e\u0301     x"]
