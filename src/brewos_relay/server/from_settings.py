"""Build the server's parts from its settings: sign-in rules, certificate, host names."""

import logging
import shlex
from dataclasses import dataclass
from functools import partial
from typing import cast
from urllib.parse import urlsplit

from sqlalchemy import Connection

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.console_pages import CALLBACK_PATH, PublishedCa
from brewos_relay.auth.code_flow import CodeFlow
from brewos_relay.auth.identity_providers import FacebookVerifier, GoogleVerifier, Verifier
from brewos_relay.dialect import BREWOS, Policy
from brewos_relay.errors import SettingsError
from brewos_relay.registry.accounts import has_accounts, has_administrator
from brewos_relay.registry.invites import open_admin_invite
from brewos_relay.registry.pairing_limits import NewDeviceRules, PairingMode
from brewos_relay.server.certificates import CertificateFiles
from brewos_relay.server.local_ca import LocalCa
from brewos_relay.server.self_signed import ca_problem, ensure_self_signed
from brewos_relay.settings import Settings
from brewos_relay.settings.sources import PREFIX
from brewos_relay.vocabulary import iso_time, now_ms

log = logging.getLogger(__name__)


def account_rules(settings: Settings) -> AccountRules:
    """Build the rules for accounts, without any network access."""
    verifiers: dict[str, Verifier | FacebookVerifier] = {}
    code_flows: dict[str, CodeFlow] = {}
    redirect_uri = f"{settings.public_url}{CALLBACK_PATH}"
    if settings.google_client_ids:
        verifiers["google"] = google = GoogleVerifier(client_ids=settings.google_client_ids)
        if settings.google_client_secret:
            code_flows["google"] = CodeFlow(
                name="Google",
                verifier=google,
                client_id=settings.google_client_ids[0],
                client_secret=settings.google_client_secret,
                redirect_uri=redirect_uri,
            )
    audiences = tuple(dict.fromkeys(filter(None, (*settings.oidc_audiences, settings.oidc_client_id))))
    if settings.oidc_issuer is not None:
        verifiers["oidc"] = oidc = Verifier(
            issuer=settings.oidc_issuer, audiences=audiences, jwks_url=settings.oidc_jwks_url
        )
        if settings.oidc_client_id:
            code_flows["oidc"] = CodeFlow(
                name=settings.oidc_label or urlsplit(settings.oidc_issuer).hostname or "OpenID Connect",
                verifier=oidc,
                client_id=settings.oidc_client_id,
                client_secret=settings.oidc_client_secret,
                redirect_uri=redirect_uri,
            )
    if settings.facebook_app_id:
        verifiers["facebook"] = FacebookVerifier(
            app_id=settings.facebook_app_id, app_secret=settings.facebook_app_secret
        )
    return AccountRules(
        verifiers=verifiers,
        issuers=frozenset(verifier.issuer for verifier in verifiers.values()),
        code_flows=code_flows,
        google_client_id=next(iter(settings.google_client_ids), None),
        oidc_issuer=settings.oidc_issuer,
        oidc_audience=next(iter(audiences), None),
        open_to_all=settings.sign_up == "open",
        machines_per_account=settings.machines_per_account,
        new_devices=NewDeviceRules(
            mode=cast("PairingMode", settings.pairing), per_network=settings.new_machines_per_network
        ),
    )


@dataclass(frozen=True, slots=True)
class MissingAdministrator:
    """Why a server has no administrator, and the command that creates one."""

    text: str
    advice: str


def missing_administrator(db: Connection, settings: Settings) -> MissingAdministrator | None:
    """Return why the registry has no administrator, or None if it has one.

    An invite stores only the hash of its link, so the advice is a command that prints a new link.
    """
    if has_administrator(db):
        return None
    # The command may run in another folder, and without the options of `serve`.
    folder = shlex.quote(str(settings.data_dir.absolute()))
    where = "" if settings.database_url else f" --data-dir {folder}"
    if (invite := open_admin_invite(db, now_ms=now_ms())) is not None:
        email, ends_at_ms = invite
        return MissingAdministrator(
            f"no administrator has signed in yet; an invite for {email} is open until {iso_time(ends_at_ms)}",
            f"open its link, or print a new one: brewos-relay user invite {shlex.quote(email)}{where}",
        )
    if has_accounts(db):
        return MissingAdministrator(
            "no account is an administrator's", f"make one of them: brewos-relay user admin EMAIL{where}"
        )
    return MissingAdministrator(
        "there is no account yet", f"make the first administrator: brewos-relay user invite EMAIL{where}"
    )


def warn_of_command_lists(settings: Settings) -> None:
    """Warn that the command lists of the settings only add restrictions, and list what else is restricted."""
    limits = settings.limits
    policy = Policy(BREWOS, owner_commands=limits.owner_commands, never_wait=limits.never_wait)
    owners, never_wait = policy.unlisted()
    for name, patterns, what, unlisted in (
        ("OWNER_COMMANDS", limits.owner_commands, "are for owners only", owners),
        ("NEVER_WAIT", limits.never_wait, "never wait", never_wait),
    ):
        if patterns:
            log.warning(
                "%s%s can only add commands that %s. These do so although it does not list them: %s",
                PREFIX,
                name,
                what,
                ", ".join(unlisted) or "none",
            )


def read_certificate(settings: Settings) -> CertificateFiles | None:
    """Load the certificate that the settings name or request; None if the server speaks no TLS."""
    if settings.tls_cert is not None and settings.tls_key is not None:
        return CertificateFiles(settings.tls_cert, settings.tls_key)
    if settings.tls_self_signed:
        ensure = partial(ensure_self_signed, settings.data_dir, public_host(settings))
        file = ensure()
        if (problem := ca_problem(settings.data_dir, public_host(settings))) is not None:
            log.warning("%s", problem)
        return CertificateFiles(file, file, renew=ensure)
    return None


def plain_http_warning(settings: Settings) -> str | None:
    """Return a warning if plain HTTP is served on all interfaces, unless a proxy elsewhere is expected."""
    expects_proxy = any(not network.is_loopback for network in settings.trusted_proxies)
    if settings.speaks_tls or settings.host not in ("", "0.0.0.0", "::") or expects_proxy:  # noqa: S104
        return None
    return (
        "the relay listens on all interfaces without TLS, so others in the network can read passwords and"
        " keys: set up TLS with `brewos-relay init --url https://NAME`, or listen for a proxy on this"
        " computer only, with --host 127.0.0.1"
    )


def public_host(settings: Settings) -> str | None:
    """Return the host of the public URL, if it is set."""
    return urlsplit(settings.public_url).hostname if settings.public_url is not None else None


def published_ca(settings: Settings) -> PublishedCa | None:
    """Return the local CA as `/ca` shows it; None if the server's certificate is not one of a local CA."""
    if not settings.tls_self_signed:
        return None
    try:
        ca = LocalCa.load(settings.data_dir)
    except SettingsError as problem:
        log.warning("%s", problem)
        return None
    return None if ca is None else PublishedCa(ca.pem, ca.fingerprint)


def is_own_host(tls: CertificateFiles, public_url: str | None, host: str) -> bool:
    """Whether this is a host name of the server, by its certificate or its public URL."""
    known = urlsplit(public_url).hostname if public_url is not None else None
    return tls.certificate.is_for(host) or host.lower().strip("[]") == known


def https_port(public_url: str | None, bound_port: int) -> int:
    """Return the port of the public URL, or the port that the server listens on."""
    if public_url is None:
        return bound_port
    return urlsplit(public_url).port or 443


def push_contact(settings: Settings) -> str | None:
    """Return the address of the operator for push services; None if none is known."""
    if settings.push_contact is not None:
        return settings.push_contact
    url = settings.public_url
    return url if url is not None and url.startswith("https://") else None
