"""Who may have an account here, how people prove who they are, and for how long they stay signed in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from brewos_relay.auth.identity_providers import ProvenIdentity
from brewos_relay.registry.pairing_limits import NewDeviceRules

DAY_S: Final = 24 * 3600


class IdentityVerifier(Protocol):
    """Whoever can tell whose token it is that somebody else made."""

    def verify(self, token: str, /) -> ProvenIdentity:
        """Tell who somebody is. Blocks.

        Raises errors.IdentityRejected, and errors.IdentityUnavailable if it cannot be told now.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRules:
    """The rules. Without a verifier, people sign in by a one-time link and by a password."""

    verifiers: Mapping[str, IdentityVerifier] = field(default_factory=dict)
    """By the last part of the path to sign in: "google", "oidc", "facebook"."""
    google_client_id: str | None = None
    """What a page needs for a Google button; it is public."""
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    open_to_all: bool = True
    """Whether signing in gives somebody new an account; else it takes an invite for their e-mail address."""
    machines_per_account: int = 50
    """How many machines one account may have, in any role."""
    new_devices: NewDeviceRules = field(default_factory=NewDeviceRules)
    """Which machines may register that are unknown."""
    access_ttl_s: int = 3600
    refresh_ttl_s: int = 30 * DAY_S
    refresh_grace_s: int = 60
    """For how long a replaced refresh token is still good: two tabs may send the same one."""
