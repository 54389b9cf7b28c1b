import json
import re

import pytest

from brewos_relay.registry.access import users_of

from .conftest import Run, add_account, assert_refused, opened

ID = "BRW-0000000A"


@pytest.fixture
def machine(run: Run) -> None:
    """Register a device that ada owns."""
    run("device", "add", ID, "--user", "ada")


def roles() -> dict[str, str]:
    with opened() as db:
        return {user.user_id: user.role for user in users_of(db, ID, now_ms=0)}


# give


def test_give_adds_an_owner(run: Run, machine: None) -> None:
    outcome = run("device", "give", ID.lower(), "--user", "eve", "--user", "ada", "--user", "eve")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"eve is owner of {ID} now.\nada is already owner of {ID}.\n"
    assert roles() == {"ada": "owner", "eve": "owner"}


def test_give_changes_a_role_up_and_down(run: Run, machine: None) -> None:
    for role in ("viewer", "owner", "member"):
        assert run("device", "give", ID, "--user", "eve", "--role", role).code == 0
        assert roles() == {"ada": "owner", "eve": role}


def test_give_for_a_limited_time(run: Run, machine: None) -> None:
    outcome = run("device", "give", ID, "--user", "guest", "--role", "viewer", "--until", "7d")
    assert re.fullmatch(rf"guest is viewer of {ID} now, until 20\d\d-.*Z\.\n", outcome.err)
    with opened() as db:
        guest = next(user for user in users_of(db, ID, now_ms=0) if user.user_id == "guest")
    assert guest.until_ms is not None
    assert guest.claimed_at_ms is not None
    assert guest.until_ms - guest.claimed_at_ms == 7 * 24 * 3600 * 1000


def test_give_finds_an_account_by_address(run: Run, machine: None) -> None:
    add_account("u1", "bob@example.org")
    assert (
        "bob@example.org is member"
        in run("device", "give", ID, "--user", "bob@example.org", "--role", "member").err
    )
    assert roles() == {"ada": "owner", "u1": "member"}


def test_owner_role_has_no_end(run: Run, machine: None) -> None:
    refused = run("device", "give", ID, "--user", "eve", "--until", "7d")
    assert_refused(refused, 2, "an owner's role has no end", "See `brewos-relay device give --help`.")
    assert_refused(run("device", "give", ID, "--user", "eve", "--role", "cook"), 2, "--role", "'cook'")


def test_last_owner_cannot_be_taken_away(run: Run, machine: None) -> None:
    args = ("--user", "eve", "--user", "ada", "--role", "viewer")
    assert_refused(run("device", "give", ID, *args), 1, f"{ID} would have no owner")
    assert roles() == {"ada": "owner"}, "nobody got it"


# take


def test_take_removes_a_user(run: Run, machine: None) -> None:
    run("device", "give", ID, "--user", "eve")
    outcome = run("device", "take", ID, "--user", "ada")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"ada no longer has {ID}.\n"
    assert roles() == {"eve": "owner"}
    assert_refused(run("device", "take", ID, "--user", "eve"), 1, f"{ID} would have no owner")
    assert roles() == {"eve": "owner"}


def test_take_changes_nothing_if_one_user_has_no_access(run: Run, machine: None) -> None:
    run("device", "give", ID, "--user", "bob", "--role", "viewer")
    refused = run("device", "take", ID, "--user", "bob", "--user", "eve")
    assert_refused(refused, 1, f"eve does not have {ID}; nothing was changed")
    refused = run("device", "take", ID, "--user", "bob", "--user", "eve", "--user", "zoe")
    assert_refused(refused, 1, f"eve, zoe do not have {ID}; nothing was changed")
    assert roles() == {"ada": "owner", "bob": "viewer"}


@pytest.mark.parametrize("command", ["give", "take"])
def test_invalid_give_or_take_is_refused(run: Run, machine: None, command: str) -> None:
    unknown = run("device", command, "BRW-0000000B", "--user", "ada")
    assert_refused(unknown, 1, "BRW-0000000B is not registered in /", "`brewos-relay device list`")
    assert_refused(run("device", command, ID), 2, "--user")
    nobody = run("device", command, ID, "--user", "ada", "--user", "")
    assert_refused(nobody, 2, "--user", "1 to 256", f"See `brewos-relay device {command} --help`.")


# users


def test_users_as_table(run: Run, machine: None) -> None:
    add_account("u1", "bob@example.org")
    run("device", "give", ID, "--user", "u1", "--role", "viewer", "--until", "1h")
    outcome = run("device", "users", ID)
    assert (outcome.code, outcome.err) == (0, "")
    head, ada, bob = outcome.out.splitlines()
    assert head.split() == ["USER", "ROLE", "UNTIL", "E-MAIL"]
    assert re.fullmatch(r"ada +owner +unlimited", ada)
    assert re.fullmatch(r"u1 +viewer +20\S+Z +bob@example\.org", bob)


def test_users_as_json(run: Run, machine: None) -> None:
    assert json.loads(run("device", "users", ID, "--json").out) == [
        {"userId": "ada", "email": None, "role": "owner", "until": None}
    ]


@pytest.mark.parametrize(("args", "out"), [((), ""), (("--json",), "[]\n")])
def test_device_without_users_is_reported(run: Run, args: tuple[str, ...], out: str) -> None:
    run("device", "add", ID)
    outcome = run("device", "users", ID, *args)
    assert (outcome.code, outcome.out) == (0, out)
    assert outcome.err == f"{ID} has no users: the first user who pairs it becomes its owner.\n"
    assert_refused(run("device", "users", "BRW-0000000B"), 1, "BRW-0000000B is not registered in /")
