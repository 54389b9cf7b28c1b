"""Tests of `brewos-relay secret` and `token`."""

import json
from pathlib import Path

import pytest

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.registry.database import Database
from support.change_rows import read_changes

from .conftest import SECRET, Run, assert_refused

TOKEN = ("token", "--user", "ada", "--email", "a@b.c")


def test_registry_stores_id_and_name_but_not_the_token(run: Run, secret: str, tmp_path: Path) -> None:
    made = run(*TOKEN, "--device", "BRW-00000001", "--role", "viewer", "--name", "wall").out.strip()
    [listed] = json.loads(run("token", "list", "--json").out)
    claims = KeyRing([secret]).verify(made)
    assert (listed["id"], listed["name"]) == (claims.token_id, "wall")
    assert (listed["userId"], listed["role"], listed["devices"]) == ("ada", "viewer", ["BRW-00000001"])
    assert listed["revokedAt"] is None
    for file in (tmp_path / "data").iterdir():
        assert made.encode() not in file.read_bytes()


def test_token_without_name_is_named_by_its_address(run: Run, secret: str) -> None:
    run(*TOKEN[:-1], f"{'a' * 200}@b.c")
    run(*TOKEN)
    names = [each["name"] for each in json.loads(run("token", "list", "--json").out)]
    assert sorted(names) == ["a@b.c", "a" * 100]


def test_list_shows_the_access_of_each_token(run: Run, secret: str) -> None:
    run(*TOKEN, "--all-devices")
    table = run("token", "list").out
    assert [word in table for word in ("ada", "owner", "all", "valid")] == [True] * 4


def test_revoked_token_is_announced_once(run: Run, secret: str, tmp_path: Path) -> None:
    id_ = KeyRing([secret]).verify(run(*TOKEN).out.strip()).token_id
    assert id_ is not None
    outcome = run("token", "revoke", id_)
    assert (outcome.code, outcome.out) == (0, "")
    assert "revoked" in run("token", "list").out
    with Database.open(f"sqlite:///{tmp_path}/data/brewos-relay.db") as database, database.reading() as db:
        assert [(change.kind, change.token_id) for change in read_changes(db, 0)] == [("token_revoked", id_)]
    assert_refused(run("token", "revoke", id_), 1, f"there is no token {id_} to revoke")
    assert_refused(run("token", "revoke", "nothing"), 1, "there is no token nothing to revoke")


def test_two_tokens_have_two_ids(run: Run, secret: str) -> None:
    ids = {KeyRing([secret]).verify(run(*TOKEN).out.strip()).token_id for _ in range(2)}
    assert len(ids) == 2
    assert None not in ids


def test_missing_registry_makes_a_token_without_id(run: Run, secret: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a folder")
    outcome = run(*TOKEN)
    assert outcome.code == 0
    assert "cannot be revoked" in outcome.err
    assert KeyRing([secret]).verify(outcome.out.strip()).token_id is None


@pytest.mark.parametrize(
    ("args", "part"),
    [
        (("token",), "Missing option '--user'"),
        (("token", "--user", "ada"), "Missing option '--email'"),
        ((*TOKEN, "--name", "a\nb"), "--name"),
        ((*TOKEN, "--name", "n" * 101), "--name"),
    ],
)
def test_wrong_usage_of_list_and_revoke_is_refused(
    run: Run, secret: str, args: tuple[str, ...], part: str
) -> None:
    assert_refused(run(*args), 2, part)


@pytest.mark.parametrize("args", [("list",), ("revoke", "some")])
def test_missing_registry_is_refused(run: Run, args: tuple[str, ...]) -> None:
    assert_refused(run("token", *args), 1, "there is no registry")


# Making secrets and tokens


def test_secret_can_sign_tokens(run: Run) -> None:
    first, second = run("secret"), run("secret")
    assert first.code == 0
    assert first.err == ""
    assert first.out != second.out
    KeyRing([first.out.removesuffix("\n")])


def test_only_the_token_goes_to_stdout(run: Run, secret: str) -> None:
    outcome = run(*TOKEN, "--device", "brw-0000000a", "--device", "BRW-0000000B", "--ttl", "12h")
    assert (outcome.code, outcome.err) == (0, "")
    token = outcome.out.removesuffix("\n")
    assert token.split() == [token]
    claims = KeyRing([secret]).verify(token)
    assert (claims.user_id, claims.email) == ("ada", "a@b.c")
    assert claims.devices == frozenset({"BRW-0000000A", "BRW-0000000B"})
    assert claims.expires_at_s - claims.issued_at_s == 12 * 3600


@pytest.mark.parametrize(("ttl", "ttl_s"), [("90s", 90), ("15m", 900), ("12h", 43200), ("7d", 604800)])
def test_ttl_sets_the_expiry(run: Run, secret: str, ttl: str, ttl_s: int) -> None:
    claims = KeyRing([secret]).verify(run(*TOKEN, "--ttl", ttl).out.strip())
    assert claims.expires_at_s - claims.issued_at_s == ttl_s


def test_default_token_lives_a_week_and_names_no_device(run: Run, secret: str) -> None:
    claims = KeyRing([secret]).verify(run(*TOKEN).out.strip())
    assert claims.expires_at_s - claims.issued_at_s == 7 * 24 * 3600
    assert claims.devices == frozenset()


def test_a_token_for_all_devices(run: Run, secret: str) -> None:
    assert KeyRing([secret]).verify(run(*TOKEN, "--all-devices").out.strip()).devices == "*"


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
def test_a_token_for_a_role(run: Run, secret: str, role: str) -> None:
    token = run(*TOKEN, "--device", "BRW-00000001", "--role", role).out.strip()
    assert KeyRing([secret]).verify(token).role == role


def test_first_secret_signs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", f"{SECRET[::-1]},{SECRET}")
    KeyRing([SECRET[::-1]]).verify(run(*TOKEN).out.strip())


def test_missing_key_file_is_reported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREWOS_RELAY_JWT_KEY_FILES", "nowhere.pem")
    assert_refused(
        run(*TOKEN), 1, "BREWOS_RELAY_JWT_KEY_FILES contains nowhere.pem: it cannot be read: No such file"
    )


def test_too_many_devices_are_refused(run: Run, secret: str) -> None:
    devices = [part for number in range(1200) for part in ("--device", f"BRW-{number:08X}")]
    assert_refused(run(*TOKEN, *devices), 2, "1200 devices are too many for one token")


def test_secret_comes_from_a_dotenv(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"JWT_SECRET={SECRET}\n")
    KeyRing([SECRET]).verify(run(*TOKEN).out.strip())


def test_missing_secret_is_reported(run: Run) -> None:
    assert_refused(run(*TOKEN), 1, "JWT_SECRET is not set", "`brewos-relay secret`")


def test_short_secret_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JWT_SECRET", "short-secret")
    outcome = run(*TOKEN)
    assert_refused(outcome, 1, "JWT_SECRET has 12 bytes", "at least 32 bytes", "`brewos-relay secret`")
    assert "short-secret" not in outcome.err


def test_longest_accepted_values(run: Run, secret: str) -> None:
    args = ("--user", "a" * 256, "--email", "e" * 320, "--ttl", "36500d")
    claims = KeyRing([secret]).verify(run("token", *args).out.strip())
    assert (len(claims.user_id), len(claims.email)) == (256, 320)
    assert claims.expires_at_s - claims.issued_at_s == 36500 * 24 * 3600


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--ttl", "7"], ["--ttl", "'7' is not a duration", "90s, 15m, 12h or 7d"]),
        (["--ttl", "0s"], ["'0s' is not a duration"]),
        (["--ttl", "1w"], ["'1w' is not a duration"]),
        (["--ttl", "-1d"], ["'-1d' is not a duration"]),
        (["--ttl", "36501d"], ["--ttl", "'36501d' is too long", "36500d at most"]),
        (["--ttl", "999999999999999d"], ["--ttl", "is too long"]),
        (["--device", "espresso"], ["--device", "'espresso' is not a device id"]),
        (["--device", "BRW-00000001", "--all-devices"], ["exclude each other"]),
        (["--user", ""], ["--user", "'': it must have 1 to 256 printable characters"]),
        (["--user", "a" * 257], ["--user"]),
        (["--email", "a\nb"], ["--email", "'a\\nb': it must have 1 to 320 printable characters"]),
        (["--email", "a" * 321], ["--email"]),
    ],
)
def test_wrong_option_of_a_new_token_is_refused(
    run: Run, secret: str, args: list[str], parts: list[str]
) -> None:
    assert_refused(run(*TOKEN, *args), 2, *parts, "See `brewos-relay token --help`.")
