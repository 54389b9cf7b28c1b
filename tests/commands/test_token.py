"""`brewos-relay token list` and `token revoke`; how one is made is in test_access.py."""

import json
from pathlib import Path

import pytest

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.registry.changes import read_changes
from brewos_relay.registry.database import Database

from .conftest import Run, assert_refused

TOKEN = ("token", "--user", "ada", "--email", "a@b.c")


def test_a_token_is_kept_by_its_id_and_name_and_never_itself(run: Run, secret: str, tmp_path: Path) -> None:
    made = run(*TOKEN, "--device", "BRW-00000001", "--role", "viewer", "--name", "wall").out.strip()
    [listed] = json.loads(run("token", "list", "--json").out)
    claims = KeyRing([secret]).verify(made)
    assert (listed["id"], listed["name"]) == (claims.token_id, "wall")
    assert (listed["userId"], listed["role"], listed["devices"]) == ("ada", "viewer", ["BRW-00000001"])
    assert listed["revokedAt"] is None
    for file in (tmp_path / "data").iterdir():
        assert made.encode() not in file.read_bytes()


def test_a_token_that_is_given_no_name_has_the_address_as_its_name(run: Run, secret: str) -> None:
    run(*TOKEN[:-1], f"{'a' * 200}@b.c")
    run(*TOKEN)
    names = [each["name"] for each in json.loads(run("token", "list", "--json").out)]
    assert sorted(names) == ["a@b.c", "a" * 100]


def test_the_list_shows_what_tokens_reach(run: Run, secret: str) -> None:
    run(*TOKEN, "--all-devices")
    table = run("token", "list").out
    assert [word in table for word in ("ada", "owner", "all", "good")] == [True] * 4


def test_revoking_is_told_to_servers_and_happens_once(run: Run, secret: str, tmp_path: Path) -> None:
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


def test_without_a_registry_a_token_has_no_id_and_the_command_says_so(
    run: Run, secret: str, tmp_path: Path
) -> None:
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
def test_wrong_usage(run: Run, secret: str, args: tuple[str, ...], part: str) -> None:
    assert_refused(run(*args), 2, part)


@pytest.mark.parametrize("args", [("list",), ("revoke", "some")])
def test_a_registry_that_is_missing(run: Run, args: tuple[str, ...]) -> None:
    assert_refused(run("token", *args), 1, "there is no registry")
