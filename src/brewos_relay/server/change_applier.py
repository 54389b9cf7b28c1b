"""ChangeApplier: applies changes of the registry to the connections of this process.

The HTTP API, the command line and other servers write changes into the registry, and every server reads them
there. A connection either still has the access that it uses, or ends.
"""

import logging
from collections.abc import Sequence
from typing import Final, TypedDict

from brewos_relay import messages
from brewos_relay.auth.grants import grant_of
from brewos_relay.core.relay import Relay
from brewos_relay.errors import CloseCode, RegistryError
from brewos_relay.key_rotation import send_new_key
from brewos_relay.live_devices import LocalView
from brewos_relay.registry.records import Change
from brewos_relay.registry.store import Store
from brewos_relay.vocabulary import ROLES, lower_role


class _Ending(TypedDict):
    code: int
    reason: str


log = logging.getLogger(__name__)

_COME_BACK: Final[_Ending] = {"code": CloseCode.TRY_AGAIN_LATER, "reason": "the registry does not answer"}


class ChangeApplier:
    """Applies changes to a relay; `store.watch_changes` calls `apply`."""

    def __init__(self, *, relay: Relay, store: Store) -> None:
        self._relay = relay
        self._store = store
        self.revision = 0
        """How many changes were applied. Data that was read at an earlier revision may be outdated."""

    async def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, the oldest first.

        If the registry cannot be read, the connections concerned end; they are checked again when they
        reconnect. Any other failure is raised after all changes were applied, since each change is delivered
        only once.
        """
        failure: Exception | None = None
        self._end_sessions([change for change in changes if change.kind == "session_ended"])
        self._end_tokens([change for change in changes if change.kind == "token_revoked"])
        for change in changes:
            if change.kind in ("session_ended", "token_revoked"):
                continue
            if self._relay.lines.admit(f"change: {change.kind}", ""):
                log.info("applying %s to device %s", change.kind, change.device_id)
            try:
                await self._apply(change)
            except Exception as problem:
                failure = failure or problem
            self.revision += 1
        if failure is not None:
            raise failure

    async def _apply(self, change: Change) -> None:
        relay = self._relay
        match change.kind:
            case "user_removed":
                relay.end_clients(
                    lambda grant: grant.user_id == change.user_id and not grant.by_token,
                    code=CloseCode.TOKEN_REJECTED,
                    reason="the user was removed",
                )
            case "access_changed" if change.device_id and change.user_id:
                await self._renew_access(change.device_id, change.user_id)
            case "device_removed" if change.device_id:
                for user_id in relay.users_of(change.device_id):
                    await self._renew_access(change.device_id, user_id)
                await self._renew_keys(change.device_id)
            case "key_changed" if change.device_id:
                await self._renew_keys(change.device_id)
            case "key_pending" if change.device_id:
                relay.tell_clients(
                    change.device_id, messages.key_pending(change.at_ms), lambda grant: grant.may_manage
                )
            case "owner_changed" if change.device_id:
                relay.tell_clients(
                    change.device_id, messages.owner_changed(change.at_ms), lambda grant: grant.may_manage
                )
            case "rotate_key" if change.device_id:
                await self._send_new_key(change.device_id, change.user_id)
            case _:
                log.warning("ignoring a change of the kind %s, which is unknown or incomplete", change.kind)

    def _end_sessions(self, ended: Sequence[Change]) -> None:
        """Close the clients of ended login sessions, in one pass over all clients: one user can end many."""
        if not ended:
            return
        log.info("%d sessions have ended", len(ended))
        ids = {change.session_id for change in ended}
        self._relay.end_clients(
            lambda grant: grant.session_id is not None and grant.session_id in ids,
            code=CloseCode.TOKEN_REJECTED,
            reason="the session has ended",
        )
        # Without waiting, so that no client is admitted by data from before.
        self.revision += len(ended)

    def _end_tokens(self, revoked: Sequence[Change]) -> None:
        """Close the clients of revoked tokens."""
        if not revoked:
            return
        log.info("%d tokens were revoked", len(revoked))
        ids = {change.token_id for change in revoked}
        self._relay.end_clients(
            lambda grant: (
                grant.credential is not None
                and grant.credential.token_id is not None
                and grant.credential.token_id in ids
            ),
            code=CloseCode.TOKEN_REJECTED,
            reason="the token has been revoked",
        )
        self.revision += len(revoked)

    async def _send_new_key(self, device_id: str, user_id: str | None) -> None:
        """Send a new key if the machine is connected. The activity log shows the outcome to the user."""
        try:
            # Each instance applies the change: only that of the device sends a key.
            here = LocalView(self._relay)
            outcome = await send_new_key(device_id, relay=here, store=self._store, user_id=user_id)
        except RegistryError as problem:
            log.warning("no new key was sent to device %s: %s", device_id, problem)
        else:
            log.info("a new key for device %s: %s", device_id, outcome)

    async def _renew_access(self, device_id: str, user_id: str) -> None:
        # The registry keeps the state of an absent device, for the users who may see it.
        self._relay.forget_state(device_id)
        try:
            access = await self._store.access_of(user_id, device_id)
        except RegistryError:
            self._relay.end_clients(
                lambda grant: grant.user_id == user_id and not grant.by_token, **_COME_BACK
            )
            return
        if access is None:
            self._relay.set_grant(device_id, user_id, None)
            return
        self._relay.mark_owned(device_id)
        for highest_role in ROLES:
            grant = grant_of(lower_role(highest_role, access.role), until_ms=access.until_ms)
            self._relay.set_grant(device_id, user_id, grant, highest_role=highest_role)

    async def _renew_keys(self, device_id: str) -> None:
        try:
            device = await self._store.find_device(device_id)
        except RegistryError:
            device = None
        keys = () if device is None else (device.key_hash, *device.next_key_hashes)
        self._relay.end_device(device_id, unless=keys)
