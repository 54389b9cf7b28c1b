from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Connection, insert, select

from brewos_relay.errors import SignInRefused, UserExists
from brewos_relay.registry.access import access_of, give
from brewos_relay.registry.accounts import (
    add_user,
    all_users,
    colliding_addresses,
    find_user,
    find_user_by_email,
    has_accounts,
    has_administrator,
    password_hash_of,
    set_admin,
    set_password_hash,
    some_users,
)
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.emails import normal_email
from brewos_relay.registry.invites import REDEEMED_MS, add_invite, is_first_administrator, redeem_invite
from brewos_relay.registry.login_sessions import find_sessions, open_session
from brewos_relay.registry.records import Identity, NewDevice, User
from brewos_relay.registry.schema import identities, refresh_tokens, users
from brewos_relay.registry.sign_in import sign_in
from support.change_rows import read_changes
from support.registry import remove_user
from support.registry_files import DAY_MS, NOW_MS, hash_of

GOOGLE = "https://accounts.google.com"
ADA = Identity(
    issuer=GOOGLE,
    subject="1",
    email="Ada@Example.org",
    email_verified=True,
    name="Ada",
    picture_url="https://pictures.example/ada",
)
UNCHECKED = replace(ADA, email_verified=False)


@pytest.fixture
def root(db: Connection) -> User:
    root = add_user(db, email="root@example.org", name=None, now_ms=NOW_MS)
    set_admin(db, root.id, True)
    return replace(root, is_admin=True)


def come(db: Connection, ident: Identity, *, open_to_all: bool = True) -> User:
    return sign_in(db, ident, open_to_all=open_to_all, now_ms=NOW_MS)


def invite(
    db: Connection,
    email: str,
    token: str = "t",
    *,
    is_admin: bool = False,
    created_by: str | None = None,
) -> None:
    add_invite(
        db,
        email=email,
        token_hash=hash_of(token),
        is_admin=is_admin,
        expires_at_ms=NOW_MS + DAY_MS,
        now_ms=NOW_MS,
        created_by=created_by,
    )


# Accounts


def test_accounts_are_found_and_listed(db: Connection) -> None:
    first = add_user(db, email=" Ada@Example.ORG ", name=" Ada\n L. ", now_ms=NOW_MS)
    assert first == User(
        id=first.id,
        email="ada@example.org",
        name="Ada L.",
        picture_url=None,
        is_admin=False,
        has_password=False,
        created_at_ms=NOW_MS,
    )
    second = add_user(db, email="Zoe@example.org", name="", now_ms=NOW_MS)
    assert (second.is_admin, second.name) == (False, None)
    third = add_user(db, email="bob@example.org", name=None, now_ms=NOW_MS)
    assert all_users(db) == [first, third, second]
    assert find_user(db, first.id) == find_user_by_email(db, "ADA@example.org") == first
    assert find_user(db, "unknown") is find_user_by_email(db, "eve@example.org") is None


# The first administrator


@pytest.mark.parametrize("open_to_all", [True, False])
def test_signing_in_to_an_empty_registry_makes_no_administrator(db: Connection, open_to_all: bool) -> None:
    invite(db, "zoe@example.org")
    if open_to_all:
        assert not come(db, ADA).is_admin
    else:
        with pytest.raises(SignInRefused, match="ask an administrator for an invite"):
            come(db, ADA, open_to_all=False)
    assert not any(user.is_admin for user in all_users(db))


def test_the_first_ordinary_invite_makes_no_administrator(db: Connection) -> None:
    invite(db, "ada@example.org")
    ada = redeem_invite(db, hash_of("t"), now_ms=NOW_MS)
    assert ada is not None
    assert not ada.is_admin


def test_sign_in_by_issuer_keeps_an_administrator_invite(db: Connection, root: User) -> None:
    invite(db, "ADA@example.org", "admin", is_admin=True)
    invite(db, "ada@example.org", "plain")
    ada = come(db, ADA, open_to_all=False)
    assert not ada.is_admin
    assert redeem_invite(db, hash_of("plain"), now_ms=NOW_MS) is None, "it would sign in its holder"
    assert redeem_invite(db, hash_of("admin"), now_ms=NOW_MS) == replace(ada, is_admin=True)


def test_first_administrator_invite_is_recognised(db: Connection) -> None:
    assert not has_accounts(db)
    assert is_first_administrator(db, "ada@example.org", now_ms=NOW_MS)
    invite(db, "ada@example.org", is_admin=True)
    assert is_first_administrator(db, "ADA@example.org", now_ms=NOW_MS), "a link that was lost"
    assert not is_first_administrator(db, "bob@example.org", now_ms=NOW_MS)
    assert is_first_administrator(db, "bob@example.org", now_ms=NOW_MS + DAY_MS), "the other has expired"
    bob = add_user(db, email="bob@example.org", name=None, now_ms=NOW_MS)
    assert (has_accounts(db), has_administrator(db)) == (True, False)
    set_admin(db, bob.id, True)
    assert has_administrator(db)
    assert not is_first_administrator(db, "ada@example.org", now_ms=NOW_MS)


@pytest.mark.parametrize("removed", [True, False])
def test_the_invites_of_a_former_administrator_end(db: Connection, root: User, removed: bool) -> None:
    other = add_user(db, email="other@example.org", name=None, now_ms=NOW_MS)
    set_admin(db, other.id, True)
    invite(db, "backdoor@example.org", "theirs", is_admin=True, created_by=other.id)
    invite(db, "bob@example.org", "mine", created_by=root.id)
    if removed:
        assert remove_user(db, other.id, now_ms=NOW_MS)
    else:
        set_admin(db, other.id, False)
    assert redeem_invite(db, hash_of("theirs"), now_ms=NOW_MS) is None
    assert redeem_invite(db, hash_of("mine"), now_ms=NOW_MS)


# Addresses


def test_an_address_has_one_account(db: Connection, root: User) -> None:
    with pytest.raises(UserExists, match=r"root@example\.org has") as caught:
        add_user(db, email="ROOT@example.org", name=None, now_ms=NOW_MS)
    assert caught.value.email == root.email


@pytest.mark.parametrize(
    "email", ["", "ada", "@example.org", "ada@", "a b@example.org", "a\0@b", "a" * 320 + "@b"]
)
def test_malformed_address_is_refused(db: Connection, email: str) -> None:
    with pytest.raises(ValueError, match="not an e-mail address"):
        normal_email(email)
    with pytest.raises(ValueError, match="not an e-mail address"):
        add_user(db, email=email, name=None, now_ms=NOW_MS)
    assert find_user_by_email(db, email) is None
    assert password_hash_of(db, email) is None


SAME = {
    "case": ("ünal@example.org", "ÜNAL@Example.org"),
    "sharp s": ("strasse@example.org", "Straße@example.org"),
    "a Kelvin sign": ("mike@example.org", "mi\N{KELVIN SIGN}e@example.org"),
    "full width": ("mike@example.org", "\N{FULLWIDTH LATIN SMALL LETTER M}ike@example.org"),
    "composition": ("u\N{COMBINING DIAERESIS}nal@example.org", "ünal@example.org"),
    "the domain's case": ("ada@bücher.example", "ada@BÜCHER.example"),
    "an A-label": ("ada@bücher.example", "ada@XN--bcher-kva.example"),
    "a domain that looks alike": ("ada@strasse.example", "ada@straße.example"),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_two_accounts_do_not_differ_in_case_or_look_alike_letters_only(
    db: Connection, one: str, other: str
) -> None:
    user = add_user(db, email=one, name=None, now_ms=NOW_MS)
    set_password_hash(db, user.id, "hash")
    assert (user.email, password_hash_of(db, other)) == (one, (user.id, "hash"))
    found = find_user_by_email(db, other)
    assert found is not None
    assert found.id == user.id
    assert [each.id for each in some_users(db, find=other.upper(), limit=9)] == [user.id]
    with pytest.raises(UserExists):
        add_user(db, email=other, name=None, now_ms=NOW_MS)


LOOK_ALIKES = ("sharp s", "a Kelvin sign", "full width", "a domain that looks alike")


@pytest.mark.parametrize(("one", "other"), [SAME[name] for name in LOOK_ALIKES], ids=LOOK_ALIKES)
def test_confirmed_address_does_not_prove_a_lookalike(
    db: Connection, root: User, one: str, other: str
) -> None:
    known = add_user(db, email=one, name=None, now_ms=NOW_MS)
    with pytest.raises(SignInRefused, match="too similar to the address"):
        come(db, replace(ADA, email=other))
    assert come(db, replace(ADA, email=one)).id == known.id


def test_an_issuer_may_write_the_domain_in_another_way(db: Connection) -> None:
    known = add_user(db, email="ada@bücher.example", name=None, now_ms=NOW_MS)
    assert come(db, replace(ADA, email="Ada@xn--bcher-kva.EXAMPLE")).id == known.id


def test_an_invite_is_for_its_mailbox_and_no_other(db: Connection, root: User) -> None:
    invite(db, "ada@strasse.example", "early")
    with pytest.raises(SignInRefused, match="has no account here"):
        come(db, replace(ADA, email="ada@straße.example"), open_to_all=False)
    add_user(db, email="ada@straße.example", name=None, now_ms=NOW_MS)
    with pytest.raises(ValueError, match=r"too similar to ada@straße\.example"):
        invite(db, "ada@strasse.example", "late", is_admin=True)
    assert redeem_invite(db, hash_of("early"), now_ms=NOW_MS) is None, "it would open another's account"


def test_older_accounts_with_equal_keys_are_found_by_their_own_addresses(db: Connection) -> None:
    kelvin, wide = "mi\N{KELVIN SIGN}e@x.org", "MI\N{FULLWIDTH LATIN SMALL LETTER K}E@x.org"
    for id_, email, key in (("a", "mike@x.org", "mike@x.org"), ("b", kelvin, "mike@x.org b")):
        row = {"id": id_, "email": email, "is_admin": False, "created_at_ms": 1, "password_hash": id_}
        db.execute(insert(users), {**row, "email_key": key})
        assert password_hash_of(db, email) == (id_, id_)
    found = [find_user_by_email(db, email) for email in ("Mike@x.org", kelvin, wide)]
    assert [user and user.id for user in found] == ["a", "b", "a"]
    assert colliding_addresses(db) == [kelvin]


def test_passwords_and_administrators(db: Connection, root: User) -> None:
    assert password_hash_of(db, root.email) is None
    assert set_password_hash(db, root.id, "$argon2id$…")
    assert password_hash_of(db, "Root@example.org") == (root.id, "$argon2id$…")
    assert find_user(db, root.id) == replace(root, has_password=True)
    assert "argon" not in repr(find_user(db, root.id))
    assert set_password_hash(db, root.id, None)
    assert password_hash_of(db, root.email) is None
    assert set_admin(db, root.id, False)
    assert find_user(db, root.id) == replace(root, is_admin=False)
    assert not set_password_hash(db, "unknown", "x")
    assert not set_admin(db, "unknown", True)


# Signing in by another party


def test_name_and_picture_follow_the_issuer(db: Connection) -> None:
    ada = come(db, ADA)
    assert (ada.email, ada.name, ada.picture_url) == (
        "ada@example.org",
        "Ada",
        "https://pictures.example/ada",
    )
    assert come(db, ADA, open_to_all=False) == ada


def test_known_identity_keeps_its_account_after_an_address_change(db: Connection, root: User) -> None:
    ada = come(db, ADA)
    assert not ada.is_admin
    moved = replace(ADA, email=root.email, email_verified=False, name="Ada L.", picture_url=None)
    assert come(db, moved, open_to_all=False) == replace(ada, name="Ada L.")


def test_a_checked_address_leads_to_its_account(db: Connection, root: User) -> None:
    known = add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS)
    assert come(db, ADA, open_to_all=False).id == known.id
    elsewhere = replace(ADA, issuer="https://id.example", subject="x")
    assert come(db, elsewhere, open_to_all=False).id == known.id
    # From now on, the account is found by the subject.
    assert come(db, replace(elsewhere, email=None), open_to_all=False).id == known.id


@pytest.mark.parametrize("email", ["ada@example.org", "new@example.org", "", "no address", None])
def test_unverified_address_is_refused(db: Connection, root: User, email: str | None) -> None:
    add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS)
    invite(db, "new@example.org")
    before = all_users(db)
    with pytest.raises(SignInRefused, match="does not confirm"):
        come(db, replace(UNCHECKED, email=email))
    assert all_users(db) == before
    assert db.scalars(select(identities.c.subject)).all() == []


def test_unverified_address_creates_no_account(db: Connection) -> None:
    # Otherwise Eve could prepare an account that Ada later signs in to.
    with pytest.raises(SignInRefused):
        come(db, replace(UNCHECKED, subject="eve"))
    assert all_users(db) == []


def test_reassigned_address_does_not_lead_to_the_account(db: Connection, root: User) -> None:
    ada = come(db, ADA)
    with pytest.raises(SignInRefused, match="another person"):
        come(db, replace(ADA, subject="2"))
    assert come(db, ADA) == ada


def test_by_invitation_only(db: Connection, root: User) -> None:
    with pytest.raises(SignInRefused, match="ask an administrator for an invite"):
        come(db, ADA, open_to_all=False)
    invite(db, "ADA@example.org", "first")
    invite(db, "ada@example.org", "second")
    ada = come(db, ADA, open_to_all=False)
    assert not ada.is_admin
    # The links are used up and sign no other user in.
    assert redeem_invite(db, hash_of("first"), now_ms=NOW_MS) is None
    assert redeem_invite(db, hash_of("second"), now_ms=NOW_MS) is None


def test_expired_invite_is_refused(db: Connection, root: User) -> None:
    invite(db, "ada@example.org")
    with pytest.raises(SignInRefused):
        sign_in(db, ADA, open_to_all=False, now_ms=NOW_MS + DAY_MS)
    assert redeem_invite(db, hash_of("t"), now_ms=NOW_MS + DAY_MS) is None


@pytest.mark.parametrize(
    ("name", "picture_url", "kept"),
    [
        (None, None, (None, None)),
        (" ", "http://plain.example/p", (None, None)),
        ("\0", "javascript:alert(1)", (None, None)),
        ("x" * 200, "https://long.example/" + "p" * 2000, ("x" * 100, None)),
        ("A\u202eda", "https://odd.example/\n", ("Ada", None)),
    ],
)
def test_invalid_names_and_pictures_are_dropped(
    db: Connection, name: str | None, picture_url: str | None, kept: tuple[str | None, str | None]
) -> None:
    ada = come(db, replace(ADA, name=name, picture_url=picture_url))
    assert (ada.name, ada.picture_url) == kept


# Invites


def test_invite_works_once(db: Connection, root: User) -> None:
    invite(db, "Ada@example.org")
    assert redeem_invite(db, hash_of("guessed"), now_ms=NOW_MS) is None
    ada = redeem_invite(db, hash_of("t"), now_ms=NOW_MS)
    assert ada is not None
    assert (ada.email, ada.is_admin) == ("ada@example.org", False)
    assert redeem_invite(db, hash_of("t"), now_ms=NOW_MS) is None
    assert find_user(db, ada.id) == ada


def test_invite_for_an_existing_account_signs_in(db: Connection, root: User) -> None:
    ada = come(db, ADA)
    invite(db, ada.email, "plain")
    invite(db, ada.email, "admin", is_admin=True)
    assert redeem_invite(db, hash_of("plain"), now_ms=NOW_MS) == ada
    assert redeem_invite(db, hash_of("admin"), now_ms=NOW_MS) == replace(ada, is_admin=True)
    invite(db, ada.email, "plain again")
    assert redeem_invite(db, hash_of("plain again"), now_ms=NOW_MS) == replace(ada, is_admin=True)


def test_the_browser_that_redeemed_an_invite_may_do_so_again_for_a_minute(db: Connection, root: User) -> None:
    invite(db, "ada@example.org")
    mine, other = hash_of("my nonce"), hash_of("another nonce")
    ada = redeem_invite(db, hash_of("t"), nonce_hash=mine, now_ms=NOW_MS)
    assert ada is not None
    last_ms = NOW_MS + REDEEMED_MS - 1
    assert redeem_invite(db, hash_of("t"), nonce_hash=mine, now_ms=last_ms) == ada
    for nonce_hash in (other, None):
        assert redeem_invite(db, hash_of("t"), nonce_hash=nonce_hash, now_ms=NOW_MS) is None
    assert redeem_invite(db, hash_of("guessed"), nonce_hash=mine, now_ms=NOW_MS) is None
    assert redeem_invite(db, hash_of("t"), nonce_hash=mine, now_ms=last_ms + 1) is None


def test_without_a_nonce_an_invite_is_redeemed_once(db: Connection, root: User) -> None:
    invite(db, "ada@example.org")
    assert redeem_invite(db, hash_of("t"), now_ms=NOW_MS)
    for nonce_hash in (hash_of("nonce"), None):
        assert redeem_invite(db, hash_of("t"), nonce_hash=nonce_hash, now_ms=NOW_MS) is None


def test_redeeming_again_does_not_restore_removed_rights(db: Connection, root: User) -> None:
    invite(db, "ada@example.org", is_admin=True)
    nonce = hash_of("nonce")
    ada = redeem_invite(db, hash_of("t"), nonce_hash=nonce, now_ms=NOW_MS)
    assert ada is not None
    assert ada.is_admin
    set_admin(db, ada.id, False)
    again = redeem_invite(db, hash_of("t"), nonce_hash=nonce, now_ms=NOW_MS)
    assert again == replace(ada, is_admin=False)
    assert remove_user(db, ada.id, now_ms=NOW_MS)
    assert redeem_invite(db, hash_of("t"), nonce_hash=nonce, now_ms=NOW_MS) is None


def test_concurrent_redemptions_of_an_invite_succeed_once(database: Database) -> None:
    for number in range(10):
        with database.writing() as db:
            invite(db, f"ada{number}@example.org", f"t{number}")

        def go(_: int, number: int = number) -> User | None:
            with database.writing() as db:
                return redeem_invite(db, hash_of(f"t{number}"), now_ms=NOW_MS)

        with ThreadPoolExecutor(4) as pool:
            assert sum(user is not None for user in pool.map(go, range(4))) == 1


# Removing


def test_removing_a_user(db: Connection, root: User) -> None:
    ada = come(db, ADA)
    add_devices(
        db,
        [
            NewDevice(id="BRW-00000001", key_hash=hash_of("k"), user_id=ada.id),
            NewDevice(id="BRW-00000002", key_hash=hash_of("k"), user_id=ada.id, more_user_ids=(root.id,)),
        ],
        now_ms=NOW_MS,
    )
    give(db, "BRW-00000001", "guest", role="viewer", now_ms=NOW_MS)
    give(db, "BRW-00000001", "over", role="viewer", until_ms=NOW_MS, now_ms=NOW_MS - 1)
    open_session(
        db,
        session_id="s",
        user_id=ada.id,
        refresh_hash=hash_of("r"),
        user_agent=None,
        address=None,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + DAY_MS,
    )
    invite(db, ada.email)
    assert remove_user(db, ada.id, now_ms=NOW_MS)
    assert find_user(db, ada.id) is None
    assert find_sessions(db, ["s"], now_ms=NOW_MS) == {}
    assert db.scalars(select(refresh_tokens.c.token_hash)).all() == []
    assert redeem_invite(db, hash_of("t"), now_ms=NOW_MS) is None
    # The user was the last owner of the first device, so it has no users and can be paired again.
    pairs = [(user, f"BRW-0000000{n}") for user in (ada.id, root.id, "guest") for n in (1, 2)]
    assert list(access_of(db, pairs, now_ms=NOW_MS)) == [(root.id, "BRW-00000002")]
    assert len(find_devices(db, ["BRW-00000001", "BRW-00000002"])) == 2
    assert {change.user_id for change in read_changes(db, 0) if change.kind == "user_removed"} == {ada.id}
    assert not remove_user(db, ada.id, now_ms=NOW_MS)
    with pytest.raises(SignInRefused):
        come(db, ADA, open_to_all=False)
    assert come(db, ADA).id != ada.id
