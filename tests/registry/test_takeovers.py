"""Random lives of a device: properties that hold for all users, machines and strangers, in any order."""

from dataclasses import dataclass, field
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from brewos_relay.errors import LastOwner, NotAnOwner, TooManyKeys
from brewos_relay.registry.access import current_users, give, leave, set_role, take
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import add_next_key, use_next_key, works
from brewos_relay.registry.devices import find_devices
from brewos_relay.registry.pairing import pair_device, register_pairing
from brewos_relay.registry.records import Access, Device, PairingResult
from brewos_relay.registry.sharing import accept_share, new_share
from brewos_relay.vocabulary import GuestRole, role_includes
from support.registry_files import MINUTE_MS, NOW_MS, fresh_device_id, hash_of

LIFE_MS: Final = 10 * MINUTE_MS
PEOPLE: Final = ("olga", "mia", "tom")
EVE: Final = "eve"
EVES_TOKENS: Final = 5
"""Too few to evict a token of the machine."""

ACTIONS: Final = (
    "machine boots",
    "machine shows a new token",
    "machine sends its token again",
    "machine loses its key",
    "machine connects",
    "a user scans",
    "a user scans",
    "a user scans an earlier token",
    "eve registers",
    "eve registers the shown token",
    "eve scans the shown token",
    "eve scans her own token",
    "eve guesses",
    "owner sends a key",
    "owner shares",
    "a user accepts a share",
    "eve accepts a share",
    "owner removes a user",
    "owner demotes a user",
    "a user leaves",
    "time passes",
)
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, 2), st.integers(0, 3)), min_size=10, max_size=45
)


def covers(access: Access, other: Access) -> bool:
    """Tell whether access is at least as much as another, and for as long."""
    if not role_includes(access.role, other.role):
        return False
    return access.until_ms is None or (other.until_ms is not None and access.until_ms >= other.until_ms)


@dataclass
class Life:
    """A device, its machine, its users, and Eve, who knows its id and sometimes sees its screen."""

    db: Connection
    id: str
    now_ms: int = NOW_MS
    count: int = 0
    key: str = "machine's first"
    token: str = "machine's token"
    registered: bool = False
    eves: list[str] = field(default_factory=list)
    scanned: list[tuple[str, str]] = field(default_factory=list)
    shares: list[tuple[str, GuestRole, int | None]] = field(default_factory=list)
    gave: dict[str, set[str]] = field(default_factory=dict)
    """Which users each token has given access to."""

    @property
    def device(self) -> Device | None:
        found = find_devices(self.db, [self.id])
        return found[0] if found else None

    @property
    def users(self) -> dict[str, Access]:
        return current_users(self.db, self.id, now_ms=self.now_ms)

    def owners(self) -> set[str]:
        return {user_id for user_id, access in self.users.items() if access.role == "owner"}

    def new(self, what: str) -> str:
        self.count += 1
        return f"{self.id} {what} {self.count}"

    def register(self, token: str, key: str) -> str:
        return register_pairing(
            self.db,
            device_id=self.id,
            key_hash=hash_of(key),
            token_hash=hash_of(token),
            now_ms=self.now_ms,
            expires_at_ms=self.now_ms + LIFE_MS,
        )

    def scan(self, token: str, user_id: str) -> PairingResult | None:
        before = self.users.get(user_id)
        answer = pair_device(
            self.db,
            device_id=self.id,
            token_hash=hash_of(token),
            user_id=user_id,
            name=None,
            now_ms=self.now_ms,
        )
        after = self.users.get(user_id)
        if after != before:
            assert answer is not None
            assert after is not None
            assert before is None or covers(after, before)
            self.gave.setdefault(token, set()).add(user_id)
            assert len(self.gave[token]) == 1, f"{token} gave access to {self.gave[token]}"
        return answer

    def boot(self) -> None:
        self.token = self.new("shown")
        self.register(self.token, self.key)
        self.registered = True

    def step(self, action: str, one: int, other: int) -> None:
        who = PEOPLE[one]
        owners = sorted(self.owners() - {EVE})
        match action:
            case "machine boots" | "machine shows a new token":
                self.boot()
            case "machine sends its token again" if self.registered:
                self.register(self.token, self.key)
            case "machine loses its key" if self.registered:
                self.key = self.new("machine's own")
                if other < 2:
                    self.boot()
            case "machine connects":
                self.connect()
            case "a user scans":
                # Members scan to gain rights, and all users scan twice.
                self.scan(self.token, who)
                self.scanned.append((self.token, who))
            case "a user scans an earlier token" if self.scanned:
                self.scan(*self.scanned[other % len(self.scanned)])
            case "eve registers" if len(self.eves) < EVES_TOKENS:
                self.eves.append(self.new("eve's"))
                self.register(self.eves[-1], "eve's key")
            case "eve registers the shown token":
                self.register(self.token, "eve's key")
            case "eve scans the shown token" if self.owners():
                self.scan(self.token, EVE)
            case "eve scans her own token" if self.eves and self.owners():
                assert self.scan(self.eves[other % len(self.eves)], EVE) is None
            case "eve guesses":
                assert self.scan(self.new("guess"), EVE) is None
            case "owner sends a key" if owners:
                self.rotate(kept=other < 2)
            case "owner shares" if owners:
                self.share(owners[0], "member" if one else "viewer", None if other else self.now_ms + LIFE_MS)
            case "a user accepts a share" if self.shares:
                self.take_share(who, *self.shares[other % len(self.shares)])
            case "eve accepts a share":
                assert self.take_share(EVE, self.new("guess"), "member", None) is None
            case "owner removes a user" if owners:
                self.remove((*PEOPLE, EVE)[other])
            case "owner demotes a user" if owners:
                self.demote((*PEOPLE, EVE)[other])
            case "a user leaves" if who in self.users:
                leave(self.db, self.id, who, now_ms=self.now_ms)
                assert who not in self.users
            case "time passes":
                self.now_ms += (MINUTE_MS, LIFE_MS // 2, LIFE_MS)[one]

    def connect(self) -> bool:
        device = self.device
        if device is None or not works(device, hash_of(self.key)):
            return False
        return use_next_key(self.db, self.id, hash_of(self.key), now_ms=self.now_ms)

    def rotate(self, *, kept: bool) -> None:
        key = self.new("machine's sent")
        device = self.device
        assert device is not None
        connected = works(device, hash_of(self.key))
        try:
            add_next_key(self.db, self.id, hash_of(key), now_ms=self.now_ms)
        except TooManyKeys:
            return
        if connected and kept:
            self.key = key

    def share(self, owner: str, role: GuestRole, until_ms: int | None) -> None:
        token = self.new("share")
        self.shares.append((token, role, until_ms))
        new_share(
            self.db,
            share_id=hash_of(token).hex()[:32],
            device_id=self.id,
            token_hash=hash_of(token),
            code_hash=hash_of(f"code {token}"),
            role=role,
            until_ms=until_ms,
            uses_left=None,
            created_by=owner,
            now_ms=self.now_ms,
            expires_at_ms=self.now_ms + LIFE_MS,
        )

    def take_share(
        self, user_id: str, token: str, role: GuestRole, until_ms: int | None
    ) -> PairingResult | None:
        before = self.users.get(user_id)
        answer = accept_share(
            self.db, device_id=self.id, token_hash=hash_of(token), user_id=user_id, now_ms=self.now_ms
        )
        after = self.users.get(user_id)
        if after != before:
            assert after is not None
            assert (after.role, after.until_ms) == (role, until_ms), "more or less than it says"
            assert before is None or covers(after, before)
        assert (answer is None) or after is not None
        return answer

    def remove(self, user_id: str) -> None:
        try:
            taken = take(self.db, self.id, user_id, now_ms=self.now_ms)
        except LastOwner:
            return
        assert user_id not in self.users
        if taken:
            for token, _, _ in self.shares:
                assert self.take_share(user_id, token, "member", None) is None
            for token, who in self.scanned:
                # An unused token on the screen works for every user who sees it.
                assert who != user_id or not self.gave.get(token) or self.scan(token, user_id) is None

    def demote(self, user_id: str) -> None:
        try:
            set_role(self.db, self.id, user_id, role="viewer", now_ms=self.now_ms)
        except LastOwner:
            return


def check(life: Life, action: str, before: Device | None, owners: set[str], users: dict[str, Access]) -> None:
    device, now = life.device, life.users
    came = set(now) - set(users)
    if came:
        assert action in {
            "a user scans",
            "a user scans an earlier token",
            "eve scans the shown token",
            "a user accepts a share",
        }, action
    if device is None or before is None:
        return
    if owners and device.key_hash != before.key_hash:
        by_owner = action in {"a user scans", "a user scans an earlier token"}
        by_machine = action == "machine connects" and device.key_hash in before.next_key_hashes
        assert by_owner or by_machine, action
        assert not device.key_pending_since_ms
    # Owners scan the token that their machine shows, so the device's key is always one of the machine's.
    if life.owners():
        assert not works(device, hash_of("eve's key")), action
        assert EVE not in life.owners()


def test_no_stranger_takes_a_device_over(database: Database) -> None:
    # The rules do not depend on the database; a few lives show the differences.
    @settings(max_examples=300 if database.one_writer else 40)
    @given(steps=STEPS)
    def lives(steps: list[tuple[str, int, int]]) -> None:
        with database.writing() as db:
            life = Life(db, fresh_device_id())
            life.boot()
            for action, one, other in steps:
                before, owners, users = life.device, life.owners(), life.users
                life.step(action, one, other)
                check(life, action, before, owners, users)
            # In the end, one scan gives the machine to its owner.
            life.boot()
            owner = next(iter(sorted(life.owners() - {EVE})), "olga")
            answer = life.scan(life.token, owner)
            assert answer is not None
            assert answer.role == "owner"
            assert life.connect()

    lives()


def test_a_share_gives_nothing_without_an_owner(db: Connection) -> None:
    life = Life(db, fresh_device_id())
    life.boot()
    give(db, life.id, "mia", role="member", now_ms=NOW_MS)
    try:
        life.share("mia", "member", None)
    except NotAnOwner:
        assert life.take_share("tom", life.shares[0][0], "member", None) is None
    else:
        raise AssertionError("a member shared the device")
