"""Calls to identity providers, in threads, and the accounts of the identities that they confirm."""

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, ParamSpec, TypeVar

import trio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import may_log
from brewos_relay.api.payloads import Refused
from brewos_relay.auth.identity_providers import ProvenIdentity
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.errors import IdentityRejected, IdentityUnavailable, SignInRefused
from brewos_relay.protocols import Registry
from brewos_relay.registry.records import Identity, User
from brewos_relay.registry.sign_in import sign_in
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

_THREADS: Final = 4
"""How many calls to one provider run at a time. They may take requests to it."""
CALL_S: Final = 20.0
"""How long a call may take, with the wait for other ones. A call sends up to four requests, of 5 s each."""

P = ParamSpec("P")
T = TypeVar("T")


def not_set_up(name: str) -> Refused:
    """Make the refusal (404) of a way to sign in that this server does not have."""
    return Refused(
        f"Signing in with {name} is not set up on this server. Use a one-time link or a password, at /login.",
        status=404,
    )


@dataclass(kw_only=True, eq=False)
class ProviderCalls:
    """Calls identity providers. `lines` limits the log lines about failed calls; None for no limit."""

    lines: LogLineLimits | None = None

    def __post_init__(self) -> None:
        # One for each provider: a provider that hangs delays no sign-in with another one.
        self._limiters: defaultdict[str, trio.CapacityLimiter] = defaultdict(
            partial(trio.CapacityLimiter, _THREADS)
        )

    async def call(self, name: str, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking call to the provider with this name.

        Raises Refused: 401 if it does not confirm the user, 503 if it cannot be reached in time.
        """
        reason = f"no answer within {CALL_S:g} s"
        with trio.move_on_after(CALL_S):
            try:
                return await trio.to_thread.run_sync(
                    partial(work, *args, **kwargs), limiter=self._limiters[name], abandon_on_cancel=True
                )
            except IdentityRejected as problem:
                raise Refused(f"{name} did not confirm the sign-in: {problem}.", status=401) from None
            except IdentityUnavailable as problem:
                reason = str(problem)
        if may_log(self.lines, f"signing in with {name}"):
            log.warning("signing in with %s failed: %s", name, reason)
        raise Refused(
            f"{name} cannot be reached at the moment. Try again soon.",
            status=503,
            headers={"Retry-After": "5"},
        )


async def admit(store: Registry, accounts: AccountRules, proven: ProvenIdentity) -> User:
    """Find or create the account of an identity. Raises Refused (403), RegistryError."""
    identity = Identity(
        issuer=proven.issuer,
        subject=proven.subject,
        email=proven.email,
        email_verified=proven.email_verified,
        name=proven.name,
        picture_url=proven.picture_url,
    )
    try:
        return await store.write_anonymous(
            sign_in, identity, open_to_all=accounts.open_to_all, now_ms=now_ms()
        )
    except SignInRefused as problem:
        raise Refused(f"You cannot sign in: {problem}.", status=403) from None
