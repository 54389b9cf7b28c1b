import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.core.grant import Credential, Grant
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import RegistryError
from brewos_relay.registry.device_keys import add_next_key
from brewos_relay.registry.records import Access, Change, ChangeKind, Device
from brewos_relay.registry.store import Store
from brewos_relay.server.change_applier import ChangeApplier
from brewos_relay.vocabulary import Role, is_key
from support.peers import ScriptedPeer

ONE, TWO = "BRW-00000001", "BRW-00000002"
OLD, NEXT, NEW = (hash_secret(letter * 43) for letter in "onw")
TARE = {"type": "command", "cmd": "tare"}
RESTART = {"type": "command", "cmd": "restart"}


class Registry(Store):
    """A registry in memory, which may be unreachable."""

    def __init__(self) -> None:
        self.accesses: dict[tuple[str, str], Access] = {}
        self.devices = {ONE: a_device(ONE, OLD), TWO: a_device(TWO, OLD)}
        self.failure: Exception | None = None
        self.added: list[tuple[str, bytes, str | None]] = []

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        await self._answer()
        return self.accesses.get((user_id, device_id))

    async def find_device(self, device_id: str) -> Device | None:
        await self._answer()
        return self.devices.get(device_id)

    async def write(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        assert function is add_next_key
        await self._answer()
        device_id, key_hash = args
        self.added.append((device_id, key_hash, kwargs["user_id"]))

    async def _answer(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure


def a_device(device_id: str, key_hash: bytes, *next_hashes: bytes) -> Device:
    return Device(
        id=device_id,
        key_hash=key_hash,
        name=None,
        created_at_ms=1,
        last_seen_ms=None,
        next_key_hashes=next_hashes,
    )


class Scene:
    """A relay, people at two devices, and the registry."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.registry = Registry()
        self.applier = ChangeApplier(relay=relay, store=self.registry)
        self.device = ScriptedPeer()
        relay.attach_device(ONE, self.device, credential=OLD)
        self._changes = 0

    def let(self, user_id: str, role: Role, *, until_ms: int | None = None, device_id: str = ONE) -> None:
        """Give a user access to a device, in the registry only."""
        self.registry.accesses[user_id, device_id] = Access(
            user_id=user_id, device_id=device_id, role=role, until_ms=until_ms
        )

    def client(self, device_id: str = ONE, **grant: Any) -> ScriptedPeer:
        peer = ScriptedPeer()
        self.relay.attach_client(device_id, peer, grant=Grant(**grant))
        return peer

    async def change(self, *kinds: ChangeKind, **about: str | None) -> None:
        """Apply changes of these kinds, all about the same subject."""
        changes = []
        for kind in kinds:
            self._changes += 1
            changes.append(Change(id=self._changes, at_ms=1_700_000_000_000, kind=kind, **about))
        try:
            await self.applier.apply(changes)
        finally:
            await wait_all_tasks_blocked()

    def reaches(self, client: ScriptedPeer, command: dict[str, str] = TARE) -> bool:
        """Send a message as a client. Tell whether it reaches the machine."""
        before = self.device.types.count("command")
        client.say(command)
        return self.device.types.count("command") > before


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with trio.fail_after(5):
        async with open_relay(dialect=BREWOS) as relay:
            made = Scene(relay)
            await wait_all_tasks_blocked()
            yield made


async def test_an_ended_session_closes_its_connections_at_every_device() -> None:
    async with scene() as it:
        ours = [it.client(user_id="ada", session_id="s1"), it.client(TWO, user_id="ada", session_id="s1")]
        by_token = it.client(user_id="ada", session_id="s1", by_token=True)
        others = [
            it.client(user_id="ada", session_id="s2"),
            it.client(user_id="ada"),
            it.client(user_id="bob", session_id="s3"),
        ]
        await wait_all_tasks_blocked()
        await it.change("session_ended", session_id="s1", user_id="ada")
        assert [client.close_code for client in (*ours, by_token)] == [4002] * 3
        assert not it.reaches(ours[0])
        assert [client.close_code for client in others] == [None] * 3
        assert it.device.closes == []


async def test_ending_sessions_does_not_match_clients_without_a_session() -> None:
    async with scene() as it:
        client = it.client(user_id="ada")
        await wait_all_tasks_blocked()
        await it.change("session_ended", session_id=None)
        assert client.closes == []


async def test_many_ended_sessions_are_applied_in_one_pass() -> None:
    async with scene() as it:
        clients = [it.client(user_id="ada", session_id=f"s{number}") for number in range(3)]
        await wait_all_tasks_blocked()
        looks = 0
        end_clients = it.relay.end_clients

        def count(*args: Any, **kwargs: Any) -> None:
            nonlocal looks
            looks += 1
            end_clients(*args, **kwargs)

        it.relay.end_clients = count  # type: ignore[method-assign]
        ended = [
            Change(id=n, at_ms=1, kind="session_ended", device_id=None, user_id="ada", session_id=f"s{n}")
            for n in range(2)
        ]
        await it.applier.apply(ended)
        assert [client.close_code for client in clients] == [4002, 4002, None]
        assert (looks, it.applier.revision) == (1, 2)


async def test_a_revoked_token_closes_its_connections_at_every_device_and_no_others() -> None:
    async with scene() as it:
        ours = [
            it.client(user_id="ada", credential=Credential("t1"), by_token=True),
            it.client(TWO, user_id="ada", credential=Credential("t1")),
        ]
        others = [
            it.client(user_id="ada", credential=Credential("t2")),
            it.client(user_id="ada", credential=Credential()),
            it.client(user_id="ada", session_id="s1"),
        ]
        await wait_all_tasks_blocked()
        await it.change("token_revoked", token_id="t1")
        assert [client.close_code for client in ours] == [4002, 4002]
        assert [client.close_code for client in others] == [None] * 3
        assert it.applier.revision == 1


async def test_promoting_a_user_does_not_promote_a_token_of_a_lower_role() -> None:
    async with scene() as it:
        it.let("bob", "owner")
        viewer = it.client(user_id="bob", highest_role="viewer", may_command=False, may_manage=False)
        full = it.client(user_id="bob", may_command=False, may_manage=False)
        await wait_all_tasks_blocked()
        await it.change("access_changed", device_id=ONE, user_id="bob")
        assert it.reaches(full)
        assert not it.reaches(viewer)


async def test_sessions_end_before_lookups_for_the_same_batch() -> None:
    async with scene() as it:
        seen = []

        async def look() -> None:
            seen.append(it.applier.revision)

        it.registry._answer = look  # type: ignore[method-assign]
        about = {"device_id": ONE, "user_id": "ada", "session_id": "s1"}
        await it.change("access_changed", "session_ended", **about)
        assert seen == [1]


async def test_clients_of_a_removed_user_are_closed_unless_a_token_names_the_device() -> None:
    async with scene() as it:
        ours = [it.client(user_id="bob", session_id="s1"), it.client(TWO, user_id="bob")]
        others = [it.client(user_id="bob", by_token=True), it.client(user_id="ada"), it.client()]
        await wait_all_tasks_blocked()
        await it.change("user_removed", user_id="bob")
        assert [client.close_code for client in ours] == [4002] * 2
        assert [client.close_code for client in others] == [None] * 3


async def test_revoked_access_ends_only_the_connections_that_used_it() -> None:
    async with scene() as it:
        bobs = [it.client(user_id="bob", session_id=session) for session in ("s1", "s2")]
        others = [
            it.client(TWO, user_id="bob"),
            it.client(user_id="bob", by_token=True),
            it.client(user_id="ada"),
        ]
        await wait_all_tasks_blocked()
        await it.change("access_changed", device_id=ONE, user_id="bob")
        assert [client.close_code for client in bobs] == [4003] * 2
        assert not it.reaches(bobs[0])
        assert [client.close_code for client in others] == [None] * 3


@pytest.mark.parametrize(
    ("role", "may"), [("owner", [True, True]), ("member", [True, False]), ("viewer", [False, False])]
)
async def test_another_role_takes_effect_from_the_next_message(role: Role, may: list[bool]) -> None:
    async with scene() as it:
        client = it.client(user_id="bob", session_id="s1", may_manage=role == "viewer")
        await wait_all_tasks_blocked()
        it.let("bob", role)
        await it.change("access_changed", device_id=ONE, user_id="bob")
        assert [it.reaches(client, command) for command in (TARE, RESTART)] == may
        assert client.closes == []
        # It still belongs to its login session.
        await it.change("session_ended", session_id="s1")
        assert client.close_code == 4002


async def test_a_new_expiry_of_an_access_takes_effect(autojump_clock: trio.testing.MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        it = Scene(relay)
        client = it.client(user_id="bob")
        await wait_all_tasks_blocked()
        it.let("bob", "member", until_ms=round((time.time() + 10) * 1000))
        await it.change("access_changed", device_id=ONE, user_id="bob")
        await trio.sleep(8)
        assert it.reaches(client)
        await trio.sleep(2.5)
        assert not it.reaches(client)
        await trio.sleep(1)
        assert client.close_code == 4003


async def test_a_device_that_is_removed_loses_its_users_and_its_connection() -> None:
    async with scene() as it:
        clients = [it.client(user_id="ada"), it.client(user_id="bob")]
        elsewhere, by_token = it.client(TWO, user_id="ada"), it.client(user_id="ada", by_token=True)
        await wait_all_tasks_blocked()
        del it.registry.devices[ONE]
        await it.change("device_removed", device_id=ONE)
        assert [client.close_code for client in clients] == [4003] * 2
        assert it.device.close_code == 4003
        assert not it.relay.is_online(ONE)
        assert (elsewhere.closes, by_token.closes) == ([], [])


async def test_users_of_a_device_that_was_added_again_stay_connected() -> None:
    async with scene() as it:
        ada, bob = it.client(user_id="ada"), it.client(user_id="bob")
        await wait_all_tasks_blocked()
        it.let("ada", "owner")
        await it.change("device_removed", device_id=ONE)
        assert (ada.close_code, bob.close_code) == (None, 4003)
        assert it.device.closes == []


@pytest.mark.parametrize(
    ("device", "code"),
    [
        (a_device(ONE, OLD), None),
        (a_device(ONE, OLD, NEXT), None),
        (a_device(ONE, NEW, OLD), None),
        (a_device(ONE, NEW, NEXT), 4003),
        (None, 4003),
    ],
)
async def test_a_connection_whose_key_has_ended_is_closed(device: Device | None, code: int | None) -> None:
    async with scene() as it:
        client = it.client(user_id="ada")
        await wait_all_tasks_blocked()
        if device is None:
            del it.registry.devices[ONE]
        else:
            it.registry.devices[ONE] = device
        await it.change("key_changed", device_id=ONE)
        assert it.device.close_code == code
        assert it.relay.is_online(ONE) is (code is None)
        assert client.closes == []
        assert client.types.count("device_offline") == (0 if code is None else 1)


async def test_owners_are_notified_of_another_machine_before_they_lose_the_device() -> None:
    async with scene() as it:
        owner, member = it.client(user_id="ada"), it.client(user_id="bob", may_manage=False)
        await wait_all_tasks_blocked()
        await it.change("owner_changed", "access_changed", device_id=ONE, user_id="ada")
        [told] = [message for message in owner.received if message["type"] == "log"]
        assert told["level"] == "warn"
        assert "owns the device now" in told["message"]
        assert "log" not in member.types


async def test_owners_are_notified_of_a_waiting_key() -> None:
    async with scene() as it:
        owners = [it.client(user_id="ada"), it.client(user_id="ada", by_token=True)]
        others = [
            it.client(user_id="bob", may_manage=False),
            it.client(user_id="vic", may_manage=False, may_command=False),
            it.client(TWO, user_id="ada"),
        ]
        await wait_all_tasks_blocked()
        await it.change("key_pending", device_id=ONE)
        for owner in owners:
            [told] = [message for message in owner.received if message["type"] == "log"]
            assert told["level"] == "warn"
            assert told["timestamp"] == 1_700_000_000_000
            assert "another key" in told["message"]
        assert [client.types.count("log") for client in others] == [0] * 3
        assert it.device.closes == []


async def test_a_new_key_that_a_command_line_asks_for_is_kept_and_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with scene() as it:
        await it.change("rotate_key", device_id=ONE, user_id="ada")
        [sent] = [message for message in it.device.received if message["type"] == "key_rotate"]
        assert is_key(sent["key"])
        assert it.registry.added == [(ONE, hash_secret(sent["key"]), "ada")]
        assert "a new key for device BRW-00000001: sent" in caplog.text
        assert sent["key"] not in caplog.text


async def test_no_key_is_sent_to_an_absent_machine_or_without_storing_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with scene() as it:
        await it.change("rotate_key", device_id=TWO)
        assert "BRW-00000002: offline" in caplog.text
        it.registry.failure = RegistryError("the disk is gone")
        await it.change("rotate_key", device_id=ONE)
        assert "no new key was sent to device BRW-00000001: the disk is gone" in caplog.text
        assert "key_rotate" not in it.device.types


async def test_an_unresponsive_registry_ends_the_connections_concerned_which_may_reconnect() -> None:
    async with scene() as it:
        bobs, adas = it.client(user_id="bob"), it.client(user_id="ada")
        by_token = it.client(user_id="bob", by_token=True)
        await wait_all_tasks_blocked()
        it.registry.failure = RegistryError("locked")
        await it.change("access_changed", device_id=ONE, user_id="bob")
        assert (bobs.close_code, adas.close_code, by_token.close_code) == (1013, None, None)
        assert not it.reaches(bobs)
        await it.change("key_changed", device_id=ONE)
        assert not it.relay.is_online(ONE)
        assert it.device.close_code == 4003


@pytest.mark.parametrize(
    "kind",
    ["access_changed", "device_removed", "key_changed", "key_pending", "owner_changed", "rotate_key"],
)
async def test_an_incomplete_change_has_no_effect(kind: ChangeKind, caplog: pytest.LogCaptureFixture) -> None:
    async with scene() as it:
        client = it.client(user_id="ada")
        await wait_all_tasks_blocked()
        client.forget()
        await it.change(kind)
        assert (client.closes, client.received, it.device.closes) == ([], [], [])
        assert f"ignoring a change of the kind {kind}" in caplog.text


async def test_every_change_is_counted_once_it_is_applied() -> None:
    async with scene() as it:
        assert it.applier.revision == 0
        await it.change("session_ended", session_id="s1")
        assert it.applier.revision == 1
        await it.change("key_pending", "access_changed", device_id=ONE, user_id="ada")
        assert it.applier.revision == 3
        seen = []

        async def look() -> None:
            seen.append(it.applier.revision)

        it.registry._answer = look  # type: ignore[method-assign]
        await it.change("access_changed", "access_changed", device_id=ONE, user_id="ada")
        assert seen == [3, 4]  # while it is being applied, it does not count yet
        assert it.applier.revision == 5


async def test_a_flood_of_changes_is_logged_in_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers cause changes as well, by registering other keys for machines without users."""
    caplog.set_level(logging.INFO)
    async with scene() as it:
        kinds: list[ChangeKind] = ["key_pending"] * 300
        await it.change(*kinds, device_id=TWO)
        await it.change("access_changed", device_id=ONE, user_id="ada")
        said = [line for line in caplog.messages if line.startswith("applying")]
        assert len(said) == 201
        assert said[-1] == f"applying access_changed to device {ONE}"
        it.relay.lines.report()
    assert any(line.startswith("100 more log lines") and "key_pending" in line for line in caplog.messages)


async def test_a_failing_change_does_not_prevent_the_others() -> None:
    async with scene() as it:
        bob = it.client(user_id="bob", session_id="s1")
        await wait_all_tasks_blocked()
        it.registry.failure = ZeroDivisionError("a fault")
        with pytest.raises(ZeroDivisionError, match="a fault"):
            await it.change("key_changed", "session_ended", device_id=ONE, session_id="s1")
        assert bob.close_code == 4002
        assert it.applier.revision == 2


@pytest.mark.parametrize("is_there", [True, False])
async def test_the_state_of_an_absent_device_is_forgotten_when_its_users_change(is_there: bool) -> None:
    async with scene() as it:
        it.device.say({"type": "status", "seq": 1})
        it.client(user_id="ada")
        if not is_there:
            it.device.leave()
        await wait_all_tasks_blocked()
        await it.change("access_changed", device_id=ONE, user_id="bob")
        assert (it.relay.state_of(ONE) is not None) == is_there


async def test_a_device_that_is_claimed_while_it_is_connected_is_stored_from_then_on() -> None:
    async with scene() as it:
        device = ScriptedPeer()
        it.relay.attach_device(TWO, device, credential=OLD, anonymous=True)
        await wait_all_tasks_blocked()
        device.say({"type": "status", "seq": 1})
        assert it.relay.unsaved_states() == []
        it.let("ada", "owner", device_id=TWO)
        await it.change("access_changed", device_id=TWO, user_id="ada")
        assert it.relay.unsaved_states() == [TWO]
