"""Everything that can be set from outside, and what of it belongs together."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote

from brewos_relay.errors import SettingsError
from brewos_relay.settings.limits import ServerLimits
from brewos_relay.settings.parsing import Network, parse_texts
from brewos_relay.settings.sources import PREFIX

DATABASE_FILE: Final = "brewos-relay.db"
MIN_JWT_SECRET_BYTES: Final = 32
MIN_METRICS_TOKEN_CHARS: Final = 16

FIRST_LIMITS: Final = (
    "clients_per_device",
    "clients_per_user",
    "client_rate",
    "client_burst",
    "device_rate",
    "device_burst",
    "admit_rate",
    "drain_s",
    "snapshot_s",
    "state_retention_s",
    "owner_commands",
    "never_wait",
)
"""The limits that operators change first. The settings reference lists the others as advanced."""

# SQLAlchemy takes all up to the first `@`, also what would end the host of any other URL; others to the last.
_PASSWORDS: Final = (re.compile(r"://[^:/]*:([^@]+)@"), re.compile(r"://[^:/]*:([^/?#]+)@"))
_PASSWORD_NAMES: Final = ("password", "sslpassword")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that can be set from outside, checked."""

    # Addresses and ports
    host: str = ""
    """Address to listen on; empty for all interfaces, IPv4 and IPv6."""
    port: int = 3001
    """Port to listen on; 0 takes any free one."""
    public_url: str | None = None
    """The address that links lead to: `http` or `https` and a host, perhaps a port, no path; without it,
    links lead to where the request came to."""

    # TLS
    tls_cert: Path | None = None
    """PEM file of a certificate, followed by those that vouch for it; the port speaks TLS only then. Needs
    the key."""
    tls_key: Path | None = None
    """PEM file of the private key of that certificate, without a passphrase."""
    tls_self_signed: bool = False
    """Speak TLS with a certificate that the relay makes, keeps in the data folder, and renews; not
    together with the two above."""
    redirect_port: int | None = None
    """A second port, where plain HTTP is sent on to TLS (308); needs TLS; 0 takes any free one."""

    # Behind a proxy
    trusted_proxies: tuple[Network, ...] = ()
    """Networks (`10.0.0.0/8`) and addresses whose `X-Forwarded-For`, `-Proto` and `-Host` count; the
    option takes one and can be repeated."""
    proxy_protocol: bool = False
    """Connections from there begin with a header of the PROXY protocol, version 1 or 2; needs the
    networks."""

    # Token keys
    jwt_secret: str = field(default="", repr=False)
    """Secrets of at least 32 bytes each: the first signs tokens, all verify them; required for `serve` and
    `token`, unless there are key files."""
    jwt_key_files: tuple[Path, ...] = ()
    """PEM files of private keys, Ed25519 or RSA of at least 2048 bits: the first signs, before any secret
    does, all verify."""

    # Sign-in
    sign_up: str = "open"
    """Who gets an account: `open` for whoever proves who they are to one of the parties below, `invited`
    for those who were invited before."""
    google_client_ids: tuple[str, ...] = ()
    """Client ids that Google's ID tokens may be made for; the first is told to pages. Empty: nobody signs
    in with Google."""
    oidc_issuer: str | None = None
    """An OpenID Connect issuer, exactly as its tokens name it: `https`, or `http` on this computer; needs
    an audience."""
    oidc_audiences: tuple[str, ...] = ()
    """Client ids that the issuer's ID tokens may be made for."""
    oidc_jwks_url: str | None = None
    """Where the issuer's public keys are; without it, the issuer's `/.well-known/openid-configuration` is
    asked."""
    facebook_app_id: str = ""
    """The app that Facebook's access tokens have to be made for; needs its secret."""
    facebook_app_secret: str = field(default="", repr=False)
    """The secret of that app."""

    # Pairing
    pairing: str = "open"
    """Which machines may register that are unknown: `open` for any, `window` for those that do so while an
    administrator has opened pairing (`brewos-relay pairing open`), `closed` for none."""
    new_machines_per_network: int = 500
    """Unknown machines that may register within a day from one network: an address, or a /64 of IPv6. The
    next wider network may register twice as many, and so on."""
    machines_per_account: int = 50
    """Machines that one account may have, in any role; claims, shares and gifts beyond that are refused.
    Accounts that have more keep them."""

    # Web app
    web_dist_path: Path | None = None
    """Folder of a built web app to serve; without it, the relay's own pages."""
    allowed_origins: tuple[str, ...] = ()
    """Origins of pages that may connect as clients and send requests that change something, besides the
    server's own, as in `https://app.example.com`; of an app, `capacitor://localhost`, `ionic://localhost`
    or `tauri://localhost`."""

    # Metrics
    metrics_token: str = field(default="", repr=False)
    """What `GET /metrics` takes as a bearer, of at least 16 characters; without it, the port that everybody
    reaches shows no metrics."""
    metrics_port: int | None = None
    """A port of its own for `GET /metrics`, without TLS, and without a token unless one is set; 0 takes any
    free one."""
    metrics_host: str = "127.0.0.1"
    """Address to listen on for that."""

    # Storage and logging
    data_dir: Path = Path("data")
    """Folder of the registry's SQLite file `brewos-relay.db`, and of a certificate that the relay makes."""
    database_url: str = field(default="", repr=False)  # it may hold a password
    """SQLAlchemy URL of the registry; empty for the SQLite file in the data folder."""
    log_level: str = "info"
    """`debug`, `info`, `warning`, `error` or `critical`."""
    log_format: str = "auto"
    """`console` for lines to read, `json` for one object a line; `auto` is `console` on a terminal and `json`
    elsewhere."""
    limits: ServerLimits = field(default_factory=ServerLimits)
    """Every bound, each of which is a setting of its own."""

    def __post_init__(self) -> None:
        """Check what belongs together; SettingsError names the settings and says what to do."""
        for wrong, problem in (
            (
                self.tls_cert is not None and self.tls_key is None,
                "TLS_CERT needs BREWOS_RELAY_TLS_KEY as well",
            ),
            (
                self.tls_key is not None and self.tls_cert is None,
                "TLS_KEY needs BREWOS_RELAY_TLS_CERT as well",
            ),
            (
                self.tls_self_signed and self.tls_cert is not None,
                "TLS_CERT and BREWOS_RELAY_TLS_SELF_SIGNED exclude each other; leave one of them out",
            ),
            (
                self.redirect_port is not None and not self.speaks_tls,
                "REDIRECT_PORT needs BREWOS_RELAY_TLS_CERT or BREWOS_RELAY_TLS_SELF_SIGNED to lead to",
            ),
            (
                self.redirect_port is not None and self.redirect_port == self.port != 0,
                f"REDIRECT_PORT is {self.redirect_port}, where the relay itself listens; choose another",
            ),
            (
                self.proxy_protocol and not self.trusted_proxies,
                "PROXY_PROTOCOL needs BREWOS_RELAY_TRUSTED_PROXIES: nobody else's header counts",
            ),
            (
                self.oidc_issuer is not None and not self.oidc_audiences,
                "OIDC_ISSUER needs BREWOS_RELAY_OIDC_AUDIENCE: tokens made for others are no good here",
            ),
            (
                self.oidc_issuer is None and bool(self.oidc_audiences or self.oidc_jwks_url),
                "OIDC_AUDIENCE and BREWOS_RELAY_OIDC_JWKS_URL need BREWOS_RELAY_OIDC_ISSUER as well",
            ),
            (
                0 < len(self.metrics_token) < MIN_METRICS_TOKEN_CHARS,
                (
                    f"METRICS_TOKEN has {len(self.metrics_token)} characters: it must have"
                    f" {MIN_METRICS_TOKEN_CHARS} or more; `brewos-relay secret` makes one"
                ),
            ),
            (
                bool(self.facebook_app_id) != bool(self.facebook_app_secret),
                "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET need each other",
            ),
        ):
            if wrong:
                raise SettingsError(f"{PREFIX}{problem}")

    @property
    def speaks_tls(self) -> bool:
        """Whether the port speaks TLS."""
        return self.tls_self_signed or self.tls_cert is not None

    def secrets(self) -> list[str]:
        """List what must never be shown, neither in a log nor elsewhere."""
        return [
            *parse_texts(self.jwt_secret),
            *filter(None, (self.facebook_app_secret, self.metrics_token)),
            *_passwords_in(self.database_url),
        ]

    def resolved_database_url(self) -> str:
        """Give the URL of the registry's database; SettingsError if `data_dir` cannot be part of one."""
        if self.database_url:
            return self.database_url
        path = (self.data_dir / DATABASE_FILE).as_posix()
        if "?" in path or "%" in path:
            raise SettingsError(
                f"DATA_DIR is {str(self.data_dir)!r}: choose a folder without '?' and '%' in its name"
            )
        return f"sqlite:///{path}"

    def require_jwt_secrets(self) -> list[str]:
        """Give the secrets, the one that signs first; SettingsError if one is too short, or there is none.

        There need not be any where `jwt_key_files` are.
        """
        try:
            self.jwt_secret.encode()
        except UnicodeEncodeError:
            raise _secret_problem("is not UTF-8") from None
        secrets = list(parse_texts(self.jwt_secret))
        for place, secret in enumerate(secrets, start=1):
            if (size_bytes := len(secret.encode())) < MIN_JWT_SECRET_BYTES:
                which = f" (number {place} of {len(secrets)})" if len(secrets) > 1 else ""
                raise _secret_problem(f"has {size_bytes} bytes{which}")
        if not secrets and not self.jwt_key_files:
            raise _secret_problem("is not set")
        return secrets


def _passwords_in(database_url: str) -> list[str]:
    """Find the passwords of a database's URL, as they are written there and as they are meant."""
    written = [found[1] for pattern in _PASSWORDS if (found := pattern.search(database_url))]
    query = parse_qs(database_url.rpartition("?")[2])
    named = [each for name in _PASSWORD_NAMES for each in query.get(name, ())]
    return list(dict.fromkeys([*(form for each in written for form in (each, unquote(each))), *named]))


def _secret_problem(problem: str) -> SettingsError:
    return SettingsError(
        f"JWT_SECRET {problem}: it must be a text of at least {MIN_JWT_SECRET_BYTES} bytes;"
        " `brewos-relay secret` makes one, to be put into the environment or into .env"
    )
