from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, update

from brewos_relay.registry import login_sessions as sessions_module
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.invites import add_invite, redeem_invite
from brewos_relay.registry.login_sessions import (
    RECORDED_DEVICES,
    Copied,
    Refreshed,
    end_session,
    end_sessions,
    find_sessions,
    open_session,
    refresh,
    sessions_of,
)
from brewos_relay.registry.records import LoginSession, NewDevice, User
from brewos_relay.registry.schema import refresh_tokens
from support.change_rows import read_changes
from support.registry_files import DAY_MS, MINUTE_MS, NOW_MS, fresh_device_id, hash_of

GRACE_MS = MINUTE_MS


@pytest.fixture
def ada(db: Connection) -> User:
    return add_user(db, email="ada@example.org", name="Ada", now_ms=NOW_MS)


def sign_in(
    db: Connection, user: User, name: str = "s", *, token: str = "t0", now_ms: int = NOW_MS
) -> LoginSession:
    return open_session(
        db,
        session_id=name,
        user_id=user.id,
        refresh_hash=hash_of(token),
        user_agent="Firefox",
        address="192.0.2.7",
        now_ms=now_ms,
        expires_at_ms=now_ms + DAY_MS,
    )


def take(db: Connection, token: str, new: str, *, now_ms: int = NOW_MS) -> str | None:
    """Exchange a token. Returns the name of its successor, which is `new` at the first exchange.

    The salt has the same name. Returns "copied" if the exchange ended the session.
    """
    outcome = refresh(
        db,
        hash_of(token),
        successor_hash=hash_of(new),
        successor_salt=new.encode(),
        now_ms=now_ms,
        grace_ms=GRACE_MS,
        expires_at_ms=now_ms + DAY_MS,
    )
    match outcome:
        case Refreshed(session, salt):
            assert find_sessions(db, [session.id], now_ms=now_ms) == {session.id: session}
            assert session.expires_at_ms == now_ms + DAY_MS
            return salt.decode()
        case Copied():
            return "copied"
    return None


def test_session_has_times_client_and_user(db: Connection, ada: User) -> None:
    session = sign_in(db, ada)
    assert session == LoginSession(
        id="s",
        user_id=ada.id,
        created_at_ms=NOW_MS,
        used_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + DAY_MS,
        user_agent="Firefox",
        address="192.0.2.7",
        email="ada@example.org",
        name="Ada",
        picture_url=None,
        is_admin=False,
    )
    assert find_sessions(db, ["s", "unknown"], now_ms=NOW_MS) == {"s": session}


def test_user_agent_is_cut(db: Connection, ada: User) -> None:
    session = open_session(
        db,
        session_id="s",
        user_id=ada.id,
        refresh_hash=hash_of("t"),
        user_agent="\0\udc80" + "x" * 400,
        address=None,
        now_ms=NOW_MS,
        expires_at_ms=NOW_MS + 1,
    )
    assert session.user_agent == "??" + "x" * 298
    assert session.address is None


def test_a_session_expires(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert sessions_of(db, ada.id, now_ms=NOW_MS + DAY_MS - 1) != []
    assert find_sessions(db, ["s"], now_ms=NOW_MS + DAY_MS) == {}
    assert sessions_of(db, ada.id, now_ms=NOW_MS + DAY_MS) == []
    assert take(db, "t0", "t1", now_ms=NOW_MS + DAY_MS) is None


def test_sessions_of_a_user_the_last_used_first(db: Connection, ada: User) -> None:
    bob = add_user(db, email="bob@example.org", name=None, now_ms=NOW_MS)
    sign_in(db, ada, "phone", token="p")
    sign_in(db, ada, "laptop", token="l", now_ms=NOW_MS + 1)
    sign_in(db, bob, "his", token="h")
    assert [each.id for each in sessions_of(db, ada.id, now_ms=NOW_MS + 2)] == ["laptop", "phone"]
    assert take(db, "p", "p1", now_ms=NOW_MS + 2)
    assert [each.id for each in sessions_of(db, ada.id, now_ms=NOW_MS + 3)] == ["phone", "laptop"]


def test_refreshing_lengthens_a_session(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "t1", now_ms=NOW_MS + MINUTE_MS)
    session = find_sessions(db, ["s"], now_ms=NOW_MS)["s"]
    assert (session.used_at_ms, session.expires_at_ms) == (NOW_MS + MINUTE_MS, NOW_MS + MINUTE_MS + DAY_MS)
    assert take(db, "t1", "t2", now_ms=NOW_MS + DAY_MS) == "t2"


def test_an_unknown_token_ends_nothing(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "guessed", "t1") is None
    assert read_changes(db, 0) == []
    assert find_sessions(db, ["s"], now_ms=NOW_MS) != {}


def test_two_tabs_get_the_same_successor_and_go_on_together(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    for number in range(5):
        at_ms = NOW_MS + number * 55 * MINUTE_MS
        new = f"t{number + 1}"
        assert take(db, f"t{number}", new, now_ms=at_ms) == new
        assert take(db, f"t{number}", "another", now_ms=at_ms + GRACE_MS) == new
    assert read_changes(db, 0) == []


def test_a_slow_tab_gets_the_same_successor_in_the_grace_period_although_that_was_used(
    db: Connection, ada: User
) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1"
    assert take(db, "t1", "t2", now_ms=NOW_MS + 1) == "t2"
    assert take(db, "t0", "another", now_ms=NOW_MS + GRACE_MS) == "t1"
    assert take(db, "t1", "another", now_ms=NOW_MS + GRACE_MS) == "t2"
    # This does not prolong the grace period.
    assert take(db, "t0", "another", now_ms=NOW_MS + GRACE_MS + 1) == "copied"


@pytest.mark.parametrize("hours", [1, 10, 23])
def test_a_token_whose_answer_was_lost_is_valid_until_its_successor_is_used(
    db: Connection, ada: User, hours: int
) -> None:
    """For example, a laptop that slept when the answer arrived."""
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1"
    awake_ms = NOW_MS + hours * 60 * MINUTE_MS
    assert take(db, "t0", "another", now_ms=awake_ms) == "t1"
    # The grace period restarts with the answer that arrived, for the other tab.
    assert take(db, "t1", "t2", now_ms=awake_ms + 1) == "t2"
    assert take(db, "t0", "another", now_ms=awake_ms + GRACE_MS) == "t1"
    assert take(db, "t2", "t3", now_ms=awake_ms + 55 * MINUTE_MS) == "t3"
    assert read_changes(db, 0) == []


def test_a_token_lives_as_long_as_the_successor_that_it_leads_to(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    last_ms = NOW_MS + DAY_MS - 1
    assert take(db, "t0", "t1", now_ms=last_ms) == "t1"
    assert take(db, "t0", "another", now_ms=last_ms + DAY_MS - 1) == "t1"
    # The successor was sent a second time, and lives for a day from then on.
    assert take(db, "t1", "t2", now_ms=last_ms + 2 * DAY_MS - 2) == "t2"


def test_expired_token_is_treated_as_unknown(db: Connection, ada: User) -> None:
    # Whether or not its row was deleted by then.
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1"
    assert take(db, "t1", "t2", now_ms=NOW_MS + 2 * GRACE_MS) == "t2"
    assert take(db, "t0", "stolen", now_ms=NOW_MS + DAY_MS) is None
    assert take(db, "t2", "t3", now_ms=NOW_MS + DAY_MS) == "t3"
    assert read_changes(db, 0) == []


def test_a_token_used_after_its_successor_ends_the_session(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    sign_in(db, ada, "elsewhere", token="e0")
    assert take(db, "t0", "t1")
    assert take(db, "t1", "t2")
    late_ms = NOW_MS + GRACE_MS + 1
    assert take(db, "t0", "stolen", now_ms=late_ms) == "copied"
    assert find_sessions(db, ["s"], now_ms=NOW_MS) == {}
    for token in ("t0", "t1", "t2", "stolen"):
        assert take(db, token, f"new {token}", now_ms=late_ms) is None
    [change] = read_changes(db, 0)
    assert (change.kind, change.session_id, change.user_id) == ("session_ended", "s", ada.id)
    assert take(db, "e0", "e1", now_ms=late_ms) == "e1"


def test_a_thief_who_refreshes_first_is_signed_out_when_the_owner_comes_back(
    db: Connection, ada: User
) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1", "by the thief"
    assert take(db, "t1", "t2", now_ms=NOW_MS + 55 * MINUTE_MS) == "t2", "by the thief"
    assert take(db, "t0", "another", now_ms=NOW_MS + 60 * MINUTE_MS) == "copied", "by the owner"
    assert take(db, "t2", "t3", now_ms=NOW_MS + 60 * MINUTE_MS) is None, "by the thief"


def test_late_thief_ends_the_session_after_the_owner_continued(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1", "by the thief"
    assert take(db, "t0", "another", now_ms=NOW_MS + 55 * MINUTE_MS) == "t1", "by the owner"
    assert take(db, "t1", "t2", now_ms=NOW_MS + 110 * MINUTE_MS) == "t2", "by the owner"
    assert take(db, "t2", "t3", now_ms=NOW_MS + 165 * MINUTE_MS) == "t3", "by the owner"
    assert take(db, "t1", "another", now_ms=NOW_MS + 170 * MINUTE_MS) == "copied", "by the thief"
    assert take(db, "t3", "t4", now_ms=NOW_MS + 220 * MINUTE_MS) is None, "by the owner"


def test_the_end_of_a_copied_session_is_in_the_activity_of_its_users_devices(
    db: Connection, ada: User
) -> None:
    ids = sorted(fresh_device_id() for _ in range(RECORDED_DEVICES + 1))
    add_devices(db, [NewDevice(id=id_, key_hash=hash_of(id_), user_id=ada.id) for id_ in ids], now_ms=NOW_MS)
    sign_in(db, ada)
    take(db, "t0", "t1")
    take(db, "t1", "t2")
    late_ms = NOW_MS + GRACE_MS + 1
    assert [take(db, "t0", "stolen", now_ms=late_ms) for _ in range(2)] == ["copied", None]
    for device_id in ids[:-1]:
        [entry] = activity_of(db, device_id)
        assert (entry.kind, entry.user_id, entry.at_ms) == ("token_copied", ada.id, late_ms)
    # Bounded for users with very many devices.
    assert activity_of(db, ids[-1]) == []


def test_a_token_exchanged_by_an_earlier_version_is_valid_in_its_grace_period_alone(
    db: Connection, ada: User
) -> None:
    sign_in(db, ada)
    sign_in(db, ada, "elsewhere", token="e0")
    db.execute(update(refresh_tokens).values(replaced_at_ms=NOW_MS))
    assert take(db, "t0", "t1", now_ms=NOW_MS + GRACE_MS) == "t1"
    assert take(db, "t0", "another", now_ms=NOW_MS + 10 * GRACE_MS) == "t1"
    assert take(db, "e0", "e1", now_ms=NOW_MS + GRACE_MS + 1) == "copied"
    assert take(db, "t1", "t2", now_ms=NOW_MS + 10 * GRACE_MS) == "t2"


def test_a_clock_that_was_set_back_ends_no_session(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "t1") == "t1"
    assert take(db, "t1", "t2") == "t2"
    assert take(db, "t0", "another", now_ms=NOW_MS - 10 * MINUTE_MS) == "t1"


def test_a_link_is_not_redeemed_again_once_a_session_was_ended(db: Connection, ada: User) -> None:
    add_invite(
        db,
        email=ada.email,
        token_hash=hash_of("link"),
        is_admin=False,
        expires_at_ms=NOW_MS + DAY_MS,
        now_ms=NOW_MS,
    )
    assert redeem_invite(db, hash_of("link"), nonce_hash=hash_of("nonce"), now_ms=NOW_MS) == ada
    sign_in(db, ada)
    assert redeem_invite(db, hash_of("link"), nonce_hash=hash_of("nonce"), now_ms=NOW_MS) == ada
    assert end_sessions(db, ada.id, now_ms=NOW_MS) == 1
    assert redeem_invite(db, hash_of("link"), nonce_hash=hash_of("nonce"), now_ms=NOW_MS) is None


def test_ending_a_session(db: Connection, ada: User) -> None:
    bob = add_user(db, email="bob@example.org", name=None, now_ms=NOW_MS)
    sign_in(db, ada)
    assert not end_session(db, "s", user_id=bob.id, now_ms=NOW_MS)
    assert not end_session(db, "unknown", now_ms=NOW_MS)
    assert read_changes(db, 0) == []
    assert end_session(db, "s", user_id=ada.id, now_ms=NOW_MS + 5)
    assert not end_session(db, "s", now_ms=NOW_MS)
    [change] = read_changes(db, 0)
    assert (change.kind, change.session_id, change.at_ms) == ("session_ended", "s", NOW_MS + 5)
    assert take(db, "t0", "t1") is None


def test_ending_all_sessions_of_a_user(db: Connection, ada: User) -> None:
    bob = add_user(db, email="bob@example.org", name=None, now_ms=NOW_MS)
    sign_in(db, ada, "one", token="1")
    sign_in(db, ada, "two", token="2")
    sign_in(db, bob, "his", token="h")
    assert end_sessions(db, ada.id, now_ms=NOW_MS) == 2
    assert end_sessions(db, ada.id, now_ms=NOW_MS) == 0
    assert {change.session_id for change in read_changes(db, 0)} == {"one", "two"}
    assert list(find_sessions(db, ["one", "two", "his"], now_ms=NOW_MS)) == ["his"]


def test_one_token_from_many_threads_at_once_has_one_successor(database: Database) -> None:
    with database.writing() as db:
        sign_in(db, add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS))

    def go(number: int) -> str | None:
        with database.writing() as db:
            return take(db, "t0", f"t1.{number}")

    with ThreadPoolExecutor(8) as pool:
        (successor,) = set(pool.map(go, range(8)))
    assert successor is not None
    with database.writing() as db:
        assert take(db, successor, "t2") == "t2"


def test_concurrent_use_of_a_token_and_its_successor_is_consistent(database: Database) -> None:
    with database.writing() as db:
        sign_in(db, add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS))
        take(db, "t0", "t1")

    def go(number: int) -> str | None:
        with database.writing() as db:
            return take(db, f"t{number % 2}", f"t2.{number}", now_ms=NOW_MS + number)

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(go, range(32)))
    assert set(outcomes[::2]) == {"t1"}
    assert len(set(outcomes[1::2])) == 1


def test_no_token_is_valid_after_its_session(database: Database) -> None:
    """Tabs and thieves use any token of a session at any time; the session ends now and then."""
    steps = st.lists(
        st.tuples(st.sampled_from(["refresh"] * 8 + ["end"]), st.integers(0, 9), st.integers(0, 90_000)),
        max_size=25,
    )
    names = iter(range(1_000_000))
    with database.writing() as db:
        ada = add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS)

    @settings(max_examples=100)
    @given(steps=steps)
    def lives(steps: list[tuple[str, int, int]]) -> None:
        session_id = f"session {next(names)}"
        tokens = [f"{session_id} 0"]  # each is the successor of the one before
        exchanged_at_ms: list[int] = []
        now_ms, over = NOW_MS, False
        with database.writing() as db:
            sign_in(db, ada, session_id, token=tokens[0])
            for what, which, passes_ms in steps:
                now_ms += passes_ms
                if what == "end":
                    assert end_session(db, session_id, now_ms=now_ms) is not over
                    over = True
                    continue
                number = which % len(tokens)
                outcome = take(db, tokens[number], f"{session_id} {len(tokens)}", now_ms=now_ms)
                successor_used = number + 1 < len(exchanged_at_ms)
                late = successor_used and now_ms - exchanged_at_ms[number] > GRACE_MS
                if over:
                    assert outcome is None
                elif late:
                    assert outcome == "copied"
                    over = True
                else:
                    if number + 1 == len(tokens):
                        tokens.append(f"{session_id} {len(tokens)}")
                        exchanged_at_ms.append(now_ms)
                    elif not successor_used:
                        exchanged_at_ms[number] = now_ms
                    assert outcome == tokens[number + 1]
                assert bool(find_sessions(db, [session_id], now_ms=now_ms)) is not over

    lives()


def test_sessions_are_listed_a_page_at_a_time(db: Connection, ada: User) -> None:
    for number in range(5):  # two pairs that were used at the same time
        sign_in(db, ada, f"s{number}", token=f"t{number}", now_ms=NOW_MS + number // 2)
    found: list[LoginSession] = []
    while page := sessions_of(
        db, ada.id, after=(found[-1].used_at_ms, found[-1].id) if found else None, limit=2, now_ms=NOW_MS + 9
    ):
        found += page
    assert [each.id for each in found] == ["s4", "s3", "s2", "s1", "s0"]
    assert found == sessions_of(db, ada.id, now_ms=NOW_MS + 9)


def test_a_user_has_a_bounded_number_of_sessions(
    db: Connection, ada: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions_module, "SESSIONS_AT_MOST", 3)
    for number in range(5):
        sign_in(db, ada, f"s{number}", token=f"t{number}", now_ms=NOW_MS + number)
    assert [each.id for each in sessions_of(db, ada.id, now_ms=NOW_MS)] == ["s4", "s3", "s2"]
    assert [change.session_id for change in read_changes(db, 0)] == ["s0", "s1"]
