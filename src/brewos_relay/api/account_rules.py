"""Rules for accounts: ways to sign in, limits of machines, and lifetimes of tokens."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from brewos_relay.auth.code_flow import CodeFlow
from brewos_relay.auth.identity_providers import ProvenIdentity
from brewos_relay.registry.pairing_limits import NewDeviceRules

DAY_S: Final = 24 * 3600


class IdentityVerifier(Protocol):
    """A verifier of tokens from an identity provider."""

    def verify(self, token: str, /) -> ProvenIdentity:
        """Verify a token and return the identity that it proves. Blocks.

        Raises errors.IdentityRejected, and errors.IdentityUnavailable if the provider cannot be reached.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountRules:
    """Rules for accounts. Without verifiers, users sign in with one-time links or passwords."""

    verifiers: Mapping[str, IdentityVerifier] = field(default_factory=dict)
    """By the last part of the sign-in path: "google", "oidc", "facebook"."""
    issuers: Collection[str] = frozenset()
    """The issuers of these verifiers, as the registry has them."""
    code_flows: Mapping[str, CodeFlow] = field(default_factory=dict)
    """By kind, "google" or "oidc": the providers whose sign-in page the relay's page leads to."""
    google_client_id: str | None = None
    """The public client id that a page needs for a Google button."""
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    open_to_all: bool = True
    """Whether a first sign-in creates an account. If false, the e-mail address needs an invite."""
    machines_per_account: int = 50
    """How many machines an account may have, in any role."""
    new_devices: NewDeviceRules = field(default_factory=NewDeviceRules)
    """Which unknown machines may register."""
    access_ttl_s: int = 3600
    refresh_ttl_s: int = 30 * DAY_S
    refresh_grace_s: int = 60
    """How long a replaced refresh token stays valid, as two tabs may send the same one."""
