"""Store: the registry of a running server. It runs the queries of this package in worker threads.

The HTTP API uses a Store without `write` (`protocols.Registry`). Its writes carry an authority, which is
verified in the same transaction (`write_as`), or are listed in `authority.ANONYMOUS_WRITES`.
"""

import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeAlias, TypeVar

import trio
from sqlalchemy import Connection, select

from brewos_relay.core.counters import Histogram
from brewos_relay.errors import RegistryError
from brewos_relay.registry.access import access_of
from brewos_relay.registry.authority import ANONYMOUS_WRITES, Authority, verify
from brewos_relay.registry.batched_lookup import Answer, BatchedLookup
from brewos_relay.registry.change_feed import Apply, ChangeReader, ChangeWatcher
from brewos_relay.registry.daily_usage import add_usage
from brewos_relay.registry.database import Database, crossed
from brewos_relay.registry.device_states import find_states, save_states
from brewos_relay.registry.devices import find_devices
from brewos_relay.registry.engine import CONNECTIONS
from brewos_relay.registry.held_writes import KeyUse
from brewos_relay.registry.housekeeping import STATES_KEPT_MS, Housekeeper
from brewos_relay.registry.issued_tokens import revoked_tokens
from brewos_relay.registry.login_sessions import find_sessions
from brewos_relay.registry.pairing import HeldPairing
from brewos_relay.registry.records import Access, Change, Device, LoginSession, Shot, StoredState, Usage
from brewos_relay.registry.schema import devices
from brewos_relay.registry.shots import add_shots
from brewos_relay.registry.write_attempt import WriteAttempt
from brewos_relay.registry.write_behind import WriteBehind
from brewos_relay.vocabulary import now_ms

WRITE_S: Final = 4.0
"""How long a write may take by default, with all waiting for other writers."""
_SQLITE_READERS: Final = 4
_RETRY_AFTER_S: Final = 0.05
"""The pause before the retry of a write that lost a deadlock. The other write takes its locks meanwhile."""
_ANY_DEVICE: Final = select(devices.c.id).limit(1)
_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_Kind: TypeAlias = Literal["device", "access", "session", "revoked"]
_Key: TypeAlias = tuple[_Kind, Any]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Timed:
    """Measures how long a caller waited, and counts its failure. Faster than a generator."""

    __slots__ = ("_began_s", "_operation", "_store")

    def __init__(self, store: "Store", operation: str) -> None:
        self._store = store
        self._operation = operation

    def __enter__(self) -> None:
        self._began_s = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(value, RegistryError):
            self._store.failures[self._operation] += 1
        self._store.timings[self._operation].observe(time.perf_counter() - self._began_s)


class Store:
    """The registry of a running server. Use `open_store` to create one.

    Every coroutine may raise RegistryError. A read sees all changes that were committed before it was called,
    by any process.
    """

    def __init__(
        self,
        database: Database,
        follower: ChangeReader,
        *,
        revoked: Collection[str] = (),
        write_s: float = WRITE_S,
        states_kept_ms: int = STATES_KEPT_MS,
    ) -> None:
        self._database = database
        self._follower = follower
        self._write_s = write_s
        self.timings = {name: Histogram(_BOUNDS_S) for name in ("read", "write", "lookup")}
        """How long callers waited, in s."""
        self.failures: Counter[str] = Counter()
        """How often callers waited for a failure."""
        # Each thread uses one connection, and there are as many threads as connections, so that all waiting
        # happens here, in order. Writers that wait for locks never keep readers waiting. If the database has
        # one writer at a time, writers queue here rather than in a thread each.
        writers = 1 if database.one_writer else database.connections // 2
        readers = _SQLITE_READERS if database.one_writer else database.connections - writers
        self._writers = trio.CapacityLimiter(writers)
        # Admission waits for no other reads: a machine gives up after a few seconds.
        if readers > 1:
            readers -= 1
            self._readers, self._lookers = trio.CapacityLimiter(readers), trio.CapacityLimiter(1)
        else:
            self._readers = self._lookers = trio.CapacityLimiter(readers)
        # All that admission needs to decide; one thread answers it with one connection.
        self._lookups: BatchedLookup[_Key, Any] = BatchedLookup(
            self._query, limiter=self._lookers, on_answer=self._count_lookup
        )
        # Of their own, since states are large, and optional.
        self._states = BatchedLookup(self._query_states, limiter=self._readers, on_answer=self._count_lookup)
        self._heard_of = set(revoked)
        self.write_behind = WriteBehind(database, limiter=self._writers)
        """Activity, presence and infos of devices, written every few seconds."""
        self._watcher = ChangeWatcher(self._read_changes)
        self._announce: Callable[[], None] | None = None
        self._states_kept_ms = states_kept_ms
        self._housekeeper = Housekeeper(self.read, self.write, states_kept_ms=states_kept_ms)

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that reads, with a connection and these arguments, and return its result."""
        call = functools.partial(self._call_reading, function, *args, **kwargs)
        with _Timed(self, "read"):
            return await trio.to_thread.run_sync(call, limiter=self._readers)

    async def write_as(
        self,
        authority: Authority,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Verify an authority and call a function that writes, in one transaction.

        The transaction is committed on return and rolled back if the function raises. Raises the errors of
        `authority.verify`; nothing was written then. A transaction that lost against another writer runs once
        more, including the verification. The limit of `write_s`, or the caller's own earlier deadline,
        includes the queue of writers and all lock waits. RegistryBusy is raised at the limit: the change was
        rolled back, unless its commit had started, which the error says. Cancelling a write that is under way
        waits for its end.
        """

        def verified(db: Connection) -> T:
            verify(db, authority, now_ms=now_ms())
            return function(db, *args, **kwargs)

        return await self.write(verified)

    async def write_anonymous(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that writes without an authority; otherwise like `write_as`.

        Raises TypeError unless `authority.ANONYMOUS_WRITES` lists the function.
        """
        if function not in ANONYMOUS_WRITES:
            raise TypeError(f"{function!r} needs an authority: call write_as")
        return await self.write(function, *args, **kwargs)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that writes, in a transaction, on behalf of the server itself.

        Like `write_as` without the verification.
        """
        attempt = WriteAttempt(self._writers, within_s=self._write_s)
        call = functools.partial(self._call_writing, attempt, function, *args, **kwargs)
        with _Timed(self, "write"):
            return await attempt.run(call)

    async def finish_removals(self, *, within_s: float) -> None:
        """Give up the devices of closed accounts; see `Housekeeper.finish_removals`."""
        await self._housekeeper.finish_removals(within_s=within_s)

    def connections_busy(self) -> dict[str, int]:
        """Count the connections in use, for `read` and `write`."""
        reading = self._readers.borrowed_tokens
        if self._lookers is not self._readers:
            reading += self._lookers.borrowed_tokens
        return {"read": reading, "write": self._writers.borrowed_tokens}

    def waiting_for_connection(self) -> dict[str, int]:
        """Count the operations that wait for a connection, for `read` and `write`."""
        return {
            "read": self._readers.statistics().tasks_waiting,
            "write": self._writers.statistics().tasks_waiting,
        }

    # Lookups. Those that are asked for together are answered together: ask first, then wait.

    def ask_device(self, device_id: str) -> Answer[Any, Device]:
        """Look a device up by its id."""
        return self._lookups.ask(("device", device_id))

    def ask_access(self, user_id: str, device_id: str) -> Answer[Any, Access]:
        """Look up a user's access to a device."""
        return self._lookups.ask(("access", (user_id, device_id)))

    def ask_session(self, session_id: str) -> Answer[Any, LoginSession]:
        """Look up a login session that has not ended or expired."""
        return self._lookups.ask(("session", session_id))

    def ask_revoked(self, token_id: str) -> Answer[Any, str]:
        """Look up the id of a token among the revoked ones."""
        return self._lookups.ask(("revoked", token_id))

    def ask_state(self, device_id: str) -> Answer[str, StoredState]:
        """Look up the last state of a device, unless it is too old. The query starts at once."""
        answer = self._states.ask(device_id)
        self._states.begin()
        return answer

    async def find_device(self, device_id: str) -> Device | None:
        """Find a device by its id. Concurrent lookups share one query."""
        return await self.ask_device(device_id).wait()

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        """Return a user's access to a device. None if there is none. Lookups share queries."""
        return await self.ask_access(user_id, device_id).wait()

    async def find_session(self, session_id: str) -> LoginSession | None:
        """Find a login session that has not ended or expired. Lookups share queries."""
        return await self.ask_session(session_id).wait()

    async def is_revoked(self, token_id: str) -> bool:
        """Tell whether a token was revoked. Lookups share queries."""
        return await self.ask_revoked(token_id).wait() is not None

    async def find_state(self, device_id: str) -> StoredState | None:
        """Find the last state of a device, unless it is too old. Lookups share queries."""
        return await self.ask_state(device_id).wait()

    @property
    def write_problem(self) -> tuple[str, str] | None:
        """Why the storage failed the last write, as a code and a message. None once `probe` has succeeded."""
        return self._database.write_problem

    async def probe(self) -> None:
        """Write something that changes nothing, and clear `write_problem`. Raises RegistryError."""
        await self.write(self._database.probe)
        self._database.write_problem = None

    def has_heard_of_revocation(self, token_id: str) -> bool:
        """Tell whether a token was revoked, according to the changes read so far. Does not wait.

        A later revocation closes the connections of the token.
        """
        return token_id in self._heard_of

    async def save_states(self, states: Sequence[StoredState]) -> None:
        """Store the states of devices in one transaction; see `registry.device_states`."""
        await self.write(save_states, states)

    async def add_shots(self, shots: Sequence[Shot], *, kept: int) -> None:
        """Store shots in one transaction; see `registry.shots`."""
        await self.write(add_shots, shots, kept=kept)

    async def add_usage(self, added: Sequence[Usage]) -> None:
        """Add usage of devices in one transaction; see `registry.daily_usage`."""
        await self.write(add_usage, added)

    async def check(self) -> None:
        """Verify that the registry answers. Raises RegistryError. If cancelled, it abandons its thread."""
        await trio.to_thread.run_sync(self._ask, limiter=self._readers, abandon_on_cancel=True)

    def hold_pairing(self, pairing: HeldPairing) -> None:
        """Hold the token of a device with a working key until the registry can be written."""
        self.write_behind.hold_pairing(pairing)

    def hold_use(self, device_id: str, key_hash: bytes, use: KeyUse) -> None:
        """Hold that a device connected with a working key, until the registry can be written."""
        self.write_behind.hold_use(device_id, key_hash, use)

    def held_pairings(self, device_id: str) -> Sequence[HeldPairing]:
        """Return the tokens of a device that wait to be stored."""
        return self.write_behind.held_pairings(device_id)

    def watch_changes(self, apply: Apply, *, announce: Callable[[], None] | None = None) -> None:
        """Pass every change since the store was opened to `apply`, one batch after another.

        A change is passed at most half a second after its commit, unless the previous batch takes longer.
        `announce` is called by `catch_up`, when this process has written changes.
        """
        self._announce = announce
        self._watcher.watch(apply)

    def read_changes(self) -> None:
        """Read changes now: another process has written some."""
        self._watcher.read_now()

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until all changes committed by now are applied. Returns at once if nothing watches.

        With `ends_only`, wait until the sessions that ended by now are closed; other changes may still wait.
        """
        if self._announce is not None:
            self._announce()
        await self._watcher.catch_up(ends_only=ends_only)

    async def run(self) -> None:
        """Answer lookups, follow changes, do the housekeeping and run `write_behind`, until cancelled.

        **Owns:** a task for each kind of batched lookup, and one each for watching, housekeeping and writing.
        **Ends when:** cancelled, once `write_behind` has written everything, or 5 s later.
        """
        async with trio.open_nursery() as nursery:
            for batcher in (self._lookups, self._states):
                nursery.start_soon(batcher.run)
            nursery.start_soon(self._watcher.run)
            nursery.start_soon(self._housekeeper.run)
            nursery.start_soon(self.write_behind.run)

    def _count_lookup(self, waited_s: float, failed: bool) -> None:
        self.timings["lookup"].observe(waited_s)
        if failed:
            self.failures["lookup"] += 1

    async def _read_changes(self) -> Sequence[Change]:
        changes = await self.read(self._follower.read)
        self._heard_of.update(change.token_id for change in changes if change.token_id is not None)
        return changes

    def _ask(self) -> None:
        with self._database.reading() as db:
            db.execute(_ANY_DEVICE).first()  # SQLite does not open its file for less

    def _query(self, keys: list[_Key]) -> Mapping[_Key, Any]:
        """Look keys of all kinds up: a query for each kind."""
        wanted: dict[_Kind, list[Any]] = {}
        for kind, key in keys:
            wanted.setdefault(kind, []).append(key)
        found: dict[_Key, Any] = {}
        with self._database.reading() as db:
            if ids := wanted.get("device"):
                found.update((("device", device.id), device) for device in find_devices(db, ids))
            if ids := wanted.get("revoked"):
                found.update((("revoked", id_), id_) for id_ in revoked_tokens(db, ids))
            if ids := wanted.get("session"):
                sessions = find_sessions(db, ids, now_ms=now_ms())
                found.update((("session", id_), session) for id_, session in sessions.items())
            if pairs := wanted.get("access"):
                accesses = access_of(db, pairs, now_ms=now_ms())
                found.update((("access", pair), access) for pair, access in accesses.items())
        return found

    def _query_states(self, ids: list[str]) -> Mapping[str, StoredState]:
        with self._database.reading() as db:
            return find_states(db, ids, after_ms=now_ms() - self._states_kept_ms)

    def _call_reading(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._database.reading() as db:
            return function(db, *args, **kwargs)

    def _call_writing(
        self,
        attempt: WriteAttempt,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            return self._write_once(attempt, function, *args, **kwargs)
        except RegistryError as problem:
            if not crossed(problem):
                raise
        attempt.not_committed()
        time.sleep(min(_RETRY_AFTER_S, attempt.left_s()))
        return self._write_once(attempt, function, *args, **kwargs)

    def _write_once(
        self,
        attempt: WriteAttempt,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with self._database.writing(within_s=attempt.left_s()) as db:
            result = function(db, *args, **kwargs)
            attempt.before_commit()
        return result


@asynccontextmanager
async def open_store(
    url: str,
    *,
    connections: int = CONNECTIONS,
    write_s: float = WRITE_S,
    states_kept_s: float = STATES_KEPT_MS / 1000,
) -> AsyncIterator[Store]:
    """Open the registry at an SQLAlchemy URL. On exit, write what `write_behind` still holds, and close it.

    PostgreSQL gets at most `connections`: 2 or more, half of them for writes. A write raises RegistryBusy
    after `write_s`. States of devices older than `states_kept_s` are not used.

    **Owns:** a nursery around the body, with the store's task in it. **Ends when:** the body does.
    """
    database, follower, revoked = await trio.to_thread.run_sync(_open, url, connections)
    try:
        store = Store(
            database,
            follower,
            revoked=revoked,
            write_s=write_s,
            states_kept_ms=round(states_kept_s * 1000),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            try:
                yield store
            finally:
                nursery.cancel_scope.cancel()
    finally:
        database.close()


def _open(url: str, connections: int) -> tuple[Database, ChangeReader, set[str]]:
    database = Database.open(url, connections=connections)
    try:
        with database.reading() as db:
            follower = ChangeReader(db)  # first, so that a concurrent revocation is in one of the two
            return database, follower, revoked_tokens(db)
    except RegistryError:
        database.close()
        raise
