"""Store: the registry for the server, over a Database in worker threads.

The HTTP API sees a Store without `write` (`protocols.Registry`): what it writes has an authority, which is
verified in the same transaction (`write_as`), or is one of the few writes that `registry.anonymous` lists.
"""

import functools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Concatenate, Final, ParamSpec, TypeVar

import trio
from sqlalchemy import Connection, select

from brewos_relay.core.counters import Histogram
from brewos_relay.errors import RegistryError
from brewos_relay.registry.access import access_of
from brewos_relay.registry.authority import ANONYMOUS_WRITES, Authority, verify
from brewos_relay.registry.batched_lookup import BatchedLookup
from brewos_relay.registry.change_feed import Apply, ChangeReader, ChangeWatcher
from brewos_relay.registry.database import Database, crossed
from brewos_relay.registry.device_states import find_states, save_states
from brewos_relay.registry.devices import find_devices
from brewos_relay.registry.held_writes import KeyUse
from brewos_relay.registry.housekeeping import STATES_KEPT_MS, Housekeeper
from brewos_relay.registry.login_sessions import find_sessions
from brewos_relay.registry.pairing import HeldPairing
from brewos_relay.registry.records import Access, Change, Device, LoginSession, StoredState
from brewos_relay.registry.schema import devices
from brewos_relay.registry.tokens import revoked_tokens
from brewos_relay.registry.write_attempt import WriteAttempt
from brewos_relay.registry.write_behind import WriteBehind
from brewos_relay.vocabulary import now_ms

WRITE_S: Final = 4.0
"""How long a write may take, with every wait for others, unless the store is opened with another time."""
_THREADS: Final = 4
_ANY_DEVICE: Final = select(devices.c.id).limit(1)
_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger(__name__)


class Store:
    """The registry of a running server. `open_store` makes one.

    Every coroutine may raise RegistryError. What is found is what was committed, by whomever, before it was
    asked for.
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
        """How long whoever asked had to wait, in s."""
        self.failures: Counter[str] = Counter()
        """How often it was a failure that they waited for."""
        self._readers = trio.CapacityLimiter(_THREADS)
        # Writers that would wait for each other in the database anyway do so here, without a thread each.
        self._writers = trio.CapacityLimiter(1 if database.one_writer else _THREADS)
        self._devices = BatchedLookup(self._query_devices, limiter=self._readers)
        self._accesses = BatchedLookup(self._query_accesses, limiter=self._readers)
        self._sessions = BatchedLookup(self._query_sessions, limiter=self._readers)
        self._revoked = BatchedLookup(self._query_revoked, limiter=self._readers)
        self._heard_of = set(revoked)
        self._states = BatchedLookup(self._query_states, limiter=self._readers)
        self.notes = WriteBehind(database, limiter=self._writers)
        """Activity, presence and infos of devices, written every few seconds."""
        self._watcher = ChangeWatcher(self._read_changes)
        self._states_kept_ms = states_kept_ms
        self._housekeeper = Housekeeper(self.read, self.write, states_kept_ms=states_kept_ms)

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that reads with a connection before these arguments, and give what it returns."""
        call = functools.partial(self._call_reading, function, *args, **kwargs)
        with self._timed("read"):
            return await trio.to_thread.run_sync(call, limiter=self._readers)

    async def write_as(
        self,
        authority: Authority,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Verify an authority and call a function that writes, in one transaction.

        It is committed on return and undone if the function raises. Raises what `authority.verify` does:
        nothing was written then. A transaction that lost to another writer runs once more, with its
        verification. All of it may take `write_s`, with the queue of writers and the waits for locks, or what
        is left until the caller's own deadline. Raises RegistryBusy after that: the change was undone, unless
        its commit was under way, which the error says. Once under way, a cancellation waits for its end.
        """

        def verified(db: Connection) -> T:
            verify(db, authority, now_ms=now_ms())
            return function(db, *args, **kwargs)

        return await self.write(verified)

    async def write_anonymous(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that writes without an authority; as `write_as` otherwise.

        TypeError unless `registry.anonymous` lists the function with the reason.
        """
        if function not in ANONYMOUS_WRITES:
            raise TypeError(f"{function!r} needs an authority: call write_as")
        return await self.write(function, *args, **kwargs)

    async def write(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that writes, in a transaction; for the work of the server itself.

        As `write_as` without the verification.
        """
        attempt = WriteAttempt(self._writers, within_s=self._write_s)
        call = functools.partial(self._call_writing, attempt, function, *args, **kwargs)
        with self._timed("write"):
            return await attempt.run(call)

    async def finish_removals(self, *, within_s: float) -> None:
        """Remove what closed accounts had; see `Housekeeper.finish_removals`."""
        await self._housekeeper.finish_removals(within_s=within_s)

    async def find_device(self, device_id: str) -> Device | None:
        """Find a device by its id; lookups that arrive together share one query."""
        with self._timed("lookup"):
            return await self._devices.find(device_id)

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        """Tell what a user may do with a device; None if nothing (any more). Shares queries likewise."""
        with self._timed("lookup"):
            return await self._accesses.find((user_id, device_id))

    async def find_session(self, session_id: str) -> LoginSession | None:
        """Find a session that has neither been ended nor run out. Shares queries likewise."""
        with self._timed("lookup"):
            return await self._sessions.find(session_id)

    @property
    def write_problem(self) -> tuple[str, str] | None:
        """Why the storage failed the last write, as a word and a text; None once `probe` has succeeded."""
        return self._database.write_problem

    async def probe(self) -> None:
        """Write something that changes nothing, and forget `write_problem`. Raises RegistryError."""
        await self.write(self._database.probe)
        self._database.write_problem = None

    async def is_revoked(self, token_id: str) -> bool:
        """Tell whether a token was revoked. Shares queries likewise."""
        with self._timed("lookup"):
            return await self._revoked.find(token_id) is not None

    def has_heard_of_revocation(self, token_id: str) -> bool:
        """Tell at once whether a token was revoked, as far as changes were read by now.

        A later change closes the connections of the token.
        """
        return token_id in self._heard_of

    async def find_state(self, device_id: str) -> StoredState | None:
        """Find the last state of a device, unless it is too old. Shares queries likewise."""
        with self._timed("lookup"):
            return await self._states.find(device_id)

    async def save_states(self, states: Sequence[StoredState]) -> None:
        """Store the states of devices, in one transaction; see `registry.device_states`."""
        await self.write(save_states, states)

    async def check(self) -> None:
        """See that the registry answers; raises RegistryError. Cancelled, it leaves its thread behind."""
        await trio.to_thread.run_sync(self._ask, limiter=self._readers, abandon_on_cancel=True)

    def hold_pairing(self, claim: HeldPairing) -> None:
        """Hold the token of a device with a working key; written as soon as the registry can be written."""
        self.notes.hold_pairing(claim)

    def hold_use(self, device_id: str, key_hash: bytes, use: KeyUse) -> None:
        """Hold that a device has connected with a working key; written likewise."""
        self.notes.hold_use(device_id, key_hash, use)

    def held_pairings(self, device_id: str) -> Sequence[HeldPairing]:
        """Give the tokens of a device that wait to be stored."""
        return self.notes.held_pairings(device_id)

    def watch_changes(self, apply: Apply) -> None:
        """Have every change since the store was opened handed to `apply`, one batch after another.

        At the latest half a second after its commit, unless the batch before takes longer.
        """
        self._watcher.watch(apply)

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until every change that is committed by now was applied; at once if nothing watches.

        With `ends_only`, until every session that has ended by now was closed: other changes may still wait.
        """
        await self._watcher.catch_up(ends_only=ends_only)

    async def run(self) -> None:
        """Answer lookups, follow changes, prune, and write what is noted, until cancelled.

        **Owns:** a task for each kind of batched lookup, and those that watch, prune and write.
        **Ends when:** cancelled, once what was noted is written, or 5 s later.
        """
        async with trio.open_nursery() as nursery:
            for batcher in (self._devices, self._accesses, self._sessions, self._revoked, self._states):
                nursery.start_soon(batcher.run)
            nursery.start_soon(self._watcher.run)
            nursery.start_soon(self._housekeeper.run)
            nursery.start_soon(self.notes.run)

    @contextmanager
    def _timed(self, operation: str) -> Iterator[None]:
        began_at_s = time.perf_counter()
        try:
            yield
        except RegistryError:
            self.failures[operation] += 1
            raise
        finally:
            self.timings[operation].observe(time.perf_counter() - began_at_s)

    async def _read_changes(self) -> Sequence[Change]:
        changes = await self.read(self._follower.read)
        self._heard_of.update(change.token_id for change in changes if change.token_id is not None)
        return changes

    def _ask(self) -> None:
        with self._database.reading() as db:
            db.execute(_ANY_DEVICE).first()  # SQLite looks into its file for nothing less

    def _query_devices(self, ids: list[str]) -> Mapping[str, Device]:
        with self._database.reading() as db:
            return {device.id: device for device in find_devices(db, ids)}

    def _query_accesses(self, pairs: list[tuple[str, str]]) -> Mapping[tuple[str, str], Access]:
        with self._database.reading() as db:
            return access_of(db, pairs, now_ms=now_ms())

    def _query_sessions(self, ids: list[str]) -> Mapping[str, LoginSession]:
        with self._database.reading() as db:
            return find_sessions(db, ids, now_ms=now_ms())

    def _query_revoked(self, ids: list[str]) -> Mapping[str, str]:
        with self._database.reading() as db:
            return {id_: id_ for id_ in revoked_tokens(db, ids)}

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
    url: str, *, write_s: float = WRITE_S, states_kept_s: float = STATES_KEPT_MS / 1000
) -> AsyncIterator[Store]:
    """Open the registry at an SQLAlchemy URL, and close it with everything noted written.

    `write_s` is how long a write may take before its caller gets RegistryBusy, `states_kept_s` how old the
    state of a device may be.

    **Owns:** a nursery around the body, with the store's task in it.
    **Ends when:** the body does.
    """
    database, follower, revoked = await trio.to_thread.run_sync(_open, url)
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


def _open(url: str) -> tuple[Database, ChangeReader, set[str]]:
    database = Database.open(url)
    try:
        with database.reading() as db:
            follower = ChangeReader(db)  # first: a token that is revoked meanwhile is in one of the two
            return database, follower, revoked_tokens(db)
    except RegistryError:
        database.close()
        raise
