"""Ways to sign in, as the settings name them, and how a server gets its first administrator."""

import shlex
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Connection

from brewos_relay.api.account_rules import AccountRules, IdentityVerifier
from brewos_relay.auth.identity_providers import FacebookVerifier, GoogleVerifier, Verifier
from brewos_relay.registry.accounts import has_accounts, has_administrator
from brewos_relay.registry.pairing_window import NewDeviceRules, PairingMode
from brewos_relay.settings import Settings


def account_rules(settings: Settings) -> AccountRules:
    """Make the rules; nobody is asked for anything yet."""
    verifiers: dict[str, IdentityVerifier] = {}
    if settings.google_client_ids:
        verifiers["google"] = GoogleVerifier(client_ids=settings.google_client_ids)
    if settings.oidc_issuer is not None:
        verifiers["oidc"] = Verifier(
            issuer=settings.oidc_issuer,
            audiences=settings.oidc_audiences,
            jwks_url=settings.oidc_jwks_url,
        )
    if settings.facebook_app_id:
        verifiers["facebook"] = FacebookVerifier(
            app_id=settings.facebook_app_id, app_secret=settings.facebook_app_secret
        )
    return AccountRules(
        verifiers=verifiers,
        google_client_id=next(iter(settings.google_client_ids), None),
        oidc_issuer=settings.oidc_issuer,
        oidc_audience=next(iter(settings.oidc_audiences), None),
        open_to_all=settings.sign_up == "open",
        machines_per_account=settings.machines_per_account,
        new_devices=NewDeviceRules(
            mode=cast("PairingMode", settings.pairing), per_network=settings.new_machines_per_network
        ),
    )


@dataclass(frozen=True, slots=True)
class MissingAdministrator:
    """The reason why a server has no administrator, and the command that makes one."""

    text: str
    advice: str


def missing_administrator(db: Connection, settings: Settings) -> MissingAdministrator | None:
    """Tell whether the registry has no administrator; None if it has one."""
    if has_administrator(db):
        return None
    # The command may run in another folder, and without what `serve` was given.
    folder = shlex.quote(str(settings.data_dir.absolute()))
    where = "" if settings.database_url else f" --data-dir {folder}"
    if has_accounts(db):
        return MissingAdministrator(
            "no account is an administrator's", f"make one of them: brewos-relay user admin EMAIL{where}"
        )
    return MissingAdministrator(
        "there is no account yet", f"make the first administrator: brewos-relay user invite EMAIL{where}"
    )
