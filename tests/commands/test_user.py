import json
import re
import sys
from collections.abc import Callable
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path

import click
import pytest

from brewos_relay.auth.passwords import password_matches
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import users_of
from brewos_relay.registry.accounts import all_users, password_hash_of
from brewos_relay.registry.invites import redeem_invite
from brewos_relay.registry.login_sessions import open_session, sessions_of
from support.change_rows import read_changes

from .conftest import Run, add_account, assert_refused, opened

ADA = "ada@example.org"
FILE = Path("data", "brewos-relay.db")
PASSWORD = "a long enough one"

TypeIn = Callable[[bytes], None]


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch) -> TypeIn:
    """Return a function that sets the content of stdin."""

    def type_in(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(content)))

    return type_in


@pytest.fixture
def ada(run: Run) -> None:
    """Create an account."""
    add_account("u1", ADA, is_admin=True)


def begin_session(session_id: str) -> None:
    with opened() as db:
        open_session(
            db,
            session_id=session_id,
            user_id="u1",
            refresh_hash=hash_secret(session_id),
            user_agent=None,
            address=None,
            now_ms=0,
            expires_at_ms=10**15,
        )


def changes() -> list[tuple[str, str | None]]:
    with opened() as db:
        return [(change.kind, change.user_id or change.session_id) for change in read_changes(db, 0)]


# invite


def test_link_signs_in_once(run: Run) -> None:
    outcome = run("user", "invite", "Ada@Example.org", "--url", "https://relay.example.com/")
    assert outcome.code == 0
    match = re.fullmatch(r"https://relay\.example\.com/login#invite=([\w-]{43})\n", outcome.out)
    assert match
    assert re.fullmatch(rf"This link signs {ADA} in as an administrator, once, until 20\S+Z:\n", outcome.err)
    with opened() as db:
        user = redeem_invite(db, hash_secret(match[1]), now_ms=0)
        assert user is not None
        assert (user.email, user.is_admin) == (ADA, True), "the first one is an administrator"
        assert redeem_invite(db, hash_secret(match[1]), now_ms=0) is None


def test_link_for_an_administrator_with_a_ttl(run: Run, ada: None) -> None:
    for args, is_admin in (((), False), (("--admin",), True)):
        email = f"{len(args)}@example.org"
        token = run("user", "invite", email, "--ttl", "1h", *args).out.rpartition("=")[2].strip()
        with opened() as db:
            assert redeem_invite(db, hash_secret(token), now_ms=32_503_680_000_000) is None, "expired by then"
            user = redeem_invite(db, hash_secret(token), now_ms=0)
            assert user is not None
            assert user.is_admin == is_admin


def test_only_one_of_several_first_links_makes_an_administrator(run: Run) -> None:
    assert "as an administrator" in run("user", "invite", ADA).err
    assert "as an administrator" not in run("user", "invite", "bob@example.org").err
    assert "as an administrator" in run("user", "invite", ADA).err, "the first link was lost"
    assert "as an administrator" not in run("user", "invite", ADA, "--no-admin").err


def test_address_that_resembles_an_accounts_gets_no_link(run: Run) -> None:
    add_account("u1", "strasse@example.org")
    assert_refused(run("user", "invite", "straße@example.org"), 1, "too similar", "strasse@example.org")


@pytest.mark.parametrize(
    ("environ", "base"),
    [
        ({}, "http://localhost:3001"),
        ({"PORT": "8080"}, "http://localhost:8080"),
        ({"BREWOS_RELAY_TLS_SELF_SIGNED": "yes"}, "https://localhost:3001"),
        ({"PUBLIC_URL": "https://relay.example.com"}, "https://relay.example.com"),
    ],
)
def test_link_leads_to_the_public_url(
    run: Run, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], base: str
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    outcome = run("user", "invite", ADA)
    assert outcome.out.startswith(f"{base}/login#invite=")
    assert ("--url or PUBLIC_URL" in outcome.err) == base.startswith(("http://", "https://localhost"))


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["ada"], ["'ada': that is not an e-mail address", "ada@example.org"]),
        (["a" * 999], [f"'{'a' * 40}…': that is not an e-mail address"]),
        ([ADA, "--ttl", "7"], ["'7' is not a duration"]),
        ([ADA, "--url", "relay.example.com"], ["--url", "an http or https URL without a path"]),
        ([ADA, "--url", "https://relay.example.com/app"], ["--url"]),
    ],
)
def test_invalid_invitation_is_refused(run: Run, args: list[str], parts: list[str]) -> None:
    assert_refused(run("user", "invite", *args), 2, *parts, "See `brewos-relay user invite --help`.")
    assert not FILE.exists()


# list


def test_list_as_table(run: Run, ada: None) -> None:
    add_account("u2", "bob@example.org")
    outcome = run("user", "list")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["EMAIL", "ID", "ADMIN", "PASSWORD", "CREATED", "NAME"],
        [ADA, "u1", "yes", "no", "2023-11-14T22:13:20.123Z"],
        ["bob@example.org", "u2", "no", "no", "2023-11-14T22:13:20.123Z"],
    ]


def test_list_as_json(run: Run, ada: None) -> None:
    assert json.loads(run("user", "list", "--json").out) == [
        {
            "id": "u1",
            "email": ADA,
            "name": None,
            "isAdmin": True,
            "hasPassword": False,
            "createdAt": "2023-11-14T22:13:20.123Z",
        }
    ]


@pytest.mark.parametrize(("args", "out"), [((), ""), (("--json",), "[]\n")])
def test_empty_list_is_reported(run: Run, args: tuple[str, ...], out: str) -> None:
    with opened():
        pass
    outcome = run("user", "list", *args)
    assert (outcome.code, outcome.out) == (0, out)
    assert outcome.err == (
        f"There are no accounts in {FILE.absolute()}; `brewos-relay user invite` invites a user.\n"
    )


# remove, admin, sign-out


def test_removed_account_is_gone(run: Run, ada: None) -> None:
    run("device", "add", "BRW-0000000A", "--user", ADA)
    outcome = run("user", "remove", ADA.upper())
    assert (outcome.code, outcome.out, outcome.err) == (0, "", f"Removed {ADA}.\n")
    with opened() as db:
        assert all_users(db) == []
        assert users_of(db, "BRW-0000000A", now_ms=0) == []
    assert ("user_removed", "u1") in changes()


def test_admin_changes_the_account(run: Run, ada: None) -> None:
    outcome = run("user", "admin", ADA, "--off")
    assert (outcome.code, outcome.err) == (0, f"{ADA} is now an ordinary user.\n")
    with opened() as db:
        assert not all_users(db)[0].is_admin
    assert run("user", "admin", ADA).err == f"{ADA} is now an administrator.\n"
    with opened() as db:
        assert all_users(db)[0].is_admin


def test_sign_out_ends_login_sessions(run: Run, ada: None) -> None:
    begin_session("s1")
    assert run("user", "sign-out", ADA).err == f"Ended 1 login session of {ADA}.\n"
    with opened() as db:
        assert sessions_of(db, "u1", now_ms=0) == []
    assert ("session_ended", "u1") in changes() or ("session_ended", "s1") in changes()
    assert run("user", "sign-out", ADA).err == f"Ended 0 login sessions of {ADA}.\n"


# password


def stored() -> str:
    with opened() as db:
        found = password_hash_of(db, ADA)
        assert found is not None
        return found[1]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\nmore"])
def test_password_comes_from_stdin(run: Run, ada: None, type_in: TypeIn, end: bytes) -> None:
    type_in(PASSWORD.encode() + end)
    outcome = run("user", "password", ADA, "--stdin")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"Set the password of {ADA}.\n"
    assert password_matches(PASSWORD, stored())


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (b"short\n", "10 to 200"),
        (b"", "10 to 200"),
        (b"\xff" * 12, "is not UTF-8"),
        (b"x" * 2000, "10 to 200"),
    ],
)
def test_invalid_password_is_refused(run: Run, ada: None, type_in: TypeIn, typed: bytes, part: str) -> None:
    type_in(typed)
    assert_refused(run("user", "password", ADA, "--stdin"), 2, part)


def test_password_prompt_repeats_and_shows_nothing(
    run: Run, ada: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[str] = []

    def ask(text: str) -> str:
        asked.append(text)
        return PASSWORD

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(click.termui, "hidden_prompt_func", ask)
    done = run("user", "password", ADA)
    assert done.code == 0
    assert len(asked) == 2
    said = done.err + "".join(asked)  # the stream depends on the version of click
    assert "Password:" in said
    assert "Repeat:" in said
    assert PASSWORD not in said + done.out
    assert password_matches(PASSWORD, stored())


def test_stdin_that_is_not_a_terminal_is_refused(run: Run, ada: None, type_in: TypeIn) -> None:
    type_in(PASSWORD.encode())
    assert_refused(run("user", "password", ADA), 2, "not a terminal", "--stdin")


# Unknown accounts


@pytest.mark.parametrize("command", ["remove", "password", "admin", "sign-out"])
def test_unknown_account_is_refused(run: Run, ada: None, command: str) -> None:
    refused = run("user", command, "eve@example.org")
    assert_refused(refused, 1, "there is no account eve@example.org; `brewos-relay user list`")


@pytest.mark.parametrize(
    "args", [["list"], ["remove", ADA], ["password", ADA], ["admin", ADA], ["sign-out", ADA]]
)
def test_missing_registry_is_refused(run: Run, tmp_path: Path, args: list[str]) -> None:
    assert_refused(run("user", *args), 1, f"there is no registry {FILE.absolute()}", "--data-dir")
    assert list(tmp_path.iterdir()) == []
