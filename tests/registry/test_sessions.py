from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.changes import read_changes
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import Session, User
from brewos_relay.registry.sessions import (
    end_session,
    end_sessions,
    find_sessions,
    open_session,
    refresh,
    sessions_of,
)
from support.registry_files import DAY_MS, MINUTE_MS, NOW_MS, hash_of

GRACE_MS = MINUTE_MS


@pytest.fixture
def ada(db: Connection) -> User:
    return add_user(db, email="ada@example.org", name="Ada", now_ms=NOW_MS)


def sign_in(
    db: Connection, user: User, name: str = "s", *, token: str = "t0", now_ms: int = NOW_MS
) -> Session:
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


def take(db: Connection, token: str, new: str, *, now_ms: int = NOW_MS) -> Session | None:
    return refresh(
        db,
        hash_of(token),
        new_refresh_hash=hash_of(new),
        now_ms=now_ms,
        grace_ms=GRACE_MS,
        expires_at_ms=now_ms + DAY_MS,
    )


def test_a_session_tells_where_and_who(db: Connection, ada: User) -> None:
    session = sign_in(db, ada)
    assert session == Session(
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
        is_admin=True,
    )
    assert find_sessions(db, ["s", "unknown"], now_ms=NOW_MS) == {"s": session}


def test_what_a_client_says_of_itself_is_cut(db: Connection, ada: User) -> None:
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
    session = take(db, "t0", "t1", now_ms=NOW_MS + MINUTE_MS)
    assert session is not None
    assert (session.used_at_ms, session.expires_at_ms) == (NOW_MS + MINUTE_MS, NOW_MS + MINUTE_MS + DAY_MS)
    assert take(db, "t1", "t2", now_ms=NOW_MS + DAY_MS) is not None


def test_an_unknown_token_ends_nothing(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "guessed", "t1") is None
    assert read_changes(db, 0) == []
    assert find_sessions(db, ["s"], now_ms=NOW_MS) != {}


def test_two_tabs_that_refresh_at_the_same_time_both_go_on(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "a1")
    assert take(db, "t0", "b1", now_ms=NOW_MS + GRACE_MS)
    for tab in ("a", "b"):
        for number in range(1, 5):
            at_ms = NOW_MS + number * 55 * MINUTE_MS
            assert take(db, f"{tab}{number}", f"{tab}{number + 1}", now_ms=at_ms), (tab, number)


def test_a_token_that_nobody_used_runs_out_while_its_session_goes_on(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "a1")
    assert take(db, "t0", "unused", now_ms=NOW_MS + 1)
    assert take(db, "t0", "used in the end", now_ms=NOW_MS + 1)
    assert take(db, "a1", "a2", now_ms=NOW_MS + DAY_MS // 2)
    assert take(db, "used in the end", "b2", now_ms=NOW_MS + DAY_MS)
    late_ms = NOW_MS + 1 + DAY_MS
    assert take(db, "unused", "stolen", now_ms=late_ms) is None
    assert take(db, "stolen", "more", now_ms=late_ms) is None
    # Nothing else is wrong, and both tabs go on.
    assert find_sessions(db, ["s"], now_ms=late_ms) != {}
    assert take(db, "a2", "a3", now_ms=late_ms)
    assert take(db, "b2", "b3", now_ms=late_ms)
    assert read_changes(db, 0) == []


def test_a_token_is_as_good_as_unknown_when_it_has_run_out(db: Connection, ada: User) -> None:
    # Whether or not it has been forgotten by then.
    sign_in(db, ada)
    assert take(db, "t0", "t1", now_ms=NOW_MS + 1)
    assert take(db, "t0", "stolen", now_ms=NOW_MS + DAY_MS) is None
    assert take(db, "t1", "t2", now_ms=NOW_MS + DAY_MS)


def test_an_old_token_that_comes_back_ends_the_session(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    sign_in(db, ada, "elsewhere", token="e0")
    assert take(db, "t0", "t1")
    assert take(db, "t0", "stolen", now_ms=NOW_MS + GRACE_MS + 1) is None
    assert find_sessions(db, ["s"], now_ms=NOW_MS) == {}
    for token in ("t0", "t1", "stolen"):
        assert take(db, token, f"new {token}", now_ms=NOW_MS + GRACE_MS + 2) is None
    [change] = read_changes(db, 0)
    assert (change.kind, change.session_id, change.user_id) == ("session_ended", "s", ada.id)
    assert take(db, "e0", "e1", now_ms=NOW_MS + GRACE_MS + 2)


def test_a_clock_that_was_set_back_ends_no_session(db: Connection, ada: User) -> None:
    sign_in(db, ada)
    assert take(db, "t0", "a1")
    assert take(db, "t0", "b1", now_ms=NOW_MS - 10 * MINUTE_MS)


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


def test_one_token_from_many_threads_at_once(database: Database) -> None:
    with database.writing() as db:
        sign_in(db, add_user(db, email="ada@example.org", name=None, now_ms=NOW_MS))

    def go(number: int) -> Session | None:
        with database.writing() as db:
            return take(db, "t0", f"t0.{number}")

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(go, range(8)))
    with database.writing() as db:
        assert all(take(db, f"t0.{number}", f"t1.{number}") for number in range(8))


def test_no_token_is_good_after_its_session(database: Database) -> None:
    """Tabs and thieves with any token of a session, at any time, with the session ended now and then."""
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
        tokens = [f"{session_id} first"]
        replaced_at_ms: dict[str, int] = {}
        now_ms, over = NOW_MS, False
        with database.writing() as db:
            sign_in(db, ada, session_id, token=tokens[0])
            for what, which, passes_ms in steps:
                now_ms += passes_ms
                if what == "end":
                    assert end_session(db, session_id, now_ms=now_ms) is not over
                    over = True
                    continue
                token, new = tokens[which % len(tokens)], f"{session_id} {len(tokens)}"
                late = now_ms - replaced_at_ms.setdefault(token, now_ms) > GRACE_MS
                good = take(db, token, new, now_ms=now_ms) is not None
                assert good is (not over and not late)
                over = over or late
                assert bool(find_sessions(db, [session_id], now_ms=now_ms)) is not over
                if good:
                    tokens.append(new)

    lives()
